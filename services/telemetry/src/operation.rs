//! Operations: a tracing span (exported by OpenTelemetry) plus one *event slot*.
//!
//! The code that commits a change writes the event in the same transaction and then claims the slot with
//! [`Operation::commit_event`]. An operation that ends with an unclaimed slot is passed to the [`EventSink`], which
//! decides whether it is an event. All code that works on an operation holds a clone of it: it ends when the last clone
//! is dropped, so a transaction that outlives its call can still claim the slot. One span, at most one event.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kernel::{Clock, IdSource, SystemClock, SystemIds, Timestamp};
use opentelemetry::Context;
use opentelemetry::trace::{Status, TraceContextExt};
use parking_lot::{Mutex, MutexGuard};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use crate::announce::{Announced, Kept};
use crate::context::TraceParent;
use crate::error_type::ErrorType;
use crate::event::{EventError, EventStatus, TraceEvent};

/// The attribute that is the event's `order_id`: a UUID.
pub const ORDER_ID: &str = "order_id";
/// The attribute that is the event's `user_id`: a UUID.
pub const USER_ID: &str = "user_id";
/// The attributes with a column of their own in the event, each with its short name (of a header, for example).
pub const COLUMNS: [(&str, &str); 2] = [(ORDER_ID, "order"), (USER_ID, "user")];

/// The side of a call that an operation is on (OpenTelemetry's span kind).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Serves a call.
    Server,
    /// Makes a call.
    Client,
    /// Neither: a step inside a service.
    Internal,
}

/// An operation's parent in the trace.
#[derive(Clone, Debug)]
pub enum Parent {
    /// The span that is current when the operation is opened; a root when there is none.
    Current,
    /// A span of another process, or of the past.
    Remote(TraceParent),
    /// None: a trace of its own, linked to another.
    LinkedRoot(TraceParent),
    /// None: a trace of its own.
    Root,
}

/// The outcome of an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It succeeded.
    Success,
    /// It failed, with the event's error.
    Failed(EventError),
}

/// An operation that ended with an unclaimed slot.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The side of a call that it was on.
    pub kind: Kind,
    /// The event that it would be.
    pub event: TraceEvent,
}

/// The disposition of an operation that ended with an unclaimed slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Disposition {
    /// It is no event.
    NoEvent,
    /// It is this event, which is passed to [`EventSink::put`] next.
    Stored(TraceEvent),
    /// It is this event, counted with similar ones to protect the store.
    Summed(TraceEvent),
}

/// Decides the disposition of operations with unclaimed slots, and provides the origin of events.
pub trait EventSink: Send + Sync + 'static {
    /// Called once for each such operation with an event type, when it ends. Must not block.
    fn unclaimed(&self, ended: Ended) -> Disposition;
    /// Stores an event that [`EventSink::unclaimed`] has decided to store. Must not block.
    fn put(&self, event: TraceEvent);
    /// The service's name and instance, for the events.
    fn origin(&self) -> (&str, &str);
}

struct Slot {
    attributes: BTreeMap<String, String>,
    order_id: Option<Uuid>,
    user_id: Option<Uuid>,
    /// `None` until it is set: the operation was cut off.
    outcome: Option<Outcome>,
    taken: bool,
    held: bool,
    end: Option<Timestamp>,
}

struct Inner {
    kind: Kind,
    name: &'static str,
    event_type: Option<&'static str>,
    sink: Option<Arc<dyn EventSink>>,
    span: Span,
    traceparent: TraceParent,
    start: Timestamp,
    slot: Mutex<Slot>,
}

/// A span and its event slot. Clones share the operation.
#[derive(Clone)]
pub struct Operation(Arc<Inner>);

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("name", &self.0.name)
            .field("traceparent", &self.0.traceparent)
            .finish_non_exhaustive()
    }
}

