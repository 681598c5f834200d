"""The mesh, live: with the system under load and one Payment instance slow, `topology`, `top` and `tap` name it.

Also by grpcurl alone, as the operator; `top` in a real terminal, whose state is restored at the end; and a traffic policy that is edited
under load.
"""

import hashlib
import json
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import tempfile
import termios
import threading
import time
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

from jaeger import Jaeger
from postgres import check_verify
from rolling import Load
from system import BIN, CallError, System, check, documents, eventually, free_ports, grpc

ADMIN = "mesh.v1.MeshAdminService"
SLOW = "payment-2"
# While it is stopped its calls wait, 0 to 200 ms; it runs long enough to serve them.
STOPPED_S, RUNNING_S = 0.2, 0.02


@contextmanager
def slowed(system, instance):
    """The instance's process is stopped nine tenths of the time."""
    pid = next(pid for pid, name in system.children() if name == instance)
    end = threading.Event()

    def alternate():
        while not end.is_set():
            os.kill(pid, signal.SIGSTOP)
            end.wait(STOPPED_S)
            os.kill(pid, signal.SIGCONT)
            time.sleep(RUNNING_S)

    thread = threading.Thread(target=alternate, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextmanager
def under_load(system):
    """`ordermesh load` in the background."""
    command = system.command_of("load", "--duration", "10m", "--customers", "8", "--no-verify")
    load = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
        check(load.poll() is None, "the load goes on")
    finally:
        load.kill()
        load.wait()


def slow_instances(graph):
    return {(edge["from"], edge["to"], of["instance"]) for edge in graph["edges"] for of in edge["instances"] if of["slow"]}


def slow_is_named(system):
    """Every form of `topology` names the slow instance, at the edge whose calls it serves."""
    wanted = ("order", "payment", SLOW)

    def graph():
        found = json.loads(system.run("topology", "-o", "json", "--window", "10s"))
        return found if wanted in slow_instances(found) else None

    graph = eventually(f"topology names {SLOW}", 60, graph)
    edge = next(edge for edge in graph["edges"] if (edge["from"], edge["to"]) == wanted[:2])
    fast = next(of for of in edge["instances"] if of["instance"] != SLOW)
    check(not fast["slow"] and fast["calls"]["calls"] > 20, f"the other instance gets the calls and is not slow: {edge}")
    check({node["state"] for node in graph["instances"]} == {"serving"}, f"every instance responds: {graph['instances']}")
    pairs = {(edge["from"], edge["to"]) for edge in graph["edges"]}
    expected = {("anonymous", "user"), ("customer", "order"), ("order", "data"), ("order", "payment"), ("payment", "gateway")}
    check(expected <= pairs, f"the calls of an order are edges: {pairs}")
    for form in ("text", "mermaid", "dot"):
        eventually(f"topology -o {form} names it", 30, lambda: re.search(
            rf"{SLOW}.*SLOW", system.run("topology", "-o", form, "--window", "10s")))
    return edge


def tapped(system, jaeger):
    """`tap` prints the slow calls of the Payment Service; their traces are in Jaeger."""
    flags = ("--to", "payment", "--min-latency", "100ms", "--limit", "3", "-o", "json")

    def slow_call():
        calls = [json.loads(line) for line in system.run("tap", *flags, seconds=90).splitlines()]
        check(len(calls) == 3, f"as many calls as requested: {calls}")
        for call in calls:
            check((call["from"], call["to"]) == ("order", "payment") and call["latency_ms"] >= 100, f"a slow call of order to payment: {call}")
        return next((call for call in calls if call["instance"] == SLOW), None)

    # On a busy machine the other instance has slow calls too.
    slow = eventually(f"a slow call of {SLOW}", 60, slow_call)
    eventually("the slow call's trace is in Jaeger", 30, lambda: jaeger.spans(slow["trace_id"]))
    return slow


def by_grpcurl(system):
    """GetSnapshot, TapCalls and ListRoutes as the operator; a customer is rejected."""
    operator, (_, customer) = system.login_as_operator(), system.customer()
    for service in ("user", "order", "payment", "data"):
        port = system.port(service)
        snapshot = grpc(port, f"{ADMIN}/GetSnapshot", {}, operator)
        check(snapshot["service"] == service and snapshot["servingState"] == "SERVING_STATE_SERVING", f"{service}'s snapshot: {snapshot}")
        routes = grpc(port, f"{ADMIN}/ListRoutes", {}, operator)["routes"]
        check(any(route["method"].startswith(f"{service}.v1.") for route in routes), f"{service}'s routes: {routes}")
        for method in ("GetSnapshot", "TapCalls", "ListRoutes"):
            try:
                grpc(port, f"{ADMIN}/{method}", {}, customer)
                check(False, f"a customer is rejected by {service}'s {method}")
            except CallError as error:
                check(error.reason == "ROLE_NOT_ALLOWED", f"a customer lacks the role: {error}")
    # A stream that is ended by grpcurl's own time limit.
    command = ["grpcurl", "-plaintext", "-max-time", "3", "-H", f"authorization: Bearer {operator}", "-d", '{"callers":["customer"]}',
               f"127.0.0.1:{system.port('order')}", f"{ADMIN}/TapCalls"]
    messages = documents(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    calls = [message["call"] for message in messages if "call" in message]
    check(calls and all(call["caller"] == "customer" and call["side"] == "CALL_SIDE_SERVER" for call in calls), f"served calls of customers: {messages[:3]}")
    text = json.dumps(messages)
    check("@example.com" not in text and operator not in text, "no e-mail address and no token is in a tap")
    stored = system.run("events", "--type", "audit")
    check("MeshAdminService/TapCalls" in stored, f"opening a tap is a stored audit event: {stored}")
    return len(calls)


def in_a_terminal(system, size):
    """`top` in a terminal of this size: shows the slow instance, follows a resize, and restores the terminal at its end."""
    rows, columns = size
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        command = system.command_of("top")
        os.execv(command[0], command)
    screen = b""

    def read_until(wanted, seconds):
        nonlocal screen
        end = time.monotonic() + seconds
        while wanted not in screen and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    screen += os.read(terminal, 65_536)
                except OSError:
                    break
        check(wanted in screen, f"{wanted} is on the screen: {screen[-3000:]!r}")

    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    os.kill(pid, signal.SIGWINCH)
    read_until(b"\x1b[?1049h", 20)
    read_until(SLOW.encode(), 20)
    read_until(b"SLOW", 60)
    # Another size: everything is drawn again.
    screen = b""
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows + 10, columns + 40, 0, 0))
    os.kill(pid, signal.SIGWINCH)
    read_until(b"INSTANCE", 20)
    screen = b""
    os.write(terminal, b"\x03")
    # The alternate screen is left, and the cursor is visible.
    read_until(b"\x1b[?1049l", 10)
    read_until(b"\x1b[?25h", 10)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    check(os.waitstatus_to_exitcode(status) == 0, f"Ctrl-C ends it without an error: {status}")


