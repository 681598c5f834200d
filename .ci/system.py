"""An Ordermesh system under test: its processes, its output, and calls with grpcurl. Standard library only."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BIN = Path(os.environ.get("ORDERMESH_BIN", TARGET / "release/ordermesh")).resolve()
# The executables of our processes: the program, and copies of it that a check has placed elsewhere.
PROGRAMS = {str(BIN)}
OFFSETS = {"user": 100, "order": 200, "payment": 300, "data": 400, "gateway": 500}
ADDRESS = {"recipient": "Ada Lovelace", "lines": ["Chausseestr. 1"], "city": "Berlin", "postal_code": "10115", "country_code": "DE"}
FINAL = {"ORDER_STATE_FULFILLMENT_STARTED", "ORDER_STATE_PAYMENT_FAILED", "ORDER_STATE_CANCELLED"}


class Failed(Exception):
    """A check that failed."""


def check(condition, expected):
    """`expected` is a sentence that is true if the check succeeds; what was found instead follows a colon."""
    if not condition:
        raise Failed(f"expected: {expected}")


def eventually(what, seconds, ask):
    """Calls `ask` until its result is true, and returns that. `ask` may raise until then."""
    end = time.monotonic() + seconds
    last = None
    while time.monotonic() < end:
        try:
            last = ask()
            if last:
                return last
        except (Failed, CallError, OSError) as error:
            last = error
        time.sleep(0.1)
    raise Failed(f"{what}: not within {seconds} s; last result: {last}")


def run_parts(what, parts):
    """Runs checks by name, in sequence, until one fails; returns the exit code."""
    for name, part in parts.items():
        began = time.monotonic()
        print(f"--- {name}: {(part.__doc__ or '').strip().splitlines()[0]}", flush=True)
        try:
            result = part()
        except Exception as error:
            print(error if isinstance(error, (Failed, CallError)) else traceback.format_exc())
            print(f"{what} FAILED: {name}, after {time.monotonic() - began:.0f} s", flush=True)
            return 1
        print(f"--- {name}: ok, {time.monotonic() - began:.0f} s; {result}", flush=True)
    return 0


def prepare_process():
    """For scripts that start systems: SIGTERM ends the script and its processes, .ci/bin is first in PATH, and variables that configure a system are unset."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["PATH"] = f"{ROOT / '.ci/bin'}:{os.environ['PATH']}"
    for name in list(os.environ):
        if name.startswith(("ORDERMESH_", "GATEWAY_", "OTEL_")) and name != "ORDERMESH_BIN":
            del os.environ[name]


def run_named(what, parts, names, tools, first=None):
    """Runs the named parts, or all, after `first`; returns the exit code."""
    unknown = [name for name in names if name not in parts]
    if unknown:
        print(f"no such part: {unknown}; there are {', '.join(parts)}")
        return 2
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing or not BIN.exists():
        print(f"missing: {missing or BIN}; run .ci/tools.sh and cargo build --release")
        return 2
    return run_parts(what, {**(first or {}), **{name: parts[name] for name in names or parts}})


def not_run(what, why):
    """Reports a skipped check, also in .ci/run's last line. With CI set it is a failure."""
    if "CI" in os.environ:
        raise Failed(f"{what}: required with CI set, but cannot run: {why}")
    if "CI_SKIPPED" in os.environ:
        with open(os.environ["CI_SKIPPED"], "a", encoding="utf-8") as file:
            file.write(f"{what}\n")
    return f"SKIPPED: {what}: {why}"


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


def free_ports(count):
    """Ports without a listener, outside of the ephemeral range of clients' connections."""
    start = random.randrange(21_000, 29_000)
    ports = [port for port in range(start, 30_000) if is_free(port)][:count]
    check(len(ports) == count, "enough ports are free")
    return ports


def free_port_base(instances):
    bases = list(range(10_000, 20_000, 600))
    random.shuffle(bases)
    for base in bases:
        ports = [base + offset + n + admin for offset in OFFSETS.values() for n in range(1, instances + 1) for admin in (0, 1000)]
        if all(map(is_free, ports)):
            return base
    raise Failed("no port range is free")


class CallError(Exception):
    """A call that failed."""

    def __init__(self, text):
        super().__init__(text)
        self.text = text
        found = re.search(r'"reason":\s*"([A-Z_]+)"', text)
        self.reason = found.group(1) if found else None


