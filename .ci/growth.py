#!/usr/bin/env python3
"""What grows with the number of stored orders: latencies, statements, plans, sizes. CI does not run it.

    .ci/growth.py PROGRAM [--orders 10000,10000000] [--stores postgres,sqlite] [--seconds 20] [--days 30]

For each store and size: a system makes 120 orders; the rows of 20 of them are cloned by SQL, with other ids and times, into all
services' stores and the gateway's ledger; then a system on these stores is loaded, and called for old orders. Event rows are
made for the last six days only, because the retention is seven. Ratios are of the last size to the first.

On PostgreSQL the durations of statements are those of its log, and a second pass has the plans and buffers of auto_explain.
"""

import argparse
import json
import random
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

from growth_dataset import DAY, EVENT_DAYS, Dataset, MIX, PASSWORD, PostgresStore, SERVICES, SqliteStore, percentile
from postgres import Postgres, postgres_programs
from system import PROGRAMS, System, check, eventually, prepare_process


# --- calls


def field(number, value):
    """A field of a protobuf message: a string, a message or an integer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def text(prefix, value):
    """HPACK: a string that is not indexed, after the octets of its name."""
    size = len(value)
    return prefix + (bytes([size]) if size < 127 else b"\x7f" + varint(size - 127)) + value.encode()


class Connection:
    """gRPC on one HTTP/2 connection, one call at a time: a process for each call would take longer than the call."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = self.socket.makefile("rb")
        self.stream = -1
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack(">HI", 4, 2**30)) + frame(8, 0, 0, struct.pack(">I", 2**30)))

    def call(self, method, message, token):
        """The bytes of the response's messages; without any, the call failed."""
        self.stream += 2
        headers = (b"\x83\x86" + text(b"\x04", f"/{method}") + text(b"\x01", "localhost") + text(b"\x0f\x10", "application/grpc")
                   + text(text(b"\x00", "te"), "trailers") + text(b"\x0f\x08", f"Bearer {token}"))
        data = b"\0" + struct.pack(">I", len(message)) + message
        self.socket.sendall(frame(1, 4, self.stream, headers) + frame(0, 1, self.stream, data))
        found = b""
        while True:
            head = self.reader.read(9)
            check(len(head) == 9, "the connection is open")
            size, kind, flags, stream = int.from_bytes(head[:3], "big"), head[3], head[4], int.from_bytes(head[5:], "big")
            payload = self.reader.read(size)
            if kind == 4 and not flags & 1:
                self.socket.sendall(frame(4, 1, 0, b""))
            elif kind == 6 and not flags & 1:
                self.socket.sendall(frame(6, 1, 0, payload))
            check(kind not in (3, 7), f"neither RST_STREAM nor GOAWAY: {payload}")
            if stream == self.stream:
                found += payload if kind == 0 else b""
                if kind in (0, 1) and flags & 1:
                    return found


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


ORDER, EVENTS = "order.v1.OrderService/", "data.v1.TraceEventService/"
PAYMENT_FAILED, NEEDS_ATTENTION = 5, 8


