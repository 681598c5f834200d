"""The golden trace: one order's trace from Jaeger's API, as a tree, compared with .ci/golden-trace.txt; and its calls as a sequence diagram, compared with that in
services/README.md.

A line is a span: service, kind, name, and the trace event that its tags describe. Ids and times are left out, and siblings
are sorted. The only check against the store is that it has the same events. UPDATE_GOLDEN=1 rewrites both: review the
diff before you commit it.
"""

import os
import re
import subprocess
import time

from jaeger import Jaeger, same_as_stored
from system import ROOT, CallError, Failed, System, check, eventually, grpc, new_trace, traceparent

GOLDEN = ROOT / ".ci/golden-trace.txt"
MAP = ROOT / "services/README.md"
SEQUENCE = re.compile(r"(?<=<!-- sequence -->\n```mermaid\n).*?(?=```\n<!-- /sequence -->)", re.S)
EVENT_TYPES = ["USER_LOGIN", "DATA_LOOKUP", "ORDER_CREATION", "PAYMENT_PROCESSING", "ORDER_FULFILLMENT"]
SERVICES = {"user", "order", "payment", "data", "gateway"}


def describe(span):
    text = f"{span.service} {span.kind} {span.name}"
    if span.links:
        text += f"  links: {span.links}"
    if span.error:
        text += "  ERROR"
    return f"{text}  event: {span.event}" if span.event else text


def span_tree(spans):
    """The trace as lines of text, indented by two spaces per level; and the ids of the roots' parents, which are not in the trace."""
    ids = {span.id for span in spans}
    outer_parents = {span.parent for span in spans if span.parent not in ids}

    def under(parent, depth):
        blocks = []
        for span in spans:
            above = span.parent if span.parent in ids else None
            if above == parent:
                blocks.append(["  " * depth + describe(span), *under(span.id, depth + 1)])
        return [text for block in sorted(blocks) for text in block]

    return under(None, 0), outer_parents


def parent_child_pairs(lines):
    """Each line with its parent's, regardless of the sequence and the number of attempts."""
    path, found = [], set()
    for text in lines:
        depth = (len(text) - len(text.lstrip())) // 2
        path = path[:depth] + [text.strip()]
        found.add((path[-2] if depth else "", path[-1]))
    return found


def printed_lines(system):
    """[(what, line)]: the command lines that the program printed for copying."""
    found = []
    for at, text in enumerate(system.lines):
        if text.startswith("# ") and at + 1 < len(system.lines):
            found.append((text[2:], system.lines[at + 1]))
    return found


