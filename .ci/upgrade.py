"""The release before this one and this one side by side: a rolling upgrade and a roll back under load, on one PostgreSQL.

The supervisor starts its children from its own path; what lies there is exchanged, and each instance is restarted in turn.
The previous release is the commit in .ci/previous-release; .ci/previous.sh builds it.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from postgres import Postgres, postgres_programs, skipped, verified
from rolling import EXPECTED, restart
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


def of_release(system, binary):
    """How many children run a release's program."""
    size = binary.stat().st_size
    return sum(os.stat(f"/proc/{pid}/exe").st_size == size for pid, _ in system.children())


def run():
    """Upgraded, half rolled back and upgraded again under load, on a schema that is newer still: 0 failed calls, 0 lost orders."""
    if skipped():
        return skipped()
    check(PREVIOUS.exists(), f"{PREVIOUS} is there (.ci/previous.sh builds it)")
    with Postgres(postgres_programs()) as server, tempfile.TemporaryDirectory(prefix="ordermesh-upgrade-") as folder:
        program, report = Path(folder) / "ordermesh", Path(folder) / "load.json"
        put(PREVIOUS, program)
        PROGRAMS.add(str(program))
        system = System(flags=["--database-url", server.url("postgres"), "--user.bcrypt-cost", "4"], program=program)
        with system:
            place = ["--port-base", str(system.base), "--data-dir", str(system.data_dir), "--database-url", server.url("postgres")]
            load = subprocess.Popen(
                [str(BIN), "load", *place, "--customers", "6", "--duration", "75s", "--mix", "happy=90,cancel=10", "--json", str(report)],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            steps = []
            try:
                time.sleep(2)  # so that there is load
                began = time.monotonic()
                put(BIN, program)
                steps += [restart(system, service, 1) for service in SERVICES]  # new beside old
                check(of_release(system, BIN) == 4, "one instance of each service is of this release")
                for service, table in LATER.items():  # a schema that is newer than both
                    server.sql(f'ALTER TABLE "{service}".{table} ADD COLUMN later TEXT')
                    server.sql(f"INSERT INTO \"{service}\".schema_version VALUES (1000, 'a later release', 0)")
                put(PREVIOUS, program)
                steps += [restart(system, service, 2) for service in SERVICES]  # old starts on the new schema
                steps += [restart(system, service, 1) for service in SERVICES]  # rolled back
                put(BIN, program)
                steps += [restart(system, service, n) for service in SERVICES for n in (1, 2)]  # and upgraded again
                check(of_release(system, BIN) == 8, "all are of this release, but for the gateway")
                took = time.monotonic() - began
                check(load.poll() is None, f"the load goes on for longer than the restarts ({took:.0f} s)")
                said, _ = load.communicate(timeout=120)
            finally:
                load.kill()
            check(load.returncode == 0, f"every order ends as its customer expects:\n{said}")
            figures = json.loads(report.read_text())
            refused = {what: count for what, count in figures["refusals"].items() if what not in EXPECTED}
            check(not refused, f"failed calls: {refused}\n{said}")
            verified(system, "--database-url", server.url("postgres"))
    acknowledged = figures["latencies"]["acknowledged"]["count"]
    return f"{len(steps)} restarts in {took:.0f} s, {acknowledged} orders, 0 failed calls"
