"""A PostgreSQL cluster of three nodes that Patroni and etcd operate, under load: failover, switchover, a primary that is cut off from the others, and one
that does not know of its successor. Each node, and etcd, has a network namespace of its own."""

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
API, ETCD, ETCD_PEER = 8008, 2379, 2380
PACKAGES = ("patroni", "etcd", "patronictl", "haproxy", "ip")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


class Network:
    """Namespaces on a bridge, which has the address .1: a context manager."""

    def __init__(self):
        # 198.18.0.0/15 is for tests of networks (RFC 2544), and leads nowhere else.
        self.bridge, self.prefix = f"om{os.getpid()}", f"198.18.{os.getpid() % 256}"
        self.namespaces = []

    def __enter__(self):
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.prefix}.1/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        return self

    def __exit__(self, *_):
        for name in self.namespaces:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", self.bridge], check=False, capture_output=True)

    def add(self, number):
        """A new namespace; its name and its address."""
        name, address = f"{self.bridge}-{number}", f"{self.prefix}.{number}"
        ip("netns", "add", name)
        self.namespaces.append(name)
        ip("link", "add", f"{self.bridge}.{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", f"{self.bridge}.{number}", "master", self.bridge, "up")
        for arguments in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"], ["link", "set", "lo", "up"]):
            ip("-n", name, *arguments)
        return name, address