FAULTS = """
rules:
- matches: [{ method: { service: payment.v1.PaymentService, method: ProcessPayment } }]
  timeouts: { request: 5s }
  ordermesh: { fault: { percent: 50, delay: 300ms } }
- matches: [{ method: { service: data.v1.CatalogService, method: BatchGetProducts } }]
  ordermesh: { fault: { percent: 20, code: UNAVAILABLE }, audit: { callers: [user] } }
"""


def steered(directory, jaeger):
    """One file changes the calls of a running system under load, and every fault is marked as one on purpose."""
    policy = directory / "traffic.yaml"

    def write(text):
        new = policy.with_suffix(".new")
        new.write_text(text)
        new.rename(policy)

    write("rules: []\n")
    flags = ("--traffic-policy", str(policy), "--allow-faults")
    with System(flags, env=jaeger.env()) as system, under_load(system):
        operator = system.login_as_operator()

        def state(service="order", instance=1):
            return grpc(system.port(service, instance), f"{ADMIN}/GetSnapshot", {}, operator).get("trafficPolicy", {})

        def in_force(rules):
            return eventually(f"every instance has {rules} rules", 30, lambda: all(
                state(service, instance).get("ruleCount", 0) == rules and not state(service, instance).get("refusal")
                for service in ("user", "order", "payment", "data") for instance in (1, 2)))

        in_force(0)
        write(FAULTS)
        in_force(2)

        def slow_edge():
            graph = json.loads(system.run("topology", "-o", "json", "--window", "10s"))
            edge = next(edge for edge in graph["edges"] if (edge["from"], edge["to"]) == ("order", "payment"))
            return edge if edge["calls"]["p99_ms"] >= 270 and all(of["calls"]["p50_ms"] < 270 for of in edge["instances"]) else None

        edge = eventually("the delay is in the edge's latency, and in no instance's", 60, slow_edge)
        rejected = eventually("an injected fault is a stored event", 30, lambda: [
            event for event in map(json.loads, system.run("events", "--type", "data_lookup", "--status", "failed", "-o", "json").splitlines())
            if event.get("attributes", {}).get("ordermesh.fault") == "code UNAVAILABLE"])
        check(rejected[0]["error"]["reason"] == "INJECTED_FAULT", f"its reason says so: {rejected[0]}")
        eventually("Jaeger finds it by tag", 30, lambda: jaeger.finds("order", {"ordermesh.fault": "code UNAVAILABLE"}))
        denied = json.loads(system.run("tap", "--method", "BatchGetProducts", "--side", "server", "--limit", "1", "-o", "json", seconds=60))
        check(denied["would_be_denied"] is True and denied["code"] == "OK", f"a stricter list would deny order, and it is served: {denied}")
        routes = system.run("routes", "--service", "payment")
        check("delay 300ms" in routes and "5s" in routes, f"the routes show what the policy changes: {routes}")

        write(FAULTS + "- matches: [{ method: { service: data.v1.CatalogService, methd: ListProducts } }]\n")
        refusal = eventually("a broken file is rejected", 30, lambda: state().get("refusal"))
        check("line 8" in refusal and state()["ruleCount"] == 2, f"the previous policy stays, and the line is named: {state()}")
        check(any("is rejected" in line and "line 8" in line for line in system.lines), "one line of the log names file and line")
        write(FAULTS.replace("request: 5s", "request: 50s"))
        eventually("a longer timeout is rejected", 30, lambda: "only be shortened" in state().get("refusal", ""))

        write("")
        in_force(0)
        _, token = system.customer()
        for _ in range(20):
            system.order(token)
    with System(("--traffic-policy", str(policy))) as system:
        write(FAULTS)
        operator = system.login_as_operator()
        eventually("without --allow-faults the file is rejected", 30, lambda: "--allow-faults" in grpc(
            system.port("order"), f"{ADMIN}/GetSnapshot", {}, operator)["trafficPolicy"].get("refusal", ""))
    return f"order → payment p99 {edge['calls']['p99_ms']:.0f} ms with 300 ms injected; {len(rejected)} injected failures stored"


