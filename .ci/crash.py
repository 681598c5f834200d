"""kill -9 of each service in the middle of an order, and of the supervisor; a port in use; chaos."""

import socket
import subprocess
import tempfile
import time
from pathlib import Path

from system import BIN, System, check, counted, eventually, grpc, is_free, is_ours

SUCCESSES = {("order_creation", "success"): 1, ("payment_processing", "success"): 1, ("order_fulfillment", "success"): 2}


def check_exactly_once(system, order_id, token):
    """The order was fulfilled, charged once, and each of its events stored once."""
    final = system.until_final(order_id, token)
    check(final["state"] == "ORDER_STATE_FULFILLMENT_STARTED", f"the order ends FULFILLMENT_STARTED: {final}")
    charges = system.charges_of(order_id)
    check([charge["status"] for charge in charges] == ["CHARGE_STATUS_SUCCEEDED"], f"exactly one charge: {charges}")

    def counts_match():
        counts = counted(system.events(order_id=order_id))
        successes = {kind: count for kind, count in counts.items() if kind[1] == "success" and kind[0] != "data_lookup"}
        check(successes == SUCCESSES, f"events exactly once: {counts}")
        return counts

    eventually("the events", 30, counts_match)
    # Once more, later: a duplicate might arrive after the first check.
    time.sleep(1)
    counts_match()


def kill_each_service():
    """For each service one order: the service is killed with -9 while the gateway is slow."""
    durations = []
    with System() as system:
        _, token = system.customer()
        system.login_as_operator()
        # Of the Order Service only the order's instance: the other one takes over. Of the others all, because any may serve the call.
        for service, instance in [("user", None), ("order", 1), ("payment", None), ("data", None), ("gateway", None)]:
            order = system.order(token, "pm_gateway_slow")
            time.sleep(0.7)
            check(system.get(order["orderId"], token)["state"] == "ORDER_STATE_CREATED", "the order is in progress")
            began = time.monotonic()
            victims = system.kill_9(service, instance)
            check_exactly_once(system, order["orderId"], token)
            restarted = eventually(
                f"{service} is restarted", 15,
                lambda: [pid for pid, name in system.children() if name.startswith(f"{service}-") and pid not in victims])
            check(restarted, "a crashed child is restarted")
            line = next((text for text in system.lines if f"ordermesh: {service}-" in text), None)
            check(line, f"the supervisor reports the crash of {service}")
            durations.append(f"{service} {time.monotonic() - began:.0f} s")
        differences = grpc(
            system.port("payment"), "payment.v1.PaymentService/ReconcilePayments", {}, system.login_as_operator(), seconds=60)
        check(not differences.get("differences"), f"payments and ledger agree: {differences}")
    return "killed -9, and fulfilled and charged once: " + ", ".join(durations)


def is_closed(port):
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def kill_the_supervisor():
    """No child survives it; the next start completes the order; after SIGTERM it exits with 0."""
    with tempfile.TemporaryDirectory(prefix="ordermesh-e2e-") as folder:
        data_dir = Path(folder) / "data"
        system = System(data_dir=data_dir).start()
        try:
            _, token = system.customer()
            order = system.order(token, "pm_gateway_slow")
            time.sleep(0.5)
            children = [pid for pid, _ in system.children()]
            check(len(children) == 9, f"nine processes: {children}")
            began = time.monotonic()
            system.process.kill()
            system.process.wait()
            eventually("every port is closed", 20, lambda: all(map(is_closed, system.ports())))
            gone = time.monotonic() - began
            eventually("no child is running", 20, lambda: not [pid for pid in children if is_ours(pid)])
        finally:
            system.kill()
        system = System(data_dir=data_dir, port_base=system.base)
        try:
            system.start()
            check_exactly_once(system, order["orderId"], token)
            children = [pid for pid, _ in system.children()]
            code = system.stop()
            check(code == 0, f"after SIGTERM it exits with 0, not {code}")
            check(not [pid for pid in children if is_ours(pid)], "no child is running after SIGTERM")
            check(all(map(is_free, system.ports())) or all(map(is_closed, system.ports())), "no port is left open")
        finally:
            system.kill()
    return f"after kill -9 of the supervisor every port was closed within {gone:.1f} s; the next start completed the order"


def taken_port():
    """The error for a port in use names it and the flag to change, and no process is left running."""
    system = System()
    try:
        with socket.socket() as taken:
            # As a server does: an earlier system's connections in TIME_WAIT must not prevent the bind.
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", system.port("payment", 2)))
            taken.listen()
            done = subprocess.run(system.command, capture_output=True, text=True, timeout=30, check=False)
        text = done.stdout + done.stderr
        check(done.returncode != 0, "with a port in use the program exits")
        check(str(system.port("payment", 2)) in text and "--port-base" in text, f"the port and the flag are named: {text}")
    finally:
        system.temporary.cleanup()
    return f"a port in use: {text.strip().splitlines()[0]}"


# --- chaos


def chaos_on(*flags):
    """Random faults are injected into a dedicated system, then stop; the promises hold."""
    done = subprocess.run([str(BIN), "chaos", *flags], capture_output=True, text=True, timeout=600, check=False)
    check(done.returncode == 0, f"the promises are kept:\n{done.stdout}\n{done.stderr}")
    last = done.stdout.strip().splitlines()[-1]
    check("0 violations" in last, f"0 violations: {last}")
    acknowledged = int(last.split()[0])
    check(acknowledged >= 100, f"at least 100 orders were acknowledged: {last}")
    return last


def chaos():
    """On SQLite: random processes are killed or suspended, and the gateway injects faults."""
    return chaos_on("--duration", "40s")