def operations(dataset, system):
    """(name, service, method, message, token): a message is made for each call. Those that may read most come last.
    The control reads a table that does not grow: its ratio is the machine's."""
    operator = system.login_as_operator()
    of = {user: system.login(dataset.email(user), PASSWORD) for user in (0, *random.sample(range(1, dataset.users), 8))}
    customers = [user for user in of if user]

    def old():
        return random.randrange(dataset.orders)

    def recent():
        count = min(dataset.orders, EVENT_DAYS * DAY // dataset.step) - 1
        return dataset.orders - 1 - random.randrange(count)

    def any_customer():
        return of[random.choice(customers)]

    def trace():
        return dataset.store.sql(f"SELECT trace_id FROM data.trace_event WHERE order_id = {literal(dataset, dataset.order_id(recent()))} LIMIT 1")[0][0]

    def window(first_field, ago, length):
        start = int(time.time()) - ago
        return field(first_field, field(1, start)) + field(first_field + 1, field(1, start + length))

    def customer_id():
        return dataset.user_id(random.choice(customers))

    traces = [trace() for _ in range(20)]
    control = ("data", "data.v1.CatalogService/BatchGetProducts", lambda: field(1, "MUG-BLUE"), lambda: operator)
    return [
        ("BatchGetProducts (control)", *control),
        ("GetOrder", "order", ORDER + "GetOrder", lambda: field(1, dataset.order_id(old())), lambda: operator),
        ("WatchOrder, final", "order", ORDER + "WatchOrder", lambda: field(1, dataset.order_id(old())), lambda: operator),
        ("ListOrders, a customer", "order", ORDER + "ListOrders", lambda: field(1, 20), any_customer),
        ("ListOrders, 1 % of all", "order", ORDER + "ListOrders", lambda: field(1, 20), lambda: of[0]),
        ("ListOrders, 1 %, failed", "order", ORDER + "ListOrders", lambda: field(1, 20) + field(3, PAYMENT_FAILED), lambda: of[0]),
        ("ListOrders, all", "order", ORDER + "ListOrders", lambda: field(1, 20), lambda: operator),
        ("ListOrders, all, failed", "order", ORDER + "ListOrders", lambda: field(1, 20) + field(3, PAYMENT_FAILED), lambda: operator),
        ("ListTraceEvents, order", "data", EVENTS + "ListTraceEvents", lambda: field(4, dataset.order_id(recent())) + field(9, 50), lambda: operator),
        ("ListTraceEvents, customer", "data", EVENTS + "ListTraceEvents", lambda: field(5, customer_id()) + field(9, 50), lambda: operator),
        ("ListTraceEvents, trace", "data", EVENTS + "ListTraceEvents", lambda: field(6, random.choice(traces)) + field(9, 50), lambda: operator),
        ("ListTraceEvents, newest", "data", EVENTS + "ListTraceEvents", lambda: field(9, 50), lambda: operator),
        ("ListTraceEvents, failed payments", "data", EVENTS + "ListTraceEvents", lambda: field(1, 3) + field(2, 2) + field(9, 50), lambda: operator),
        ("ListTraceEvents, an hour of day 2", "data", EVENTS + "ListTraceEvents", lambda: window(7, 2 * 86_400, 3_600) + field(9, 50), lambda: operator),
        ("ListTraceEvents, service user", "data", EVENTS + "ListTraceEvents", lambda: field(3, "user") + field(9, 50), lambda: operator),
        ("SummarizeTraceEvents, 10 min", "data", EVENTS + "SummarizeTraceEvents", lambda: window(1, 3_600, 600), lambda: operator),
        ("BatchGetProducts (control, again)", *control),
        ("ListOrders, 1 %, none matches", "order", ORDER + "ListOrders", lambda: field(1, 20) + field(3, NEEDS_ATTENTION), lambda: of[0]),
        ("ListOrders, all, none matches", "order", ORDER + "ListOrders", lambda: field(1, 20) + field(3, NEEDS_ATTENTION), lambda: operator),
    ]


def literal(dataset, order):
    return f"'{order}'" if isinstance(dataset.store, PostgresStore) else f"x'{order.replace('-', '')}'"


def call_all(dataset, system, calls, seconds):
    """Milliseconds of each operation's calls; reports how many of them failed."""
    found = {}
    for name, service, method, message, token in operations(dataset, system):
        # An idle one would not answer the server's pings.
        connection = Connection(system.port(service))
        took, failed, end = [], 0, time.monotonic() + seconds
        for turn in range(calls + 10):
            request, bearer = message(), token()
            began = time.perf_counter()
            failed += not connection.call(method, request, bearer)
            if turn >= 10:
                took.append(1e3 * (time.perf_counter() - began))
            if time.monotonic() > end and took:
                break
        if failed:
            print(f"  {name}: {failed} of {turn + 1} calls failed", flush=True)
        found[name] = took
    return found


# --- PostgreSQL's log

# Reported even if they do not grow: claims, new orders, transitions, payments, events.
IS_OF_ORDERS = re.compile(
    r"lease_owner = \$2|INSERT INTO (orders|order_history|payment|trace_event) |UPDATE (orders|payment) SET|FROM (orders|payment) WHERE next")
LINE = re.compile(r"^\S+ \S+ \S+ \[(\d+)\] LOG:  duration: ([0-9.]+) ms  (parse|bind|execute|statement|plan)([^:]*):\s?(.*)", re.S)


def log_entries(path, offset):
    """(pid, ms, kind, text) of what was logged after an offset; continued lines begin with a tab."""
    with open(path, encoding="utf-8", errors="replace") as log:
        log.seek(offset)
        entry = ""
        for line in log:
            if line.startswith("\t"):
                entry += line
                continue
            if found := LINE.match(entry):
                yield int(found[1]), float(found[2]), found[3], found[5]
            entry = line


def statement_times(path, offset):
    """Milliseconds by statement: parse, bind and execute together."""
    found, open_ones = defaultdict(list), defaultdict(float)
    for pid, took, kind, statement in log_entries(path, offset):
        open_ones[pid] += took
        if kind in ("execute", "statement"):
            found[" ".join(statement.split())].append(open_ones.pop(pid))
    return found


def shown(statement, size=200):
    """A statement without its list of columns."""
    statement = re.sub(r"COALESCE\(CAST\(\$1 AS BIGINT\), CAST\(EXTRACT.*?AS BIGINT\)\)", "now", statement)
    return re.sub(r"^SELECT (?!CASE).{100,}? FROM ", "SELECT … FROM ", statement)[:size]


def plans(path, offset):
    """By statement: buffers of each execution, and the accesses to tables in its most expensive plan; rows read by whole scans of tables."""
    buffers, accesses, scans = defaultdict(list), {}, defaultdict(int)
    for _pid, _took, kind, entry in log_entries(path, offset):
        if kind != "plan":
            continue
        found = json.loads(entry)
        statement, nodes = " ".join(found["Query Text"].split()), [found["Plan"]]
        buffers[statement].append(found["Plan"].get("Shared Hit Blocks", 0) + found["Plan"].get("Shared Read Blocks", 0))
        for node in nodes:
            nodes += node.get("Plans", [])
        if buffers[statement][-1] == max(buffers[statement]):
            accesses[statement] = ", ".join(map(access, filter(lambda node: "Scan" in node["Node Type"], nodes)))
        for node in nodes:
            if node["Node Type"] == "Seq Scan":
                scans[statement] = max(rows_read(node), scans[statement])
    return buffers, accesses, scans


def rows_read(node):
    counts = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    return int(node.get("Actual Loops", 1) * sum(node.get(count, 0) for count in counts))


def access(node):
    where = node.get("Index Name") or node.get("Relation Name") or node.get("CTE Name") or node.get("Subplan Name", "")
    return f"{node['Node Type']} {where} ({rows_read(node)} rows)"


# --- one size


def load(program, system, store, folder, *flags):
    done = subprocess.run(
        [program, "load", "--port-base", str(system.base), "--data-dir", str(system.data_dir), *store.flags, "--no-verify", "--json", folder / "load", *flags],
        capture_output=True, text=True, check=False)
    check(done.returncode == 0, f"the load ends well: {done.stdout}{done.stderr}")
    return json.loads((folder / "load").read_text())


def seed(args, store, system_of, orders, folder):
    """Places 120 orders, and clones 20 of them into `orders`; returns the data set."""
    with system_of() as system:
        email, _ = system.customer()
        load(args.program, system, store, folder, "--orders", "120", "--customers", "8", "--mix", "happy=6,declined=1,cancel=3")
        time.sleep(3)
        check(system.stop() == 0, "the system stops")
    for service in SERVICES[:4]:
        check(int(store.sql(f'SELECT count(*) FROM "{service}".outbox')[0][0]) == 0, f"{service} has sent its events")
    dataset = Dataset(store, orders, args.days)
    began = time.monotonic()
    dataset.insert(email)
    took = time.monotonic() - began
    print(f"  seeded in {took:.0f} s, {took / 60 * 1e6 / orders:.1f} min a million", flush=True)
    return dataset


def drive_due(dataset, turns, first):
    """Milliseconds from when orders were due until they were finished, by the store's rows."""
    store = dataset.store
    for turn in range(turns):
        dataset.due(first + 50 * turn, 50)
        time.sleep(0.5)
    eventually("the orders are finished", 30, lambda: int(store.sql('SELECT count(*) FROM "order".orders WHERE next_attempt_time IS NOT NULL')[0][0]) == 0)
    rows = store.sql(f'SELECT update_time - create_time FROM "order".orders ORDER BY order_id DESC LIMIT {50 * turns}')
    return [int(row[0]) / 1e3 for row in rows]


def measure(args, dataset, system_of, folder, server):
    """What `report` needs of one size: figures and statements by name, plans, the costs of the poll's query, and of each VACUUM."""
    store, figures, statements = dataset.store, {}, {}
    log, offset = (server.folder / "log", (server.folder / "log").stat().st_size) if server else (None, 0)
    if server:
        store.set(log_min_duration_statement="0", log_parameter_max_length="0")
    poll_costs = [("after seeding", store.poll_query_cost())]
    with system_of() as system:
        load(args.program, system, store, folder, "--rate", str(args.rate), "--duration", "2s", *MIX)
        for name, flags in ((f"at {args.rate}/s", ["--rate", str(args.rate)]), ("by 64 customers", ["--customers", "64"])):
            found = load(args.program, system, store, folder, *flags, *MIX, "--duration", f"{args.seconds}s")["latencies"]
            figures[f"CreateOrder, {name}"] = [found["acknowledged"][key] for key in ("p50_ms", "p99_ms")]
            figures[f"finished, {name}"] = [found["finished"][key] for key in ("p50_ms", "p99_ms")]
            print(f"  {name}: {found['finished']['per_second']:.0f} orders/s", flush=True)
        poll_costs.append(("after the load", store.poll_query_cost()))
        figures["due until finished"] = pair(drive_due(dataset, 8, 2 * dataset.orders + 1_000))
        figures |= {name: pair(took) for name, took in call_all(dataset, system, args.calls, args.seconds).items()}
    if server:
        statements = statement_times(log, offset)
    if args.verify and dataset.orders <= args.verify:
        with system_of() as system:
            verified = subprocess.run([args.program, "verify", "--port-base", str(system.base), "--data-dir", str(system.data_dir), *store.flags,
                                   "--event-retention", f"{24 * EVENT_DAYS - 1}h"], capture_output=True, text=True, check=False)
            print(verified.stdout[:3000], verified.stderr[:1000], flush=True)
            check(verified.returncode == 0, "the promises are kept")
    explained = explain(args, dataset, system_of, folder, server) if server else None
    vacuums = store.vacuum()
    poll_costs.append(("after VACUUM", store.poll_query_cost()))
    return {"figures": figures, "statements": statements, "plans": explained, "poll_costs": poll_costs, "vacuums": vacuums}


def pair(values):
    return [percentile(values, 0.5), percentile(values, 0.99)]


def explain(args, dataset, system_of, folder, server):
    """A short second pass, with auto_explain in every session."""
    dataset.store.set(log_min_duration_statement=None, session_preload_libraries="auto_explain")
    dataset.store.set(auto_explain__log_min_duration="0", auto_explain__log_analyze="on", auto_explain__log_buffers="on",
                      auto_explain__log_timing="off", auto_explain__log_format="json")
    offset = (server.folder / "log").stat().st_size
    with system_of() as system:
        load(args.program, system, dataset.store, folder, "--rate", "20", "--duration", "8s", *MIX)
        drive_due(dataset, 2, 2 * dataset.orders + 2_000)
        call_all(dataset, system, 20, 5)
    found = plans(server.folder / "log", offset)
    dataset.store.set(session_preload_libraries=None)
    return found


def run(args, store_name, orders):
    print(f"\n{store_name}, {orders} orders", flush=True)
    needed = 1.2 * orders * (3_100 + 4_000 * min(1, EVENT_DAYS / args.days)) + 5e9
    check(shutil.disk_usage(tempfile.gettempdir()).free > needed, f"{needed / 1e9:.0f} GB are free in {tempfile.gettempdir()}")
    server = Postgres(postgres_programs()) if store_name == "postgres" else None
    with server or nullcontext(), tempfile.TemporaryDirectory(prefix="ordermesh-growth-") as folder:
        folder = Path(folder)
        store = PostgresStore(server) if server else SqliteStore(folder / "data")

        def system_of():
            return System(store.flags, instances=1, program=args.program, data_dir=folder / "data")

        dataset = seed(args, store, system_of, orders, folder)
        store.finish_seeding()
        sizes = store.sizes()
        print(f"  {sum(sizes.values()) / 1e6:.0f} MB, {sum(sizes.values()) / orders:.0f} bytes an order", flush=True)
        return {"sizes": sizes, "with_events": orders * min(1, EVENT_DAYS / args.days), **measure(args, dataset, system_of, folder, server)}


# --- the report


def table(rows, columns, sizes):
    """One line a row: p50 / p99 (or median / most) of each size, and the ratio of the last to the first."""
    print(f"| {columns} | " + " | ".join(f"{size:,}" for size in sizes) + " | ratio |\n|---" + "|---" * (len(sizes) + 1) + "|")
    for name, pairs in rows:
        (first, last) = pairs[0], pairs[-1]
        ratio = " / ".join(f"{late / early:.2f}" if early else "-" for early, late in zip(first, last))
        print(f"| {name} | " + " | ".join(" / ".join(f"{value:.3g}" for value in each) for each in pairs) + f" | {ratio} |")


def report(store, results):
    sizes, each = list(results), list(results.values())

    def in_all(key):
        return [name for name in each[-1][key] if all(name in one[key] for one in each)]

    print(f"\n## {store}\n")
    table([(name, [one["figures"].get(name, [0, 0]) for one in each]) for name in each[-1]["figures"]], "p50 / p99, ms", sizes)
    statements = [(name, [pair(one["statements"][name]) for one in each]) for name in in_all("statements") if len(each[-1]["statements"][name]) >= 20]
    grown = sorted(statements, key=lambda row: -row[1][-1][1] / max(row[1][0][1], 0.1))
    if grown:
        print()
        rows = [(f"`{shown(name)}`", pairs) for name, pairs in grown if pairs[-1][1] > 1.2 * pairs[0][1] or IS_OF_ORDERS.search(name)]
        table(rows[:30], "statement, p50 / p99 in the server, ms; the most grown first", sizes)
    if server_plans := [one["plans"] for one in each if one["plans"]]:
        report_plans(server_plans, sizes)
    print()
    relations = sorted(each[-1]["sizes"], key=lambda name: -each[-1]["sizes"][name])[:24]
    table([(name, [[one["sizes"].get(name, 0) / size] for size, one in results.items()]) for name in relations], "table or index, bytes an order", sizes)
    events = [sum(size for name, size in one["sizes"].items() if name.startswith("data.trace_event")) for one in each]
    table([("all but events", [[(sum(one["sizes"].values()) - of_events) / size] for (size, one), of_events in zip(results.items(), events)]),
           ("events, of the orders that have them", [[of_events / one["with_events"]] for one, of_events in zip(each, events)])], "bytes an order", sizes)
    print()
    for size, one in results.items():
        print(f"{size:,}: due orders by index", "; ".join(f"{when}: {blocks} buffers, {took:.3f} ms" for when, (blocks, took) in one["poll_costs"]))
        print("  VACUUM:", "; ".join(f"{name}: {dead} dead rows, {took:.2f} s" for name, (dead, took) in one["vacuums"].items()) or "-")


def report_plans(plans_by_size, sizes):
    """Statements whose buffers grow or are many, with the accesses of the last size's most expensive plan."""
    buffers, (_, accesses, scans) = [one[0] for one in plans_by_size], plans_by_size[-1]
    rows = []
    # Not the script's own.
    for name in (name for name in buffers[-1] if "growth." not in name and "information_schema" not in name):
        pairs = [[percentile(one.get(name, [0]), 0.5), max(one.get(name, [0]))] for one in buffers]
        if pairs[-1][1] > 200 or "lease_owner = $2" in name or pairs[-1][1] > 1.5 * pairs[0][1] + 10 or scans.get(name, 0) > 1_000:
            rows.append((f"`{shown(name, 600)}`: {accesses[name]}", pairs))
    print()
    table(sorted(rows, key=lambda row: -row[1][-1][1]), "statement that reads many or more buffers, median / most", sizes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--orders", default="10000,10000000")
    parser.add_argument("--stores", default="postgres,sqlite")
    parser.add_argument("--seconds", type=int, default=20, help="of each load, and at most of each operation's calls")
    parser.add_argument("--days", type=int, default=30, help="over which the orders are spread")
    parser.add_argument("--rate", type=int, default=100, help="orders per second of the first load")
    parser.add_argument("--calls", type=int, default=500, help="of each operation")
    parser.add_argument("--verify", type=int, default=20_000, help="the promises are verified up to this size")
    args = parser.parse_args()
    prepare_process()
    args.program = str(Path(args.program).resolve())
    PROGRAMS.add(args.program)
    for store in args.stores.split(","):
        report(store, {orders: run(args, store, orders) for orders in map(int, args.orders.split(","))})


if __name__ == "__main__":
    main()
