"""Jaeger, the collector and Prometheus with the files of deploy/, unchanged except for ports and intervals."""

import json
import urllib.parse

from jaeger import Api
from program import Program, fetch
from system import ROOT, check, free_ports

OPERATIONS, COLLECTOR = ROOT / "deploy/operations", ROOT / "deploy/collector"


def local(port):
    return f"127.0.0.1:{port}"


class CollectorAndJaeger:
    """The collector and, behind it, Jaeger: a system's spans are tail-sampled. With `logs_to`, a URL, logs are forwarded there, as JSON."""

    def __init__(self, folder, *, decision_wait, percentage, logs_to=None):
        self.folder = folder
        self.otlp, self.metrics, self.self_metrics, self.health, jaeger_otlp, query, query_grpc, jaeger_health, self.prometheus = free_ports(9)
        self.jaeger = Api(query)
        self.signals = {} if logs_to else {"OTEL_LOGS_EXPORTER": "none"}
        with_logs = ["--config", str(COLLECTOR / "logs/logs.yaml")] if logs_to else []
        self.programs = [
            Program(["jaeger", "--config", str(COLLECTOR / "jaeger.yaml")], {
                "OTLP_GRPC_ENDPOINT": local(jaeger_otlp), "HEALTH_ENDPOINT": local(jaeger_health),
                "QUERY_HTTP_ENDPOINT": local(query), "QUERY_GRPC_ENDPOINT": local(query_grpc)},
                f"http://{local(jaeger_health)}/status", folder / "jaeger.log"),
            Program(["jaeger", "--config", str(COLLECTOR / "collector.yaml"), *with_logs], {
                "OTLP_GRPC_ENDPOINT": local(self.otlp), "HEALTH_ENDPOINT": local(self.health), "JAEGER_ENDPOINT": local(jaeger_otlp),
                "PROMETHEUS_ENDPOINT": local(self.metrics), "SELF_METRICS_HOST": "127.0.0.1", "SELF_METRICS_PORT": str(self.self_metrics),
                "TAIL_SAMPLING_DECISION_WAIT": decision_wait, "TAIL_SAMPLING_PERCENTAGE": str(percentage),
                **({"LOGS_ENDPOINT": logs_to, "LOGS_ENCODING": "json"} if logs_to else {})},
                f"http://{local(self.health)}/status", folder / "collector.log"),
        ]

    def __enter__(self):
        started = []
        try:
            for program in self.programs:
                started.append(program.__enter__())
        except BaseException:
            for program in started:
                program.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for program in reversed(self.programs):
            program.__exit__()

    def env(self):
        """The environment with which services send their telemetry here, as in the manifests' settings: no logs, unless they are forwarded."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{local(self.otlp)}", **self.signals}


class Stack(CollectorAndJaeger):
    """The same, and a Prometheus that scrapes the collector and evaluates the rules."""

    def __init__(self, folder, *, decision_wait, percentage):
        super().__init__(folder, decision_wait=decision_wait, percentage=percentage)
        # Shorter intervals than in production, where it would take minutes to see anything.
        config = (OPERATIONS / "prometheus.yaml").read_text().replace("interval: 15s", "interval: 1s")
        config = config.replace("  - alerts.yaml", f"  - {OPERATIONS / 'alerts.yaml'}")
        config = config.replace("collector.ordermesh.svc:8889", local(self.metrics)).replace("collector.ordermesh.svc:8888", local(self.self_metrics))
        check("collector.ordermesh" not in config, "Prometheus's targets were replaced")
        (folder / "prometheus.yaml").write_text(config)
        self.programs.append(Program(
            ["prometheus", "--config.file", str(folder / "prometheus.yaml"), "--storage.tsdb.path", str(folder / "tsdb"),
             "--web.listen-address", local(self.prometheus)], {}, f"http://{local(self.prometheus)}/-/ready", folder / "prometheus.log"))

    def api(self, path, **parameters):
        answer = json.loads(fetch(f"http://{local(self.prometheus)}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))
        check(answer["status"] == "success", f"{path} {parameters} succeeds: {answer}")
        return answer["data"]

    def query_of(self, expression):
        return self.api("query", query=expression)["result"]
