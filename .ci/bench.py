#!/usr/bin/env python3
"""Compares programs under `ordermesh load`: rotated runs, medians. CI does not run it.

    .ci/bench.py NAME=PROGRAM [NAME=PROGRAM ...] [--stores sqlite,postgres] [--instances 1] [--customers 1,16,64]
                 [--rounds 5] [--seconds 10]

Each run starts a system in a new folder, warms it up, loads it, and stops it. CPU is that of the services' processes and
of PostgreSQL's, from /proc, over the load; transactions are those of pg_stat_database. The load's own program is the
first one's, so that all are measured by one client.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from contextlib import nullcontext
from pathlib import Path

from postgres import Postgres, postgres_programs
from system import PROGRAMS, System

TICK = os.sysconf("SC_CLK_TCK")


def cpu(pid):
    """Seconds of CPU of a process and all below it."""
    pids = [pid]
    for each in pids:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            pids += [int(child) for child in children.read_text().split()]
    total = 0
    for each in pids:
        fields = Path(f"/proc/{each}/stat").read_text().rsplit(") ", 1)[1].split()
        # Its own time, and that of its children that have ended.
        total += sum(int(field) for field in fields[11:15])
    return total / TICK


def run(program, loader, store, instances, customers, seconds):
    """The figures of one load, and what it cost: CPU of all, CPU of the database, commits."""
    server = Postgres(postgres_programs()) if store == "postgres" else nullcontext()
    with server as postgres, tempfile.TemporaryDirectory() as folder:
        flags = ["--database-url", postgres.url("postgres")] if postgres else []
        with System(flags, instances=instances, program=program) as system:
            where = ["--port-base", str(system.base), "--data-dir", str(system.data_dir), *flags]
            load = [loader, "load", *where, "--customers", str(customers), "--no-verify", "--json", f"{folder}/figures"]
            subprocess.run([*load, "--duration", "2s"], check=True, capture_output=True)

            def spent():
                database = cpu(postgres.process.pid) if postgres else 0
                commits = postgres.sql("SELECT sum(xact_commit) FROM pg_stat_database") if postgres else 0
                return [cpu(system.process.pid), database, float(commits)]

            before = spent()
            subprocess.run([*load, "--duration", f"{seconds}s"], check=True, capture_output=True)
            costs = [late - early for early, late in zip(before, spent())]
            return json.loads(Path(f"{folder}/figures").read_text(encoding="utf-8")), costs


def row(figures, costs):
    """One run's figures by name."""
    orders = sum(each["count"] for each in figures["ends"])
    created, finished = figures["latencies"]["acknowledged"], figures["latencies"]["finished"]
    return {
        "orders/s": orders / figures["seconds"],
        "created p50": created["p50_ms"],
        "created p99": created["p99_ms"],
        "finished p50": finished["p50_ms"],
        "finished p99": finished["p99_ms"],
        "CPU ms/order": 1e3 * (costs[0] + costs[1]) / orders,
        "of it database": 1e3 * costs[1] / orders,
        "commits/order": costs[2] / orders,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="+")
    parser.add_argument("--stores", default="sqlite,postgres")
    parser.add_argument("--instances", default="1")
    parser.add_argument("--customers", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    args = parser.parse_args()
    programs = {name: str(Path(program).resolve()) for name, program in (each.split("=", 1) for each in args.programs)}
    PROGRAMS.update(programs.values())
    loader = next(iter(programs.values()))
    for store in args.stores.split(","):
        for instances in map(int, args.instances.split(",")):
            for customers in map(int, args.customers.split(",")):
                print(f"\n{store}, {instances} instance(s), {customers} customers", flush=True)
                runs = {name: [] for name in programs}
                for turn in range(args.rounds):
                    names = list(programs)
                    for name in names[turn % len(names) :] + names[: turn % len(names)]:
                        runs[name].append(row(*run(programs[name], loader, store, instances, customers, args.seconds)))
                for name, rows in runs.items():
                    medians = {key: statistics.median(each[key] for each in rows) for key in rows[0]}
                    print(f"  {name:10}", "  ".join(f"{key} {value:.4g}" for key, value in medians.items()), flush=True)


if __name__ == "__main__":
    main()