impl Operation {
    /// Opens an operation. With an event type and a sink it has an event slot. Its outcome is a failure until
    /// [`Operation::end`] sets another.
    pub fn open(
        kind: Kind,
        name: &'static str,
        parent: Parent,
        event_type: Option<&'static str>,
        sink: Option<Arc<dyn EventSink>>,
    ) -> Self {
        let otel_kind = match kind {
            Kind::Server => "server",
            Kind::Client => "client",
            Kind::Internal => "internal",
        };
        let span = match parent {
            Parent::Current => {
                tracing::info_span!(target: "ordermesh", "operation", otel.name = name, otel.kind = otel_kind)
            }
            Parent::Remote(_) | Parent::LinkedRoot(_) | Parent::Root => {
                tracing::info_span!(target: "ordermesh", parent: None, "operation", otel.name = name, otel.kind = otel_kind)
            }
        };
        match parent {
            Parent::Remote(traceparent) => {
                // Fails only when no OpenTelemetry layer is installed; then there is no trace.
                let _ = span.set_parent(Context::new().with_remote_span_context(traceparent.remote()));
            }
            Parent::LinkedRoot(traceparent) => span.add_link(traceparent.remote()),
            Parent::Current | Parent::Root => {}
        }
        Self::on(span, kind, name, event_type, sink)
    }

    /// Opens a non-recording operation: nothing is exported, and its ids are in no trace.
    pub fn unseen(
        kind: Kind,
        name: &'static str,
        event_type: Option<&'static str>,
        sink: Option<Arc<dyn EventSink>>,
    ) -> Self {
        Self::on(Span::none(), kind, name, event_type, sink)
    }

    fn on(
        span: Span,
        kind: Kind,
        name: &'static str,
        event_type: Option<&'static str>,
        sink: Option<Arc<dyn EventSink>>,
    ) -> Self {
        let traceparent = traceparent_of(&span);
        Self(Arc::new(Inner {
            kind,
            name,
            event_type,
            sink,
            span,
            traceparent,
            start: SystemClock.now(),
            slot: Mutex::new(Slot {
                attributes: BTreeMap::new(),
                order_id: None,
                user_id: None,
                outcome: None,
                taken: false,
                held: false,
                end: None,
            }),
        }))
    }

    /// Opens a step inside a service, under the current span.
    pub fn step(name: &'static str, event_type: Option<&'static str>, sink: Option<Arc<dyn EventSink>>) -> Self {
        Self::open(Kind::Internal, name, Parent::Current, event_type, sink)
    }

    /// The span: instrument the operation's work with it.
    pub fn span(&self) -> &Span {
        &self.0.span
    }

    /// The name of the operation and its span.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Its ids in the trace: what a later step continues from, and what is sent as `traceparent`.
    pub fn traceparent(&self) -> TraceParent {
        self.0.traceparent
    }

    /// Links it to another trace.
    pub fn link(&self, other: TraceParent) {
        self.0.span.add_link(other.remote());
    }

    /// Sets an attribute of the span and of the event; [`ORDER_ID`] and [`USER_ID`] are columns of the event, and ignored
    /// unless they are UUIDs. Never a secret.
    pub fn set(&self, key: &'static str, value: impl Into<String>) {
        let value = value.into();
        if let Some((column, _)) = COLUMNS.iter().find(|(column, _)| *column == key) {
            if let Ok(id) = value.parse() {
                if *column == ORDER_ID { self.set_order(id) } else { self.set_user(id) }
            }
            return;
        }
        self.0.span.set_attribute(key, value.clone());
        self.slot().attributes.insert(key.to_owned(), value);
    }

    /// Sets an attribute of the span only.
    pub fn set_on_span(&self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        self.0.span.set_attribute(key, value);
    }

    /// Sets the order that it concerns: the last one that is set, for a replayed call is of an earlier order. The span's
    /// `order.id` is set when the operation ends: set twice, the SDK would keep both.
    pub fn set_order(&self, order_id: Uuid) {
        self.slot().order_id = Some(order_id);
    }

    /// Sets the user that it concerns.
    ///
    /// The span's `enduser.id` is the first one that is set: the caller. An operator's call is an event of the
    /// customer's order.
    pub fn set_user(&self, user_id: Uuid) {
        // Set twice, the SDK would keep both.
        if self.slot().user_id.replace(user_id).is_none() {
            self.0.span.set_attribute("enduser.id", user_id.to_string());
        }
    }

