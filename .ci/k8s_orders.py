"""Customers of the system in the cluster: one with grpcurl over port-forwards, and many by `ordermesh load` in a Job."""

import json
import re
import uuid

import yaml

from k8s_cluster import PROGRAM_IMAGE
from program import fetch
from system import ADDRESS, ROOT, Failed, check, eventually, grpc_all, new_trace, traceparent

SECRETS = ROOT / "deploy/overlays/local/secrets"
PASSWORD = "correct horse battery"


def call(port, method, message, *headers, seconds=20):
    """By TLS: verifies the server against the platform's CA; the client presents no certificate, only tokens."""
    return grpc_all(port, method, message, headers=headers, seconds=seconds, roots=SECRETS / "trust.pem", host="localhost")


def order_by_hand(cluster):
    """Registers, logs in, orders, watches to the end; then finds the trace in Jaeger."""
    trace = new_trace()
    email = f"ada-{uuid.uuid4().hex[:8]}@example.com"
    with cluster.forward("service/user", 7000) as user, cluster.forward("service/order", 7000) as order:
        call(user, "user.v1.UserService/Register", {
            "request_id": str(uuid.uuid4()), "email": email, "password": PASSWORD, "display_name": "Ada"})
        login = call(user, "user.v1.UserService/Login", {"email": email, "password": PASSWORD}, traceparent(trace))[0]
        bearer = f"authorization: Bearer {login['session']['accessToken'] if 'session' in login else login['accessToken']}"
        made = call(order, "order.v1.OrderService/CreateOrder", {
            "request_id": str(uuid.uuid4()), "items": [{"sku": "MUG-BLUE", "quantity": 2}], "payment_method": "pm_card_visa",
            "contact_email": email, "shipping_address": ADDRESS}, bearer, traceparent(trace))[0]["order"]
        steps = call(order, "order.v1.OrderService/WatchOrder", {"order_id": made["orderId"]}, bearer, seconds=40)
        states = [step["entry"]["state"].removeprefix("ORDER_STATE_") for step in steps]
        check(states[-1] == "FULFILLMENT_STARTED", f"the order ends FULFILLMENT_STARTED: {states}")
    with cluster.forward("service/jaeger", 16686) as jaeger:
        def services():
            found = {span["service"] for span in spans(jaeger, trace)}
            return found if found >= {"user", "order", "payment", "data", "gateway"} else None
        seen = eventually("the trace has five services", 40, services)
        count = len(spans(jaeger, trace))
    return f"order {made['orderId']}: {' → '.join(states)}; its trace in Jaeger: {count} spans of {', '.join(sorted(seen))}"


def spans(port, trace):
    """The spans of a trace, from Jaeger's API."""
    return [span for found in query(port, f"/api/traces/{trace}") for span in spans_of(found)]


def query(port, path):
    text = fetch(f"http://127.0.0.1:{port}{path}")
    return json.loads(text)["data"] or [] if text else []


def spans_of(found):
    for span in found["spans"]:
        process = found["processes"][span["processID"]]
        tags = {tag["key"]: tag["value"] for tag in [*process["tags"], *span["tags"]]}
        yield {
            "service": process["serviceName"], "instance": tags.get("service.instance.id"), "kind": tags.get("span.kind"),
            "name": span["operationName"], "begins": span["startTime"] / 1e6}


def job(kind, *flags):
    """A Job of deploy/jobs with more flags, our image, and a generated name, because several run in sequence."""
    manifest = yaml.safe_load((ROOT / f"deploy/jobs/{kind}/job.yaml").read_text())
    manifest["metadata"]["generateName"] = f"{manifest['metadata'].pop('name')}-"
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    given = {flag.split("=")[0] for flag in flags}
    container["image"] = PROGRAM_IMAGE
    container["args"] = [arg for arg in container["args"] if arg.split("=")[0] not in given] + list(flags)
    return manifest


class Load:
    """`ordermesh load` in the cluster during failures. `report` then has the customers' results."""

    def __init__(self, cluster, what, rate, max_seconds, logins=1):
        self.cluster, self.what, self.max_seconds = cluster, what, max_seconds
        self.flags = [f"--rate={rate}", f"--duration={max_seconds}s", f"--logins={logins}", "--mix=happy=90,declined=5,cancel=5", "--no-verify"]
        self.report = None

    def __enter__(self):
        manifest = job("load", *self.flags)
        args = manifest["spec"]["template"]["spec"]["containers"][0]["args"]
        args[:] = [arg for arg in args if not arg.startswith("--customers")]
        self.name = self.cluster.job(manifest, 60)
        # Once it prints a rate, its accounts are registered and orders are in progress.
        pod = self.cluster.job_pod(self.name)
        eventually("the load has begun", 60, lambda: "acknowledged/s" in self.cluster.logs(pod))
        return self

    def __exit__(self, kind, *_):
        if kind:
            print("--- the load's log:", self.cluster.logs(self.cluster.job_pod(self.name), "--tail=30"), "---", sep="\n")
            return
        succeeded, log = self.cluster.wait_for_job(self.name, self.max_seconds + 90)
        self.report = Report(log)
        print(f"--- load, {self.what}:", *[line for line in log.splitlines() if line.strip()][-25:], "---", sep="\n")
        problems = self.report.failures()
        if problems or not succeeded or not self.report.orders:
            raise Failed(f"{self.what}: {'; '.join(problems) or 'the load ended with an error, or placed no orders'}")


class Report:
    """The parsed output of `ordermesh load`."""

    def __init__(self, log):
        acknowledged = re.search(r"^acknowledged\s+(\d+)", log, re.M)
        self.orders = int(acknowledged.group(1)) if acknowledged else 0
        self.refused = {why: int(count) for count, why in re.findall(r"^\s*(\d+) refused\s+(.+?)\s*$", log, re.M)}
        self.lost = re.findall(r"^\s*(\d+ \w+\s+(?:no order|not seen|an answer without).*)$", log, re.M)
        latency = re.search(r"^acknowledged.*?p50 ([\d.]+).*?p99 ([\d.]+).*?max ([\d.]+)", log, re.M)
        self.latency = latency.groups() if latency else ("?", "?", "?")

    def failures(self):
        """Failures visible to a customer: a call that failed after the client's retries, an order that was not placed or not seen to
        its end. A WatchOrder stream that ends with its pod and resumes at another is expected: it is counted, but is not a failure."""
        calls = [f"{count}x {why}" for why, count in self.refused.items() if not why.startswith("WatchOrder: Unavailable")]
        return [*calls, *self.lost]

    def summary(self):
        streams = sum(count for why, count in self.refused.items() if why.startswith("WatchOrder: Unavailable"))
        p50, p99, longest = self.latency
        return f"{self.orders} orders, 0 failures, {streams} watches resumed; acknowledged p50 {p50} ms, p99 {p99} ms, max {longest} ms"
