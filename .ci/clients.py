"""The clients of proto/clients, and common gRPC tools, with the commands of its README against a running system, plaintext and with TLS."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from readme import parse
from system import ROOT, System, check, eventually, grpc_all, not_run

README = "proto/clients/README.md"
FOLDER = (ROOT / README).parent
TOOLS = {"go": ["go", "buf"], "python": ["python3"], "typescript": ["node", "npm", "buf"], "java": ["java", "mvn"]}
SEARCH = "data.v1.CatalogService/ListProducts"
SEARCHES = 15
# Far fewer than a client's searches, also when they are slow (a cold JVM), and the next one within its first backoffs. A low bcrypt cost: log-ins are not under test.
FLAGS = ["--data.search-quota", "6/s", "--user.bcrypt-cost", "4"]
STATES = ["CREATED", "PAID", "ALLOCATED", "FULFILLMENT_STARTED", "CREATED", "PAYMENT_FAILED", "CREATED"]
EVENTS = ["DATA_LOOKUP", "ORDER_CREATION", "ORDER_FULFILLMENT", "PAYMENT_PROCESSING"]
LINES = ["declined: PAYMENT_DECLINED INSUFFICIENT_FUNDS", "rejected: UNAUTHENTICATED INVALID_CREDENTIALS", "deadline: DEADLINE_EXCEEDED"]
MAX_LINES = 80
# A JVM runs for seconds here: optimized machine code would cost it twice the time.
JVM_ENV = {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"}
BUILD_TIMEOUT_S, RUN_TIMEOUT_S = 1200, 60


def commands():
    """The commands before the languages' sections, each language's (to build, to run), and each tool's blocks."""
    first, found, tools = [], {}, {name: [] for name in tool_flags()}
    for block in (block for block in parse(README) if not block.skipped):
        language = re.search(r"cd target/clients/(\w+) ", block.code)
        called = [name for name in tools if re.search(rf"\b{name} ", block.code)]
        if called:
            tools[called[0]].append(block)
        else:
            (found.setdefault(language.group(1), []) if language else first).append(block.code)
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    check(found.keys() == folders == TOOLS.keys() & folders, f"the README has each client: {sorted(folders)}, {sorted(found)}")
    check(all(len(blocks) == 2 for blocks in found.values()), f"two commands for each client: {found}")
    expecting = [name for name, blocks in tools.items() if any(block.expected for block in blocks)]
    check(len(tools) >= 4 and expecting == list(tools), f"the README has commands with an expected output for each tool: {expecting} of {list(tools)}")
    return first, found, tools


def tool_flags():
    """The table of tools: each one's words for a system without TLS, and those for one with."""
    rows = re.findall(r"^\| `([\w -]+)` \|.*\| `([^`]+)` \| `([^`]+)` \|$", (ROOT / README).read_text(), re.M)
    return {name: (plain, tls) for name, plain, tls in rows}


def shell(code, seconds, env=None):
    """Runs commands, which must succeed; returns their standard output and the seconds."""
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], cwd=ROOT, env={**os.environ, **JVM_ENV, **(env or {})}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=seconds, check=False)
    check(done.returncode == 0, f"the command succeeds: {code}\n{done.stdout}\n{done.stderr}")
    return done.stdout, time.monotonic() - began


def check_size():
    sources = [path for pattern in ("*/*", "*/src/main/java/*") for path in FOLDER.glob(pattern) if path.suffix in (".go", ".py", ".ts", ".java")]
    check(len(sources) == len(TOOLS), f"each client is one source file: {sources}")
    for source in sources:
        count = len(source.read_text().splitlines())
        check(count <= MAX_LINES, f"{source.name} has at most {MAX_LINES} lines: {count}")


def check_output(language, output):
    """The same for each client; the names of status codes are each library's."""
    output = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", output)
    states = re.findall(r"^order: ORDER_STATE_(\w+)$", output, re.M)
    check(states == STATES, f"{language}: the orders' states are {STATES}: {output}")
    events = re.search(r"^events: .*$", output, re.M)
    check(events and sorted(re.findall(r"EVENT_TYPE_([A-Z_]+)", events.group())) == EVENTS, f"{language}: the order's events are {EVENTS}: {output}")
    lines = [re.sub(r"(?<=: )\w+", lambda word: word.group().upper(), line) for line in output.splitlines()]
    for line in LINES:
        check(lines.count(line) == 1, f"{language} prints {line!r}: {output}")
    check(lines.count("found: 2") == SEARCHES, f"{language}: {SEARCHES} searches succeed: {output}")