    /// Sets the outcome, and the end time: now. The first call determines the time, the last one the outcome.
    pub fn end(&self, outcome: Outcome) {
        let mut slot = self.slot();
        slot.outcome = Some(outcome);
        slot.end.get_or_insert_with(|| SystemClock.now());
    }

    /// Marks the span as an error (OpenTelemetry's status). Which outcomes are errors is the caller's convention.
    pub fn mark_error(&self, description: impl Into<String>) {
        let description = description.into();
        self.0.span.set_status(Status::error(description));
    }

    /// The event of this operation with an outcome: to be written in the transaction that commits the change, followed
    /// by [`Operation::commit_event`] after the commit. `None` when the operation has no event type, or its slot is
    /// claimed.
    pub fn event(&self, outcome: &Outcome) -> Option<TraceEvent> {
        let slot = self.slot();
        if slot.taken { None } else { self.0.event(&slot, outcome) }
    }

    /// Claims the slot: the event was committed, and no other is written. The event is then published on the span, in
    /// the log (if it failed), as a log record and in the counter.
    pub fn commit_event(&self, event: &TraceEvent) {
        self.slot().taken = true;
        self.0.announce(event, Kept::Stored);
    }

    /// Claims the slot without an event: an idempotent replay, or a change that was committed elsewhere.
    pub fn discard(&self) {
        self.slot().taken = true;
    }

    /// An idempotent replay of an earlier call: the slot is discarded, and the span has `ordermesh.replayed`.
    pub fn replayed(&self) {
        self.discard();
        self.0.span.set_attribute("ordermesh.replayed", true);
    }

    /// Holds the event back until [`Operation::admit`]: a call that is cut off before its caller is authenticated is no
    /// event.
    pub fn hold_until_admitted(&self) {
        self.slot().held = true;
    }

    /// The caller is admitted: from now on the operation's end may be an event.
    pub fn admit(&self) {
        self.slot().held = false;
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.0.slot.lock()
    }
}

impl Inner {
    fn announce(&self, event: &TraceEvent, kept: Kept) {
        let Some(event_type) = self.event_type else { return };
        Announced { span: &self.span, traceparent: self.traceparent, kind: self.kind, event_type, event, kept }
            .everywhere();
    }