PEERS = {"payment": ("user", "order", "data", "gateway"), "data": ("user",)}


@contextmanager
def further_instance(system, service, name, port, log, data_dir=None, env=None):
    """A further instance of a service, which no other one knows: on the system's store, or on one of its own."""
    command = [
        str(BIN), service, "--listen", f"127.0.0.1:{port}", "--instance", name, "--data-dir", str(data_dir or system.data_dir),
        "--mesh-secret-file", str(system.data_dir / "mesh.secret"),
        *(flag for peer in PEERS[service] for flag in (f"--{peer}-addresses", f"127.0.0.1:{system.port(peer)}"))]
    if service == "payment":
        command += ["--gateway-api-key-file", str(system.data_dir / "gateway.key")]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env={**os.environ, **(env or {})})
    try:
        eventually(f"{name} serves", 30, lambda: grpc(port, "grpc.health.v1.Health/Check", {}).get("status") == "SERVING")
        yield process
    finally:
        process.kill()
        process.wait()


def split(own, canary):
    return f"""
  backendRefs: [{{ name: payment, weight: {own} }}, {{ name: payment-canary, weight: {canary} }}]"""


def canary(directory):
    """Payments are shifted to a canary by editing one file under load: by its weight; not with another store; killed, it is left out."""
    policy = directory / "canary.yaml"
    canary_port, other_port = free_ports(2)
    rule = "rules:\n- matches: [{ method: { service: payment.v1.PaymentService } }]"

    def write(own, share, port=canary_port):
        new = policy.with_suffix(".new")
        new.write_text(f"targets: {{ payment-canary: '127.0.0.1:{port}' }}\n{rule}{split(own, share)}\n")
        new.rename(policy)
        return hashlib.sha256(policy.read_bytes()).hexdigest()

    write(100, 0)
    with System(("--traffic-policy", str(policy), "--user.bcrypt-cost", "4")) as system:
        operator = system.login_as_operator()

        def snapshots():
            return [grpc(system.port("order", instance), f"{ADMIN}/GetSnapshot", {}, operator) for instance in (1, 2)]

        def attempts():
            """The attempts at each target, of both instances of the Order Service."""
            targets = [target for state in snapshots() for target in state["targets"]]
            return {name: sum(int(endpoint.get("attempts", 0)) for target in targets if target["name"] == name for endpoint in target.get("endpoints", []))
                    for name in ("payment", "payment-canary")}

        def has_canary():
            return all(any(target["name"] == "payment-canary" and any(each.get("connected") for each in target.get("endpoints", []))
                           for target in state["targets"]) for state in snapshots())

        def follow(digest):
            """Waits until both instances of the Order Service have this file."""
            eventually("the policy is in force", 30, lambda: all(state["trafficPolicy"].get("digest") == digest for state in snapshots()))

        def shares(calls):
            """The attempts at both targets, of at least this many calls."""
            before = attempts()
            def enough():
                now = attempts()
                found = {name: now[name] - before[name] for name in now}
                return found if sum(found.values()) >= calls else None
            return eventually(f"{calls} calls", 90, enough)

        with further_instance(system, "payment", "payment-canary", canary_port, directory / "canary.log") as process, Load(system, "--customers", "8") as load:
            seen = []
            for own, share in ((90, 10), (50, 50), (0, 100)):
                follow(write(own, share))
                eventually("the canary is connected", 30, has_canary)
                # Calls that began before the edit have ended.
                shares(50)
                found = shares(400)
                calls = sum(found.values())
                expected, sigma = calls * share / 100, (calls * share * (100 - share)) ** 0.5 / 100
                check(abs(found["payment-canary"] - expected) <= 3 * sigma + 8, f"{share} % of {calls} calls go to the canary, within three sigma: {found}")
                seen.append(f"{share} %: {found['payment-canary']} of {calls}")
            process.kill()
            killed = attempts()
            eventually("the service's own instances get the calls of a killed canary", 90, lambda: attempts()["payment"] - killed["payment"] >= 200)
            write(100, 0)
            acknowledged, _ = load.seen()
        other_store = directory / "other"
        other_store.mkdir(mode=0o700)
        with further_instance(system, "payment", "payment-other", other_port, directory / "other.log", other_store), Load(system, "--customers", "4") as load:
            write(50, 50, other_port)
            eventually("the log says that it has another store", 30, lambda: any("has another store than payment" in line for line in system.lines))
            eventually("the former canary is dropped", 30, lambda: attempts()["payment-canary"] == 0)
            before = attempts()["payment"]
            eventually("100 calls", 90, lambda: attempts()["payment"] - before >= 100)
            check(attempts()["payment-canary"] == 0, f"an instance with another store gets no calls: {attempts()}")
            load.seen()
        check_verify(system)
    return f"canary: {', '.join(seen)}; killed under load: 0 failed calls of {acknowledged} orders; another store: 0 calls"


