//! The format of log lines: JSON for machines, a short line for terminals. Each has the ids of the span in which it was
//! written, so that a line leads to its trace.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use opentelemetry::trace::TraceContextExt;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterFn, LevelFilter, ParseError};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::registry::LookupSpan;

use crate::context::TraceParent;
use crate::mask::masked;

/// The format of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For a terminal.
    Pretty,
}

/// Targets of OpenTelemetry's crates.
const SDK: [&str; 3] = ["opentelemetry", "opentelemetry_sdk", "opentelemetry-otlp"];

/// Libraries whose log lines others can cause at any rate, and the level at which they are logged unless the directives
/// name them: h2 writes a WARN for each connection whose peer violates the protocol (`mesh.server.refusals` counts
/// these), NATS's client several lines for each attempt to connect (the event sink logs an outage once).
const AT_OTHERS_RATE: [(&str, LevelFilter); 2] = [("h2", LevelFilter::ERROR), ("async_nats", LevelFilter::OFF)];

/// The filter of log lines. The SDK logs every failed batch: without a level of its own (`OTEL_LOG_LEVEL`) its lines
/// are omitted, unless the directives name it. Failing exports are logged once, by [`crate::reachability`].
///
/// # Errors
/// Invalid directives.
pub(crate) fn filter(directives: &str, sdk: Option<LevelFilter>) -> Result<EnvFilter, ParseError> {
    let mut filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse(directives)?;
    let names = directives.split(',').filter_map(|directive| directive.trim().split(['=', '[']).next());
    let named: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    let all = directives.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    let of_all = all.filter_map(|directive| directive.parse::<LevelFilter>().ok()).next_back();
    for (target, level) in AT_OTHERS_RATE {
        if of_all.is_none_or(|of_all| of_all > level) && !named.iter().any(|name| target.starts_with(name)) {
            filter = filter.add_directive(format!("{target}={level}").parse()?);
        }
    }
    for target in SDK {
        // A directive applies to all targets that begin with its name.
        let is_named = named.iter().any(|name| target.starts_with(name));
        let level = match sdk {
            None if is_named => continue,
            level => level.unwrap_or(LevelFilter::OFF),
        };
        filter = filter.add_directive(format!("{target}={level}").parse()?);
    }
    Ok(filter)
}

/// The SDK's lines that are always logged: a queue is full, so its limit is too small or exports fail. Once per
/// process.
const FULL_QUEUES: [&str; 2] = ["BatchSpanProcessor.SpanDroppingStarted", "BatchLogProcessor.LogDroppingStarted"];

