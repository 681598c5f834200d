"""Events at NATS: the stream of a nats-server of its own against the stored events. NATS' protocol over a socket."""

import base64
import json
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

from rolling import FLAGS, Load
from system import System, check, eventually, free_ports, grpc

STREAM = "ORDERMESH_EVENTS"


class Nats:
    """A nats-server with JetStream in a temporary folder."""

    def __init__(self):
        self.port = free_ports(1)[0]
        self.url = f"nats://127.0.0.1:{self.port}"
        self.folder = Path(tempfile.mkdtemp(prefix="ordermesh-nats-"))
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def start(self):
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["nats-server", "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        eventually("nats-server is ready", 20, self.connect).close()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __exit__(self, kind, *_):
        self.kill()
        if kind:
            print("--- nats-server's last lines:", *(self.folder / "log").read_text().splitlines()[-20:], "---", sep="\n")
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self):
        return Connection(self.port)

    def count(self):
        """The number of messages in the stream."""
        with closing(self.connect()) as connection:
            return connection.ask(f"STREAM.INFO.{STREAM}", {})["state"]["messages"]

    def messages(self):
        """(message id, subject) of every message of the stream, in sequence."""
        found = []
        with closing(self.connect()) as connection:
            state = connection.ask(f"STREAM.INFO.{STREAM}", {})["state"]
            for number in range(state["first_seq"], state["last_seq"] + 1):
                message = connection.ask(f"STREAM.MSG.GET.{STREAM}", {"seq": number})["message"]
                headers = dict(line.split(": ", 1) for line in base64.b64decode(message["hdrs"]).decode().splitlines() if ": " in line)
                event_id = headers["Nats-Msg-Id"]
                # The first field of the protobuf message is the event's id.
                check(base64.b64decode(message["data"])[2:38].decode() == event_id, f"the message {event_id} is its event")
                found.append((event_id, message["subject"]))
        return found


class Connection:
    """A client: one request at a time."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 5)
        self.lines = self.socket.makefile("rb")
        self.socket.sendall(b'CONNECT {"verbose": false}\r\nSUB _INBOX.ci 1\r\nPING\r\n')
        self.until(b"PONG")

    def close(self):
        self.lines.close()
        self.socket.close()

    def until(self, word):
        """The words of the next line that begins with this one."""
        while True:
            words = self.lines.readline().split()
            if not words:
                raise ConnectionError("nats-server has closed the connection")
            check(words[0] != b"-ERR", f"no error of nats-server: {words}")
            if words[0] == word:
                return words

    def ask(self, subject, body):
        """JetStream's response to a request."""
        request = json.dumps(body).encode()
        self.socket.sendall(f"PUB $JS.API.{subject} _INBOX.ci {len(request)}\r\n".encode() + request + b"\r\n")
        answer = json.loads(self.lines.read(int(self.until(b"MSG")[-1])))
        self.lines.readline()  # the message's line end
        check("error" not in answer, f"{subject} succeeds: {answer.get('error')}")
        return answer


def subject_of(event):
    kind, status = event["type"].removeprefix("EVENT_TYPE_"), event["status"].removeprefix("EVENT_STATUS_")
    return f"ordermesh.events.{kind.lower()}.{status.lower()}"


def publisher(system):
    """The instance with the event sink's lease."""
    with closing(sqlite3.connect(system.data_dir / "data.db", timeout=10)) as database:
        [(name,)] = database.execute("SELECT lease_owner FROM event_sink")
    return name


def stored(system):
    """The number of stored events."""
    answer = grpc(system.port("data", 2), "data.v1.TraceEventService/SummarizeTraceEvents", {}, system.login_as_operator())
    return sum(int(count["count"]) for count in answer.get("counts", []))


def run():
    """nats-server and the publishing instance are killed with -9 under load: each stored event is in the stream once, and no call fails."""
    with Nats() as nats, System([*FLAGS, "--data.event-sink", nats.url]) as system:
        def grows(what, count):
            """Waits for 500 more events; returns their number."""
            before = count()
            return eventually(f"{what}: 500 more events", 60, lambda: (more := count() - before) > 500 and more)

        with Load(system, "--rate", "40") as load:
            grows("published", nats.count)
            nats.kill()
            away = grows("stored while NATS is down", lambda: stored(system))
            nats.start()
            grows("published again", nats.count)
            name = publisher(system)
            system.kill_9(*name.split("-"))
            grows("published after the crash", nats.count)
            orders, _ = load.seen()

        def compare():
            events = {event["eventId"]: subject_of(event) for event in system.all_events()}
            messages = nats.messages()
            check(len(messages) == len(dict(messages)), "no event is in the stream twice")
            check(dict(messages) == events, f"stored and published are the same: {len(events)} and {len(messages)}")
            return len(messages)

        total = eventually("every stored event is in the stream", 60, compare)
    return f"{orders} orders, {total} events, each once in the stream; {away} stored while NATS was away; {name} killed"
