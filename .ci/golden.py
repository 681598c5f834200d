"""The golden trace: what Jaeger's API answers for one order, as a tree, compared with .ci/golden-trace.txt.

A line is a span: service, kind, name, and the stored trace event that has the span's id. Ids and times are left out, and
siblings are sorted. UPDATE_GOLDEN=1 writes the file anew: read the difference before you commit it.
"""

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request

from system import ROOT, Failed, System, check, eventually, free_ports, grpc, new_trace, traceparent

GOLDEN = ROOT / ".ci/golden-trace.txt"
CONFIG = ROOT / "deploy/jaeger.yaml"
KINDS = ["USER_LOGIN", "DATA_LOOKUP", "ORDER_CREATION", "PAYMENT_PROCESSING", "ORDER_FULFILLMENT"]
SERVICES = {"user", "order", "payment", "data", "gateway"}


class Jaeger:
    """Jaeger in memory, on free ports."""

    def __init__(self):
        names = ["OTLP_GRPC_PORT", "OTLP_HTTP_PORT", "JAEGER_HTTP_PORT", "JAEGER_GRPC_PORT", "JAEGER_HEALTH_PORT"]
        self.ports = dict(zip(names, free_ports(len(names))))
        self.process = None

    def __enter__(self):
        env = {**os.environ, **{name: str(port) for name, port in self.ports.items()}}
        self.process = subprocess.Popen(
            ["jaeger", "--config", str(CONFIG)], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True)
        eventually("Jaeger is ready", 30, lambda: self.ask(self.ports["JAEGER_HEALTH_PORT"], "/status"))
        return self

    def __exit__(self, *_):
        # Told to end nicely it takes ten seconds.
        self.process.kill()
        self.process.wait()

    def ask(self, port, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def env(self):
        """What makes the services send their spans here."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.ports['OTLP_GRPC_PORT']}"}

    def spans(self, trace):
        """The spans of a trace: what of each is compared."""
        answer = self.ask(self.ports["JAEGER_HTTP_PORT"], f"/api/traces/{trace}")
        found = []
        for data in (answer or {}).get("data", []):
            check(data["traceID"] == trace, "Jaeger answers with the trace that was asked for")
            for span in data["spans"]:
                tags = {tag["key"]: tag["value"] for tag in span["tags"]}
                parents = [reference["spanID"] for reference in span["references"] if reference["refType"] == "CHILD_OF"]
                links = [reference for reference in span["references"] if reference["refType"] != "CHILD_OF"]
                found.append({
                    "id": span["spanID"], "parent": parents[0] if parents else None, "name": span["operationName"],
                    "kind": tags.get("span.kind", "internal"), "service": data["processes"][span["processID"]]["serviceName"],
                    "error": bool(tags.get("error")), "links": len(links)})
        return found


def line(span, events):
    text = f"{span['service']} {span['kind']} {span['name']}"
    if span["links"]:
        text += f"  links: {span['links']}"
    if span["error"]:
        text += "  ERROR"
    event = events.get(span["id"])
    return f"{text}  event: {event}" if event else text


def tree(spans, stored):
    """The trace as lines of text, two blanks for each step down. Roots hang under the client's own span, or nothing."""
    events = {}
    for event in stored:
        name = f"{event['type'].removeprefix('EVENT_TYPE_').lower()} {event['status'].removeprefix('EVENT_STATUS_').lower()}"
        operation = event.get("attributes", {}).get("operation")
        check(event["spanId"] not in events, f"one span, at most one event: {event['spanId']}")
        events[event["spanId"]] = f"{name} ({operation})" if operation else name
    ids = {span["id"] for span in spans}
    strangers = {span["parent"] for span in spans if span["parent"] not in ids}

    def under(parent, depth):
        blocks = []
        for span in spans:
            above = span["parent"] if span["parent"] in ids else None
            if above == parent:
                blocks.append(["  " * depth + line(span, events), *under(span["id"], depth + 1)])
        return [text for block in sorted(blocks) for text in block]

    lines = under(None, 0)
    check(set(events) <= ids, f"every event's span is in the trace: {sorted(set(events) - ids)}")
    return lines, strangers


def steps(lines):
    """Each line with the one above it, whatever the order and the number of tries."""
    path, found = [], set()
    for text in lines:
        depth = (len(text) - len(text.lstrip())) // 2
        path = path[:depth] + [text.strip()]
        found.add((path[-2] if depth else "", path[-1]))
    return found


def printed_lines(system):
    """[(what, line)]: the lines that the program printed for a person to copy."""
    found = []
    for at, text in enumerate(system.lines):
        if text.startswith("# ") and at + 1 < len(system.lines):
            found.append((text[2:], system.lines[at + 1]))
    return found


def typed(script):
    """What a shell says to it."""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    check(done.returncode == 0, f"the printed lines end well:\n{script}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def walk(system):
    """Types the printed lines as they stand, in order, in one shell; returns the one trace id and the order's."""
    lines = printed_lines(system)
    check(len(lines) >= 6, f"the program prints its lines: {[what for what, _ in lines]}")
    script = "\n".join(text for _, text in lines)
    output = typed("\n".join(text for _, text in lines[:-1]))
    check("FULFILLMENT_STARTED" in output, f"the printed lines work as they stand:\n{output}")

    def events():
        shown = typed(lines[-1][1])
        missing = [kind for kind in KINDS if f"EVENT_TYPE_{kind}" not in shown]
        check(not missing, f"{missing} among the events:\n{shown}")
        return True

    eventually("the last printed line shows every kind of event", 10, events)
    traces = set(re.findall(r"traceparent: 00-([0-9a-f]{32})-", script))
    check(len(traces) == 1, f"log-in and order share one traceparent: {traces}")
    return traces.pop(), re.search(r"order ([0-9a-f-]{36})", output).group(1)


def settled(jaeger, system, trace, is_complete):
    """The trace's tree once it is complete. Spans are sent twice a second, and events after the commit."""

    def ask():
        lines, strangers = tree(jaeger.spans(trace), system.events(trace_id=trace))
        check(is_complete(lines), "the trace is not complete:\n" + "\n".join(lines))
        return lines, strangers

    return eventually(f"trace {trace} in Jaeger", 20, ask)


def golden(jaeger, system):
    """The printed lines' trace is the golden one."""
    trace, order_id = walk(system)
    wanted = [text for text in GOLDEN.read_text().splitlines() if text and not text.startswith("#")] if GOLDEN.exists() else []
    if os.environ.get("UPDATE_GOLDEN"):
        time.sleep(3)
        lines, _ = tree(jaeger.spans(trace), system.events(trace_id=trace))
        header = [text for text in GOLDEN.read_text().splitlines() if text.startswith("#")] if GOLDEN.exists() else []
        GOLDEN.write_text("\n".join([*header, *lines, ""]))
        wanted = lines
    try:
        lines, strangers = settled(jaeger, system, trace, lambda lines: lines == wanted)
    except Failed as error:
        raise Failed("the golden trace is\n" + "\n".join(wanted) + f"\nand this order's is another:\n{error}") from None
    check(len(strangers) == 1, f"log-in and order hang under the client's one span: {strangers}")
    check({text.split()[0] for text in lines} == SERVICES, "five services")
    return wanted, order_id


def crashed(jaeger, system, wanted):
    """An order whose instance was killed -9 in its middle is finished in the same trace, with every step of the golden one."""
    trace = new_trace()
    _, token = system.customer([traceparent(trace)])
    order = system.order(token, "pm_gateway_slow", headers=[traceparent(trace)])
    check(order["traceId"] == trace, "the order is followed by its creation's trace")
    # Twice as long as spans wait to be sent, so that those of the creation are on record; the gateway takes 3 s.
    time.sleep(1.2)
    system.kill_9("order", 1)
    final = system.until_final(order["orderId"], token)
    check(final["state"] == "ORDER_STATE_FULFILLMENT_STARTED", f"the order ends {final['state']}")
    missing = []

    def complete(lines):
        missing[:] = sorted(steps(wanted) - steps(lines))
        return not missing

    try:
        lines, _ = settled(jaeger, system, trace, complete)
    except Failed as error:
        raise Failed("steps are missing: " + "; ".join(f"{above} > {text}" for above, text in missing) + f"\n{error}") from None
    check({text.split()[0] for text in lines} == SERVICES, "five services in the trace of a crashed order")


def cancelled(jaeger, system):
    """A cancellation is a trace of its own, linked to the order's, and what follows of it in the order's is linked back."""
    traces = {"order": new_trace(), "cancel": new_trace()}
    _, token = system.customer()
    order = system.order(token, "pm_gateway_slow", headers=[traceparent(traces["order"])])
    grpc(system.port("order"), "order.v1.OrderService/CancelOrder", {"order_id": order["orderId"]}, token, [traceparent(traces["cancel"])])
    final = system.until_final(order["orderId"], token)
    check(final["state"] == "ORDER_STATE_CANCELLED", f"the order ends {final['state']}")

    def linked():
        for name, trace in (("order.v1.OrderService/CancelOrder", traces["cancel"]), ("cancel_order", traces["order"])):
            spans = [span for span in jaeger.spans(trace) if span["name"] == name]
            check(spans and all(span["links"] for span in spans), f"{name} is linked: {spans}")
        return True

    eventually("the links of a cancelled order", 20, linked)


def run():
    """The golden trace of a happy order, of one that survived a crash, and the two of a cancelled one."""
    with Jaeger() as jaeger, System(env=jaeger.env()) as system:
        wanted, _ = golden(jaeger, system)
        crashed(jaeger, system, wanted)
        cancelled(jaeger, system)
        services = jaeger.ask(jaeger.ports["JAEGER_HTTP_PORT"], "/api/services")["data"]
        check(SERVICES <= set(services), f"Jaeger knows the five services: {services}")
        health = grpc(system.port("order"), "grpc.health.v1.Health/Check", {"service": "order.v1.OrderService"})
        check(health["status"] == "SERVING", "health answers")
    return f"{len(wanted)} spans of the golden trace; every step of it in the trace of an order that outlived kill -9"
