"""A real PostgreSQL, or a primary and its standbys: every service on its own database; a database outage; chaos."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from crash import chaos_on, check_exactly_once
from system import BIN, CallError, Failed, System, check, counted, eventually, free_ports, not_run


def postgres_programs():
    """The folder of initdb and postgres, which Debian does not put in PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: [int(part) for part in folder.parent.name.split(".")])
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else folders
    return folders[-1] if folders and (folders[-1] / "postgres").exists() else None


class Postgres:
    """A separate server in a temporary folder, empty or a standby. It does not run as root, so there it runs as `postgres`."""

    def __init__(self, programs, settings=None, primary=None, port=None):
        self.programs = programs
        self.primary = primary
        self.settings = settings or {}
        self.folder = Path(tempfile.mkdtemp(prefix="ordermesh-postgres-"))
        self.user = "postgres" if os.geteuid() == 0 else None
        self.port = port or free_ports(1)[0]
        self.process = None

    def __enter__(self):
        if self.user:
            shutil.chown(self.folder, self.user)
        data = self.folder / "data"
        if self.primary:
            copy = ["pg_basebackup", "-h", "127.0.0.1", "-p", str(self.primary.port), "-U", "postgres", "-R", "-c", "fast", "-D", data]
        else:
            copy = ["initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8"]
        subprocess.run([self.programs / copy[0], *copy[1:]], check=True, stdout=subprocess.DEVNULL, **self.options())
        self.log = open(self.folder / "log", "w", encoding="utf-8")
        self.start()
        return self

    def options(self):
        return {"user": self.user, "cwd": self.folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}

    def start(self):
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.folder, "max_connections": 200, **self.settings}
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        self.process = subprocess.Popen(
            [self.programs / "postgres", "-D", self.folder / "data", *flags], stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=subprocess.STDOUT, start_new_session=True, **self.options())
        eventually("PostgreSQL is ready", 30, lambda: self.sql("SELECT 1"))

    def stop(self):
        # SIGINT: a fast shutdown, which closes every connection.
        self.process.send_signal(2)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __exit__(self, kind, *_):
        if kind:
            print("--- PostgreSQL's last lines:", *(self.folder / "log").read_text().splitlines()[-20:], "---", sep="\n")
        self.stop()
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


def check_verify(system, *flags):
    """`ordermesh verify` checks promises 1 to 4 and finds no violation."""
    output = system.run("verify", *flags, seconds=60)
    check(output.count("kept") == 4, f"the promises are kept:\n{output}")


def skip_reason():
    """Why there is no PostgreSQL to test with; None if there is one."""
    if postgres_programs():
        return None
    return not_run("e2e with PostgreSQL", "its server programs are not installed (apt-get install postgresql)")


def readyz_status(system, service, instance):
    """The status code of /readyz."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{system.port(service, instance) + 1000}/readyz", timeout=3) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def outage():
    """The database stops during an order: calls get UNAVAILABLE and no instance is ready; when it is back, all recover by themselves."""
    if why := skip_reason():
        return why
    with Postgres(postgres_programs()) as server, System(flags=["--database-url", server.url("postgres")]) as system:
        _, token = system.customer()
        system.login_as_operator()
        before = {pid for pid, _ in system.children()}
        order = system.order(token, "pm_gateway_slow")
        server.stop()
        services = [(service, n) for service in ("user", "order", "payment", "data") for n in (1, 2)]
        eventually("no instance is ready", 20, lambda: all(readyz_status(system, *one) == 503 for one in services))
        try:
            system.order(token)
            raise Failed("an order was acknowledged without a database")
        except CallError as error:
            check('"code": 14' in error.text or "Unavailable" in error.text, f"UNAVAILABLE: {error.text}")
            check("RetryInfo" in error.text, f"RetryInfo is present: {error.text}")
        server.start()
        eventually("every instance is ready again", 30, lambda: all(readyz_status(system, *one) == 200 for one in services))
        check_exactly_once(system, order["orderId"], token)
        check_exactly_once(system, system.order(token)["orderId"], token)
        check({pid for pid, _ in system.children()} == before, "no process was restarted")
        check_verify(system, "--database-url", server.url("postgres"))
    return "rejected with UNAVAILABLE and RetryInfo, not ready; then both orders fulfilled, by the same processes"


@contextmanager
def pooler(server, mode):
    """PgBouncer in front of a server: its URL."""
    # It does not run as root.
    folder, port = Path(tempfile.mkdtemp(prefix="ordermesh-pgbouncer-")), free_ports(1)[0]
    (folder / "users").write_text('"postgres" ""\n')
    (folder / "ini").write_text(f"""[databases]