class Node:
    """A server with its Patroni."""

    def __init__(self, cluster, number):
        self.cluster, self.name = cluster, f"pg-{number}"
        self.namespace, self.host = cluster.network.add(10 + number)
        # Their sockets are in one folder, and named by the port.
        self.port = 5431 + number
        self.data, self.process = cluster.folder / self.name, None
        config = {
            "scope": "ordermesh", "name": self.name,
            "restapi": {"listen": f"{self.host}:{API}", "connect_address": f"{self.host}:{API}"},
            "etcd3": {"hosts": f"{cluster.etcd_host}:{ETCD}"},
            "bootstrap": {
                # What a promise rests on: a commit is on two servers before it is acknowledged, always.
                "dcs": {"ttl": TTL_S, "loop_wait": 1, "retry_timeout": 3, "synchronous_mode": True, "synchronous_mode_strict": True,
                        "postgresql": {"use_pg_rewind": True, "parameters": {"wal_keep_size": "512MB", "max_connections": 200, "wal_log_hints": "on"}}},
                "initdb": ["data-checksums", {"encoding": "UTF8"}],
            },
            "postgresql": {
                "listen": f"{self.host}:{self.port}", "connect_address": f"{self.host}:{self.port}", "data_dir": str(self.data), "bin_dir": str(cluster.programs),
                "pgpass": str(cluster.folder / f"{self.name}.pgpass"), "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "postgres"}},
                "parameters": {"unix_socket_directories": str(cluster.folder)},
                "pg_hba": ["local all all trust", "host all all samenet trust", "host replication all samenet trust"],
            },
            "watchdog": {"mode": "off"},
        }
        self.config = cluster.folder / f"{self.name}.yml"
        self.config.write_text(json.dumps(config))  # JSON is YAML

    def start(self):
        self.process = self.cluster.spawn("patroni", self.config, log=f"{self.name}.log", namespace=self.namespace)

    def cut_off(self):
        """From the other nodes and from etcd, and not from the services."""
        for host in self.cluster.hosts_but(self):
            ip("-n", self.namespace, "route", "add", "blackhole", host)

    def reconnect(self):
        for host in self.cluster.hosts_but(self):
            ip("-n", self.namespace, "route", "delete", "blackhole", host)

    def get(self, path):
        """A GET of Patroni's REST API: status and body; (None, {}) without a response."""
        try:
            with urllib.request.urlopen(f"http://{self.host}:{API}{path}", timeout=2) as response:
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

    def __init__(self, network):
        self.programs, self.network = postgres_programs(), network
        self.folder = Path(tempfile.mkdtemp(prefix="ordermesh-patroni-"))
        self.processes = []
        self.etcd_namespace, self.etcd_host = network.add(10)
        client, peer = f"http://{self.etcd_host}:{ETCD}", f"http://{self.etcd_host}:{ETCD_PEER}"
        self.etcd = ["etcd", "--data-dir", self.folder / "etcd", "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
                     "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        self.nodes = [Node(self, number) for number in (1, 2, 3)]

    def hosts_but(self, node):
        return [self.etcd_host, *(other.host for other in self.nodes if other is not node)]

    def spawn(self, *command, log, namespace=None):
        """Starts a program as the user postgres; in a namespace, if one is named."""
        # `ip netns exec` replaces itself by the program.
        inside = ["ip", "netns", "exec", namespace, "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if namespace else []
        with open(self.folder / log, "a", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*inside, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=self.folder, start_new_session=True,
                env={"PATH": f"/usr/bin:/bin:/usr/sbin:/sbin:{self.programs}", "LC_ALL": "C.UTF-8"})
        self.processes.append(process)
        return process

    def __enter__(self):
        shutil.chown(self.folder, "postgres")
        try:
            self.spawn(*self.etcd, log="etcd.log", namespace=self.etcd_namespace)
            for node in self.nodes:
                node.start()
            eventually("all members stream", 60, self.is_complete)
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind, *_):
        if kind:
            print(*(node.get("/cluster") for node in self.nodes), sep="\n")
            for node in self.nodes:
                print(f"--- {node.name}'s last lines:", *(self.folder / f"{node.name}.log").read_text().splitlines()[-25:], "---", sep="\n")
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
            f"http://{old.host}:{API}/switchover", json.dumps({"leader": old.name, "candidate": candidate}).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            check(response.status == 200, "the switchover is accepted")
        return old

    def sql(self, statement, database="postgres"):
        """The output of a statement on the primary; None if it failed."""
        primary = self.primary()
        done = primary and subprocess.run(
            [self.programs / "psql", "-h", primary.host, "-p", str(primary.port), "-U", "postgres", "-d", database, "-Atqc", statement], capture_output=True, text=True, timeout=60, cwd="/", check=False)
        return done.stdout.strip() if done and done.returncode == 0 else None

    def archived(self, database):
        """How many orders and payments were archived; at least 100 of each."""
        found = [int(self.sql(f"SELECT count(*) FROM {table}", database) or 0) for table in ('"order".order_archive', "payment.payment_archive")]
        check(min(found) > 100, f"more than 100 orders and payments are archived: {found}")
        return f"{found[0]} orders and {found[1]} payments archived"

    def proxy(self):
        """HAProxy before the nodes, which asks each Patroni whether it is the primary; its host and port."""
        port, = free_ports(1)
        servers = "".join(f"  server {node.name} {node.host}:{node.port} check port {API}\n" for node in self.nodes)
        config = self.folder / "haproxy.cfg"
        config.write_text(
            "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n  timeout check 2s\n"
            f"listen primary\n  bind 127.0.0.1:{port}\n  option httpchk GET /primary\n  default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions\n{servers}")
        self.spawn("haproxy", "-f", config, log="haproxy.log")
        return f"127.0.0.1:{port}"

    def promotion_after(self, old, seconds):
        """Waits until another primary than `old` has committed, which needs its synchronous standby; the time when it had."""
        new = eventually("another primary", seconds, lambda: next((node for node in self.nodes if node is not old and node.is_primary()), None))
        commit = [self.programs / "psql", "-h", new.host, "-p", str(new.port), "-U", "postgres", "-qc", "SELECT pg_logical_emit_message(true, 'failover', '')"]
        # Patroni reports the primary before it has left recovery.
        eventually("it commits", seconds, lambda: subprocess.run(commit, capture_output=True, timeout=seconds, cwd="/", check=False).returncode == 0)
        return time.monotonic()


def run():
    """Under load: the primary's node is killed -9; a switchover; a primary that is cut off from the others; one whose Patroni is frozen, and which does not know of
    its successor. Meanwhile orders are archived. One system has the nodes in its URL, another one, with a database of its own, is behind HAProxy."""
    if why := skip_reason():
        return why
    missing = [program for program in PACKAGES if not shutil.which(program)]
    if missing:
        return not_run("e2e with Patroni", f"no {', '.join(missing)} (apt-get install patroni python3-etcd etcd-server haproxy iproute2)")
    if os.geteuid() != 0:
        return not_run("e2e with Patroni", "network namespaces need root")
    took = {}
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(stack.enter_context(Network())))
        eventually("another database", 30, lambda: cluster.sql("CREATE DATABASE proxied") is not None)
        systems = {
            "several hosts": stack.enter_context(LoadedSystem([f"{node.host}:{node.port}" for node in cluster.nodes])),
            "HAProxy": stack.enter_context(LoadedSystem([cluster.proxy()], "proxied")),
        }

        def outage(what, old, seconds=120):
            begin = time.monotonic()
            promoted = cluster.promotion_after(old, seconds)
            after = [system.next_after(promoted) for system in systems.values()]
            took[what] = (promoted - begin, after)

        old = cluster.primary()
        old.kill()
        outage("kill -9", old)
        old.start()
        eventually("the killed node is a standby", 120, cluster.is_complete)

        old = cluster.switch_over()
        outage("switchover", old)
        eventually("after the switchover the old primary is a standby", 120, cluster.is_complete)

        old = cluster.primary()
        old.cut_off()
        outage("cut off", old)
        old.reconnect()
        eventually("the reconnected primary is a standby", 120, cluster.is_complete)

        old = cluster.primary()
        os.kill(old.process.pid, signal.SIGSTOP)
        outage("frozen Patroni", old)
        # Fenced, as a watchdog would: a Patroni before 3.0.3 that continues may take the lock back, and its successor's commits are lost (patroni#2689).
        old.kill()
        old.start()
        eventually("the fenced node is a standby", 120, cluster.is_complete)
        results = [f"{name}: {system.finish()}, {cluster.archived(system.database)}" for name, system in systems.items()]
        for system in systems.values():
            system.explains_the_first()
    figures = ", ".join(f"{what} {promotion:.1f} + {' and '.join(f'{each:.1f}' for each in after)} s" for what, (promotion, after) in took.items())
    return f"until the cluster committed again, and from then until the next acknowledged order of each system: {figures}; {'; '.join(results)}"
