"""PostgreSQL fails over under load: a primary with two synchronous standbys, named in one URL, without a proxy.

The check does what a failover manager does: it promotes the standby with the most WAL, and lets the other one follow it. So the outage
is measured from the promotion on: the part that the services cause.
"""

import os
import signal
import threading
import time
from contextlib import ExitStack, suppress

from postgres import Postgres, check_verify, postgres_programs, skip_reason
from rolling import Load
from system import CallError, System, check, eventually

# No commit is acknowledged before a standby has it: a failover loses no acknowledged order.
SETTINGS = {"synchronous_standby_names": "ANY 1 (*)", "wal_keep_size": "512MB"}
# The probe asks all hosts every 10 s.
FOUND_WITHIN_S = 40
# The shortest time, so that orders are archived under load and during outages.
ARCHIVE = ("--order.archive-after", "1m", "--payment.archive-after", "1m")


def lsn(server):
    """How much WAL a standby has received."""
    high, low = server.sql("SELECT pg_last_wal_receive_lsn()").split("/")
    return int(high, 16) << 32 | int(low, 16)


def follow(standby, primary):
    standby.sql(f"ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port={primary.port} user=postgres'")
    standby.sql("SELECT pg_reload_conf()")


def fail_over(standbys):
    """Promotes the standby with the most WAL; the other one follows it. Returns both."""
    def settled():
        before = [lsn(server) for server in standbys]
        time.sleep(0.1)
        return before == [lsn(server) for server in standbys]

    eventually("nothing more is received", 10, settled)
    primary, standby = sorted(standbys, key=lsn, reverse=True)
    primary.sql("SELECT pg_promote()")
    follow(standby, primary)
    return primary, standby


def is_of_the_outage(failure):
    """Calls in flight fail: with UNAVAILABLE, or when their deadline ends first."""
    return ": Unavailable " in failure or ": DeadlineExceeded " in failure


class LoadedSystem:
    """A system on these servers (host and port), named in one URL, under load. Beside the load an order is created every 100 ms, to know when each was
    acknowledged."""

    def __init__(self, servers, database="postgres"):
        self.url = f"postgres://postgres@{','.join(servers)}/{database}?target_session_attrs=read-write"
        self.database = database
        self.times, self.errors, self.is_over, self.first = [], [], False, None
        self.stack = ExitStack()
        self.thread = threading.Thread(target=self.create, daemon=True)

    def create(self):
        while not self.is_over:
            try:
                order = self.system.order(self.token)
                self.first = self.first or order["orderId"]
                self.times.append(time.monotonic())
            except CallError as error:
                self.errors.append(error.text)
            time.sleep(0.1)

    def __enter__(self):
        with ExitStack() as stack:
            system = System(flags=["--database-url", self.url, "--user.bcrypt-cost", "4", *ARCHIVE])
            # The gateway stands for an external one: its database is another.
            system.command += ["--gateway.database-url", f"sqlite://{system.data_dir}/gateway.db"]
            self.system = stack.enter_context(system)
            self.processes = {pid for pid, _ in self.system.children()}
            _, self.token = self.system.customer()
            self.load = stack.enter_context(Load(self.system, "--database-url", self.url, "--customers", "4", "--max-attempts", "100"))
            self.thread.start()
            stack.callback(self.end)
            self.next_after(time.monotonic())
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def end(self):
        self.is_over = True
        self.thread.join(30)

    def finish(self):
        """Ends the load, and verifies the promises; what was acknowledged, and what failed."""
        self.next_after(time.monotonic())
        orders, _ = self.load.seen(is_of_the_outage)
        failed = self.failures()
        check({pid for pid, _ in self.system.children()} == self.processes, "no process was restarted")
        check_verify(self.system, "--database-url", self.url)
        return f"{orders + len(self.times)} orders, none lost; {failed}"

    def explains_the_first(self):
        """An archived order is explained, from its creation to its charge and fulfilment."""
        explained = self.system.run("explain", self.first)
        missing = [step for step in ("CREATED", "create_charge → SUCCEEDED", "FULFILLMENT_STARTED") if step not in explained]
        check(not missing, f"an archived order is explained:\n{explained}")

    def failures(self):
        """How many calls failed, and how; fails if one failed in another way than an outage explains."""
        unavailable = [error for error in self.errors if '"code": 14' in error and "RetryInfo" in error]
        late = [error for error in self.errors if '"code": 4,' in error]
        other = [error for error in self.errors if error not in unavailable and error not in late]
        check(not other, f"what fails is UNAVAILABLE, with RetryInfo, or DEADLINE_EXCEEDED: {other[:1]}")
        return f"{len(unavailable)} calls UNAVAILABLE with RetryInfo, {len(late)} DEADLINE_EXCEEDED"

    def next_after(self, begin, seconds=30):
        """Seconds from `begin` to the next acknowledged order."""
        return eventually("an order is acknowledged", seconds, lambda: next((at - begin for at in self.times[:] if at > begin), None))


