"""Rolling restarts under load, plaintext and with mutual TLS; and the maximum duration of a drain."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from postgres import check_verify, readyz_status
from system import System, check, eventually

# Calls are served for a while after SIGTERM; a low bcrypt cost, because log-ins are not under test.
DELAY = "500ms"
FLAGS = [flag for service in ("user", "order", "payment", "data", "gateway") for flag in (f"--{service}.pre-drain-delay", DELAY)]
FLAGS += ["--user.bcrypt-cost", "4"]
# A watch ended by its instance's drain resumes at another instance; this status requests that.
EXPECTED = {"WatchOrder: Unavailable DRAINING"}
# Of Kubernetes' grace period of 30 s: for the pre-drain delay, the calls, the events, the spans.
DRAIN_LIMIT_S = 25


def restart(system, service, instance):
    """Sends SIGTERM to one instance; returns when its successor is ready."""
    name = f"{service}-{instance}"
    [pid] = [pid for pid, which in system.children() if which == name]
    os.kill(pid, signal.SIGTERM)
    eventually(f"{name} ends", 30, lambda: not Path(f"/proc/{pid}").exists() or pid not in dict(system.children()))
    eventually(f"{name} is ready again", 20, lambda: ready_again(system, service, instance))


def ready_again(system, service, instance):
    try:
        return readyz_status(system, service, instance) == 200
    except OSError:
        return False


class Load:
    """Customers during a system's failures: a context manager; `seen` stops the load and returns the results."""

    def __init__(self, system, *flags):
        self.report = Path(tempfile.mkdtemp(prefix="ordermesh-load-")) / "load.json"
        self.command = system.command_of("load", "--duration", "10m", "--mix", "happy=90,cancel=10", "--json", str(self.report), *flags)
        self.process, self.took = None, 0

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(2)  # so that there is load
        self.began = time.monotonic()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        shutil.rmtree(self.report.parent)

    def seen(self, expects=EXPECTED.__contains__):
        """The numbers of acknowledged orders and of resumed watches; fails if a call has failed in another way than expected."""
        self.took = time.monotonic() - self.began
        ended = self.process.poll() is not None
        check(not ended, f"the load runs until it is stopped:\n{self.process.communicate()[0] if ended else ''}")
        self.process.send_signal(signal.SIGINT)
        output, _ = self.process.communicate(timeout=180)
        check(self.process.returncode == 0, f"every order ends in its expected state:\n{output}")
        figures = json.loads(self.report.read_text())
        failed = {what: count for what, count in figures["refusals"].items() if not expects(what)}
        check(not failed, f"no call fails: {failed}\n{output}")
        return figures["latencies"]["acknowledged"]["count"], sum(figures["refusals"].values())


def under_load(*flags):
    """Restarts every instance of every service in turn while orders are placed."""
    tls = [flag for flag in flags if flag == "--tls"]
    instances = [(service, n) for service in ("user", "order", "payment", "data") for n in (1, 2)] + [("gateway", 1)]
    # Without client retries: a drain alone must lose no call.
    with System(flags=[*FLAGS, *flags]) as system:
        with Load(system, "--no-retries", "--customers", "8", "--logins", "5", *tls) as load:
            for service, instance in instances:
                restart(system, service, instance)
            acknowledged, moved = load.seen()
        check_verify(system, *tls)
    return f"{len(instances)} restarts in {load.took:.0f} s, {acknowledged} orders, 0 failed calls, {moved} watches resumed at other instances"


def worst_drain():
    """A drain with a call that does not complete and a collector that does not respond."""
    with socket.socket() as silent:
        # It accepts connections and sends nothing.
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        flags = ["--order.pre-drain-delay", "5s", "--payment.pre-drain-delay", "5s", "--gateway.fault-latency-ms", "60000", "--payment.gateway-timeout", "50s",
                 "--payment.wait-timeout", "50s", "--user.bcrypt-cost", "4"]
        with System(flags=flags, env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) as system:
            _, token = system.customer()
            system.order(token)
            took = {}
            for instance in ("order-1", "payment-1"):  # one of them drives the payment, and the caller waits
                [pid] = [pid for pid, which in system.children() if which == instance]
                began = time.monotonic()
                os.kill(pid, signal.SIGTERM)
                eventually(f"{instance} ends", 40, lambda: pid not in dict(system.children()))
                took[instance] = time.monotonic() - began
                check(took[instance] < DRAIN_LIMIT_S, f"a drain takes at most {DRAIN_LIMIT_S} s: {took}")
                check(took[instance] > 5, f"it serves for the pre-drain delay: {took}")
    durations = ", ".join(f"{instance} {seconds:.1f} s" for instance, seconds in took.items())
    return f"{durations}, with a payment in flight, an unresponsive collector, and a pre-drain delay of 5 s"


def run():
    """Restarts every instance under load: no call fails; plaintext and with TLS. The longest drain ends in time."""
    return f"plaintext: {under_load()}; TLS: {under_load('--tls')}; a drain: {worst_drain()}"
