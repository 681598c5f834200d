"""The real collector's sampling with deploy/collector/collector.yaml: keeps every failed event, traces with errors, slow orders, and a share of the rest."""

import math
import tempfile
from collections import Counter
from pathlib import Path

from stack import CollectorAndJaeger
from system import CallError, Failed, System, check, eventually, new_trace, traceparent

CREATE_ORDER = "order.v1.OrderService/CreateOrder"
ORDERS, DECLINED_PERCENT, SAMPLED_PERCENT = 1000, 5, 10
SLOW_S = 2  # collector.yaml's slow-orders
SERVICES = {"user", "order", "payment", "data", "gateway"}


def is_slow(spans):
    return max(span.start_s + span.duration_s for span in spans) - min(span.start_s for span in spans) >= SLOW_S


def check_sampled_share():
    """Of 1,000 orders with 5 % declines the collector keeps every declined order's complete trace, and about 10 % of the rest."""
    with tempfile.TemporaryDirectory(prefix="ordermesh-sampling-") as folder, CollectorAndJaeger(
            Path(folder), decision_wait="3s", percentage=SAMPLED_PERCENT) as backend:
        with System(["--user.bcrypt-cost", "4"], env=backend.env()) as system:
            mix = f"happy={100 - DECLINED_PERCENT},declined={DECLINED_PERCENT}"
            system.run("load", "--orders", str(ORDERS), "--mix", mix, "--customers", "8", "--no-verify")
            wait_for_decisions(backend.jaeger, system)
            payments = [event for event in system.all_events(type="EVENT_TYPE_PAYMENT_PROCESSING")]
            failed = {event["traceId"]: event["eventId"] for event in payments if event["status"] == "EVENT_STATUS_FAILED"}
            paid = {event["traceId"] for event in payments} - failed.keys()
            check(len(failed) + len(paid) == ORDERS + 1, f"each order's payment is an event: {len(failed)} failed, {len(paid)} paid")
            # The order that `wait_for_decisions` places is declined too.
            check_share(len(failed) - 1, ORDERS, DECLINED_PERCENT, "declined orders")
            for trace, event in failed.items():
                check_trace_is_complete(backend.jaeger, trace, event)
            kept = {trace: spans for trace in paid if (spans := backend.jaeger.spans(trace))}
            # Exclude traces kept for other reasons: a machine under load has slow orders.
            sampled = [trace for trace, spans in kept.items() if not is_slow(spans) and not any(span.error for span in spans)]
            check_share(len(sampled), len(paid), SAMPLED_PERCENT, "traces kept of the orders that were paid")
    return f"{len(failed)} of {len(failed)} declined orders' traces, {len(sampled)} of {len(paid)} others' ({len(kept) - len(sampled)} more were slow)"


def wait_for_decisions(jaeger, system):
    """Waits until the sampling of all earlier traces is decided: decisions follow the sequence of arrival, so a last order's trace shows it."""
    trace = new_trace()
    _, token = system.customer()
    system.until_final(system.order(token, "pm_card_visa_chargeDeclined", headers=[traceparent(trace)])["orderId"], token)
    eventually("the last order's trace is in Jaeger", 60, lambda: any(span.name == CREATE_ORDER for span in jaeger.spans(trace)))


def check_share(count, of, percent, what):
    """Within five standard deviations of the expected count: a false alarm occurs once in a million runs."""
    wanted, deviation = of * percent / 100, math.sqrt(of * percent / 100 * (1 - percent / 100))
    check(abs(count - wanted) <= 5 * deviation, f"{what}: {wanted:.0f} ± {5 * deviation:.0f} of {of}, about {percent} %: {count}")


def check_trace_is_complete(jaeger, trace, event):
    """The stored trace has all its services, its one failed event, and no span twice."""
    spans = jaeger.spans(trace, raw=True)
    twice = [span.name for span in spans if Counter(each.id for each in spans)[span.id] > 1]
    check(not twice, f"trace {trace} has no span twice: {twice}")
    names = {span.name for span in spans}
    check(CREATE_ORDER in names and {span.service for span in spans} == SERVICES - {"user"}, f"trace {trace} is complete: {sorted(names)}")
    failures = [(span.event.type, span.event.id) for span in spans if span.event and span.event.status == "failed"]
    check(failures == [("payment_processing", event)], f"trace {trace} has the failed event of the store: {failures}")


