#!/usr/bin/env python3
"""End-to-end tests: the built program, real grpcurl, real Jaeger, real PostgreSQL, kill -9. Standard library only.

    .ci/e2e.py [PART...]

ORDERMESH_BIN overrides target/release/ordermesh. The tools of .ci/tools.sh are found in .ci/bin or PATH.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
os.environ["PATH"] = f"{HERE / 'bin'}:{os.environ['PATH']}"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that started processes are terminated
# Only flags and files configure the system under test.
for name in list(os.environ):
    if name.startswith(("ORDERMESH_", "GATEWAY_", "OTEL_")) and name != "ORDERMESH_BIN":
        del os.environ[name]

import crash  # noqa: E402
import golden  # noqa: E402
import leaks  # noqa: E402
import postgres  # noqa: E402
import readme  # noqa: E402
import rolling  # noqa: E402
import upgrade  # noqa: E402
from system import BIN, run_parts  # noqa: E402

PARTS = {
    "readme": readme.run,
    "trace": golden.run,
    "kill": crash.kill_each_service,
    "supervisor": crash.kill_the_supervisor,
    "port": crash.taken_port,
    "rolling": rolling.run,
    "upgrade": upgrade.run,
    "postgres": postgres.on_postgres,
    "away": postgres.goes_away,
    "secrets": leaks.run,
    "chaos": crash.chaos,
    "chaos-postgres": postgres.chaos,
}


def main(names):
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"no such part: {unknown}; there are {', '.join(PARTS)}")
        return 2
    needed = ["grpcurl", "jaeger", "bash"]
    missing = [tool for tool in needed if not shutil.which(tool)]
    if missing or not BIN.exists():
        print(f"missing: {missing or BIN}; run .ci/tools.sh and cargo build --release")
        return 2
    return run_parts("E2E", {name: PARTS[name] for name in names or PARTS})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