postgres = host=127.0.0.1 port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = 150
max_client_conn = 500
ignore_startup_parameters = extra_float_digits
""")
    if server.user:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, server.user)
    process = subprocess.Popen(
        ["pgbouncer", "-q", folder / "ini"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        **{**server.options(), "env": {"PATH": f"{os.environ['PATH']}:/usr/sbin"}})
    try:
        eventually("PgBouncer listens", 10, lambda: socket.create_connection(("127.0.0.1", port), 1).close() or True)
        yield f"postgres://postgres@127.0.0.1:{port}/postgres"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def behind_poolers():
    """Behind PgBouncer in session mode an order is fulfilled; in transaction mode no service starts, and the error says why."""
    if why := skip_reason():
        return why
    if not shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin"):
        return not_run("e2e with PgBouncer", "it is not installed (apt-get install pgbouncer)")
    with Postgres(postgres_programs()) as server:
        with pooler(server, "session") as url, System(flags=["--database-url", url]) as system:
            _, token = system.customer()
            check_exactly_once(system, system.order(token)["orderId"], token)
            check_verify(system, "--database-url", url)
        with pooler(server, "transaction") as url:
            done = subprocess.run([BIN, "order", "--migrate-only", "--database-url", url], capture_output=True, text=True, timeout=30, check=False)
            text = done.stdout + done.stderr
            check(done.returncode == 2 and "connection pooler in transaction or statement mode" in text, f"transaction mode is rejected: {done.returncode} {text}")
    return "session mode: fulfilled, verified; transaction mode: rejected at start, with the remedy"


def chaos():
    """Chaos on PostgreSQL, which is killed too."""
    return skip_reason() or chaos_on("--postgres", "--duration", "40s")


# Every plan is logged.
EXPLAIN = {"shared_preload_libraries": "auto_explain", "auto_explain.log_min_duration": "0"}


def check_plans(server):
    """The statements of batches use indexes, although their tables were empty when they were planned; returns how many there are."""
    logged = re.split(r"\n(?=\d{4}-\d\d-\d\d )", (server.folder / "log").read_text(encoding="utf-8"))
    plans = [entry.split("Query Text: ", 1)[1] for entry in logged if "Query Text: " in entry]
    scanning = [plan for plan in plans if "Seq Scan" in plan]
    check(scanning, "other statements scan: the check can see it")
    batched = [plan for plan in plans if plan.startswith("WITH v (")]
    # The deletion from the outbox is planned for its rows each time.
    wrong = [plan for plan in batched if "Seq Scan" in plan and "DELETE FROM outbox" not in plan]
    check(not wrong, f"no batch scans a table: {wrong[:1]}")
    statements = {plan.splitlines()[0] for plan in batched}
    check(len(statements) >= 10, f"at least 10 statements of batches: {statements}")
    return len(statements)


def on_postgres():
    """A successful order and a declined one, each service on its own PostgreSQL database; the plans of batches."""
    if why := skip_reason():
        return why
    with Postgres(postgres_programs(), EXPLAIN) as server:
        flags = []
        stores = []
        for service in ("user", "order", "payment", "data", "gateway"):
            server.sql(f'CREATE DATABASE "{service}"')
            flags += [f"--{service}.database-url", server.url(service)]
            stores += [] if service == "gateway" else [f"--{service}-database-url", server.url(service)]
        # By default a first key is generated only with SQLite; elsewhere instances share their keys as files.
        with System(flags=[*flags, "--user.generate-keys"]) as system:
            _, token = system.customer()
            order = system.order(token)
            check_exactly_once(system, order["orderId"], token)
            declined = system.order(token, "pm_card_visa_chargeDeclinedInsufficientFunds")
            final = system.until_final(declined["orderId"], token)
            check(final["state"] == "ORDER_STATE_PAYMENT_FAILED", f"the declined order ends PAYMENT_FAILED: {final['state']}")
            check(final["paymentFailure"]["declineCode"] == "INSUFFICIENT_FUNDS", f"the decline code is INSUFFICIENT_FUNDS: {final['paymentFailure']}")
            eventually("its event", 15, lambda: counted(system.events(order_id=declined["orderId"])).get(("payment_processing", "failed")) == 1)
            check(not list(system.data_dir.glob("*.db")), "no SQLite file was created")
            check_verify(system, *stores)
            code = system.stop()
            check(code == 0, f"after SIGTERM it exits with 0, not {code}")
        version, statements = server.sql("SHOW server_version"), check_plans(server)
    return f"PostgreSQL {version}: a successful order and a declined one; {statements} statements of batches use indexes"