def documents(text):
    """The JSON documents of grpcurl's output."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        document, at = decoder.raw_decode(text, at)
        found.append(document)
    return found


def grpc_all(port, method, message, token=None, headers=(), seconds=60, roots=None, host="127.0.0.1"):
    """Every message of the response. With `roots`, a file, the call is by TLS, without a client certificate."""
    command = ["grpcurl", *(["-cacert", str(roots)] if roots else ["-plaintext"]), "-format-error", "-max-time", str(seconds)]
    if token:
        command += ["-H", f"authorization: Bearer {token}"]
    for header in headers:
        command += ["-H", header]
    command += ["-d", json.dumps(message), f"{host}:{port}", method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 10, check=False)
    if done.returncode != 0:
        raise CallError(f"{method}: {done.stderr.strip() or done.stdout.strip()}")
    return documents(done.stdout)


def grpc(port, method, message, token=None, headers=(), seconds=15):
    """The single message of the response."""
    answers = grpc_all(port, method, message, token, headers, seconds)
    return answers[0] if answers else {}


def pages(port, method, field, token=None, headers=(), **message):
    """The elements of all pages of a list."""
    found, page_token = [], ""
    while True:
        page = grpc(port, method, {"page_size": 500, "page_token": page_token, **message}, token, headers)
        found += page.get(field, [])
        page_token = page.get("nextPageToken", "")
        if not page_token:
            return found


def new_trace():
    return uuid.uuid4().hex


def traceparent(trace):
    return f"traceparent: 00-{trace}-{trace[:16]}-01"


class System:
    """A complete system, started with the `ordermesh` binary in a folder of its own."""

    def __init__(self, flags=(), instances=2, env=None, data_dir=None, port_base=None, command=None, cwd=None, program=BIN):
        self.instances = instances
        self.base = port_base or free_port_base(instances)
        self.temporary = None if data_dir else tempfile.TemporaryDirectory(prefix="ordermesh-e2e-")
        self.data_dir = Path(data_dir or self.temporary.name) if data_dir else Path(self.temporary.name) / "data"
        self.command = command or [
            str(program), "--port-base", str(self.base), "--data-dir", str(self.data_dir), "--instances", str(instances), *flags]
        self.env = {**os.environ, **(env or {})}
        self.cwd = cwd
        self.process = None
        self.lines = []
        self.operator = None
        self.known = set()

    # --- start and stop

    def start(self, seconds=20, until="is ready"):
        self.lines = []
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=self.env, cwd=self.cwd, start_new_session=True)
        ready = threading.Event()
        ended = threading.Event()

        def read(stream):
            for line in stream:
                self.lines.append(line.rstrip("\n"))
                # The awaited line is the first of several; the last one mentions Ctrl-C.
                if until in line:
                    ready.set()
            ended.set()

        threading.Thread(target=read, args=(self.process.stdout,), daemon=True).start()
        end = time.monotonic() + seconds
        while not ready.wait(0.05):
            if ended.is_set() or time.monotonic() > end:
                text = "\n".join(self.lines[-30:])
                self.kill()
                raise Failed(f"the system did not print {until!r} within {seconds} s:\n{text}")
        eventually("the start-up text is complete", 5, lambda: any("Ctrl-C" in line for line in self.lines))
        self.known |= {pid for pid, _ in self.children()}
        return self

    def __enter__(self):
        return self if self.process else self.start()

    def __exit__(self, kind, _value, _traceback):
        if kind:
            print("--- the system's last lines:", *self.lines[-40:], "---", sep="\n")
        self.kill()
        if self.temporary:
            self.temporary.cleanup()

    def stop(self, seconds=40):
        """Sends SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"the system did not end within {seconds} s of SIGTERM") from None

    def kill(self):
        """Kills the supervisor and every remaining child with SIGKILL."""
        if not self.process:
            return
        self.known |= {pid for pid, _ in self.children()}
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.known:
            if is_ours(pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def command_of(self, subcommand, *flags):
        """The command line of a subcommand for this system."""
        return [str(BIN), subcommand, "--port-base", str(self.base), "--data-dir", str(self.data_dir), *flags]

    def run(self, subcommand, *flags, seconds=300):
        """Runs a subcommand, which must succeed; returns its output."""
        done = subprocess.run(self.command_of(subcommand, *flags), capture_output=True, text=True, timeout=seconds, check=False)
        check(done.returncode == 0, f"`ordermesh {subcommand}` succeeds:\n{done.stdout}{done.stderr}")
        return done.stdout

    # --- its processes

    def port(self, service, instance=1):
        return self.base + OFFSETS[service] + instance

    def ports(self):
        return [self.port(service, n) + admin for service in OFFSETS for n in range(1, self.instances + 1)
                if service != "gateway" or n == 1 for admin in (0, 1000)]

    def children(self):
        """(pid, instance) of every child process."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or not is_ours(int(entry.name)):
                continue
            environ = read_bytes(entry / "environ").split(b"\0")
            values = dict(pair.split(b"=", 1) for pair in environ if b"=" in pair)
            listen = values.get(b"ORDERMESH_LISTEN") or values.get(b"GATEWAY_LISTEN") or b""
            instance = values.get(b"ORDERMESH_INSTANCE") or values.get(b"GATEWAY_INSTANCE")
            if instance and listen.rsplit(b":", 1)[-1] in {str(port).encode() for port in self.ports()}:
                found.append((int(entry.name), instance.decode()))
        return found

    def kill_9(self, service, instance=None):
        """Kills an instance of a service, or all of them, with SIGKILL; returns the pids."""
        name = f"{service}-{instance}" if instance else f"{service}-"
        victims = [pid for pid, which in self.children() if which == name or (not instance and which.startswith(name))]
        check(victims, f"{name} runs")
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        return victims

    # --- calls

    def login_as_operator(self):
        if not self.operator:
            email, password = (self.data_dir / "operator.txt").read_text().split()
            self.operator = self.login(email, password)
        return self.operator

    def login(self, email, password, headers=()):
        message = {"email": email, "password": password}
        return grpc(self.port("user"), "user.v1.UserService/Login", message, headers=headers)["session"]["accessToken"]

    def customer(self, headers=()):
        """A new customer's e-mail and access token."""
        email = f"customer-{uuid.uuid4().hex[:12]}@example.com"
        message = {"request_id": str(uuid.uuid4()), "email": email, "password": "correct horse battery", "display_name": "Customer"}
        grpc(self.port("user"), "user.v1.UserService/Register", message)
        return email, self.login(email, "correct horse battery", headers)

    def order(self, token, method="pm_card_visa", items=None, headers=(), instance=1):
        """Creates an order and returns it."""
        message = {
            "request_id": str(uuid.uuid4()), "items": items or [{"sku": "MUG-BLUE", "quantity": 1}], "payment_method": method,
            "contact_email": "customer@example.com", "shipping_address": ADDRESS}
        return grpc(self.port("order", instance), "order.v1.OrderService/CreateOrder", message, token, headers)["order"]

    def get(self, order_id, token, instance=1):
        return grpc(self.port("order", instance), "order.v1.OrderService/GetOrder", {"order_id": order_id}, token)["order"]

    def until_final(self, order_id, token, seconds=60):
        """The order once it is in a terminal state, requested from the instances in turn."""
        turns = iter(range(10**6))

        def ask():
            order = self.get(order_id, token, next(turns) % self.instances + 1)
            return order if order["state"] in FINAL else None

        return eventually(f"order {order_id} is final", seconds, ask)

    def events(self, **filters):
        message = {"page_size": 500, **filters}
        answer = grpc(self.port("data"), "data.v1.TraceEventService/ListTraceEvents", message, self.login_as_operator())
        return answer.get("events", [])

    def all_events(self, **filters):
        """The events of all pages."""
        return pages(self.port("data"), "data.v1.TraceEventService/ListTraceEvents", "events", self.login_as_operator(), **filters)

    def charges(self):
        """The gateway's whole ledger."""
        key = (self.data_dir / "gateway.key").read_text().strip()
        return pages(self.port("gateway"), "gateway.v1.PaymentGatewayService/ListCharges", "charges", headers=[f"x-api-key: {key}"])

    def charges_of(self, order_id):
        return [charge for charge in self.charges() if order_id in charge["chargeKey"]]


def is_ours(pid):
    """Whether it is a process of the program: the pid may have been reused."""
    try:
        program = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    return program.removesuffix(" (deleted)") in PROGRAMS


def read_bytes(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def counted(events):
    """The number of events of each (type, status); checks that none is stored twice."""
    ids = [event["eventId"] for event in events]
    check(len(ids) == len(set(ids)), f"no event is stored twice: {ids}")
    counts = {}
    for event in events:
        kind = (event["type"].removeprefix("EVENT_TYPE_").lower(), event["status"].removeprefix("EVENT_STATUS_").lower())
        counts[kind] = counts.get(kind, 0) + 1
    return counts
