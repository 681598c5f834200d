//! OpenTelemetry's environment variables, as operators set them: each variable is supported, or rejected by name.
//!
//! Where the specification says "warn and ignore", the start fails here: a setting that is silently ignored is noticed
//! only when its telemetry is missing. [`VARIABLES`] is the list of all variables; this crate's README renders it. This
//! module opens no connections, and gets the variables from a function, so tests need no process of their own.
//!
//! # Layout
//! - `variables.rs`: the list of all variables
//! - `values.rs`: the types of values: choices, numbers, durations, lists
//! - `target.rs`: `OTEL_EXPORTER_OTLP_…`, the target of one signal

mod target;
#[cfg(test)]
mod tests;
mod values;
mod variables;

use std::ffi::OsString;
use std::time::Duration;

use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::trace::{Sampler, SpanLimits};
use tracing_subscriber::filter::LevelFilter;

use crate::environment::values::{MAX_MILLIS, Variables};
use crate::environment::variables::{HISTOGRAM, TEMPORALITY};
pub use crate::environment::variables::{Handling, VARIABLES, Variable};
use crate::propagation::Propagation;
use crate::transport;

pub(crate) use self::target::{File, Protocol, Target};

/// The general endpoint's variable.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// A variable that is malformed or not supported. The text never contains values that may be secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} {problem}; allowed: {allowed}")]
pub struct VariableError {
    /// The variable.
    pub name: String,
    /// Why it is invalid.
    pub problem: String,
    /// The allowed values.
    pub allowed: String,
}

impl VariableError {
    pub(crate) fn new(name: &str, problem: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { name: name.to_owned(), problem: problem.into(), allowed: allowed.into() }
    }

    /// With the value in the text: for variables that hold no secrets.
    fn value(name: &str, value: &str, allowed: impl Into<String>) -> Self {
        /// Longer values are truncated.
        const MAX_EXCERPT: usize = 80;
        let excerpt: String = value.chars().take(MAX_EXCERPT).collect();
        Self::new(name, format!("is {excerpt:?}"), allowed)
    }
}

/// A signal that is exported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    /// Lower case, as in OTLP's paths.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
        }
    }

    /// Upper case, as in the names of variables.
    const fn infix(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        }
    }
}

/// The limits of a batch processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Batches {
    /// Between two exports.
    pub(crate) delay: Duration,
    /// Maximum spans or log records in the queue; one more is dropped.
    pub(crate) queue: usize,
    /// Maximum of them in one export.
    pub(crate) batch: usize,
    /// Limit of one export; the exporter has one of its own.
    timeout: Option<Duration>,
}

impl Batches {
    /// Half a second, so that a trace is visible right after its call; room for a burst of calls.
    const SPANS: Self = Self { delay: Duration::from_millis(500), queue: 16_384, batch: 1_024, timeout: None };
    /// The specification's.
    const LOG_RECORDS: Self = Self { delay: Duration::from_secs(1), queue: 2_048, batch: 512, timeout: None };
}

/// Our own interval: OpenTelemetry's is a minute.
const METRIC_INTERVAL: Duration = Duration::from_secs(10);

/// The variables of OpenTelemetry's environment specification, read and checked.
#[derive(Clone, Debug)]
pub struct Environment {
    service_name: Option<String>,
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) sampler: Sampler,
    pub(crate) propagation: Propagation,
    pub(crate) log_level: Option<LevelFilter>,
    pub(crate) spans: Batches,
    pub(crate) log_records: Batches,
    pub(crate) span_limits: SpanLimits,
    pub(crate) metric_interval: Duration,
    pub(crate) temporality: Temporality,
    pub(crate) exponential_histograms: bool,
    pub(crate) traces: Option<Target>,
    pub(crate) metrics: Option<Target>,
    pub(crate) logs: Option<Target>,
}