LOOKUP = "data.v1.CatalogService/BatchGetProducts"


def mirror(directory, jaeger):
    """Lookups are mirrored to a shadow by editing one file under load: by its share, without an event; neither its latency nor its end is noticed."""
    policy = directory / "mirror.yaml"
    (port,) = free_ports(1)
    store = directory / "shadow"
    store.mkdir(mode=0o700)

    def write(percent, method="BatchGetProducts", service="data.v1.CatalogService"):
        new = policy.with_suffix(".new")
        new.write_text(f"""targets: {{ data-shadow: '127.0.0.1:{port}' }}
rules:
- matches: [{{ method: {{ service: {service}, method: {method} }} }}]
  filters: [{{ type: RequestMirror, requestMirror: {{ backendRef: {{ name: data-shadow }}, percent: {percent} }} }}]
""")
        new.rename(policy)
        return hashlib.sha256(policy.read_bytes()).hexdigest()

    write(0)
    flags = ("--traffic-policy", str(policy), "--user.bcrypt-cost", "4")
    with System(flags, env=jaeger.env()) as system, further_instance(
            system, "data", "data-shadow", port, directory / "shadow.log", store, jaeger.env()) as shadow:
        operator = system.login_as_operator()

        def policies():
            return [grpc(system.port("order", instance), f"{ADMIN}/GetSnapshot", {}, operator).get("trafficPolicy", {}) for instance in (1, 2)]

        def follow(digest):
            eventually("the policy is in force", 30, lambda: all(state.get("digest") == digest for state in policies()))

        def calls():
            """Lookups of both instances of the Order Service, at the Data Service and at the shadow, and those in flight."""
            counts = {"data": 0, "data-shadow": 0, "in_flight": 0}
            for instance in (1, 2):
                for target in grpc(system.port("order", instance), f"{ADMIN}/GetSnapshot", {}, operator)["targets"]:
                    for method in target.get("methods", []):
                        if method["method"] == LOOKUP and target["name"] in counts:
                            counts[target["name"]] += sum(map(int, method.get("calls", {}).get("codes", {}).values()))
                            counts["in_flight"] += int(method.get("inFlight", 0)) if target["name"] == "data-shadow" else 0
            return counts

        def since(before, wanted):
            def enough():
                now = calls()
                found = {name: now[name] - before[name] for name in now}
                return found if found["data"] >= wanted else None
            return eventually(f"{wanted} lookups", 120, enough)

        with Load(system, "--customers", "8") as load:
            follow(write(5))
            before = calls()
            found = since(before, 1_000)
            expected, sigma = found["data"] * 0.05, (found["data"] * 0.05 * 0.95) ** 0.5
            check(abs(found["data-shadow"] - expected) <= 3 * sigma + 2, f"5 % of the lookups are mirrored, within three sigma: {found}")
            eventually("a mirrored call is in its order's trace in Jaeger", 30, lambda: jaeger.finds("data", {"ordermesh.mirrored": "true"}))
            tapped = json.loads(system.run("tap", "--to", "data-shadow", "--limit", "1", "-o", "json", seconds=60))
            check(tapped["code"] == "OK" and tapped["to"] == "data-shadow", f"a mirrored call is tapped: {tapped}")
            check("5 % mirrored to data-shadow" in system.run("routes", "--service", "data"), "the routes show it")
            # It does not respond: its calls are in flight for their timeout, at most sixteen of each instance.
            follow(write(100))
            shadow.send_signal(signal.SIGSTOP)
            eventually("no more calls fit", 30, lambda: calls()["in_flight"] >= 32)
            waiting = since(calls(), 500)
            check(waiting["data"] >= 500 and calls()["in_flight"] <= 32, f"lookups do not wait for the shadow: {waiting}")
            shadow.kill()
            since(calls(), 500)
            check(any("mirrored calls failed" in line and "data-shadow" in line for line in system.lines), "the log says that the shadow fails")
            follow(write(0))
            acknowledged, _ = load.seen()
        check_verify(system)
        write(100, "ProcessPayment", "payment.v1.PaymentService")
        eventually("a method with side effects is rejected", 30, lambda: all(
            "payment.v1.PaymentService/ProcessPayment has side effects" in state.get("refusal", "") for state in policies()))
    with sqlite3.connect(store / "data.db") as database:
        (events,) = database.execute("SELECT count(*) FROM trace_event WHERE event_type = 'data_lookup'").fetchone()
    check(events == 0, f"a mirrored call is no event: {events}")
    return (f"mirror: {found['data-shadow']} of {found['data']} lookups at 5 %; a shadow that hangs, and one that is killed: "
            f"0 failed calls of {acknowledged} orders")


