"""Logs by OTLP, through the real collector with deploy/collector/logs: one record for each trace event, with its span's id."""

import gzip
import json
import tempfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from stack import CollectorAndJaeger
from system import CallError, Failed, System, check, eventually, new_trace, traceparent

# OpenTelemetry's severity numbers.
SEVERITIES = {"EVENT_STATUS_SUCCESS": 9, "EVENT_STATUS_FAILED": 13}


class Store:
    """A log store that accepts OTLP/HTTP as JSON, until the `with` block ends."""

    def __init__(self):
        self.records = []
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                if self.path == "/v1/logs":
                    store.take(json.loads(body))
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def take(self, request):
        for resource in request["resourceLogs"]:
            for scope in resource["scopeLogs"]:
                self.records += scope["logRecords"]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"


def key(record):
    """The fields compared with the store: the event's type, its id, its trace and span, and its severity."""
    attributes = {each["key"]: next(iter(each["value"].values()), None) for each in record.get("attributes", [])}
    return (record["eventName"], attributes.get("ordermesh.event.id"), record.get("traceId"), record.get("spanId"), record["severityNumber"],
            attributes.get("ordermesh.event.reason"))


def run():
    """A successful order, a declined one and a wrong password: the log store has exactly one record for each stored event."""
    with tempfile.TemporaryDirectory(prefix="ordermesh-logs-") as folder, Store() as store, CollectorAndJaeger(
            Path(folder), decision_wait="1s", percentage=0, logs_to=store.url) as backend:
        with System(["--user.bcrypt-cost", "4"], env=backend.env()) as system:
            email, token = system.customer()
            for method in ("pm_card_visa", "pm_card_visa_chargeDeclinedStolenCard"):
                system.until_final(system.order(token, method)["orderId"], token)
            trace = new_trace()
            try:
                system.login(email, "wrong horse battery", [traceparent(trace)])
                raise Failed("a wrong password was accepted")
            except CallError:
                pass

            def same():
                recorded = Counter(key(record) for record in list(store.records) if record.get("eventName"))
                stored = Counter(
                    (event["type"].removeprefix("EVENT_TYPE_").lower(), event["eventId"], event["traceId"], event["spanId"], SEVERITIES[event["status"]],
                     event.get("error", {}).get("reason")) for event in system.all_events())
                reasons = {each[-1] for each in recorded}
                check({"STOLEN_CARD", "INVALID_CREDENTIALS"} <= reasons, f"the failures are recorded: {reasons}")
                check(recorded == stored, f"records and events; only recorded: {recorded - stored}, only stored: {stored - recorded}")
                return recorded

            recorded = eventually("the events' records are in the log store", 30, same)
            failed = {each[3] for each in recorded if each[4] == SEVERITIES["EVENT_STATUS_FAILED"]}
            twice = [record for record in store.records if not record.get("eventName") and record.get("spanId") in failed]
            check(not twice, f"the WARN line of a failed event is not sent as a second record: {twice}")
    return f"{sum(recorded.values())} events, one record for each"