def connections(server):
    """The number of connections to a server that are established on the clients' side: the server itself may be frozen."""
    with open("/proc/net/tcp", encoding="utf-8") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(1 for row in rows if int(row[2].split(":")[1], 16) == server.port and row[3] == "01")


def children(pid):
    """The child processes of a process."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as pids:
        return list(map(int, pids.read().split()))


def signal_all(pid, number):
    """Signals a server and its backends, which have process groups of their own."""
    for each in [pid, *children(pid)]:
        with suppress(ProcessLookupError):
            os.kill(each, number)


def rejoin(server, primary):
    """Starts a server that was shut down; it becomes a standby."""
    (server.folder / "data" / "standby.signal").touch()
    with open(server.folder / "data" / "postgresql.auto.conf", "a", encoding="utf-8") as conf:
        conf.write(f"primary_conninfo = 'host=127.0.0.1 port={primary.port} user=postgres'\n")
    server.start()


def run():
    """The primary is killed -9, then shut down for a switchover, then frozen and resumed: no order is lost, and the old primary gets no connection."""
    if why := skip_reason():
        return why
    programs, took = postgres_programs(), {}
    with ExitStack() as stack:
        first = stack.enter_context(Postgres(programs, {"wal_keep_size": "512MB"}))
        standbys = [stack.enter_context(Postgres(programs, SETTINGS, first)) for _ in range(2)]
        first.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{SETTINGS['synchronous_standby_names']}'")
        first.sql("SELECT pg_reload_conf()")
        system = stack.enter_context(LoadedSystem([f"127.0.0.1:{server.port}" for server in (first, *standbys)]))

        signal_all(first.process.pid, signal.SIGKILL)
        first.process.wait()
        primary, standby = fail_over(standbys)
        took["kill -9"] = system.next_after(time.monotonic())
        # The killed one comes back as a copy of the new primary.
        again = stack.enter_context(Postgres(programs, SETTINGS, primary, first.port))

        primary.stop()
        shut_down = primary
        primary, standby = fail_over([standby, again])
        took["switchover"] = system.next_after(time.monotonic())
        rejoin(shut_down, primary)

        # Frozen, it accepts connections and does not respond; resumed, it still considers itself the primary.
        frozen = primary
        signal_all(frozen.process.pid, signal.SIGSTOP)
        primary, standby = fail_over([standby, shut_down])
        took["freeze"] = system.next_after(time.monotonic())
        # sqlx's listener, of which each instance of the Order Service has one, closes its connection to the frozen server gracefully, without a timeout.
        eventually("no service uses a connection to it", FOUND_WITHIN_S, lambda: connections(frozen) <= system.system.instances)
        signal_all(frozen.process.pid, signal.SIGCONT)
        check(frozen.sql("SELECT pg_is_in_recovery()") == "f", "the old primary is back, and accepts writes")
        eventually("no service has a connection to the old primary", FOUND_WITHIN_S, lambda: connections(frozen) == 0)
        result = system.finish()
    figures = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in took.items())
    return f"from the promotion to the next acknowledged order: {figures}; {result}"
