"""A PostgreSQL cluster of three servers that Patroni and etcd operate: failover, switchover, and an old primary that does not know, under load."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

from failover import LoadedSystem, signal_all
from postgres import postgres_programs, skip_reason
from system import check, eventually, free_ports, not_run

# The lock's lifetime, in seconds: Patroni's minimum. A failover takes about as long.
TTL_S = 20
PACKAGES = ("patroni", "etcd", "patronictl")


class Node:
    """A server with its Patroni."""

    def __init__(self, cluster, number, port, api):
        self.cluster, self.name, self.port, self.api = cluster, f"pg-{number}", port, api
        self.data, self.process = cluster.folder / self.name, None
        config = {
            "scope": "ordermesh", "name": self.name,
            "restapi": {"listen": f"127.0.0.1:{api}", "connect_address": f"127.0.0.1:{api}"},
            "etcd3": {"hosts": f"127.0.0.1:{cluster.etcd_port}"},
            "bootstrap": {
                # What a promise rests on: a commit is on two servers before it is acknowledged, always.
                "dcs": {"ttl": TTL_S, "loop_wait": 1, "retry_timeout": 3, "synchronous_mode": True, "synchronous_mode_strict": True,
                        "postgresql": {"use_pg_rewind": True, "parameters": {"wal_keep_size": "512MB", "max_connections": 200, "wal_log_hints": "on"}}},
                "initdb": ["data-checksums", {"encoding": "UTF8"}],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{port}", "connect_address": f"127.0.0.1:{port}", "data_dir": str(self.data), "bin_dir": str(cluster.programs),
                "pgpass": str(cluster.folder / f"{self.name}.pgpass"), "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "postgres"}},
                "parameters": {"unix_socket_directories": str(cluster.folder)},
                "pg_hba": ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
            },
            "watchdog": {"mode": "off"},
        }
        self.config = cluster.folder / f"{self.name}.yml"
        self.config.write_text(json.dumps(config))  # JSON is YAML

    def start(self):
        self.process = self.cluster.spawn("patroni", self.config, log=f"{self.name}.log")

    def get(self, path):
        """A GET of Patroni's REST API: status and body; (None, {}) without a response."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.api}{path}", timeout=2) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, {}
        except OSError:
            return None, {}

    def is_primary(self):
        return self.get("/primary")[0] == 200

    def kill(self):
        """kill -9 of Patroni, also a frozen one, and of all processes of its server."""
        self.process.kill()
        self.process.wait()
        with suppress(FileNotFoundError):
            postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
            with suppress(FileNotFoundError, ProcessLookupError):
                signal_all(postmaster, signal.SIGKILL)


class Cluster:
    """etcd and three nodes, in a temporary folder: a context manager."""

    def __init__(self):
        self.programs = postgres_programs()
        self.folder = Path(tempfile.mkdtemp(prefix="ordermesh-patroni-"))
        self.user = "postgres" if os.geteuid() == 0 else None
        self.processes = []
        self.etcd_port, peer, *ports = free_ports(8)
        self.etcd = ["etcd", "--data-dir", self.folder / "etcd", "--listen-client-urls", f"http://127.0.0.1:{self.etcd_port}", "--advertise-client-urls",
                     f"http://127.0.0.1:{self.etcd_port}", "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
                     "--initial-cluster", f"default=http://127.0.0.1:{peer}"]
        self.nodes = [Node(self, number, port, api) for number, (port, api) in enumerate(zip(ports[:3], ports[3:]))]

    def spawn(self, *command, log):
        with open(self.folder / log, "a", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, user=self.user, cwd=self.folder, start_new_session=True,
                env={"PATH": f"/usr/bin:/bin:{self.programs}", "LC_ALL": "C.UTF-8"})
        self.processes.append(process)
        return process

    def __enter__(self):
        if self.user:
            shutil.chown(self.folder, self.user)
        try:
            self.spawn(*self.etcd, log="etcd.log")
            for node in self.nodes:
                node.start()
            eventually("all members stream", 60, self.is_complete)
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind, *_):
        if kind:
            for node in self.nodes:
                print(f"--- {node.name}'s last lines:", *(self.folder / f"{node.name}.log").read_text().splitlines()[-15:], "---", sep="\n")
        for node in self.nodes:
            if node.process:
                node.kill()
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def primary(self):
        return next((node for node in self.nodes if node.is_primary()), None)

    def is_complete(self):
        """A primary with two standbys, of which one is synchronous."""
        node = self.primary()
        members = node.get("/cluster")[1].get("members", []) if node else []
        roles = sorted(member["role"] for member in members if member["state"] in ("running", "streaming"))
        return roles == ["leader", "replica", "sync_standby"]

    def sync_standby(self):
        members = self.primary().get("/cluster")[1]["members"]
        return next(member["name"] for member in members if member["role"] == "sync_standby")

    def switch_over(self):
        """A planned switchover to the synchronous standby."""
        old, candidate = self.primary(), self.sync_standby()
        request = urllib.request.Request(
            f"http://127.0.0.1:{old.api}/switchover", json.dumps({"leader": old.name, "candidate": candidate}).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            check(response.status == 200, "the switchover is accepted")
        return old

    def promotion_after(self, old, seconds):
        """Waits until another primary than `old` has committed, which needs its synchronous standby; the time when it had."""
        new = eventually("another primary", seconds, lambda: next((node for node in self.nodes if node is not old and node.is_primary()), None))
        commit = [self.programs / "psql", "-h", "127.0.0.1", "-p", str(new.port), "-U", "postgres", "-qc", "SELECT pg_logical_emit_message(true, 'failover', '')"]
        # Patroni reports the primary before it has left recovery.
        eventually("it commits", seconds, lambda: subprocess.run(commit, capture_output=True, timeout=seconds, cwd="/", check=False).returncode == 0)
        return time.monotonic()


def run():
    """Under load: the primary's node is killed -9; a switchover; a primary whose Patroni is frozen, and which does not know of its successor."""
    if why := skip_reason():
        return why
    if not all(map(shutil.which, PACKAGES)):
        return not_run("e2e with Patroni", "it is not installed (apt-get install patroni python3-etcd etcd-server)")
    took = {}
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster())
        system = stack.enter_context(LoadedSystem(cluster.nodes))

        def outage(what, old, seconds=60):
            begin = time.monotonic()
            promoted = cluster.promotion_after(old, seconds)
            after = system.next_after(promoted)
            took[what] = (promoted - begin, after)

        old = cluster.primary()
        old.kill()
        outage("kill -9", old)
        old.start()
        eventually("the killed node is a standby", 60, cluster.is_complete)

        old = cluster.switch_over()
        outage("switchover", old)
        eventually("the old primary is a standby", 60, cluster.is_complete)

        old = cluster.primary()
        os.kill(old.process.pid, signal.SIGSTOP)
        outage("frozen Patroni", old)
        os.kill(old.process.pid, signal.SIGCONT)
        eventually("the old primary is a standby", 60, cluster.is_complete)
        result = system.finish()
    figures = ", ".join(f"{what} {promotion:.1f} + {after:.1f} s" for what, (promotion, after) in took.items())
    return f"until the cluster committed again, and from then until the next acknowledged order: {figures}; {result}"
