"""Executes the documents verbatim: their blocks in one shell, in sequence, and the table of failures row by row, with a Jaeger.

- A ```sh block is executed, unless the line before it is `<!-- no-ci: why -->`.
- `<!-- ci: background, until "text" -->` before a block: it is started in the background, until its output contains the text.
- `<!-- ci: expect "text" -->` after a block: its output must contain the text.
- A row of the table of failures is a command and its expected results: see `Row`. Its events are read from the tags of the trace's
  spans in Jaeger, the environment's OTEL_EXPORTER_OTLP_ENDPOINT; the store must have the same events.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from jaeger import Jaeger, same_as_stored
from system import BIN, OFFSETS, ROOT, CallError, Failed, System, check, eventually, is_free

# In this sequence: later ones use the variables, the functions and the running system of earlier ones.
DOCUMENTS = ("README.md", "services/README.md", "services/FAILURES.md", "services/SETTINGS.md")
PORT_BASE = 7000
# Longer than the demo, which runs every path.
COMMAND_LIMIT_S = 240


@dataclass
class Block:
    """A block of commands."""

    line: str
    code: str
    skipped: bool = False
    background_until: str | None = None
    expected: list = field(default_factory=list)


@dataclass
class Row:
    """A row of the table of failures. Words in backticks are checked; an order's state is the last one printed."""

    line: str
    cause: str
    command: str
    state: str
    reason: str
    event: str


def cells(line):
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def parse(document):
    """The blocks and rows of a document, in sequence."""
    found, lines, at, mark, in_table, last = [], (ROOT / document).read_text().splitlines(), 0, "", False, None
    while at < len(lines):
        line = lines[at].strip()
        if line.startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            if line == "```sh":
                last = Block(f"{document} line {at + 1}", "\n".join(lines[at + 1:end]))
                last.skipped = mark.startswith("no-ci:")
                until = re.match(r'ci: background, until "(.*)"$', mark)
                last.background_until = until.group(1) if until else None
                check(not mark.startswith("ci: background") or until, f"{document} line {at}: a valid mark")
                found.append(last)
            at, mark = end + 1, ""
            continue
        comment = re.fullmatch(r"<!-- (.*) -->", line)
        if comment:
            mark = comment.group(1)
            expected = re.match(r'ci: expect "(.*)"$', mark)
            if expected:
                check(last, f"{document} line {at + 1}: a block before the expectation")
                last.expected.append(expected.group(1))
        elif line:
            mark = ""
        if line.startswith("| cause |"):
            in_table = True
        elif in_table and line.startswith("|") and not line.startswith("|-"):
            cause, command, *rest = cells(line)
            check(len(rest) == 3 and command.startswith("`") and command.endswith("`"), f"{document} line {at + 1}: five cells, of which the second is a command")
            found.append(Row(f"{document} line {at + 1}", cause, command.strip("`"), *rest))
        elif not line.startswith("|"):
            in_table = False
        at += 1
    return found


class Shell:
    """One bash process for all documents: variables and functions persist."""

    def __init__(self, cwd, env):
        self.folder = tempfile.TemporaryDirectory(prefix="ordermesh-shell-")
        self.bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd, env=env, start_new_session=True)
        self.count = 0

    def run(self, code):
        """Runs commands; returns (output, status)."""
        self.count += 1
        script, output = (Path(self.folder.name) / f"{self.count}.{kind}" for kind in ("sh", "out"))
        script.write_text(code + "\n")
        self.bash.stdin.write(f". {script} </dev/null >{output} 2>&1; echo $?\n")
        self.bash.stdin.flush()
        answered, _, _ = select.select([self.bash.stdout], [], [], COMMAND_LIMIT_S)
        said = output.read_text() if output.exists() else ""
        check(answered, f"the command ends within {COMMAND_LIMIT_S} s: {code}\noutput:\n{said}")
        status = self.bash.stdout.readline()
        check(status, f"the shell is running after {code}")
        return output.read_text(), int(status)

    def close(self):
        self.bash.stdin.close()
        try:
            self.bash.wait(1)
        except subprocess.TimeoutExpired:
            # A command is running: terminate it with the shell.
            for sign in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(self.bash.pid, sign)
                    self.bash.wait(5)
                except (subprocess.TimeoutExpired, ProcessLookupError):
                    continue
        self.bash.stdout.close()
        self.folder.cleanup()


