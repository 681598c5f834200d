"""The previous release and this one side by side: rolling upgrades and rollbacks under load, on one PostgreSQL.

The supervisor starts its children from its own path; the test replaces the binary there and restarts each instance in turn.
The previous release is the commit in .ci/previous-release; .ci/previous.sh builds it.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path

from postgres import Postgres, check_verify, postgres_programs, skip_reason
from rolling import Load, restart
from system import BIN, PROGRAMS, TARGET, System, check, eventually, grpc

PREVIOUS = TARGET / "previous/ordermesh"
SERVICES = ("user", "order", "payment", "data")
# A later release's possible change: a column unknown to both releases, and the migration's entry.
LATER_SCHEMA = {"user": "account", "order": "orders", "payment": "payment", "data": "product"}


def install(binary, path):
    """Replaces the program at a path atomically."""
    new = path.with_suffix(".new")
    shutil.copy2(binary, new)
    new.rename(path)


def restart_all(system, instances):
    for service, instance in instances:
        restart(system, service, instance)


def count_children_of(system, binary):
    """The number of children that run a release's program."""
    wanted = digest(binary)
    return sum(digest(f"/proc/{pid}/exe") == wanted for pid, _ in system.children())


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def replaceable_system(url):
    """A system of the previous release on PostgreSQL, whose program can be replaced: (folder, system, swap_program)."""
    folder = tempfile.TemporaryDirectory(prefix="ordermesh-upgrade-")
    program = Path(folder.name) / "ordermesh"
    install(PREVIOUS, program)
    PROGRAMS.add(str(program))
    system = System(flags=[*url, "--user.bcrypt-cost", "4"], program=program)
    return folder, system, lambda binary: install(binary, program)


def run():
    """Upgraded, rolled back and upgraded again under load: 0 failed calls, 0 lost orders, 0 lost events, in two rollout orders of the services."""
    if why := skip_reason():
        return why
    check(PREVIOUS.exists(), f"{PREVIOUS} exists (.ci/previous.sh builds it)")
    return f"{on_a_newer_schema()}; {data_last()}"


def on_a_newer_schema():
    """Both releases side by side, on a schema newer than both."""
    with Postgres(postgres_programs()) as server:
        url = ["--database-url", server.url("postgres")]
        folder, started, swap_program = replaceable_system(url)
        with folder, started as system:
            with Load(system, "--customers", "6", *url) as load:
                swap_program(BIN)
                new_beside_old = [(service, 1) for service in SERVICES]
                restart_all(system, new_beside_old)
                check(count_children_of(system, BIN) == 4, "one instance of each service is of this release")
                for service, table in LATER_SCHEMA.items():  # a schema newer than both
                    server.sql(f'ALTER TABLE "{service}".{table} ADD COLUMN later TEXT')
                    server.sql(f"INSERT INTO \"{service}\".schema_version VALUES (1000, 'a later release', 0)")
                swap_program(PREVIOUS)
                old_on_new_schema = [(service, 2) for service in SERVICES]
                restart_all(system, old_on_new_schema)
                restart_all(system, new_beside_old)  # rolled back
                check(count_children_of(system, PREVIOUS) == 9, "all are of the previous release")
                swap_program(BIN)
                restart_all(system, new_beside_old + old_on_new_schema)  # and upgraded again
                check(count_children_of(system, BIN) == 8, "all but the gateway are of this release")
                acknowledged, _ = load.seen()
            check_all_events_are_stored(system, server)
            check_verify(system, *url)
    return f"20 restarts in {load.took:.0f} s, {acknowledged} orders, 0 failed calls"


def rejected_events(server, service):
    """The ids of a service's events that the Data Service has rejected."""
    found = server.sql(f'SELECT event_id FROM "{service}".outbox_refused')
    return set() if found == "done" else set(found.splitlines())


def check_all_events_are_stored(system, server):
    """Rejected events are sent again at startup: afterwards every outbox is empty."""
    senders = ("user", "order", "payment")
    restart_all(system, [(service, n) for service in senders for n in (1, 2)])

    def left():
        counts = {service: server.sql(
            f'SELECT (SELECT COUNT(*) FROM "{service}".outbox) + (SELECT COUNT(*) FROM "{service}".outbox_refused)') for service in senders}
        check(set(counts.values()) == {"0"}, f"every event is stored; not yet: {counts}")
        return True

    eventually("every event is stored", 60, left)


def cause_audit_events(system):
    """Changes an account, which is audited, besides the load's cancellations."""
    _, token = system.customer()
    change = {"profile": {"display_name": "Another"}, "update_mask": {"paths": ["display_name"]}}
    grpc(system.port("user"), "user.v1.UserService/UpdateProfile", change, token)


def data_last():
    """The wrong rollout order: user and order are upgraded before data, which rejects their audit events; none of them is lost."""
    with Postgres(postgres_programs()) as server:
        url = ["--database-url", server.url("postgres")]
        folder, started, swap_program = replaceable_system(url)
        first = [(service, n) for n in (1, 2) for service in ("user", "order")]
        last = [(service, n) for n in (1, 2) for service in ("payment", "data")]
        with folder, started as system:
            rejected = set()
            with Load(system, "--customers", "6", *url) as load:
                for binary, count in ((BIN, 4), (PREVIOUS, 9), (BIN, 4)):  # upgraded, rolled back, and upgraded again
                    swap_program(binary)
                    restart_all(system, first)
                    check(count_children_of(system, binary) == count, f"{count} instances are of {binary}")
                    if binary == BIN:
                        cause_audit_events(system)
                        for service in ("user", "order"):
                            eventually(f"the old Data Service rejects new events of {service}", 30, lambda service=service: rejected_events(server, service))
                    rejected |= rejected_events(server, "user") | rejected_events(server, "order")
                restart_all(system, last)
                check(count_children_of(system, BIN) == 8, "all but the gateway are of this release")
                acknowledged, _ = load.seen()
            rejected |= rejected_events(server, "user") | rejected_events(server, "order")
            check_all_events_are_stored(system, server)
            stored = set(server.sql('SELECT event_id FROM "data".trace_event').splitlines())
            check(rejected and rejected <= stored, f"every rejected event is stored in the end: {len(rejected - stored)} of {len(rejected)} are not")
            check_verify(system, *url)
    return f"data last: {acknowledged} orders, {len(rejected)} events rejected and stored in the end"