def run_script(script):
    """The output of a script in bash."""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    check(done.returncode == 0, f"the printed lines succeed:\n{script}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def run_printed_lines(system):
    """Runs the printed lines verbatim, in sequence, in one shell; returns the trace id and the order id."""
    lines = printed_lines(system)
    check(len(lines) >= 6, f"the program prints its lines: {[what for what, _ in lines]}")
    script = "\n".join(text for _, text in lines)
    output = run_script("\n".join(text for _, text in lines[:-1]))
    check("FULFILLMENT_STARTED" in output, f"the printed lines work verbatim:\n{output}")

    def events():
        shown = run_script(lines[-1][1])
        missing = [name for name in EVENT_TYPES if f"EVENT_TYPE_{name}" not in shown]
        check(not missing, f"{missing} among the events:\n{shown}")
        return True

    eventually("the last printed line shows every kind of event", 10, events)
    traces = set(re.findall(r"traceparent: 00-([0-9a-f]{32})-", script))
    check(len(traces) == 1, f"log-in and order share one traceparent: {traces}")
    return traces.pop(), re.search(r"order ([0-9a-f-]{36})", output).group(1)


def wait_for_trace(jaeger, system, trace, is_complete):
    """The trace's tree once it is complete and the store has the same events. Spans are sent every 100 ms, and events after the commit."""

    def ask():
        spans = jaeger.spans(trace)
        lines, outer_parents = span_tree(spans)
        check(is_complete(lines), "the trace is complete:\n" + "\n".join(lines))
        same_as_stored(spans, system.events(trace_id=trace))
        return lines, outer_parents

    return eventually(f"trace {trace} in Jaeger", 20, ask)


def check_golden_trace(jaeger, system):
    """The trace of the printed lines equals the golden one."""
    trace, order_id = run_printed_lines(system)
    wanted = [text for text in GOLDEN.read_text().splitlines() if text and not text.startswith("#")] if GOLDEN.exists() else []
    if os.environ.get("UPDATE_GOLDEN"):
        time.sleep(3)
        lines, _ = span_tree(jaeger.spans(trace))
        header = [text for text in GOLDEN.read_text().splitlines() if text.startswith("#")] if GOLDEN.exists() else []
        GOLDEN.write_text("\n".join([*header, *lines, ""]))
        wanted = lines
    try:
        lines, outer_parents = wait_for_trace(jaeger, system, trace, lambda lines: lines == wanted)
    except Failed as error:
        raise Failed("the golden trace is\n" + "\n".join(wanted) + f"\nand this order's differs:\n{error}") from None
    check(len(outer_parents) == 1, f"log-in and order are children of the client's one span: {outer_parents}")
    check({text.split()[0] for text in lines} == SERVICES, "five services")
    return wanted, order_id


def check_sequence_diagram(system):
    """`tap -o mermaid` draws an order's calls as services/README.md has them. Some are concurrent: only the first line has a fixed place."""
    _, token = system.customer()
    trace, calls = new_trace(), 5

    def taps():
        return system.run("events", "--type", "audit").count("MeshAdminService/TapCalls")

    before = taps()
    tap = subprocess.Popen(system.command_of("tap", "--trace", trace, "--limit", str(calls), "-o", "mermaid"), stdout=subprocess.PIPE, text=True)
    try:
        eventually("every instance is tapped", 30, lambda: taps() == before + 4 * system.instances)
        system.order(token, headers=[traceparent(trace)])
        diagram, _ = tap.communicate(timeout=30)
    finally:
        tap.kill()
    if os.environ.get("UPDATE_GOLDEN"):
        MAP.write_text(SEQUENCE.sub(lambda _: diagram, MAP.read_text()))

    def arrows(text):
        return [re.sub(r" \d[\d.]* m?s$", "", line.strip()) for line in text.splitlines() if ">>" in line]

    drawn, [documented] = arrows(diagram), [arrows(text) for text in SEQUENCE.findall(MAP.read_text())]
    check(sorted(drawn) == sorted(documented) and drawn[0] == documented[0], f"the calls are those of services/README.md:\n{diagram}")


def check_crashed_order(jaeger, system, wanted):
    """An order whose instance is killed with -9 is completed in the same trace, with every step of the golden one."""
    trace = new_trace()
    _, token = system.customer([traceparent(trace)])
    order = system.order(token, "pm_gateway_slow", headers=[traceparent(trace)])
    check(order["traceId"] == trace, "the order is in the trace of its CreateOrder call")
    # Longer than the spans' export delay, so that those of the creation are stored; the gateway takes 3 s.
    time.sleep(1.2)
    system.kill_9("order", 1)
    final = system.until_final(order["orderId"], token)
    check(final["state"] == "ORDER_STATE_FULFILLMENT_STARTED", f"the order ends FULFILLMENT_STARTED: {final['state']}")
    missing = []

    def complete(lines):
        missing[:] = sorted(parent_child_pairs(wanted) - parent_child_pairs(lines))
        return not missing

    try:
        lines, _ = wait_for_trace(jaeger, system, trace, complete)
    except Failed as error:
        raise Failed("steps are missing: " + "; ".join(f"{above} > {text}" for above, text in missing) + f"\n{error}") from None
    check({text.split()[0] for text in lines} == SERVICES, "five services in the trace of a crashed order")


def check_cancelled_order(jaeger, system):
    """A cancellation has its own trace, with its audit event, linked to the order's; the resulting spans in the order's trace link back."""
    traces = {"order": new_trace(), "cancel": new_trace()}
    _, token = system.customer()
    order = system.order(token, "pm_gateway_slow", headers=[traceparent(traces["order"])])
    grpc(system.port("order"), "order.v1.OrderService/CancelOrder", {"order_id": order["orderId"]}, token, [traceparent(traces["cancel"])])
    final = system.until_final(order["orderId"], token)
    check(final["state"] == "ORDER_STATE_CANCELLED", f"the order ends CANCELLED: {final['state']}")

    def linked():
        found = {}
        for name, trace in (("order.v1.OrderService/CancelOrder", traces["cancel"]), ("cancel_order", traces["order"])):
            every = jaeger.spans(trace)
            found[name] = [span for span in every if span.name == name]
            check(found[name] and all(span.links for span in found[name]), f"{name} is linked: {found[name]}")
            same_as_stored(every, system.events(trace_id=trace))
        return found

    found = eventually("the links and the events of a cancelled order", 20, linked)
    [asked] = found["order.v1.OrderService/CancelOrder"]
    event = (asked.kind, asked.event and asked.event.type, asked.event and asked.event.status, asked.tags.get("order.id"))
    check(event == ("server", "audit", "success", order["orderId"]), f"the cancellation is an audit event of its order: {event}")


def check_failures_by_tag(jaeger, system):
    """A search by tags finds the failures: the declined payments and the wrong password, and no other trace."""
    traces = {what: new_trace() for what in ("declined", "stolen", "paid", "wrong", "right")}
    email, token = system.customer([traceparent(traces["right"])])
    methods = {"declined": "pm_card_visa_chargeDeclinedInsufficientFunds", "stolen": "pm_card_visa_chargeDeclinedStolenCard", "paid": "pm_card_visa"}
    for what, method in methods.items():
        system.until_final(system.order(token, method, headers=[traceparent(traces[what])])["orderId"], token)
    try:
        system.login(email, "wrong horse battery", [traceparent(traces["wrong"])])
        raise Failed("a wrong password was accepted")
    except CallError as error:
        check(error.reason == "INVALID_CREDENTIALS", f"a wrong password is rejected: {error}")

    def found():
        answer = {}
        for service, event_type in (("payment", "payment_processing"), ("user", "user_login")):
            for trace, events in jaeger.failures(service, event_type).items():
                answer[trace] = [(event.error_type, event.reason) for event in events]
        wanted = {
            traces["declined"]: [("PaymentDeclined", "INSUFFICIENT_FUNDS")], traces["stolen"]: [("PaymentDeclined", "STOLEN_CARD")],
            traces["wrong"]: [("UNAUTHENTICATED", "INVALID_CREDENTIALS")]}
        check(answer == wanted, f"Jaeger finds {wanted} by type and status: {answer}")
        paid = jaeger.search("payment", {"ordermesh.event.type": "payment_processing", "ordermesh.event.status": "success"})
        check(traces["paid"] in paid and not wanted.keys() & paid.keys(), f"a search by success finds the others: {sorted(paid)}")
        return True

    eventually("failures in Jaeger, by tag", 20, found)


def run():
    """The golden trace of a successful order, its sequence diagram; the trace of one that survives a crash, the two traces of a cancelled one; failures found by tag."""
    with Jaeger() as jaeger, System(env=jaeger.env()) as system:
        wanted, _ = check_golden_trace(jaeger, system)
        check_sequence_diagram(system)
        check_crashed_order(jaeger, system, wanted)
        check_cancelled_order(jaeger, system)
        check_failures_by_tag(jaeger, system)
        services = jaeger.ask("/api/services")["data"]
        check(SERVICES <= set(services), f"Jaeger lists the five services: {services}")
        health = grpc(system.port("order"), "grpc.health.v1.Health/Check", {"service": "order.v1.OrderService"})
        check(health["status"] == "SERVING", "health is SERVING")
    return f"{len(wanted)} spans of the golden trace, every step of it in the trace of an order that survived kill -9; declines and a wrong password found by tag"