def words(cell):
    return re.findall(r"`([^`]+)`", cell)


def events_of(cell):
    """[(type, status, error)] of the events in a cell: a failed event's error is its type and reason."""
    found = []
    for kind, status, rest in re.findall(r"`([a-z_]+)` (success|failed)([^;]*)", cell):
        error = tuple(words(rest))
        check(len(error) == (2 if status == "failed" else 0), f"a failed event has an error type and a reason: {cell}")
        found.append((kind, status, error))
    return found


def outcome(event):
    return (event.type, event.status, (event.error_type, event.reason) if event.status == "failed" else ())


def check_state(row, output):
    for word in words(row.state):
        if word.isupper():
            states = re.findall(r'"state": "ORDER_STATE_(\w+)"|→ (\w+) [+-]', output)
            last = "".join(states[-1]) if states else "none"
            check(last == word, f"the order's state is {last}, expected {word}")
        else:
            check(re.search(rf"\b{word}\b", output), f"the code {word} is not in the output")


def check_events(row, output, system, jaeger, trace):
    """The row's events equal those described by the tags in Jaeger, and each failed one has a log line."""
    wanted = events_of(row.event)
    check(wanted or row.event == "none", f"the cell {row.event!r} lists events, or is `none`")
    by_demo = row.command.startswith("cargo ")
    if by_demo:
        traces = re.findall(r"^ +trace ([0-9a-f]{32})$", output, re.M)
        check(len(traces) == 1, f"the demonstration prints its trace: {traces}")
        [trace] = traces
    check(re.fullmatch(r"[0-9a-f]{32}", trace), f"TRACE is a trace id: {trace!r}")

    def described():
        spans = jaeger.spans(trace)
        check(any(span.kind == "server" for span in spans), f"the call of trace {trace} is in Jaeger")
        found = [outcome(span.event) for span in spans if span.event]
        missing = [event for event in wanted if event not in found]
        surplus = [event for event in found if event not in wanted and (event[1] == "failed" or not wanted)]
        check(not missing and not surplus, f"missing {missing}, failures that the row does not list: {surplus}; found {found}")
        if not by_demo:  # the demo may have used a separate system, which has ended
            same_as_stored(spans, system.events(trace_id=trace))
        return spans

    for span in eventually("the events", 15, described):
        if not span.event:
            continue
        lines = [line for line in list(system.lines) if '"event":' in line and f'"span_id":"{span.id}"' in line]
        # The demonstration's separate system logs only errors.
        expected = int(span.event.status == "failed") if not by_demo else len(lines)
        check(len(lines) == expected, f"{span.event} has {len(lines)} lines in the log, expected {expected}: {lines}")


def run_row(row, shell, system, jaeger):
    output, status = shell.run(row.command)
    trace = shell.run('printf %s "$TRACE"')[0]
    try:
        check_state(row, output)
        for word in words(row.reason):
            check(re.search(rf"\b{re.escape(word)}\b", output), f"the reason {word} is not in the output")
        check_events(row, output, system, jaeger, trace)
    except Failed as error:
        raise Failed(f"{row.line}, {row.cause!r}: {row.command}\n{error}\noutput (status {status}):\n{output}") from None


