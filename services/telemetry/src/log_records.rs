//! The logs signal: every WARN and ERROR line is a log record too, with the ids of its span.
//!
//! `opentelemetry-appender-tracing` is not used: it sets an event name (the line's position in the source) on every
//! record, and event names are how trace events are found. Two kinds of lines are left out: those of trace events,
//! which have log records of their own, and those of the libraries that exports go through, which would cause further
//! exports.

use std::fmt;

use opentelemetry::Key;
use opentelemetry::logs::{AnyValue, LogRecord, Logger, Severity};
use opentelemetry_sdk::logs::{SdkLogRecord, SdkLogger};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::mask::masked;

/// The target of the lines of failed trace events.
const TRACE_EVENTS: &str = "ordermesh::event";
/// The libraries that an export goes through.
const EXPORTERS: [&str; 11] = [
    "opentelemetry",
    "tonic",
    "h2",
    "hyper",
    "hyper_util",
    "hyper_rustls",
    "rustls",
    "rustls_native_certs",
    "tokio_rustls",
    "tower",
    "reqwest",
];

/// Whether a line is exported.
pub(crate) fn is_exported(metadata: &Metadata<'_>) -> bool {
    metadata.is_event() && *metadata.level() <= Level::WARN && is_target_exported(metadata.target())
}

fn is_target_exported(target: &str) -> bool {
    let library = target.split("::").next().unwrap_or(target);
    // OpenTelemetry's crates are many: opentelemetry_sdk, opentelemetry-otlp, …
    target != TRACE_EVENTS && !EXPORTERS.contains(&library) && !library.starts_with("opentelemetry")
}

/// The layer that turns each line into a log record.
#[derive(Debug)]
pub(crate) struct LogRecords(pub(crate) SdkLogger);

impl<S: Subscriber> Layer<S> for LogRecords {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let severity = if *metadata.level() == Level::ERROR { Severity::Error } else { Severity::Warn };
        // False in the SDK's export threads.
        if !self.0.event_enabled(severity, metadata.target(), None) {
            return;
        }
        let mut record = self.0.create_log_record();
        record.set_timestamp(opentelemetry::time::now());
        record.set_severity_number(severity);
        record.set_severity_text(metadata.level().as_str());
        let mut fields = Fields { record: &mut record, target: metadata.target().to_owned() };
        event.record(&mut fields);
        let target = fields.target;
        if is_target_exported(&target) {
            record.set_target(target);
            self.0.emit(record);
        }
    }
}

struct Fields<'a> {
    record: &'a mut SdkLogRecord,
    target: String,
}

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: AnyValue) {
        match field.name() {
            "message" => self.record.set_body(value),
            // Lines of the `log` crate have their metadata in fields.
            "log.target" => {
                if let AnyValue::String(target) = value {
                    self.target = target.as_str().to_owned();
                }
            }
            "log.module_path" | "log.file" | "log.line" => {}
            name => self.record.add_attribute(Key::from_static_str(name), value),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, AnyValue::from(masked(&format!("{value:?}")).into_owned()));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, AnyValue::from(value.to_owned()));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, AnyValue::from(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, i64::try_from(value).map_or_else(|_| AnyValue::from(value.to_string()), AnyValue::from));
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, AnyValue::from(value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, AnyValue::from(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use opentelemetry::logs::LoggerProvider;
    use opentelemetry::trace::{TraceContextExt, TracerProvider};
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::logs::{LogBatch, LogExporter, SdkLoggerProvider};
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
    use parking_lot::Mutex;
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::filter::FilterFn;
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SdkLogRecord>>>);

    impl LogExporter for Kept {
        async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
            self.0.lock().extend(batch.iter().map(|(record, _)| record.clone()));
            Ok(())
        }
    }

    /// The log records of the lines in `work`.
    fn records_of(work: impl FnOnce()) -> Vec<SdkLogRecord> {
        let kept = Kept::default();
        let logs = SdkLoggerProvider::builder().with_simple_exporter(kept.clone()).build();
        let tracer = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build().tracer("test");
        let layer = LogRecords(logs.logger("test")).with_filter(FilterFn::new(is_exported));
        let subscriber =
            tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer)).with(layer);
        tracing::subscriber::with_default(subscriber, work);
        let kept = kept.0.lock();
        kept.clone()
    }

    fn body(record: &SdkLogRecord) -> String {
        format!("{:?}", record.body().expect("a body"))
    }

    #[test]
    fn a_warning_is_a_log_record_with_its_attributes_and_the_ids_of_its_span() {
        let mut ids = None;
        let records = records_of(|| {
            let span = tracing::info_span!(target: "ordermesh", "operation");
            span.in_scope(|| {
                tracing::warn!(target: "ordermesh", tries = 3_u64, late = true, reason = "SLOW", "it is late");
            });
            ids = Some(span.context().span().span_context().clone());
            tracing::error!(target: "sqlx", "it broke");
        });
        assert_eq!(records.len(), 2);
        assert!(body(&records[0]).contains("it is late"));
        assert_eq!(records[0].severity_number(), Some(Severity::Warn));
        let facts = format!("{:?}", records[0].attributes_iter().collect::<Vec<_>>());
        for fact in ["tries", "Int(3)", "late", "Boolean(true)", "reason", "SLOW"] {
            assert!(facts.contains(fact), "{facts}");
        }
        assert_eq!(records[0].event_name(), None, "not an event");
        let (ids, context) = (ids.expect("a span"), records[0].trace_context().expect("ids"));
        assert_eq!((context.trace_id, context.span_id), (ids.trace_id(), ids.span_id()));
        assert_eq!(records[1].severity_number(), Some(Severity::Error));
        assert!(records[1].trace_context().is_none(), "outside of every span");
    }

    #[test]
    fn other_levels_trace_events_and_exporters_are_not_log_records() {
        let records = records_of(|| {
            tracing::info!(target: "ordermesh", "below WARN");
            tracing::warn!(target: "ordermesh::event", "it has a record of its own");
            tracing::warn!(target: "opentelemetry_sdk", "about exports");
            tracing::error!(target: "opentelemetry-otlp", "about exports");
            tracing::warn!(target: "h2::proto", "about exports");
            tracing::warn!(target: "hyper_util::client::legacy", "about exports");
            tracing::warn!(target: "rustls", "about exports");
            tracing::warn!(target: "ordermesh::eventual", "control: it is exported");
            tracing::warn!(target: "h2o", "control: it is exported");
        });
        let targets: Vec<_> = records.iter().map(|record| record.target().expect("a target").to_string()).collect();
        assert_eq!(targets, ["ordermesh::eventual", "h2o"]);
    }
}
