//! The list of all variables of the environment specification, and how each is handled. Values are parsed elsewhere;
//! variables that are rejected whatever their value are rejected from this list.

use crate::environment::VariableError;
use crate::environment::values::Variables;

/// How a variable is handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handling {
    /// It is supported: its values and its default.
    Supported(&'static str),
    /// The start fails when it is set: the reason.
    Rejected(&'static str),
    /// It configures an exporter that cannot be selected, so by the specification it has no effect: the reason.
    WithoutEffect(&'static str),
}

/// A variable of the environment specification.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// How it is handled.
    pub handling: Handling,
}

impl Variable {
    /// All names of the variable: options of the OTLP exporter have a general one and one for each signal.
    pub fn names(&self) -> Vec<String> {
        let Some(option) = self.name.strip_prefix(OTLP).filter(|option| !option.contains('_') || is_client(option))
        else {
            return vec![self.name.to_owned()];
        };
        let of_signals = ["TRACES_", "METRICS_", "LOGS_"];
        [""].into_iter().chain(of_signals).map(|signal| format!("{OTLP}{signal}{option}")).collect()
    }
}

const OTLP: &str = "OTEL_EXPORTER_OTLP_";

fn is_client(option: &str) -> bool {
    option.starts_with("CLIENT_")
}

const fn supported(name: &'static str, how: &'static str) -> Variable {
    Variable { name, handling: Handling::Supported(how) }
}

const fn rejected(name: &'static str, why: &'static str) -> Variable {
    Variable { name, handling: Handling::Rejected(why) }
}

const fn without_effect(name: &'static str, why: &'static str) -> Variable {
    Variable { name, handling: Handling::WithoutEffect(why) }
}

const NO_TRUNCATION: &str = "values are not truncated";
const ONE_LIMIT: &str = "spans have a limit of their own, OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT; log records have none";
const NO_ZIPKIN: &str = "OTEL_TRACES_EXPORTER does not take zipkin";
const NO_PROMETHEUS: &str = "OTEL_METRICS_EXPORTER does not take prometheus";

/// Every variable of the environment specification, in its order.
pub const VARIABLES: &[Variable] = &[
    supported("OTEL_SDK_DISABLED", "`true`: nothing is exported; propagation goes on. `false` (default)"),
    rejected("OTEL_ENTITIES", "resource attributes go into OTEL_RESOURCE_ATTRIBUTES"),
    supported(
        "OTEL_RESOURCE_ATTRIBUTES",
        "`key=value,…`, percent-encoded; takes precedence over the program's `service.namespace`, `service.instance.id` and `service.version`. For a whole system leave `service.instance.id` out: all processes would share it",
    ),
    supported(
        "OTEL_SERVICE_NAME",
        "`service.name`; takes precedence over the one in OTEL_RESOURCE_ATTRIBUTES; default: the service, for example `order`. For a whole system (`ordermesh` without a subcommand), which runs several services, it is a prefix: `shop` makes `shop-order`, `shop-payment`, …",
    ),
    supported(
        "OTEL_LOG_LEVEL",
        "Level of the SDK's own log lines: `none`, `error`, `warn`, `info`, `debug`, `trace`; default: `none`, unless the log filter names `opentelemetry`. An unreachable collector is logged in any case",
    ),
    supported(
        "OTEL_PROPAGATORS",
        "`tracecontext` (default; `tracestate` with it), `tracecontext,baggage`, `none`; `b3` and others are rejected",
    ),
    supported(
        "OTEL_TRACES_SAMPLER",
        "`always_on`, `always_off`, `traceidratio`, `parentbased_always_on` (default), `parentbased_always_off`, `parentbased_traceidratio`; others are rejected. Stored trace events do not depend on it",
    ),
    supported("OTEL_TRACES_SAMPLER_ARG", "The ratio, 0 to 1 (default 1)"),
    supported("OTEL_BSP_SCHEDULE_DELAY", "Milliseconds between two exports of spans, above 0; default 500"),
    supported(
        "OTEL_BSP_EXPORT_TIMEOUT",
        "Timeout of one export of spans in milliseconds, where it is shorter than OTEL_EXPORTER_OTLP_TIMEOUT; 0 is no limit",
    ),
    supported("OTEL_BSP_MAX_QUEUE_SIZE", "Maximum spans in the queue, 1 to 1000000; default 16384"),
    supported("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "Maximum spans in one export, at most the queue's size; default 1024"),
    supported("OTEL_BLRP_SCHEDULE_DELAY", "The same for log records; default 1000"),
    supported("OTEL_BLRP_EXPORT_TIMEOUT", "The same for log records"),
    supported("OTEL_BLRP_MAX_QUEUE_SIZE", "The same for log records; default 2048"),
    supported("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "The same for log records; default 512"),
    rejected("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", NO_TRUNCATION),
    rejected("OTEL_ATTRIBUTE_COUNT_LIMIT", ONE_LIMIT),
    rejected("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", NO_TRUNCATION),
    supported("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "Maximum attributes of a span; default 128"),
    supported("OTEL_SPAN_EVENT_COUNT_LIMIT", "Maximum events of a span; default 128"),
    supported("OTEL_SPAN_LINK_COUNT_LIMIT", "Maximum links of a span; default 128"),
    supported("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "Maximum attributes of a span's event; default 128"),
    supported("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "Maximum attributes of a span's link; default 128"),
    rejected("OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT", NO_TRUNCATION),
    rejected("OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT", ONE_LIMIT),
    supported(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "`http://` or `https://`; default: none, and a signal without one is not exported. With `grpc` also `HOST:PORT`. With `http/protobuf`, `/v1/traces`, `/v1/metrics` and `/v1/logs` are appended to the general one; a signal's own is used as it is",
    ),
    supported(
        "OTEL_EXPORTER_OTLP_INSECURE",
        "`true`: `HOST:PORT` without a scheme is plain text; `false` (default): it is TLS. For `grpc` only",
    ),
    supported(
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        "PEM file of the roots that an `https://` collector's certificate must lead to; default: the system's",
    ),
    supported("OTEL_EXPORTER_OTLP_CLIENT_KEY", "PEM file of the private key of OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"),
    supported(
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
        "PEM file of the client certificate for an `https://` collector",
    ),
    supported("OTEL_EXPORTER_OTLP_HEADERS", "`name=value,…`, percent-encoded; never logged"),
    supported("OTEL_EXPORTER_OTLP_COMPRESSION", "`gzip`, `none` (default)"),
    supported(
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "Timeout of one export in milliseconds, retries included; default 10000; 0 is no limit",
    ),
    supported("OTEL_EXPORTER_OTLP_PROTOCOL", "`grpc` (default), `http/protobuf`; `http/json` is rejected"),
    supported(TEMPORALITY, "`cumulative` (default), `delta`, `lowmemory`"),
    supported(
        HISTOGRAM,
        "`explicit_bucket_histogram` (default), `base2_exponential_bucket_histogram`; alerts and dashboard need the default",
    ),
    rejected("OTEL_EXPORTER_OTLP_SPAN_INSECURE", "its name is OTEL_EXPORTER_OTLP_TRACES_INSECURE now"),
    rejected("OTEL_EXPORTER_OTLP_METRIC_INSECURE", "its name is OTEL_EXPORTER_OTLP_METRICS_INSECURE now"),
    without_effect("OTEL_EXPORTER_ZIPKIN_ENDPOINT", NO_ZIPKIN),
    without_effect("OTEL_EXPORTER_ZIPKIN_TIMEOUT", NO_ZIPKIN),
    without_effect("OTEL_EXPORTER_PROMETHEUS_HOST", NO_PROMETHEUS),
    without_effect("OTEL_EXPORTER_PROMETHEUS_PORT", NO_PROMETHEUS),
    supported("OTEL_TRACES_EXPORTER", "`otlp` (default), `none`; `console`, `zipkin` and lists are rejected"),
    supported("OTEL_METRICS_EXPORTER", "`otlp` (default), `none`; `console`, `prometheus` and lists are rejected"),
    supported("OTEL_LOGS_EXPORTER", "`otlp` (default), `none`; `console` and lists are rejected"),
    supported(
        "OTEL_METRICS_EXEMPLAR_FILTER",
        "`always_off` (default): there are no exemplars, and other filters are rejected",
    ),
    supported("OTEL_METRIC_EXPORT_INTERVAL", "Milliseconds between two exports of metrics, above 0; default 10000"),
    supported(
        "OTEL_METRIC_EXPORT_TIMEOUT",
        "Timeout of one export of metrics in milliseconds, where it is shorter than OTEL_EXPORTER_OTLP_TIMEOUT; 0 is no limit",
    ),
    rejected("OTEL_CONFIG_FILE", "there is no configuration by file"),
    rejected("OTEL_EXPERIMENTAL_CONFIG_FILE", "there is no configuration by file"),
];

pub(super) const TEMPORALITY: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
pub(super) const HISTOGRAM: &str = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION";

/// Rejects unsupported variables, whatever their value.
pub(super) fn reject_unsupported(variables: &Variables<'_>) -> Result<(), VariableError> {
    for variable in VARIABLES {
        if let Handling::Rejected(why) = variable.handling
            && variables.text(variable.name)?.is_some()
        {
            return Err(VariableError::new(variable.name, format!("is not supported: {why}"), "no value"));
        }
    }
    variables.choice("OTEL_METRICS_EXEMPLAR_FILTER", &[("always_off", ())])?;
    Ok(())
}
