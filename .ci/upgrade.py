"""The release before this one and this one side by side: a rolling upgrade and a roll back under load, on one PostgreSQL.

The supervisor starts its children from its own path; what lies there is exchanged, and each instance is restarted in turn.
The previous release is the commit in .ci/previous-release; .ci/previous.sh builds it.
"""

import os
import shutil
import tempfile
from pathlib import Path

from postgres import Postgres, postgres_programs, skipped, verified
from rolling import Load, restart
from system import BIN, PROGRAMS, TARGET, System, check

PREVIOUS = TARGET / "previous/ordermesh"
SERVICES = ("user", "order", "payment", "data")
# What a later release might add: a column that nobody knows yet, and the migration's entry.
LATER = {"user": "account", "order": "orders", "payment": "payment", "data": "product"}


def put(binary, path):
    """Exchanges the program at a path, whole."""
    new = path.with_suffix(".new")
    shutil.copy2(binary, new)
    new.rename(path)


def restart_all(system, instances):
    for service, instance in instances:
        restart(system, service, instance)


def of_release(system, binary):
    """How many children run a release's program."""
    size = binary.stat().st_size
    return sum(os.stat(f"/proc/{pid}/exe").st_size == size for pid, _ in system.children())


def run():
    """Upgraded, half rolled back and upgraded again under load, on a schema that is newer still: 0 failed calls, 0 lost orders."""
    if why := skipped():
        return why
    check(PREVIOUS.exists(), f"{PREVIOUS} is there (.ci/previous.sh builds it)")
    with Postgres(postgres_programs()) as server, tempfile.TemporaryDirectory(prefix="ordermesh-upgrade-") as folder:
        program = Path(folder) / "ordermesh"
        put(PREVIOUS, program)
        PROGRAMS.add(str(program))
        url = ["--database-url", server.url("postgres")]
        with System(flags=[*url, "--user.bcrypt-cost", "4"], program=program) as system:
            with Load(system, "--customers", "6", *url) as load:
                put(BIN, program)
                new_beside_old = [(service, 1) for service in SERVICES]
                restart_all(system, new_beside_old)
                check(of_release(system, BIN) == 4, "one instance of each service is of this release")
                for service, table in LATER.items():  # a schema that is newer than both
                    server.sql(f'ALTER TABLE "{service}".{table} ADD COLUMN later TEXT')
                    server.sql(f"INSERT INTO \"{service}\".schema_version VALUES (1000, 'a later release', 0)")
                put(PREVIOUS, program)
                old_on_new_schema = [(service, 2) for service in SERVICES]
                restart_all(system, old_on_new_schema)
                restart_all(system, new_beside_old)  # rolled back
                check(of_release(system, PREVIOUS) == 9, "all are of the release before")
                put(BIN, program)
                restart_all(system, new_beside_old + old_on_new_schema)  # and upgraded again
                check(of_release(system, BIN) == 8, "all are of this release, but for the gateway")
                acknowledged, _ = load.seen()
            verified(system, *url)
    return f"20 restarts in {load.took:.0f} s, {acknowledged} orders, 0 failed calls"
