#!/usr/bin/env python3
"""End-to-end tests: the built program, real grpcurl, real Jaeger, real PostgreSQL, kill -9. Standard library only.

    .ci/e2e.py [PART...]

ORDERMESH_BIN overrides target/release/ordermesh. The tools of .ci/tools.sh are found in .ci/bin or PATH.
"""

import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

import clients  # noqa: E402
import crash  # noqa: E402
import failover  # noqa: E402
import golden  # noqa: E402
import leaks  # noqa: E402
import live  # noqa: E402
import nats  # noqa: E402
import patroni  # noqa: E402
import postgres  # noqa: E402
import readme  # noqa: E402
import rolling  # noqa: E402
import upgrade  # noqa: E402
from system import prepare_process, run_named  # noqa: E402

PARTS = {
    "readme": readme.run,
    "trace": golden.run,
    "live": live.run,
    "kill": crash.kill_each_service,
    "supervisor": crash.kill_the_supervisor,
    "port": crash.taken_port,
    "rolling": rolling.run,
    "upgrade": upgrade.run,
    "postgres": postgres.on_postgres,
    "away": postgres.outage,
    "sink": nats.run,
    "failover": failover.run,
    "patroni": patroni.run,
    "pooler": postgres.behind_poolers,
    "secrets": leaks.run,
    "clients": clients.run,
    "chaos": crash.chaos,
    "chaos-postgres": postgres.chaos,
}


if __name__ == "__main__":
    prepare_process()
    sys.exit(run_named("E2E", PARTS, sys.argv[1:], ["grpcurl", "jaeger", "nats-server", "bash"]))
