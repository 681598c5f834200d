"""kill -9 of each service in the middle of an order, of the supervisor, and a real PostgreSQL."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from system import Failed, System, check, counted, eventually, free_ports, grpc, is_free, is_ours

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


# --- PostgreSQL


def postgres_programs():
    """The folder of initdb and postgres: Debian keeps them out of PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: [int(part) for part in folder.parent.name.split(".")])
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else folders
    return folders[-1] if folders and (folders[-1] / "postgres").exists() else None


class Postgres:
    """A server of its own, in a temporary folder. It refuses root, so there it runs as `postgres`."""

    def __init__(self, programs):
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="ordermesh-postgres-"))
        self.user = "postgres" if os.geteuid() == 0 else None
        self.port = free_ports(1)[0]
        self.process = None

    def __enter__(self):
        if self.user:
            shutil.chown(self.folder, self.user)
        data = self.folder / "data"
        options = {"user": self.user, "cwd": self.folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
        subprocess.run(
            [self.programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8"],
            check=True, stdout=subprocess.DEVNULL, **options)
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.folder, "max_connections": 200}
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        self.log = open(self.folder / "log", "w", encoding="utf-8")
        self.process = subprocess.Popen(
            [self.programs / "postgres", "-D", data, *flags], stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
            start_new_session=True, **options)
        eventually("PostgreSQL is ready", 30, lambda: self.sql("SELECT 1"))
        return self

    def __exit__(self, kind, *_):
        if kind:
            print("--- PostgreSQL's last lines:", *(self.folder / "log").read_text().splitlines()[-20:], "---", sep="\n")
        # SIGINT: a fast shutdown.
        self.process.send_signal(2)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def sql(self, statement, database="postgres"):
        done = subprocess.run(
            [self.programs / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database, "-Atqc", statement],
            capture_output=True, text=True, check=False, cwd="/")
        if done.returncode != 0:
            raise Failed(f"{statement}: {done.stderr.strip()}")
        return done.stdout.strip() or "done"

    def url(self, database):
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"


def on_postgres():
    """A happy order and a declined one, each service on a PostgreSQL database of its own."""
    programs = postgres_programs()
    if not programs:
        check("CI" not in os.environ, "PostgreSQL's server programs are there (apt-get install postgresql)")
        return "SKIPPED: PostgreSQL's server programs are not installed (apt-get install postgresql)"
    with Postgres(programs) as server:
        flags = []
        for service in ("user", "order", "payment", "data", "gateway"):
            server.sql(f'CREATE DATABASE "{service}"')
            flags += [f"--{service}.database-url", server.url(service)]
        # A first key is made on one machine only, unless it is asked for: instances elsewhere share theirs as files.
        with System(flags=[*flags, "--user.generate-keys"]) as system:
            _, token = system.customer()
            order = system.order(token)
            check_exactly_once(system, order["orderId"], token)
            declined = system.order(token, "pm_card_visa_chargeDeclinedInsufficientFunds")
            final = system.until_final(declined["orderId"], token)
            check(final["state"] == "ORDER_STATE_PAYMENT_FAILED", f"the declined order ends {final['state']}")
            check(final["paymentFailure"]["declineCode"] == "INSUFFICIENT_FUNDS", f"why: {final['paymentFailure']}")
            eventually("its event", 15, lambda: counted(system.events(order_id=declined["orderId"])).get(("payment_processing", "failed")) == 1)
            check(not list(system.data_dir.glob("*.db")), "no SQLite file was made")
            code = system.stop()
            check(code == 0, f"SIGTERM ends it with 0, not {code}")
        version = server.sql("SHOW server_version")
    return f"PostgreSQL {version}: a happy order and a declined one"
