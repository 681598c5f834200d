//! Where an event is visible besides the store: on its span, in the log, as an OTLP log record, and in a counter.
//!
//! The stored event does not depend on this: sampling, filters and exporters only decide what is visible here.

use std::sync::OnceLock;

use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, Severity};
use opentelemetry::metrics::Counter;
use opentelemetry::trace::Status;
use opentelemetry::{KeyValue, global};
use opentelemetry_sdk::logs::SdkLogger;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::context::TraceParent;
use crate::error_type::ErrorType;
use crate::event::{EventStatus, TraceEvent};
use crate::operation::Kind;

/// The event's type: `user_login`, `order_creation`, and so on.
pub const EVENT_TYPE: &str = "ordermesh.event.type";
/// `success` or `failed`.
pub const EVENT_STATUS: &str = "ordermesh.event.status";
/// The stored event's id.
pub const EVENT_ID: &str = "ordermesh.event.id";
/// The type of a failed event's error. Not `error.type`, which belongs to the RPC convention: the SDK would keep both
/// values.
pub const EVENT_ERROR_TYPE: &str = "ordermesh.event.error_type";
/// A failed event's reason.
pub const EVENT_REASON: &str = "ordermesh.event.reason";
/// A failed event's message.
pub const EVENT_MESSAGE: &str = "ordermesh.event.message";
/// The event was counted with similar ones instead of being stored: it has no status and no id.
pub const EVENT_SUPPRESSED: &str = "ordermesh.event.suppressed";
/// The tracing target of a failed event's log line. The event has a log record of its own, so the line is not exported
/// as another.
pub const EVENT_TARGET: &str = "ordermesh::event";
/// The value for a type that is not in the list: of another release's event.
const OTHER_TYPE: &str = "_OTHER";

/// What this process exports.
#[derive(Debug, Default)]
struct Exports {
    logger: Option<SdkLogger>,
    spans: bool,
}

static EXPORTS: OnceLock<Exports> = OnceLock::new();

/// Sets what is exported. Before that, or without it (in tests), spans get their attributes and there is no log record.
pub(crate) fn install(logger: Option<SdkLogger>, exports_spans: bool) {
    // A second call fails in `Telemetry::install`, which reports it.
    let _ = EXPORTS.set(Exports { logger, spans: exports_spans });
    // A series that starts above 0 has no increase: series with alerts start at 0.
    for (event_type, error_type) in ALERTED {
        add(0, event_type, EventStatus::Failed, error_type.name());
        add(0, event_type, EventStatus::Success, "");
    }
}

/// Failures that alerts watch.
const ALERTED: [(&str, ErrorType); 4] = [
    ("payment_processing", ErrorType::PaymentDeclined),
    ("user_login", ErrorType::Unauthenticated),
    ("data_lookup", ErrorType::Timeout),
    ("data_lookup", ErrorType::ConnectionError),
];

fn add(count: u64, event_type: &'static str, status: EventStatus, error_type: &'static str) {
    let attributes = [
        KeyValue::new("type", event_type),
        KeyValue::new("status", status.name()),
        KeyValue::new("error_type", error_type),
    ];
    counter().add(count, &attributes);
}

/// How an event is recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kept {
    /// As a row of its own.
    Stored,
    /// Counted with similar events.
    Summed,
}

/// An event and its operation.
pub(crate) struct Announced<'a> {
    pub(crate) span: &'a Span,
    pub(crate) traceparent: TraceParent,
    pub(crate) kind: Kind,
    pub(crate) event_type: &'static str,
    pub(crate) event: &'a TraceEvent,
    pub(crate) kept: Kept,
}

