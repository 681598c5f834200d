#!/usr/bin/env python3
"""The files of deploy/operations: rules, dashboard, runbook and collector against a running system; and the compose file, which has them too.

    .ci/operations.py [PART...]

Prometheus, Jaeger and the collector run with the files of deploy/, unchanged except for ports and intervals; every metric,
label and value in alerts, dashboard and runbook must exist. Needs the tools of .ci/tools.sh (of which it installs PromQL's
parser), and promtool and prometheus: Debian's package `prometheus`, which is unpacked into .ci/bin when they are missing.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE / "bin/promql"))
# Before the imports, because the parsers are among the tools. A present one is kept.
subprocess.run([HERE / "tools.sh", "promql", "buf", "yaml", "compose-spec"], check=True)

import promql_parser as promql  # noqa: E402

import packages  # noqa: E402
import records  # noqa: E402
import sampling  # noqa: E402
from nats import Nats  # noqa: E402
from stack import COLLECTOR, OPERATIONS, Stack  # noqa: E402
from system import BIN, ROOT, CallError, System, check, eventually, grpc, prepare_process, run_named  # noqa: E402

PROMETHEUS = HERE / "bin/prometheus.deb.d/usr/bin"
RUNBOOK = ROOT / "deploy/RUNBOOK.md"

# Metrics that a healthy system does not send: name in Prometheus → its name in the code, the file that sends it, why it is absent.
ONLY_IN_TROUBLE = {
    "ordermesh_database_synchronous_replication": ("ordermesh.database.synchronous_replication", "services/chassis/src/health.rs", "PostgreSQL alone has standbys"),
    "mesh_tls_certificate_remaining_seconds": ("mesh.tls.certificate.remaining", "services/mesh/src/tls.rs", "on one machine there is no TLS"),
    "ordermesh_passwords_refused_total": ("ordermesh.passwords.refused", "services/user/src/hashing_permits.rs", "sent only when more than 64 log-ins are queued"),
}
# The User Service's: enough for the load's log-ins, but not for one of 60 KiB, whose bytes count four times.
MEMORY_BUDGET = 128 * 1024


# --- the files

def selectors(expression):
    """[(metric, selector)] of an expression, and every label in its groupings."""
    found, labels = [], set()

    def visit(node):
        if isinstance(node, promql.VectorSelector):
            node.offset = node.at = None  # any time will do
            found.append((node.name, str(node)))
        modifier = getattr(node, "modifier", None)
        labels.update(modifier.labels if isinstance(modifier, promql.AggModifier) else [])
        if isinstance(modifier, promql.BinModifier):
            labels.update(modifier.matching.labels if modifier.matching else [])
            labels.update(modifier.group_labels or [])

    promql.walk(promql.parse(expression), visit)
    return list(dict.fromkeys(found)), labels


def fill_in_variables(expression):
    """A panel's expression with its variables set to all."""
    text = expression.replace("$__rate_interval", "1m")
    return re.sub(r"\$(job|instance)\b", ".*", text)