/// Admits the lines of a full queue.
pub(crate) fn full_queues() -> FilterFn<impl Fn(&Metadata<'_>) -> bool> {
    FilterFn::new(|metadata: &Metadata<'_>| FULL_QUEUES.contains(&metadata.name()))
        .with_max_level_hint(LevelFilter::WARN)
}

pub(crate) struct Lines {
    pub(crate) format: LogFormat,
    pub(crate) service: String,
    pub(crate) instance: String,
}

#[derive(Default)]
struct Fields {
    message: String,
    others: BTreeMap<&'static str, serde_json::Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: serde_json::Value) {
        if field.name() == "message" {
            self.message = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        } else {
            self.others.insert(field.name(), value);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Errors arrive here: errors of libraries quote their input.
        self.put(field, masked(&format!("{value:?}")).into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        // Not the line's span from `ctx`: a filter that shows the line may hide the span.
        let context = opentelemetry::Context::current();
        let traceparent =
            Some(context.span().span_context()).filter(|span_context| span_context.is_valid()).map(TraceParent::of);
        let meta = event.metadata();
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        match self.format {
            LogFormat::Json => {
                let mut line = serde_json::Map::new();
                line.insert("time".into(), time.into());
                line.insert("level".into(), meta.level().as_str().into());
                line.insert("service".into(), self.service.as_str().into());
                line.insert("instance".into(), self.instance.as_str().into());
                if let Some(traceparent) = traceparent {
                    line.insert("trace_id".into(), traceparent.trace_id().into());
                    line.insert("span_id".into(), traceparent.span_id().into());
                }
                line.insert("message".into(), fields.message.into());
                line.insert("target".into(), meta.target().into());
                line.extend(fields.others.into_iter().map(|(name, value)| (name.to_owned(), value)));
                writeln!(writer, "{}", serde_json::Value::Object(line))
            }
            LogFormat::Pretty => {
                let mut facts = String::new();
                for (name, value) in &fields.others {
                    match value.as_str() {
                        Some(text) => write!(facts, " {name}={text}")?,
                        None => write!(facts, " {name}={value}")?,
                    }
                }
                if let Some(traceparent) = traceparent {
                    write!(facts, " trace_id={} span_id={}", traceparent.trace_id(), traceparent.span_id())?;
                }
                let clock = time.get(11..19).unwrap_or(&time);
                writeln!(writer, "{clock} {:5} {:<9} {}{facts}", meta.level(), self.instance, fields.message)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::Arc;

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
    use parking_lot::Mutex;
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::FilterExt;
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The messages that are logged with a filter.
    fn logged(directives: &str, sdk: Option<LevelFilter>) -> String {
        messages(directives, sdk, || {
            tracing::info!(target: "ordermesh", "ours");
            tracing::error!(target: "opentelemetry_sdk", "the SDK's");
            tracing::error!(target: "opentelemetry-otlp", "the exporter's");
            tracing::debug!(target: "opentelemetry-otlp", "the exporter's details");
            tracing::warn!(name: "BatchSpanProcessor.SpanDroppingStarted", target: "opentelemetry_sdk", "full");
        })
    }

    fn messages(directives: &str, sdk: Option<LevelFilter>, write: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let lines = Lines { format: LogFormat::Json, service: "order".into(), instance: "order-1".into() };
        let log = tracing_subscriber::fmt::layer().event_format(lines).with_writer(move || writer.clone());
        let log = log.with_filter(filter(directives, sdk).expect("directives").or(full_queues()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log), write);
        let text = String::from_utf8(written.0.lock().clone()).expect("text");
        let messages = text.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            line["message"].as_str().expect("a message").to_owned()
        });
        messages.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_sdks_lines_are_omitted_unless_a_setting_names_them() {
        assert_eq!(logged("info", None), "ours, full");
        assert_eq!(logged("", None), "ours, full", "the default is kept");
        assert_eq!(logged("off", None), "full", "a full queue is always logged");
        assert_eq!(logged("debug,mesh=warn", None), "ours, full");
        assert_eq!(logged("info,opentelemetry=error", None), "ours, the SDK's, the exporter's, full");
        assert_eq!(logged("info,opentelemetry_sdk=error", None), "ours, the SDK's, full");
        assert_eq!(logged("info,opentelemetry_sdk=off", None), "ours, full");
        let level = |directives, level| logged(directives, Some(level));
        assert_eq!(level("info,opentelemetry_sdk=off", LevelFilter::ERROR), "ours, the SDK's, the exporter's, full");
        assert_eq!(level("warn", LevelFilter::DEBUG), "the SDK's, the exporter's, the exporter's details, full");
        assert_eq!(level("debug,opentelemetry=debug", LevelFilter::OFF), "ours, full");
    }

    /// Rapid resets and the like: a line per connection, at the peers' rate.
    #[test]
    fn lines_that_peers_cause_at_any_rate_are_omitted_unless_a_setting_names_them() {
        let logged = |directives| {
            messages(directives, None, || {
                tracing::warn!(target: "ordermesh", "ours");
                tracing::warn!(target: "h2::proto::streams", "a peer's");
                tracing::error!(target: "h2::proto", "h2's own");
                tracing::error!(target: "async_nats::connector", "an attempt");
            })
        };
        for directives in ["info", "warn", "", "trace", "debug,mesh=trace"] {
            assert_eq!(logged(directives), "ours, h2's own", "{directives}");
        }
        assert_eq!(logged("info,h2=warn"), "ours, a peer's, h2's own");
        assert_eq!(logged("info,h2=off"), "ours");
        assert_eq!(logged("info,async_nats=info"), "ours, h2's own, an attempt");
        assert_eq!(logged("off"), "");
        assert_eq!(logged("error"), "h2's own");
    }

    #[test]
    fn a_line_has_the_ids_of_its_span_although_the_filter_hides_the_span() {
        let written = Written::default();
        let writer = written.clone();
        let tracer = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build().tracer("test");
        let lines = Lines { format: LogFormat::Json, service: "order".into(), instance: "order-1".into() };
        let log = tracing_subscriber::fmt::layer().event_format(lines).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry()
            .with(tracing_opentelemetry::layer().with_tracer(tracer))
            .with(log.with_filter(EnvFilter::new("warn")));
        let traceparent = tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!(target: "ordermesh", "operation");
            span.in_scope(|| tracing::warn!(target: "ordermesh", "inside"));
            tracing::warn!(target: "ordermesh", "outside");
            TraceParent::of(span.context().span().span_context())
        });
        let text = String::from_utf8(written.0.lock().clone()).expect("text");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines[0]["trace_id"], traceparent.trace_id());
        assert_eq!(lines[0]["span_id"], traceparent.span_id());
        assert_eq!(lines[1].get("trace_id"), None, "outside of every span");
    }
}