impl Announced<'_> {
    /// Publishes the event everywhere.
    pub(crate) fn everywhere(&self) {
        self.count();
        if EXPORTS.get().is_none_or(|exports| exports.spans) {
            self.on_span();
        }
        if self.kept == Kept::Summed {
            // Events are summed to protect the store, and must not flood the log either.
            return;
        }
        self.span.in_scope(|| self.line());
        if let Some(logger) = EXPORTS.get().and_then(|exports| exports.logger.as_ref()) {
            self.record(logger);
        }
    }

    fn count(&self) {
        let error_type = self
            .event
            .error
            .as_ref()
            .map_or("", |error| ErrorType::named(&error.error_type).map_or(OTHER_TYPE, ErrorType::name));
        add(1, self.event_type, self.event.status, error_type);
    }

    fn on_span(&self) {
        let span = self.span;
        span.set_attribute(EVENT_TYPE, self.event_type);
        match self.kept {
            Kept::Stored => {
                span.set_attribute(EVENT_STATUS, self.event.status.name());
                span.set_attribute(EVENT_ID, self.event.event_id.to_string());
            }
            // Without a status: a collector that keeps every failed event must not be flooded by events that are summed
            // to protect the store.
            Kept::Summed => span.set_attribute(EVENT_SUPPRESSED, true),
        }
        let Some(error) = &self.event.error else { return };
        span.set_attribute(EVENT_ERROR_TYPE, error.error_type.clone());
        span.set_attribute(EVENT_REASON, error.reason.clone());
        span.set_attribute(EVENT_MESSAGE, error.message.clone());
        // SERVER and CLIENT spans follow the RPC convention: a customer's mistake is not a server error.
        if self.kind == Kind::Internal {
            span.set_status(Status::error(format!("{}: {}", error.reason, error.message)));
        }
    }

    /// A failed event is logged as one WARN line.
    fn line(&self) {
        let Some(error) = &self.event.error else { return };
        tracing::warn!(
            target: EVENT_TARGET,
            event = %self.event_type,
            operation = %self.event.operation,
            order_id = self.event.order_id.map(|id| id.to_string()),
            user_id = self.event.user_id.map(|id| id.to_string()),
            error.type = %error.error_type,
            reason = %error.reason,
            "{} failed: {}", self.event_type, error.message,
        );
    }

    /// OpenTelemetry's form of an event: a log record with an event name.
    fn record(&self, logger: &SdkLogger) {
        let event = self.event;
        let mut record = logger.create_log_record();
        record.set_event_name(self.event_type);
        record.set_target(EVENT_TARGET);
        let (severity, text) = match event.status {
            EventStatus::Success => (Severity::Info, "INFO"),
            EventStatus::Failed => (Severity::Warn, "WARN"),
        };
        record.set_severity_number(severity);
        record.set_severity_text(text);
        let flags = self.traceparent.flags();
        record.set_trace_context(self.traceparent.trace_id, self.traceparent.span_id, Some(flags));
        record.add_attribute(EVENT_TYPE, self.event_type);
        record.add_attribute(EVENT_STATUS, event.status.name());
        record.add_attribute(EVENT_ID, event.event_id.to_string());
        let mut add = |key: &'static str, value: Option<String>| {
            value.into_iter().for_each(|value| record.add_attribute(key, AnyValue::from(value)));
        };
        add("order.id", event.order_id.map(|id| id.to_string()));
        add("enduser.id", event.user_id.map(|id| id.to_string()));
        add("operation", event.attributes.get("operation").cloned());
        if let Some(error) = &event.error {
            add(EVENT_ERROR_TYPE, Some(error.error_type.clone()));
            add(EVENT_REASON, Some(error.reason.clone()));
            add(EVENT_MESSAGE, Some(error.message.clone()));
        }
        let body = match &event.error {
            Some(error) => format!("{} failed: {}", self.event_type, error.message),
            None => format!("{} success", self.event_type),
        };
        record.set_body(AnyValue::from(body));
        logger.emit(record);
    }
}