def panels():
    dashboard = json.loads((OPERATIONS / "dashboard.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def blocks(language):
    """The runbook's code blocks in a language, one string each."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", RUNBOOK.read_text(), re.M | re.S)


# --- without a system

def run(*command, cwd=ROOT, env=None):
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=300, check=False)
    check(done.returncode == 0, f"`{' '.join(map(str, command))}` succeeds:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def rules():
    """promtool: the rules are valid, each alert fires in its test, and none fires with healthy data."""
    run("promtool", "check", "config", OPERATIONS / "prometheus.yaml")
    run("promtool", "test", "rules", "alerts.test.yaml", cwd=OPERATIONS)
    alerts = re.findall(r"^\s*- alert: (\w+)", (OPERATIONS / "alerts.yaml").read_text(), re.M)
    tests = (OPERATIONS / "alerts.test.yaml").read_text()
    untested = [alert for alert in alerts if f'alertname="{alert}"}}' not in tests]
    check(alerts and not untested, f"each alert has a test that fires it; without one: {untested}")
    return f"{len(alerts)} alerts, {len(re.findall('eval_time', tests))} evaluation times"


def configurations():
    """Jaeger's own check of the collector's and of Jaeger's configurations."""
    files = [["collector.yaml"], ["collector.yaml", "logs/logs.yaml"], ["jaeger.yaml"], ["opensearch/jaeger.yaml"]]
    env = {"OPENSEARCH_URL": "http://localhost:9200", "OPENSEARCH_USERNAME": "u", "OPENSEARCH_PASSWORD": "p", "LOGS_ENDPOINT": "http://localhost:4318"}
    for together in files:
        run("jaeger", "validate", *(word for file in together for word in ("--config", COLLECTOR / file)), env=env)
    return f"{len(files)} configurations"


def dashboard():
    """The dashboard: Grafana's required fields, and each panel has a description and a unit."""
    whole = json.loads((OPERATIONS / "dashboard.json").read_text())
    check(whole["schemaVersion"] >= 39 and whole["uid"] and whole["title"], "the dashboard has a current schema, a uid and a title")
    every = whole["panels"]
    check(len({panel["id"] for panel in every}) == len(every), "each panel has a unique id")
    taken = {}
    for panel in every:
        place = panel["gridPos"]
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            check(cell[0] < 24 and cell not in taken, f"{panel['title']} does not overlap {taken.get(cell, 'the edge')}")
            taken[cell] = panel["title"]
    for panel in panels():
        title = panel["title"]
        check(len(panel["description"]) > 20 and "\n" not in panel["description"], f"{title}: it has a description of one line")
        check(panel["fieldConfig"]["defaults"]["unit"], f"{title}: it has a unit")
        check(panel["targets"], f"{title}: it has at least one query")
        for target in panel["targets"]:
            check(target["datasource"]["uid"] == "${datasource}", f"{title}: its data source is the variable")
            unknown = set(re.findall(r"\$(\w+)", target["expr"])) - {"job", "instance", "__rate_interval"}
            check(not unknown, f"{title}: its variables are defined; undefined: {unknown}")
    return f"{len(panels())} panels"


def partial_log_commands(text):
    """Commands that read only one of the pods, or ten lines of each: `logs deploy/SERVICE`, and `logs -l` without --tail."""
    found = []
    for command in re.findall(r"kubectl [^|`\n]*\blogs [^|`\n]*", text):
        one_of_many = re.search(r"\bdeploy(?:ment)?/(?:user|order|payment|data)\b", command)
        ten_lines = re.search(r"\s(?:-l|--selector)\b", command) and "--tail" not in command
        if one_of_many or ten_lines:
            found.append(command.strip())
    return found


def requests_of_the_contract():
    """{method: the fields of its request}, from the descriptors."""
    files = json.loads(run("buf", "build", "proto", "--output", "-#format=json"))["file"]
    fields = {f".{file['package']}.{message['name']}": {field["name"] for field in message.get("field", [])}
              for file in files for message in file.get("messageType", [])}
    return {f"{file['package']}.{service['name']}/{method['name']}": fields[method["inputType"]]
            for file in files for service in file.get("service", []) for method in service["method"]}


def runbook():
    """A section for each alert and an alert for each section; every command, flag, method and field exists."""
    text = RUNBOOK.read_text()
    rules_text = (OPERATIONS / "alerts.yaml").read_text()
    alerts = re.findall(r"^\s*- alert: (\w+)", rules_text, re.M)
    under_alerts = text.split("\n## Alerts\n", 1)[1].split("\n## ", 1)[0]
    sections = re.findall(r"^### (\w+)$", under_alerts, re.M)
    check(sections == alerts, f"sections and alerts have the same names and sequence: {set(sections) ^ set(alerts) or sections}")
    urls = re.findall(r"runbook_url: deploy/RUNBOOK\.md#(\w+)", rules_text)
    check(urls == [alert.lower() for alert in alerts], f"each alert links to its section: {urls}")
    for section in re.split(r"^### ", under_alerts, flags=re.M)[1:]:
        missing = [word for word in ("**Means**", "**Look**", "**Do**", "**Wake**") if word not in section]
        check(not missing, f"{section.split()[0]} has {missing}")

    partial = partial_log_commands(text)
    check(not partial, "each command shows a service's whole log; only a part:\n" + "\n".join(partial))
    seen = partial_log_commands("kubectl -n ordermesh logs deploy/order --since=1h\nkubectl logs -l app.kubernetes.io/name=order --prefix\nkubectl logs deploy/collector")
    check(len(seen) == 2, f"control: commands that show a part of the log are detected: {seen}")

    # The searches in Jaeger use only tags that CI finds there, row by row of the table of failures.
    table = "\n".join(line for line in (ROOT / "services/FAILURES.md").read_text().splitlines() if line.startswith("| ") and "` failed: `" in line)
    values = set(re.findall(r"ordermesh\.event\.(?:type|error_type|reason)=(\w+)", text))
    unknown = {value for value in values if f"`{value}`" not in table}
    check(values and not unknown, f"each tag is in a row of the table; in none: {unknown}")

    helps = {}
    commands = re.findall(r"^\s*(?:[A-Z]+=\S+ )*ordermesh ([^|\n]*)", "\n".join(blocks("sh")), re.M)
    for command in commands:
        words = command.split("#")[0].split()
        path = tuple(word for word in words[:2] if re.fullmatch(r"[a-z]+", word))
        if path not in helps:
            helps[path] = run(BIN, *path, "--help")
        for flag in re.findall(r"--[\w-]+", command):
            check(f"{flag} " in helps[path] or f"{flag}\n" in helps[path], f"ordermesh {' '.join(path)} has {flag}")
    for prefix, flag in re.findall(r"--(user|order|payment|data)\.([\w-]+)", text):
        helps.setdefault((prefix,), run(BIN, prefix, "--help"))
        check(f"--{flag} " in helps[(prefix,)], f"ordermesh {prefix} has --{flag}")

    requests, calls = requests_of_the_contract(), 0
    for block in blocks("sh"):
        for message, method in re.findall(r"-d '(\{.*?\})' \S+ ([\w.]+/\w+)", block.replace("\\\n", " ")):
            if method.startswith("grpc."):
                continue
            calls += 1
            check(method in requests, f"{method} is in the contract")
            unknown = set(re.findall(r'"(\w+)":', message)) - requests[method]
            check(not unknown, f"the request of {method} has {unknown}")
    check(commands and calls, "the runbook has commands and calls")
    return f"{len(sections)} sections, {len(commands)} commands, {calls} calls"


# --- with a running system

def cause_failures(system):
    """Throttled log-ins, an oversized one, an invalid token, a crashed service: produces the metrics that only failures produce."""
    email, _ = system.customer()
    for _ in range(8):
        try:
            system.login(email, "wrong horse battery")
        except CallError:
            pass
    rejected = []
    for port, method, message in (
            (system.port("order"), "order.v1.OrderService/ListOrders", {}),
            (system.port("user"), "user.v1.UserService/Login", {"email": email, "password": "x" * 60 * 1024})):
        try:
            grpc(port, method, message, "nonsense")
        except CallError as error:
            rejected.append(error.reason)
    check(rejected == ["TOKEN_MALFORMED", "OUT_OF_MEMORY"], f"an invalid token and an oversized call are rejected: {rejected}")
    _, token = system.customer()

    def fails():
        # The supervisor restarts it immediately: the order must arrive in between.
        system.kill_9("data")
        try:
            system.order(token)
            return False
        except CallError as error:
            return error.reason == "LOOKUP_FAILED"

    eventually("an order fails because of a server fault", 60, fails)
    eventually("the Data Service is back", 30, lambda: system.order(token))


def check_runbook_searches(stack):
    """Each of the runbook's searches in Jaeger finds traces: earlier steps caused failures of each kind."""
    searches = re.findall(r"curl -s 'localhost:16686(\S+)'", "\n".join(blocks("sh")))
    for search in searches:
        eventually(f"the runbook's search finds a trace: {search}", 30, lambda search=search: stack.jaeger.ask(search)["data"])
    check(searches, "the runbook searches for traces")


def check_needs_attention(stack, system):
    """An order that needs attention raises an alert, and the runbook's procedure resolves it."""
    _, token = system.customer()
    operator = system.login_as_operator()

    def stock(method, **message):
        return grpc(system.port("order"), f"order.v1.InventoryService/{method}", message, operator)

    def needs_attention():
        """Its stock is written off while the Payment Service is suspended, and the refund is refused."""
        row = stock("BatchGetStock", skus=["LAST-ONE"])["stocks"][0]
        free = int(row.get("onHand", 0)) - int(row.get("reserved", 0))
        if not free:
            stock("AdjustStock", request_id=str(uuid.uuid4()), sku="LAST-ONE", delta=1)
            free = 1
        payments = [pid for pid, name in system.children() if name.startswith("payment-")]
        for pid in payments:
            os.kill(pid, signal.SIGSTOP)
        try:
            order_id = system.order(token, "pm_gateway_refundRefused", [{"sku": "LAST-ONE", "quantity": 1}])["orderId"]
            stock("AdjustStock", request_id=str(uuid.uuid4()), sku="LAST-ONE", delta=-free, write_off=True)
        finally:
            for pid in payments:
                os.kill(pid, signal.SIGCONT)
        needed = "ORDER_STATE_NEEDS_ATTENTION"
        eventually(f"order {order_id} needs attention", 60, lambda: system.get(order_id, token)["state"] == needed)
        return order_id

    alerts = 'ALERTS{alertname="OrderNeedsAttention"}'
    check(not stack.query_of(alerts), "without such an order the alert does not fire")
    order_id = needs_attention()
    # It fires after a minute.
    eventually("the alert fires", 40, lambda: stack.query_of(alerts))
    grpc(system.port("order"), "order.v1.OrderService/RetryOrder", {"order_id": order_id}, system.login_as_operator())
    final = system.until_final(order_id, token)
    check(final["state"] == "ORDER_STATE_CANCELLED", f"after RetryOrder the order ends CANCELLED: {final['state']}")
    eventually("the alert resolves", 40, lambda: not stack.query_of(alerts))


def compare_names(stack):
    """Every metric and label of rules, dashboard and runbook exists, or is listed above; every expression has a result."""
    groups = stack.api("rules")["groups"]
    every = [rule for group in groups for rule in group["rules"]]
    ill = {rule["name"]: rule.get("lastError") for rule in every if rule["health"] != "ok"}
    check(every and not ill, f"every rule evaluates: {ill}")
    asked = [(rule["name"], rule["query"], None) for rule in every]
    asked += [(panel["title"], fill_in_variables(target["expr"]), target["legendFormat"]) for panel in panels() for target in panel["targets"]]
    asked += [("runbook", line.strip(), None) for block in blocks("promql") for line in block.splitlines() if line.strip() and not line.startswith("#")]
    wrong, seen, missed = [], set(), set()
    for where, expression, legend in asked:
        found, grouped = selectors(expression)
        if not found:
            wrong.append(f"{where}: no metric in {expression}")
        known, absent = set(), False
        for name, selector in found:
            seen.add(name)
            series = stack.api("series", **{"match[]": selector, "start": time.time() - 900})
            if not series and name in ONLY_IN_TROUBLE:
                missed.add(name)
                absent = True
            elif not series:
                wrong.append(f"{where}: no series for {selector}")
            known |= {label for one in series for label in one}
        unknown = grouped - known
        if unknown and not absent:
            wrong.append(f"{where}: no label {unknown} in {expression}")
        if legend is None or absent or any(text.startswith(f"{where}: no series") for text in wrong):
            continue
        answer = stack.query_of(expression)
        if not answer:
            wrong.append(f"{where}: no result for {expression}")
        labels = set(re.findall(r"\{\{(\w+)\}\}", legend))
        if answer and not any(labels <= set(one["metric"]) for one in answer):
            wrong.append(f"{where}: the legend's {labels} are not all in {answer[0]['metric']}")
    for name, (in_code, file, why) in ONLY_IN_TROUBLE.items():
        if f'"{in_code}"' not in (ROOT / file).read_text():
            wrong.append(f"{name}: {file} has no {in_code}")
        if name not in seen:
            wrong.append(f"{name} is excepted ({why}), but unused")
    check(not stack.api("series", **{"match[]": 'ordermesh_orders{state="PAYED"}'}), "control: a value without a series is detected")
    check(not wrong, "\n".join(["names that exist, and expressions with results:", *wrong]))
    return f"{len(asked)} expressions, {len(seen)} metrics; not seen here: {', '.join(sorted(missed))}"


def live():
    """Collector, Jaeger and Prometheus with the files of deploy/, a system under load and failures: compares every name."""
    with tempfile.TemporaryDirectory(prefix="ordermesh-operations-") as folder, Stack(Path(folder), decision_wait="5s", percentage=0) as stack, Nats() as nats:
        # The timeout exceeds the slow gateway's three seconds: slow, but no error.
        flags = ["--payment.gateway-timeout", "5s", "--user.bcrypt-cost", "4", "--user.memory-budget", f"{MEMORY_BUDGET // 1024}KiB", "--data.event-sink", nats.url]
        with System(flags, env=stack.env()) as system:
            system.run("load", "--orders", "150", "--customers", "4", "--mix", "happy=82,declined=6,cancel=8,flaky=4", "--no-verify")
            cause_failures(system)
            sampling.check_reasons(stack, system)
            check_runbook_searches(stack)
            check_needs_attention(stack, system)
            # Long enough for two exports, so that rates cover the last calls.
            return eventually("every expression has a result", 60, lambda: compare_names(stack))


PARTS = {"rules": rules, "configurations": configurations, "dashboard": dashboard, "runbook": runbook,
         "compose": packages.compose, "compose-run": packages.compose_run, "sampling": sampling.run, "logs": records.run, "live": live}


def prometheus():
    """Unpacks Debian's package: its service is not started, and the machine is not changed."""
    if shutil.which("promtool") and shutil.which("prometheus"):
        return
    check(shutil.which("apt-get"), "promtool and prometheus are in PATH (https://prometheus.io/download)")
    with tempfile.TemporaryDirectory() as folder:
        run("apt-get", "update", "-q")  # on a bare machine the lists are empty
        run("apt-get", "download", "prometheus", cwd=folder)
        run("dpkg", "-x", next(Path(folder).glob("prometheus_*.deb")), PROMETHEUS.parent.parent)


if __name__ == "__main__":
    prepare_process()
    os.environ["PATH"] += f":{PROMETHEUS}"
    sys.exit(run_named("OPERATIONS", PARTS, sys.argv[1:], ["grpcurl", "jaeger", "nats-server", "buf"], {"tools": prometheus}))