def start(block, shell_env, cwd):
    """Starts the block's command, which runs until it is stopped."""
    commands = [line for line in block.code.splitlines() if line and not line.startswith("#")]
    check(len(commands) == 1, f"{block.line}: one command, which keeps running")
    flags = dict(re.findall(r"--(port-base|data-dir) (\S+)", commands[0]))
    system = System(
        command=["bash", "-c", f"exec {commands[0]}"], cwd=cwd, data_dir=Path(cwd) / flags.get("data-dir", "data"),
        port_base=int(flags.get("port-base", PORT_BASE)), env=shell_env)
    # The command includes the build, for a new user and here.
    return system.start(seconds=1800, until=block.background_until)


def place():
    """The commands' working folder and environment. With ORDERMESH_BIN that program is used, and nothing is built."""
    env = dict(os.environ)
    if "ORDERMESH_BIN" not in os.environ:
        check(not (ROOT / "data").exists(), "there is no folder data/ (the README starts without one): move it away")
        return None, ROOT, env
    folder = tempfile.TemporaryDirectory(prefix="ordermesh-readme-")
    cwd = Path(folder.name)
    (cwd / "bin").mkdir()
    cargo = cwd / "bin/cargo"
    cargo.write_text(f'#!/bin/sh\nshift 2\n[ "$1" != -- ] || shift\nexec {BIN} "$@"\n')
    cargo.chmod(0o755)
    env["PATH"] = f"{cwd / 'bin'}:{env['PATH']}"
    return folder, cwd, env


def own_ports(parts):
    """The ports of the documents' systems: calls, and health on each + 1000, for every port base in the commands."""
    commands = [part.code for part in parts if isinstance(part, Block) and not part.skipped]
    named = {int(base) for command in commands for base in re.findall(r"--port-base (\d+)", command)}
    return sorted(
        base + offset + n + admin for base in {PORT_BASE} | named for name, offset in OFFSETS.items()
        for n in ((1,) if name == "gateway" else (1, 2)) for admin in (0, 1000))


def run():
    """Runs every command of the documents, with traces in Jaeger."""
    with Jaeger() as jaeger:
        return run_with(jaeger)


def run_with(jaeger):
    parts = [part for document in DOCUMENTS for part in parse(document)]
    rows = [part for part in parts if isinstance(part, Row)]
    check(len(rows) >= 20, f"the table of failures has at least 20 rows: {len(rows)}")
    taken = [port for port in own_ports(parts) if not is_free(port)]
    check(not taken, f"the documents' ports are free: {taken} are in use")
    folder, cwd, env = place()
    env |= jaeger.env()
    shell, systems = Shell(cwd, env), []
    try:
        for part in parts:
            began = time.monotonic()
            if isinstance(part, Row):
                run_row(part, shell, systems[0], jaeger)
                print(f"  {part.cause}: {part.state} {part.reason} ({time.monotonic() - began:.1f} s)", flush=True)
            elif part.background_until:
                systems.append(start(part, env, cwd))
                print(f"  {part.line}: {part.code.strip()} (ready after {time.monotonic() - began:.1f} s)", flush=True)
            elif not part.skipped and not part.code.startswith("cargo test"):
                output, status = shell.run(part.code)
                missing = [text for text in part.expected if text not in output]
                where = f"{part.line}:\n{part.code}\nstatus {status}, output:\n{output}"
                check(status == 0, f"the block succeeds; {where}")
                check(not missing, f"{missing} in the output; {where}")
                print(f"  {part.line}: {part.code.strip().splitlines()[0][:90]} ({time.monotonic() - began:.1f} s)", flush=True)
        check(systems, "the documents start the system")
        for system in systems:
            code = system.stop()
            check(code == 0, f"after SIGTERM it exits with 0, not {code}")
        return f"{len(parts) - len(rows)} blocks, {len(rows)} rows of the table of failures"
    except (Failed, CallError):
        for system in systems:
            print("--- the system's last lines:", *system.lines[-20:], "---", sep="\n")
        raise
    finally:
        shell.close()
        for system in systems:
            system.kill()
        if systems:
            shutil.rmtree(cwd / "data", ignore_errors=True)
        if folder:
            folder.cleanup()