def run():
    """the mesh live: one slow instance is named by topology, top and tap; by grpcurl; in a terminal"""
    with Jaeger() as jaeger, System(env=jaeger.env()) as system, under_load(system):
        calls = by_grpcurl(system)
        with slowed(system, SLOW):
            edge = slow_is_named(system)
            call = tapped(system, jaeger)
            for size in ((24, 80), (50, 160)):
                in_a_terminal(system, size)
        lines = system.run("top", "--count", "1").splitlines()
        check(any("order → payment" in line for line in lines) and "\x1b" not in "".join(lines), f"plain lines in a pipe: {lines[:3]}")
        routes = system.run("routes")
        check("order.v1.OrderService/CreateOrder" in routes and "10000 ms" in routes, f"the routes: {routes}")
    with Jaeger() as jaeger, tempfile.TemporaryDirectory() as directory:
        steering = f"{steered(Path(directory), jaeger)}; {mirror(Path(directory), jaeger)}; {canary(Path(directory))}"
    slow = next(of for of in edge["instances"] if of["instance"] == SLOW)
    return (f"{SLOW} p50 {slow['calls']['p50_ms']:.0f} ms, {slow['calls']['calls']} of {edge['calls']['calls']} calls; "
            f"tapped {call['method']} {call['latency_ms']:.0f} ms; {calls} calls by grpcurl; {steering}")
