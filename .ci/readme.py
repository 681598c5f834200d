"""Executes the documents verbatim: their blocks in one shell, in sequence, with a Jaeger.

- A ```sh block is executed, unless the line before it is `<!-- no-ci: why -->`, or it is the tests' own (`cargo test`), which are a part of CI.
- `<!-- ci: background, until "text" -->` before a block: it is started in the background, until its output contains the text.
- `<!-- ci: expect "text" -->` after a block: its output must contain the text.
- The demo checks each row of the table of failures itself. Here its scenarios' events are compared with the tags of their traces in
  Jaeger (the environment's OTEL_EXPORTER_OTLP_ENDPOINT), with the store and with the log.
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
# Longer than the demo, which runs every scenario.
COMMAND_TIMEOUT_S = 240


@dataclass
class Block:
    """A block of commands."""

    line: str
    code: str
    skipped: bool = False
    background_until: str | None = None
    expected: list = field(default_factory=list)


def parse(document):
    """The blocks of a document, in sequence."""
    found, lines, at, directive = [], (ROOT / document).read_text().splitlines(), 0, ""
    while at < len(lines):
        line = lines[at].strip()
        if line.startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            if line == "```sh":
                until = re.match(r'ci: background, until "(.*)"$', directive)
                check(not directive.startswith("ci: background") or until, f"{document} line {at}: a valid directive")
                found.append(Block(
                    f"{document} line {at + 1}", "\n".join(lines[at + 1:end]), directive.startswith("no-ci:"), until.group(1) if until else None))
            at, directive = end + 1, ""
            continue
        comment = re.fullmatch(r"<!-- (.*) -->", line)
        if comment:
            directive = comment.group(1)
            expected = re.match(r'ci: expect "(.*)"$', directive)
            if expected:
                check(found and not found[-1].skipped and not found[-1].background_until,
                      f"{document} line {at + 1}: before the expectation a block that runs to its end")
                found[-1].expected.append(expected.group(1))
        elif line:
            directive = ""
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
        answered, _, _ = select.select([self.bash.stdout], [], [], COMMAND_TIMEOUT_S)
        printed = output.read_text() if output.exists() else ""
        check(answered, f"the command ends within {COMMAND_TIMEOUT_S} s: {code}\noutput:\n{printed}")
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


@dataclass
class Scenario:
    """A scenario of the demo, as it was printed."""

    name: str
    trace: str
    # (type, status, error type and reason)
    events: set


def scenarios(output):
    """The scenarios in the demo's output."""
    found = []
    for text in re.split(r"^(?=(?:ok  |FAIL) )", output, flags=re.M)[1:]:
        trace = re.search(r"^ +trace ([0-9a-f]{32})$", text, re.M)
        events = re.findall(r"^ +event (\w+) (success|failed)(?:: (\S+) (\S+))?$", text, re.M)
        check(trace, f"each scenario prints its trace:\n{text}")
        found.append(Scenario(text.split()[1], trace.group(1), {(kind, status, error, reason) for kind, status, error, reason in events}))
    return found


def outcome(event):
    return (event.type, event.status, event.error_type or "", event.reason or "")


def check_scenario(scenario, dedicated, system, jaeger):
    """The tags in Jaeger describe the printed events, and no other failed one; the store has the same ones, and each failed one has a log line."""
    def described():
        spans = jaeger.spans(scenario.trace)
        check(any(span.kind == "server" for span in spans), f"{scenario.name}: the call of trace {scenario.trace} is in Jaeger")
        tagged = {outcome(span.event) for span in spans if span.event}
        surplus = {event for event in tagged - scenario.events if event[1] == "failed" or not scenario.events}
        check(scenario.events <= tagged and not surplus, f"{scenario.name} has the printed events; missing {scenario.events - tagged}, surplus {surplus}; found {tagged}")
        if not dedicated:  # the store of a dedicated system has ended with it
            same_as_stored(spans, system.events(trace_id=scenario.trace))
        return spans

    for span in eventually(f"the events of {scenario.name}", 15, described):
        if span.event and not dedicated:  # a dedicated system logs errors only
            lines = [line for line in list(system.lines) if '"event":' in line and f'"span_id":"{span.id}"' in line]
            expected = int(span.event.status == "failed")
            check(len(lines) == expected, f"{scenario.name}: {span.event} has {expected} lines in the log: {lines}")


def check_demo(output, shell, system, jaeger):
    """Every scenario that the demo has run."""
    executed = scenarios(output)
    dedicated = {line.split()[0] for line in shell.run("cargo run --release -- demo --list")[0].splitlines() if re.search(r"\(`--\w+\.[\w-]+ |\(traffic policy: ", line)}
    check(len(executed) >= 60 and len(dedicated) == 5, f"the demo runs every scenario: {len(executed)}, and {dedicated} on systems of their own")
    for scenario in executed:
        check_scenario(scenario, scenario.name in dedicated, system, jaeger)
    return len(executed)


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


def working_folder():
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


def own_ports(blocks):
    """The ports of the documents' systems: calls, and health on each + 1000, for every port base in the commands."""
    commands = [block.code for block in blocks if not block.skipped]
    named = {int(base) for command in commands for base in re.findall(r"--port-base (\d+)", command)}
    return sorted(
        base + offset + n + admin for base in {PORT_BASE} | named for name, offset in OFFSETS.items()
        for n in ((1,) if name == "gateway" else (1, 2)) for admin in (0, 1000))


def run():
    """Runs every command of the documents, with traces in Jaeger."""
    with Jaeger() as jaeger:
        return run_with(jaeger)


def run_with(jaeger):
    blocks = [block for document in DOCUMENTS for block in parse(document)]
    taken = [port for port in own_ports(blocks) if not is_free(port)]
    check(not taken, f"the documents' ports are free: {taken} are in use")
    folder, cwd, env = working_folder()
    env |= jaeger.env()
    shell, systems, executed = Shell(cwd, env), [], 0
    try:
        for block in blocks:
            began = time.monotonic()
            if block.background_until:
                systems.append(start(block, env, cwd))
                print(f"  {block.line}: {block.code.strip()} (ready after {time.monotonic() - began:.1f} s)", flush=True)
            elif not block.skipped and not block.code.startswith("cargo test"):
                output, status = shell.run(block.code)
                missing = [text for text in block.expected if text not in output]
                where = f"{block.line}:\n{block.code}\nstatus {status}, output:\n{output}"
                check(status == 0, f"the block succeeds; {where}")
                check(not missing, f"{missing} in the output; {where}")
                if block.code.strip() == "cargo run --release -- demo":
                    executed += check_demo(output, shell, systems[0], jaeger)
                print(f"  {block.line}: {block.code.strip().splitlines()[0][:90]} ({time.monotonic() - began:.1f} s)", flush=True)
        check(systems and executed, "the documents start the system, and play the demo")
        for system in systems:
            code = system.stop()
            check(code == 0, f"after SIGTERM it exits with 0, not {code}")
        return f"{len(blocks)} blocks, {executed} scenarios of the demo"
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