impl Environment {
    /// Reads the process's environment. `endpoint` is the general endpoint from a setting of the program (its name, its
    /// value); without it, `OTEL_EXPORTER_OTLP_ENDPOINT` is read.
    ///
    /// # Errors
    /// A variable that is malformed, or not supported.
    pub fn of_process(endpoint: Option<(&str, &str)>) -> Result<Self, VariableError> {
        Self::read(endpoint, |name| std::env::var_os(name))
    }

    /// Reads variables from a function. An empty value is the same as no value.
    ///
    /// # Errors
    /// A variable that is malformed, or not supported.
    pub fn read(
        endpoint: Option<(&str, &str)>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, VariableError> {
        let variables = Variables::new(&variable);
        variables::reject_unsupported(&variables)?;
        let attributes = values::pairs("OTEL_RESOURCE_ATTRIBUTES", &variables, values::ATTRIBUTES)?;
        let spans = batches(&variables, "OTEL_BSP", Batches::SPANS)?;
        let log_records = batches(&variables, "OTEL_BLRP", Batches::LOG_RECORDS)?;
        let metric_timeout = variables.timeout("OTEL_METRIC_EXPORT_TIMEOUT")?;
        let own = variables.text(ENDPOINT)?;
        let general = match endpoint.filter(|(_, url)| !url.trim().is_empty()) {
            Some(endpoint) => Some(endpoint),
            None => own.as_deref().map(|url| (ENDPOINT, url)),
        };
        let is_disabled = variables.boolean("OTEL_SDK_DISABLED")?.unwrap_or(false);
        let of = |signal, timeout| {
            let target = Target::read(&variables, signal, general, timeout)?;
            Ok(target.filter(|_| !is_disabled))
        };
        Ok(Self {
            sampler: sampler(&variables)?,
            propagation: propagation(&variables)?,
            log_level: variables.choice("OTEL_LOG_LEVEL", &LOG_LEVELS)?,
            span_limits: span_limits(&variables)?,
            metric_interval: variables.duration("OTEL_METRIC_EXPORT_INTERVAL")?.unwrap_or(METRIC_INTERVAL),
            temporality: variables.choice(TEMPORALITY, &TEMPORALITIES)?.unwrap_or(Temporality::Cumulative),
            exponential_histograms: variables.choice(HISTOGRAM, &HISTOGRAMS)?.unwrap_or(false),
            traces: of(Signal::Traces, spans.timeout)?,
            metrics: of(Signal::Metrics, metric_timeout)?,
            logs: of(Signal::Logs, log_records.timeout)?,
            service_name: variables.text("OTEL_SERVICE_NAME")?,
            attributes,
            spans,
            log_records,
        })
    }

    /// Reads the files of certificates and keys, and keeps nothing: for a program whose child processes will use them.
    ///
    /// # Errors
    /// A file that cannot be used, by the variable that names it.
    pub fn check_files(&self) -> Result<(), VariableError> {
        [&self.traces, &self.metrics, &self.logs].into_iter().flatten().try_for_each(transport::check)
    }

    /// `service.name`, when the environment has one: `OTEL_SERVICE_NAME`, or the resource attribute.
    pub fn service_name(&self) -> Option<&str> {
        let attribute = || self.attributes.iter().rev().find(|(key, _)| key == "service.name");
        self.service_name.as_deref().or_else(|| Some(attribute()?.1.as_str()))
    }
}

const TEMPORALITIES: [(&str, Temporality); 3] =
    [("cumulative", Temporality::Cumulative), ("delta", Temporality::Delta), ("lowmemory", Temporality::LowMemory)];

/// (its name, is it exponential).
const HISTOGRAMS: [(&str, bool); 2] =
    [("explicit_bucket_histogram", false), ("base2_exponential_bucket_histogram", true)];

const LOG_LEVELS: [(&str, LevelFilter); 6] = [
    ("none", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

/// (is it parent based, its root).
#[derive(Clone, Copy)]
enum Root {
    On,
    Off,
    Ratio,
}

const SAMPLERS: [(&str, (bool, Root)); 6] = [
    ("always_on", (false, Root::On)),
    ("always_off", (false, Root::Off)),
    ("traceidratio", (false, Root::Ratio)),
    ("parentbased_always_on", (true, Root::On)),
    ("parentbased_always_off", (true, Root::Off)),
    ("parentbased_traceidratio", (true, Root::Ratio)),
];

fn sampler(variables: &Variables<'_>) -> Result<Sampler, VariableError> {
    const ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
    let ratio = match variables.text(ARG)? {
        Some(text) => match text.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
            Ok(_) | Err(_) => return Err(VariableError::value(ARG, &text, "a number from 0 to 1, such as 0.25")),
        },
        None => 1.0,
    };
    let (parent_based, root) = variables.choice("OTEL_TRACES_SAMPLER", &SAMPLERS)?.unwrap_or((true, Root::On));
    let root = match root {
        Root::On => Sampler::AlwaysOn,
        Root::Off => Sampler::AlwaysOff,
        Root::Ratio => Sampler::TraceIdRatioBased(ratio),
    };
    Ok(if parent_based { Sampler::ParentBased(Box::new(root)) } else { root })
}

fn propagation(variables: &Variables<'_>) -> Result<Propagation, VariableError> {
    const NAME: &str = "OTEL_PROPAGATORS";
    let Some(text) = variables.text(NAME)? else { return Ok(Propagation::DEFAULT) };
    let mut propagation = Propagation::NONE;
    let mut is_none = false;
    for each in text.split(',').map(str::trim) {
        match each.to_ascii_lowercase().as_str() {
            "tracecontext" => propagation.trace_context = true,
            "baggage" => propagation.baggage = true,
            "none" => is_none = true,
            _ => return Err(VariableError::value(NAME, &text, PROPAGATORS)),
        }
    }
    // Baggage is forwarded only within a trace.
    if is_none && propagation != Propagation::NONE || propagation.baggage && !propagation.trace_context {
        return Err(VariableError::value(NAME, &text, PROPAGATORS));
    }
    Ok(propagation)
}

const PROPAGATORS: &str = "tracecontext; tracecontext,baggage; none";

fn batches(variables: &Variables<'_>, prefix: &str, default: Batches) -> Result<Batches, VariableError> {
    let name = |what: &str| format!("{prefix}_{what}");
    let queue = variables.count(&name("MAX_QUEUE_SIZE"))?.unwrap_or(default.queue);
    let batch_name = name("MAX_EXPORT_BATCH_SIZE");
    let batch = match variables.count(&batch_name)? {
        Some(batch) if batch > queue => {
            let allowed = format!("at most {queue}, the size of the queue ({})", name("MAX_QUEUE_SIZE"));
            return Err(VariableError::value(&batch_name, &batch.to_string(), allowed));
        }
        Some(batch) => batch,
        None => default.batch.min(queue),
    };
    let delay = variables.duration(&name("SCHEDULE_DELAY"))?.unwrap_or(default.delay);
    let timeout = variables.timeout(&name("EXPORT_TIMEOUT"))?;
    Ok(Batches { delay, queue, batch, timeout })
}

fn span_limits(variables: &Variables<'_>) -> Result<SpanLimits, VariableError> {
    let limit = |what: &str| variables.number(&format!("OTEL_{what}_COUNT_LIMIT"), 0..=MAX_MILLIS);
    let limit = |what: &str, default: u32| {
        let limit = limit(what)?.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX));
        Ok(limit.unwrap_or(default))
    };
    let default = SpanLimits::default();
    Ok(SpanLimits {
        max_attributes_per_span: limit("SPAN_ATTRIBUTE", default.max_attributes_per_span)?,
        max_events_per_span: limit("SPAN_EVENT", default.max_events_per_span)?,
        max_links_per_span: limit("SPAN_LINK", default.max_links_per_span)?,
        max_attributes_per_event: limit("EVENT_ATTRIBUTE", default.max_attributes_per_event)?,
        max_attributes_per_link: limit("LINK_ATTRIBUTE", default.max_attributes_per_link)?,
    })
}
