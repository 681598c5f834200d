"""kill -9 of each service in the middle of an order, and of the supervisor; a taken port; chaos."""

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from system import BIN, System, check, counted, eventually, grpc, is_free, is_ours

SUCCESSES = {("order_creation", "success"): 1, ("payment_processing", "success"): 1, ("order_fulfillment", "success"): 2}


def check_exactly_once(system, order_id, token):
    """The order was fulfilled, charged once, and told of once."""
    final = system.until_final(order_id, token)
    check(final["state"] == "ORDER_STATE_FULFILLMENT_STARTED", f"the order ends {final['state']}: {final}")
    charges = system.charges_of(order_id)
    check([charge["status"] for charge in charges] == ["CHARGE_STATUS_SUCCEEDED"], f"exactly one charge: {charges}")

    def told():
        counts = counted(system.events(order_id=order_id))
        successes = {kind: count for kind, count in counts.items() if kind[1] == "success" and kind[0] != "data_lookup"}
        check(successes == SUCCESSES, f"events exactly once: {counts}")
        return counts

    eventually("the events", 30, told)
    # Once more, later: a duplicate might come after the first look.
    time.sleep(1)
    told()


def kill_each_service():
    """One order each; its service is killed -9 while the gateway takes its time."""
    said = []
    with System() as system:
        _, token = system.customer()
        system.login_as_operator()
        # The order's own instance alone: the other one takes over. Of the others all, because any may have the call.
        for service, instance in [("user", None), ("order", 1), ("payment", None), ("data", None), ("gateway", None)]:
            order = system.order(token, "pm_gateway_slow")
            time.sleep(0.7)
            check(system.get(order["orderId"], token)["state"] == "ORDER_STATE_CREATED", "the order is in its middle")
            began = time.monotonic()
            victims = system.kill_9(service, instance)
            check_exactly_once(system, order["orderId"], token)
            restarted = eventually(
                f"{service} is started again", 15,
                lambda: [pid for pid, name in system.children() if name.startswith(f"{service}-") and pid not in victims])
            check(restarted, "a child that died is started again")
            line = next((text for text in system.lines if f"ordermesh: {service}-" in text), None)
            check(line, f"the supervisor says that {service} died")
            said.append(f"{service} {time.monotonic() - began:.0f} s")
        differences = grpc(
            system.port("payment"), "payment.v1.PaymentService/ReconcilePayments", {}, system.login_as_operator(), seconds=60)
        check(not differences.get("differences"), f"payments and ledger agree: {differences}")
    return "killed -9, and fulfilled and charged once: " + ", ".join(said)


def refuses(port):
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def kill_the_supervisor():
    """No child outlives it; the next start finishes the order; SIGTERM ends it with 0."""
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
            eventually("every port refuses", 20, lambda: all(map(refuses, system.ports())))
            gone = time.monotonic() - began
            eventually("no child is left", 20, lambda: not [pid for pid in children if is_ours(pid)])
        finally:
            system.kill()
        system = System(data_dir=data_dir, port_base=system.base)
        try:
            system.start()
            check_exactly_once(system, order["orderId"], token)
            children = [pid for pid, _ in system.children()]
            code = system.stop()
            check(code == 0, f"SIGTERM ends it with 0, not {code}")
            check(not [pid for pid in children if is_ours(pid)], "no child is left after SIGTERM")
            check(all(map(is_free, system.ports())) or all(map(refuses, system.ports())), "no port is left open")
        finally:
            system.kill()
    return f"after kill -9 of the supervisor every port was closed within {gone:.1f} s; the next start finished the order"


def taken_port():
    """A taken port is named, with what to do, and nothing is left running."""
    system = System()
    try:
        with socket.socket() as taken:
            # As a server does: what an earlier system's connections left in TIME_WAIT does not keep a port from being taken.
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", system.port("payment", 2)))
            taken.listen()
            done = subprocess.run(system.command, capture_output=True, text=True, timeout=30, check=False)
        text = done.stdout + done.stderr
        check(done.returncode != 0, "a taken port ends it")
        check(str(system.port("payment", 2)) in text and "--port-base" in text, f"the port and the flag are named: {text}")
    finally:
        system.temporary.cleanup()
    return f"a taken port: {text.strip().splitlines()[0]}"


# --- chaos


def chaos_on(*flags):
    """A system of its own is broken in every way, healed, and keeps its promises."""
    done = subprocess.run([str(BIN), "chaos", *flags], capture_output=True, text=True, timeout=600, check=False)
    check(done.returncode == 0, f"the promises are kept:\n{done.stdout}\n{done.stderr}")
    last = done.stdout.strip().splitlines()[-1]
    check("0 violations" in last, f"the verdict: {last}")
    acknowledged = int(last.split()[0])
    check(acknowledged >= 100, f"there was something to break: {last}")
    return last


def chaos():
    """On SQLite: every process is killed, stopped, and its gateway lies."""
    return chaos_on("--duration", "40s")