@contextmanager
def retried(system, roots, *flags):
    """A function that returns the number of searches so far that succeeded when they were repeated."""
    with tempfile.TemporaryFile("w+") as file:
        tap = subprocess.Popen(system.command_of("tap", "-o", "json", "--method", SEARCH, *flags), stdout=file, stderr=subprocess.DEVNULL)

        def calls():
            file.seek(0)
            return [json.loads(line) for line in file.read().split("\n")[:-1]]

        def ask():
            grpc_all(system.port("data"), SEARCH, {}, roots=roots)
            return calls()

        try:
            eventually("the tap shows calls", 20, ask)
            yield lambda: sum(1 for call in calls() if call.get("attempt", 0) > 1 and call["code"] == "OK")
        finally:
            tap.terminate()
            tap.wait(10)


def run_tools(tools, env):
    """Runs the blocks of each tool; with TLS its words for that replace the others."""
    results = []
    for name, blocks in tools.items():
        took = 0
        for block in blocks:
            code, (plain, tls) = block.code, tool_flags()[name]
            check(plain in code, f"{block.line}: {name} is called with {plain!r}: {code}")
            output, seconds = shell("exec 2>&1\n" + (code.replace(plain, tls) if "CA_FILE" in env else code), RUN_TIMEOUT_S, env)
            missing = [text for text in block.expected if text not in output]
            check(not missing, f"{block.line}: {missing} in the output of {code}:\n{output}")
            took += seconds
        results.append(f"{name} {took:.1f} s")
    return results


def run_clients(clients, tools, *flags):
    """Runs the clients and the tools in sequence; returns the seconds of each, and the number of retried calls of each client."""
    with System(flags=[*FLAGS, *flags], instances=1) as system:
        roots = system.data_dir / "certs/ca.pem" if flags else None
        email, password = (system.data_dir / "operator.txt").read_text().split()
        env = {f"{service.upper()}_ADDRESS": f"127.0.0.1:{system.port(service)}" for service in ("user", "order", "payment", "data")}
        env |= {"OPERATOR_EMAIL": email, "OPERATOR_PASSWORD": password, **({"CA_FILE": str(roots)} if roots else {})}
        results = []
        with retried(system, roots, *flags) as count:
            for language, code in clients.items():
                before = count()
                output, took = shell(code, RUN_TIMEOUT_S, env)
                check_output(language, output)
                eventually(f"the tap shows that a search of the {language} client was retried", 10, lambda: count() > before)
                results.append(f"{language} {took:.1f} s, {count() - before} retried")
        return "; ".join([*results, *run_tools(tools, env)])


def run():
    """Stock clients in other languages register, order, watch, list events, read errors, and retry, and common tools call: plaintext and with TLS."""
    check_size()
    first, found, tools = commands()
    skipped = []
    for language in sorted(found):
        missing = [tool for tool in TOOLS[language] if not shutil.which(tool)]
        if missing:
            skipped.append(not_run(f"the {language} client", f"no {', '.join(missing)}"))
            del found[language]
    for name in [name for name in tools if not shutil.which(name.split()[0])]:
        skipped.append(not_run(name, "not installed: .ci/tools.sh"))
        del tools[name]
    for code in first:
        shell(code, RUN_TIMEOUT_S)
    with ThreadPoolExecutor(2) as pool:
        built = dict(zip(found, pool.map(lambda language: shell(found[language][0], BUILD_TIMEOUT_S)[1], found)))
    clients = {language: blocks[1] for language, blocks in found.items()}
    durations = ", ".join(f"{language} {took:.0f} s" for language, took in built.items())
    results = [f"built: {durations}", f"plaintext: {run_clients(clients, tools)}", f"TLS: {run_clients(clients, tools, '--tls')}"]
    return ". ".join([*results, *skipped])