fn counter() -> &'static Counter<u64> {
    static COUNTER: OnceLock<Counter<u64>> = OnceLock::new();
    COUNTER.get_or_init(|| {
        global::meter("ordermesh")
            .u64_counter("ordermesh.events")
            .with_description(
                "Trace events by type, status and error type, including those summed to protect the store",
            )
            .build()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use opentelemetry::logs::LoggerProvider;
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::logs::{InMemoryLogExporter, SdkLoggerProvider};
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::event::EventError;
    use crate::operation::{Disposition, Ended, EventSink, Operation, Outcome, Parent};

    /// Stores or sums unclaimed events.
    struct Keeps(Kept);

    impl EventSink for Keeps {
        fn unclaimed(&self, ended: Ended) -> Disposition {
            match self.0 {
                Kept::Stored => Disposition::Stored(ended.event),
                Kept::Summed => Disposition::Summed(ended.event),
            }
        }
        fn put(&self, _event: TraceEvent) {}
        fn origin(&self) -> (&str, &str) {
            ("payment", "payment-1")
        }
    }

    fn declined() -> Outcome {
        Outcome::Failed(EventError::new(ErrorType::PaymentDeclined, "INSUFFICIENT_FUNDS", "the account has no money"))
    }

    fn open(kind: Kind, kept: Kept) -> Operation {
        let sink: Arc<dyn EventSink> = Arc::new(Keeps(kept));
        Operation::open(kind, "process_payment", Parent::Root, Some("payment_processing"), Some(sink))
    }

    /// The only span that `work` makes.
    fn span_of(work: impl FnOnce()) -> SpanData {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        let mut spans = exporter.get_finished_spans().expect("spans");
        assert_eq!(spans.len(), 1);
        spans.remove(0)
    }

    /// The span's attributes about an event.
    fn attributes(span: &SpanData) -> BTreeMap<&str, String> {
        let of_events = span.attributes.iter().filter(|pair| pair.key.as_str().starts_with("ordermesh."));
        of_events.map(|pair| (pair.key.as_str(), pair.value.to_string())).collect()
    }

    #[test]
    fn a_committed_event_is_on_its_span_and_a_failed_one_has_its_reason() {
        let mut id = String::new();
        let span = span_of(|| {
            let operation = open(Kind::Internal, Kept::Stored);
            let event = operation.event(&declined()).expect("it has a slot");
            id = event.event_id.to_string();
            operation.commit_event(&event);
        });
        let expected = [
            (EVENT_TYPE, "payment_processing"),
            (EVENT_STATUS, "failed"),
            (EVENT_ID, &id),
            (EVENT_ERROR_TYPE, "PaymentDeclined"),
            (EVENT_REASON, "INSUFFICIENT_FUNDS"),
            (EVENT_MESSAGE, "the account has no money"),
        ];
        assert_eq!(attributes(&span), expected.map(|(name, value)| (name, value.to_owned())).into());
        assert_eq!(span.status, Status::error("INSUFFICIENT_FUNDS: the account has no money"));
    }

    #[test]
    fn a_customers_mistake_is_not_an_error_of_the_server_span() {
        let span = span_of(|| open(Kind::Server, Kept::Stored).end(declined()));
        assert_eq!(attributes(&span).get(EVENT_STATUS).map(String::as_str), Some("failed"));
        assert_eq!(span.status, Status::Unset);
    }

    #[test]
    fn a_summed_event_has_neither_a_status_nor_an_id() {
        let span = span_of(|| open(Kind::Server, Kept::Summed).end(Outcome::Success));
        let expected = [(EVENT_TYPE, "payment_processing"), (EVENT_SUPPRESSED, "true")];
        assert_eq!(attributes(&span), expected.map(|(name, value)| (name, value.to_owned())).into());
    }

    #[test]
    fn a_discarded_slot_leaves_no_attributes_and_a_replay_is_marked_as_one() {
        let span = span_of(|| open(Kind::Server, Kept::Stored).discard());
        assert_eq!(attributes(&span), BTreeMap::new());
        let span = span_of(|| open(Kind::Server, Kept::Stored).replayed());
        assert_eq!(attributes(&span), [("ordermesh.replayed", "true".to_owned())].into());
    }

    #[test]
    fn an_event_is_a_log_record_with_its_name_severity_and_the_spans_ids() {
        let exporter = InMemoryLogExporter::default();
        let provider = SdkLoggerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let logger = provider.logger("ordermesh");
        let operation = open(Kind::Internal, Kept::Stored);
        for (outcome, severity) in [(Outcome::Success, Severity::Info), (declined(), Severity::Warn)] {
            let event = operation.event(&outcome).expect("it has a slot");
            let (span, traceparent) = (operation.span(), operation.traceparent());
            let event_type = "payment_processing";
            let kept = Kept::Stored;
            Announced { span, traceparent, kind: Kind::Internal, event_type, event: &event, kept }.record(&logger);
            let logs = exporter.get_emitted_logs().expect("logs");
            let record = &logs.last().expect("one").record;
            assert_eq!((record.event_name(), record.severity_number()), (Some(event_type), Some(severity)));
            let context = record.trace_context().expect("ids");
            assert_eq!(
                (context.trace_id.to_string(), context.span_id.to_string()),
                (traceparent.trace_id(), traceparent.span_id())
            );
            let has = |name: &str| record.attributes_iter().any(|(key, _)| key.as_str() == name);
            assert!(has(EVENT_TYPE) && has(EVENT_STATUS) && has(EVENT_ID));
            assert_eq!(has(EVENT_REASON), severity == Severity::Warn);
        }
    }
}