def check_late_failure():
    """A failure after the decision to drop its trace is still in Jaeger: its event's span alone, once."""
    # No span of the order may be slow before the decision: neither the gateway's, nor that of the waiting call.
    flags = ["--payment.gateway-timeout", "5s", "--payment.wait-timeout", "4s", "--user.bcrypt-cost", "4"]
    with tempfile.TemporaryDirectory(prefix="ordermesh-sampling-") as folder, CollectorAndJaeger(
            Path(folder), decision_wait="2s", percentage=0) as backend:
        with System(flags, env=backend.env()) as system:
            _, token = system.customer()
            trace = new_trace()
            order = system.order(token, "pm_gateway_noAnswer", headers=[traceparent(trace)])
            final = system.until_final(order["orderId"], token)
            check(final["state"] == "ORDER_STATE_PAYMENT_FAILED", f"the order ends PAYMENT_FAILED: {final['state']}")
            wait_for_decisions(backend.jaeger, system)
            spans = backend.jaeger.spans(trace, raw=True)
            events = [(str(span.event) if span.event else span.name) for span in spans]
            check(events == ["payment_processing failed GATEWAY_TIMEOUT GATEWAY_TIMEOUT (charge)"], f"of a trace that fails late, only the failed event is kept: {events}")
    return "of a trace with a late failure, only its event"


def run():
    """The collector keeps each failed event's trace, a share of the rest, and a late failure's span."""
    return f"{check_sampled_share()}; {check_late_failure()}"


def check_reasons(backend, system):
    """With a share of 0: the traces of a slow order, of one with an error, of a declined one and of a rejected one arrive in Jaeger; that of a
    fast successful one does not."""
    methods = {
        "good": "pm_card_visa", "slow": "pm_gateway_slow", "flaky": "pm_gateway_unavailable3", "declined": "pm_card_visa_chargeDeclined"}
    _, token = system.customer()
    traces = {what: new_trace() for what in (*methods, "rejected")}
    orders = {what: system.order(token, method, headers=[traceparent(traces[what])]) for what, method in methods.items()}
    try:
        system.order(token, items=[{"sku": "NO-SUCH-THING", "quantity": 1}], headers=[traceparent(traces["rejected"])])
        raise Failed("an order with an unknown SKU was accepted")
    except CallError as error:
        check(error.reason == "UNKNOWN_SKU", f"an order with an unknown SKU is rejected: {error}")
    for what, order in orders.items():
        final = system.until_final(order["orderId"], token)
        wanted = "PAYMENT_FAILED" if what == "declined" else "FULFILLMENT_STARTED"
        check(final["state"] == f"ORDER_STATE_{wanted}", f"the {what} order ends {wanted}: {final['state']}")
    for what in ("slow", "flaky", "declined", "rejected"):
        def arrived(what=what):
            # A failed event is stored before the decision on its trace.
            found = backend.jaeger.spans(traces[what])
            names, services = {span.name for span in found}, {span.service for span in found}
            check(CREATE_ORDER in names and {"order", "data"} <= services, f"the {what} order's trace has its root and its lookups: {sorted(names)}")
            return found

        spans = eventually(f"the trace of the {what} order is in Jaeger", 60, arrived)
        # Each for a different reason: the gateway's errors, latency alone, the failed step; and the failed event, without any span of status error.
        errors = {span.kind for span in spans if span.error}
        wanted = {"flaky": {"client", "server", "internal"}, "declined": {"internal"}}.get(what, set())
        check(errors <= wanted and bool(errors) == bool(wanted), f"in the {what} order's trace spans of kinds {wanted or 'none'} have errors: {errors}")
    check(not backend.jaeger.spans(traces["good"]), "the trace of a fast successful order is not kept")
