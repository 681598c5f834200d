//! The trace-event store's messages ⇄ values: every check of a field.
//!
//! An append is refused as a whole only for its size; each event is checked on its own.

use std::time::Duration;

use chassis::relay::encode_event;
use chassis::{Fields, Fingerprint, Invalid, PageToken, page};
use contracts::common::v1::EventType;
use contracts::data::v1 as proto;
use contracts::data::v1::append_result;
use mesh::Caller;
use prost::Message;
use telemetry::{EventError, EventStatus, TraceEvent};
use uuid::Uuid;

use crate::catalog::Page;
use crate::cursor::Cursors;
use crate::trace_event::{
    Appended, EventCount, Filter, ListTraceEvents, MAX_APPEND, Outcome, Resume, Sent, SummarizeTraceEvents,
};
use crate::watch::{Update, WatchTraceEvents};

/// Entries of a page of events: when none are asked for, and at most.
const PAGE: (u32, u32) = (50, 500);
/// The most bytes of one event on the wire.
const MAX_EVENT_BYTES: usize = 65_536;
/// The most characters of a service's name.
const MAX_SERVICE_CHARS: usize = 64;

/// Checks an append that a caller sends.
///
/// # Errors
/// No events, or too many.
pub(crate) fn append(caller: &Caller, request: proto::AppendTraceEventsRequest) -> Result<Vec<Sent>, Invalid> {
    let mut fields = Fields::default();
    if request.events.is_empty() || request.events.len() > MAX_APPEND {
        fields.refuse("events", "INVALID_LENGTH", format!("must have 1 to {MAX_APPEND} events"));
        return fields.finish(None);
    }
    let teller = match caller {
        Caller::Service { name } => name.as_str(),
        // The policy lets nobody else in; an event of nobody's is refused below.
        Caller::Anonymous | Caller::Person { .. } => "",
    };
    let sent = request.events.into_iter().map(|event| {
        let event_id = event.event_id.clone();
        Sent { event_id, event: checked(teller, event).map_err(str::to_owned) }
    });
    fields.finish(Some(sent.collect()))
}