    fn event(&self, slot: &Slot, outcome: &Outcome) -> Option<TraceEvent> {
        let (event_type, sink) = (self.event_type?, self.sink.as_ref()?);
        let (service, instance) = sink.origin();
        let end = slot.end.unwrap_or_else(|| SystemClock.now());
        let (status, error) = match outcome {
            Outcome::Success => (EventStatus::Success, None),
            Outcome::Failed(error) => (EventStatus::Failed, Some(error.clone())),
        };
        Some(TraceEvent {
            event_id: SystemIds.uuid(),
            event_type: event_type.to_owned(),
            status,
            service: service.to_owned(),
            instance: instance.to_owned(),
            operation: self.name.to_owned(),
            trace_id: self.traceparent.trace_id(),
            span_id: self.traceparent.span_id(),
            start_micros: self.start.as_micros(),
            duration_micros: i64::try_from(end.since(self.start).as_micros()).unwrap_or(i64::MAX),
            order_id: slot.order_id,
            user_id: slot.user_id,
            error,
            attributes: slot.attributes.clone(),
            suppressed_count: 0,
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let slot = self.slot.lock();
        if let Some(order_id) = slot.order_id {
            self.span.set_attribute("order.id", order_id.to_string());
        }
        if slot.taken || slot.held {
            return;
        }
        // Made only now: few operations are an event.
        let event = match &slot.outcome {
            Some(outcome) => self.event(&slot, outcome),
            None => self.event(&slot, &cut_off()),
        };
        drop(slot);
        let (Some(event), Some(sink)) = (event, &self.sink) else { return };
        match self.span.in_scope(|| sink.unclaimed(Ended { kind: self.kind, event })) {
            Disposition::NoEvent => {}
            Disposition::Summed(event) => self.announce(&event, Kept::Summed),
            Disposition::Stored(event) => {
                self.announce(&event, Kept::Stored);
                sink.put(event);
            }
        }
    }
}

fn cut_off() -> Outcome {
    Outcome::Failed(EventError::new(ErrorType::Cancelled, "CANCELLED", "the operation was cut off"))
}

/// The span's ids; random ones when no OpenTelemetry layer is installed, so that an event always has some.
fn traceparent_of(span: &Span) -> TraceParent {
    let context = span.context();
    let span_context = context.span().span_context().clone();
    if span_context.is_valid() {
        return TraceParent::of(&span_context);
    }
    // Not from the system's source, like ids that are stored: that is two system calls for each operation.
    let (trace, span): (u128, u64) = rand::random();
    TraceParent {
        trace_id: opentelemetry::trace::TraceId::from(trace),
        span_id: opentelemetry::trace::SpanId::from(span),
        sampled: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct RecordingSink(Mutex<Vec<Ended>>);

    impl EventSink for RecordingSink {
        fn unclaimed(&self, ended: Ended) -> Disposition {
            self.0.lock().push(ended);
            Disposition::NoEvent
        }
        fn put(&self, _event: TraceEvent) {}
        fn origin(&self) -> (&str, &str) {
            ("order", "order-1")
        }
    }

    fn open(sink: &Arc<RecordingSink>) -> Operation {
        let sink: Arc<dyn EventSink> = sink.clone();
        Operation::open(
            Kind::Server,
            "order.v1.OrderService/CreateOrder",
            Parent::Root,
            Some("order_creation"),
            Some(sink),
        )
    }

    #[test]
    fn an_unclaimed_slot_is_passed_on_once_when_the_last_clone_is_dropped() {
        let sink = Arc::new(RecordingSink::default());
        let operation = open(&sink);
        let transaction = operation.clone();
        operation.end(Outcome::Success);
        drop(operation);
        assert_eq!(sink.0.lock().len(), 0, "the transaction may still claim it");
        drop(transaction);
        let ended = sink.0.lock();
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].event.status, EventStatus::Success);
    }

    #[test]
    fn a_claimed_slot_is_not_passed_on() {
        let sink = Arc::new(RecordingSink::default());
        let operation = open(&sink);
        let event = operation.event(&Outcome::Success).expect("it has a slot");
        operation.commit_event(&event);
        assert_eq!(operation.event(&Outcome::Success), None);
        drop(operation);
        assert_eq!(sink.0.lock().len(), 0);
    }

    #[test]
    fn a_held_operation_is_no_event_until_it_is_admitted() {
        let sink = Arc::new(RecordingSink::default());
        let (other_client, customer) = (open(&sink), open(&sink));
        other_client.hold_until_admitted();
        customer.hold_until_admitted();
        customer.admit();
        drop((other_client, customer));
        assert_eq!(sink.0.lock().len(), 1);
    }

    #[test]
    fn the_order_and_the_user_are_columns_of_the_event_under_their_names_too() {
        let sink = Arc::new(RecordingSink::default());
        let operation = open(&sink);
        let (order, user) = (Uuid::from_u128(1), Uuid::from_u128(2));
        operation.set(ORDER_ID, order.to_string());
        operation.set(USER_ID, user.to_string());
        operation.set(USER_ID, "not a UUID");
        operation.set("attempt", "2");
        let event = operation.event(&Outcome::Success).expect("it has a slot");
        assert_eq!((event.order_id, event.user_id), (Some(order), Some(user)));
        assert_eq!(event.attributes.into_iter().collect::<Vec<_>>(), [("attempt".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn an_operation_that_is_cut_off_has_failed() {
        let sink = Arc::new(RecordingSink::default());
        drop(open(&sink));
        assert_eq!(sink.0.lock()[0].event.status, EventStatus::Failed);
    }
}
