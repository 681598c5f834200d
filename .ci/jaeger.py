"""Jaeger in memory, its API, and the trace event that a span's tags describe (`ordermesh.event.*`).

Nothing here uses the Data Service's store: only the data that Jaeger's page shows.
"""

import json
import os
import urllib.parse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from program import Program, fetch
from system import ROOT, check, free_ports

CONFIG = ROOT / "deploy/jaeger.yaml"
PREFIX = "ordermesh.event."
STATUSES = {"success", "failed"}


@dataclass(frozen=True)
class Event:
    """A trace event as described by its span's tags; `operation` is a tag of the span itself."""

    type: str
    status: str
    id: str | None
    error_type: str | None
    reason: str | None
    message: str | None
    operation: str | None

    def __str__(self):
        text = f"{self.type} {self.status}"
        if self.status == "failed":
            text += f" {self.error_type} {self.reason}"
        return f"{text} ({self.operation})" if self.operation else text


@dataclass
class Span:
    """The compared properties of a span."""

    trace: str
    id: str
    parent: str | None
    name: str
    kind: str
    service: str
    start_s: float
    duration_s: float
    links: int
    tags: dict
    error: bool = False
    event: Event | None = None

    def __post_init__(self):
        self.error = bool(self.tags.get("error"))
        self.event = event_of(self)


def event_of(span):
    """The event of a span, or None; checks that its tags are consistent."""
    tags = {key.removeprefix(PREFIX): value for key, value in span.tags.items() if key.startswith(PREFIX)}
    if not tags:
        return None
    where = f"{span.service} {span.name} {tags}"
    check("ordermesh.replayed" not in span.tags, f"an idempotent replay has no event: {where}")
    if "suppressed" in tags:
        # Summed with others of its second: it has no row in the store, and neither a status nor an id here.
        check(tags.get("type") and not {"status", "id"} & set(tags), f"a summed event has a type, and no status or id: {where}")
        return None
    check(tags.get("type") and tags.get("status") in STATUSES and tags.get("id"), f"an event has a type, a status and an id: {where}")
    failure = [bool(tags.get(key)) for key in ("error_type", "reason", "message")]
    check(all(failure) if tags["status"] == "failed" else not any(failure), f"failed events, and only those, have type, reason and message: {where}")
    if tags["status"] == "failed" and span.kind == "internal":
        wanted = f"{tags['reason']}: {tags['message']}"
        check(span.error and span.tags.get("otel.status_description") == wanted, f"a failed step is a span with an error, {wanted!r}: {span.tags}")
    return Event(tags["type"], tags["status"], tags.get("id"), *(tags.get(key) for key in ("error_type", "reason", "message")), span.tags.get("operation"))


def read_span(data, span):
    # OpenTelemetry's SDK keeps every value set for a key, and Jaeger shows all of them.
    keys = Counter(tag["key"] for tag in span["tags"])
    check(set(keys.values()) <= {1}, f"each tag occurs once: {span['operationName']} {keys}")
    tags = {tag["key"]: tag["value"] for tag in span["tags"]}
    parents = [reference["spanID"] for reference in span["references"] if reference["refType"] == "CHILD_OF"]
    links = [reference for reference in span["references"] if reference["refType"] != "CHILD_OF"]
    return Span(
        trace=span["traceID"], id=span["spanID"], parent=parents[0] if parents else None, name=span["operationName"],
        kind=tags.get("span.kind", "internal"), service=data["processes"][span["processID"]]["serviceName"],
        start_s=span["startTime"] / 1e6, duration_s=span["duration"] / 1e6, links=len(links), tags=tags)


class Api:
    """The API of a running Jaeger, as used by its page."""

    def __init__(self, port):
        self.port = port

    def ask(self, path):
        """The response's JSON, or None when there is no such trace."""
        text = fetch(f"http://127.0.0.1:{self.port}{path}")
        return None if text is None else json.loads(text)

    def spans(self, trace, raw=False):
        """The spans of a trace. `raw`: as stored; otherwise Jaeger hides duplicates."""
        answer = self.ask(f"/api/traces/{trace}?raw={str(raw).lower()}")
        found = [read_span(data, span) for data in (answer or {}).get("data", []) for span in data["spans"]]
        check({span.trace for span in found} <= {trace}, f"Jaeger returns the requested trace: {trace}")
        return found

    def search(self, service, tags, limit=1000):
        """{trace id: its spans} of the traces in which a span of the service has all of the tags."""
        query = urllib.parse.urlencode({"service": service, "tags": json.dumps(tags), "limit": limit, "lookback": "1h"})
        found = self.ask(f"/api/traces?{query}")["data"]
        check(len(found) < limit, f"the search for {tags} is not truncated at {limit}")
        return {data["traceID"]: [read_span(data, span) for span in data["spans"]] for data in found}

    def finds(self, service, tags):
        """Whether a span of the service has all of the tags."""
        query = urllib.parse.urlencode({"service": service, "tags": json.dumps(tags), "limit": 1, "lookback": "1h"})
        return bool(self.ask(f"/api/traces?{query}")["data"])

    def failures(self, service, event_type):
        """{trace id: the failed events} of a service and a type, found by tag."""
        wanted = {f"{PREFIX}type": event_type, f"{PREFIX}status": "failed"}
        found = self.search(service, wanted)
        return {trace: [span.event for span in spans if wanted.items() <= span.tags.items()] for trace, spans in found.items()}


class Jaeger(Api):
    """Jaeger in memory with deploy/jaeger.yaml, on free ports, until the `with` block ends."""

    def __init__(self):
        names = ["OTLP_GRPC_PORT", "OTLP_HTTP_PORT", "JAEGER_HTTP_PORT", "JAEGER_GRPC_PORT", "JAEGER_HEALTH_PORT"]
        self.ports = dict(zip(names, free_ports(len(names))))
        ready = f"http://127.0.0.1:{self.ports['JAEGER_HEALTH_PORT']}/status"
        env = {name: str(port) for name, port in self.ports.items()}
        self.program = Program(["jaeger", "--config", str(CONFIG)], env, ready, Path(os.devnull))
        super().__init__(self.ports["JAEGER_HTTP_PORT"])

    def __enter__(self):
        self.program.__enter__()
        return self

    def __exit__(self, *_):
        self.program.__exit__()

    def env(self):
        """The environment with which services send their spans here: as in the README, with a shorter delay."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.ports['OTLP_GRPC_PORT']}", "OTEL_BSP_SCHEDULE_DELAY": "100"}


def same_as_stored(spans, stored):
    """Compares tags with the store: it has the same events of the trace, each on the span with its id."""
    tagged = Counter((span.event.id, span.id, span.event.type, span.event.status) for span in spans if span.event and span.event.id)
    kept = Counter(
        (event["eventId"], event["spanId"], event["type"].removeprefix("EVENT_TYPE_").lower(), event["status"].removeprefix("EVENT_STATUS_").lower())
        for event in stored)
    check(tagged == kept, f"the tags and the store have the same events; only in the tags: {tagged - kept}, only in the store: {kept - tagged}")