/// One event; the error is the refusal.
fn checked(teller: &str, event: proto::TraceEvent) -> Result<TraceEvent, &'static str> {
    if event.encoded_len() > MAX_EVENT_BYTES {
        return Err("the event is larger than 64 KiB");
    }
    let texts = [&event.service, &event.instance, &event.operation].into_iter();
    let told = event.error.iter().flat_map(|error| [&error.r#type, &error.reason, &error.message]);
    let facts = event.attributes.iter().flat_map(|(name, value)| [name, value]);
    if texts.chain(told).chain(facts).any(|text| text.contains('\0')) {
        return Err("a text contains NUL, which not every database can store");
    }
    if teller.is_empty() || event.service != teller {
        return Err("service is not the caller");
    }
    let event_id = uuid(&event.event_id).ok_or("event_id is not a UUID")?;
    if event_id.get_version_num() != 7 {
        return Err("event_id is not of version 7");
    }
    let event_type = word(event.r#type).ok_or("type is none that this release knows")?;
    let status = match event.status() {
        proto::EventStatus::Success => EventStatus::Success,
        proto::EventStatus::Failed => EventStatus::Failed,
        proto::EventStatus::Unspecified => return Err("status is neither success nor failed"),
    };
    if (status == EventStatus::Failed) != event.error.is_some() {
        return Err("an error belongs to a failed event, and to no other");
    }
    if event.operation.is_empty() || event.instance.is_empty() {
        return Err("operation and instance are required");
    }
    if !is_hex(&event.trace_id, 32) {
        return Err("trace_id is not 32 lower-case hex digits");
    }
    if !is_hex(&event.span_id, 16) {
        return Err("span_id is not 16 lower-case hex digits");
    }
    let start = Fields::default().instant("start_time", event.start_time.as_ref());
    let start = start.ok_or("start_time is missing, or outside the calendar")?;
    let duration_micros =
        event.duration.as_ref().and_then(micros).ok_or("duration is missing, negative or too long")?;
    if event.suppressed_count < 0 {
        return Err("suppressed_count is negative");
    }
    Ok(TraceEvent {
        event_id,
        event_type,
        status,
        service: event.service,
        instance: event.instance,
        operation: event.operation,
        trace_id: event.trace_id,
        span_id: event.span_id,
        start_micros: start.as_micros(),
        duration_micros,
        order_id: optional_uuid(&event.order_id).ok_or("order_id is not a UUID")?,
        user_id: optional_uuid(&event.user_id).ok_or("user_id is not a UUID")?,
        error: event.error.map(|error| EventError { kind: error.r#type, reason: error.reason, message: error.message }),
        attributes: event.attributes.into_iter().collect(),
        suppressed_count: event.suppressed_count,
    })
}

/// Only the hyphenated form: one id has one spelling.
fn uuid(text: &str) -> Option<Uuid> {
    (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

/// `None`: not empty, and no UUID.
fn optional_uuid(text: &str) -> Option<Option<Uuid>> {
    if text.is_empty() { Some(None) } else { uuid(text).map(Some) }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn micros(duration: &prost_types::Duration) -> Option<i64> {
    let duration = Duration::try_from(*duration).ok()?;
    i64::try_from(duration.as_micros()).ok()
}

/// The design's word for an event type, for example `order_creation`.
fn word(event_type: i32) -> Option<String> {
    let known = EventType::try_from(event_type).ok().filter(|known| *known != EventType::Unspecified)?;
    Some(known.as_str_name().trim_start_matches("EVENT_TYPE_").to_ascii_lowercase())
}

impl TryFrom<proto::ListTraceEventsRequest> for ListTraceEvents {
    type Error = Invalid;

    fn try_from(request: proto::ListTraceEventsRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let mut filter = Filters::from(&request).decode(&mut fields);
        filter.start = fields.instant("start_time", request.start_time.as_ref());
        filter.end = fields.instant("end_time", request.end_time.as_ref());
        if filter.start.zip(filter.end).is_some_and(|(start, end)| end < start) {
            fields.refuse("start_time", "WINDOW_REVERSED", "the window must not end before it starts");
        }
        let page_size = page::page_size(&mut fields, request.page_size, PAGE.0, PAGE.1);
        let page = PageToken::decode(&mut fields, &request.page_token, fingerprint(&request));
        let resume = Resume::decode(&mut fields, page.after.as_deref());
        fields.finish(Some(Self { filter, page_size, page, resume }))
    }
}

impl TryFrom<proto::WatchTraceEventsRequest> for WatchTraceEvents {
    type Error = Invalid;

    fn try_from(request: proto::WatchTraceEventsRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let filters = Filters::from(&request);
        let filter = filters.decode(&mut fields);
        let cursors = Cursors::of(filters.fingerprint("WatchTraceEvents/1"));
        let after = cursors.decode(&mut fields, &request.after_cursor);
        fields.finish(Some(Self { filter, cursors, after }))
    }
}

/// The filters of a list and of a stream, as they were sent.
struct Filters<'a> {
    event_type: i32,
    status: i32,
    service: &'a str,
    order_id: &'a str,
    user_id: &'a str,
    trace_id: &'a str,
}

impl<'a> From<&'a proto::ListTraceEventsRequest> for Filters<'a> {
    fn from(request: &'a proto::ListTraceEventsRequest) -> Self {
        Self {
            event_type: request.r#type,
            status: request.status,
            service: &request.service,
            order_id: &request.order_id,
            user_id: &request.user_id,
            trace_id: &request.trace_id,
        }
    }
}

impl<'a> From<&'a proto::WatchTraceEventsRequest> for Filters<'a> {
    fn from(request: &'a proto::WatchTraceEventsRequest) -> Self {
        Self {
            event_type: request.r#type,
            status: request.status,
            service: &request.service,
            order_id: &request.order_id,
            user_id: &request.user_id,
            trace_id: &request.trace_id,
        }
    }
}

impl Filters<'_> {
    /// Without a window.
    fn decode(&self, fields: &mut Fields) -> Filter {
        let event_type = word(self.event_type);
        if event_type.is_none() && self.event_type != 0 {
            fields.refuse("type", "UNKNOWN_VALUE", "is none of the event types");
        }
        let status = match proto::EventStatus::try_from(self.status) {
            Ok(proto::EventStatus::Unspecified) => None,
            Ok(proto::EventStatus::Success) => Some(EventStatus::Success),
            Ok(proto::EventStatus::Failed) => Some(EventStatus::Failed),
            Err(_) => {
                fields.refuse("status", "UNKNOWN_VALUE", "is none of the statuses");
                None
            }
        };
        if !self.trace_id.is_empty() && !is_hex(self.trace_id, 32) {
            fields.refuse("trace_id", "INVALID_ID", "a trace id has 32 lower-case hex digits");
        }
        Filter {
            event_type,
            status,
            service: fields.text("service", self.service, 0, MAX_SERVICE_CHARS).filter(|it| !it.is_empty()),
            order_id: id(fields, "order_id", self.order_id),
            user_id: id(fields, "user_id", self.user_id),
            trace_id: Some(self.trace_id.to_owned()).filter(|it| !it.is_empty()),
            start: None,
            end: None,
        }
    }

    fn fingerprint(&self, of: &str) -> Fingerprint {
        Fingerprint::of(of)
            .part("type", self.event_type)
            .part("status", self.status)
            .part("service", self.service)
            .part("order_id", self.order_id)
            .part("user_id", self.user_id)
            .part("trace_id", self.trace_id)
    }
}

/// An id, when given.
fn id(fields: &mut Fields, field: &str, text: &str) -> Option<Uuid> {
    if text.is_empty() { None } else { fields.id::<kernel::RequestId>(field, text).map(kernel::RequestId::as_uuid) }
}

/// Of the filters alone: the size may change from page to page.
fn fingerprint(request: &proto::ListTraceEventsRequest) -> Fingerprint {
    let instant = |at: &Option<prost_types::Timestamp>| {
        at.map(|at| format!("{}.{:09}", at.seconds, at.nanos)).unwrap_or_default()
    };
    Filters::from(request)
        .fingerprint("ListTraceEvents/1")
        .part("start_time", instant(&request.start_time))
        .part("end_time", instant(&request.end_time))
}

impl TryFrom<proto::SummarizeTraceEventsRequest> for SummarizeTraceEvents {
    type Error = Invalid;

    fn try_from(request: proto::SummarizeTraceEventsRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let start = fields.instant("start_time", request.start_time.as_ref());
        let end = fields.instant("end_time", request.end_time.as_ref());
        fields.finish(Some(Self { start, end }))
    }
}

/// What became of each event.
pub(crate) fn appended(appended: Vec<Appended>) -> proto::AppendTraceEventsResponse {
    let result = |Appended { event_id, outcome }| {
        let (outcome, refusal) = match outcome {
            Outcome::Stored => (append_result::Outcome::Stored, String::new()),
            Outcome::Duplicate => (append_result::Outcome::Duplicate, String::new()),
            Outcome::Refused(refusal) => (append_result::Outcome::Refused, refusal),
        };
        proto::AppendResult { event_id, outcome: outcome.into(), refusal }
    };
    proto::AppendTraceEventsResponse { results: appended.into_iter().map(result).collect() }
}

impl From<Page<TraceEvent>> for proto::ListTraceEventsResponse {
    fn from(page: Page<TraceEvent>) -> Self {
        Self { events: page.items.iter().map(encode_event).collect(), next_page_token: page.next_page_token }
    }
}

impl From<Update> for proto::WatchTraceEventsResponse {
    fn from(Update { event, cursor }: Update) -> Self {
        Self { event: event.as_ref().map(encode_event), cursor }
    }
}

/// The counts.
pub(crate) fn summary(counts: Vec<EventCount>) -> proto::SummarizeTraceEventsResponse {
    let count = |count: EventCount| proto::EventCount {
        r#type: event_type(&count.event_type).into(),
        status: match count.status {
            EventStatus::Success => proto::EventStatus::Success.into(),
            EventStatus::Failed => proto::EventStatus::Failed.into(),
        },
        error_type: count.error_type,
        count: count.count,
    };
    proto::SummarizeTraceEventsResponse { counts: counts.into_iter().map(count).collect() }
}

fn event_type(word: &str) -> EventType {
    EventType::from_str_name(&format!("EVENT_TYPE_{}", word.to_ascii_uppercase())).unwrap_or_default()
}
