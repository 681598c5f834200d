//! The trace-event store's messages, from and to values, with all checks of their fields.
//!
//! An append is rejected as a whole only for its size; each event is checked on its own.

use std::time::Duration;

use chassis::page::{self, Page};
use chassis::relay::encode_event;
use chassis::{Fields, Fingerprint, Invalid, PageToken};
use contracts::common::v1::EventType;
use contracts::data::v1 as proto;
use contracts::data::v1::append_result;
use mesh::Caller;
use prost::Message;
use telemetry::{EventError, EventStatus, TraceEvent};
use uuid::Uuid;

use crate::cursor::Cursors;
use crate::trace_event::{
    AppendOutcome, Appended, EventCount, Filter, ListTraceEvents, Listed, MAX_APPEND, Received, Resume,
    SummarizeTraceEvents,
};
use crate::watch::{Update, WatchTraceEvents};

/// Events per page: the default and the maximum.
const PAGE: (u32, u32) = (50, 500);
/// Maximum bytes of one event on the wire.
const MAX_EVENT_BYTES: usize = 65_536;
/// Maximum characters of an event id in a response: a longer one is rejected, and not returned in full.
const MAX_ID_CHARS: usize = 64;
/// Maximum characters of a service's name.
const MAX_SERVICE_CHARS: usize = 64;

/// The events of an append, each checked on its own. The caller must be the service that they name.
///
/// # Errors
/// It has no events, or too many.
pub(crate) fn received(caller: &Caller, request: proto::AppendTraceEventsRequest) -> Result<Vec<Received>, Invalid> {
    let mut fields = Fields::default();
    if request.events.is_empty() || request.events.len() > MAX_APPEND {
        fields.reject("events", "INVALID_LENGTH", format!("must have 1 to {MAX_APPEND} events"));
        return fields.finish(None);
    }
    let origin = match caller {
        Caller::Service { name } => name.as_str(),
        // The policy admits no other callers; an event without a service is rejected below.
        Caller::Anonymous | Caller::User { .. } => "",
    };
    let received = request.events.into_iter().map(|event| {
        let event_id = event.event_id.chars().take(MAX_ID_CHARS).collect();
        Received { event_id, event: checked(origin, event).map_err(str::to_owned) }
    });
    fields.finish(Some(received.collect()))
}

/// Checks one event; the error is the reason of its rejection.
/// Whether an event of this service would be accepted from another one.
pub(crate) fn is_accepted(event: &TraceEvent) -> bool {
    checked("data", encode_event(event)).is_ok()
}

fn checked(origin: &str, event: proto::TraceEvent) -> Result<TraceEvent, &'static str> {
    if event.encoded_len() > MAX_EVENT_BYTES {
        return Err("the event is larger than 64 KiB");
    }
    let texts = [&event.service, &event.instance, &event.operation].into_iter();
    let error_texts = event.error.iter().flat_map(|error| [&error.r#type, &error.reason, &error.message]);
    let facts = event.attributes.iter().flat_map(|(name, value)| [name, value]);
    if texts.chain(error_texts).chain(facts).any(|text| text.contains('\0')) {
        return Err("a text contains NUL, which not every database can store");
    }
    if origin.is_empty() || event.service != origin {
        return Err("service is not the caller");
    }
    let event_id = uuid(&event.event_id).ok_or("event_id is not a UUID")?;
    if event_id.get_version_num() != 7 {
        return Err("event_id is not of version 7");
    }
    let event_type = event_type_name(event.r#type).ok_or("type is unknown to this release")?;
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
        error: event.error.map(|error| EventError {
            error_type: error.r#type,
            reason: error.reason,
            message: error.message,
        }),
        attributes: event.attributes.into_iter().collect(),
        suppressed_count: event.suppressed_count,
    })
}

/// The hyphenated form only, so that an id has one spelling.
fn uuid(text: &str) -> Option<Uuid> {
    (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

/// `None`: not empty, and not a UUID.
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

/// The lower-case name of an event type, for example `order_creation`.
fn event_type_name(event_type: i32) -> Option<String> {
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
            fields.reject("start_time", "WINDOW_REVERSED", "the window must not end before it starts");
        }
        let page_size = page::page_size(&mut fields, request.page_size, PAGE.0, PAGE.1);
        let page = PageToken::decode(&mut fields, &request.page_token, fingerprint(&request), Resume::parse);
        fields.finish(Some(Self { filter, page_size, page }))
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

/// The filters of a list or a stream, as requested.
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
    /// Decodes all but the window.
    fn decode(&self, fields: &mut Fields) -> Filter {
        let event_type = event_type_name(self.event_type);
        if event_type.is_none() && self.event_type != 0 {
            fields.reject("type", "UNKNOWN_VALUE", "is not an event type");
        }
        let status = match proto::EventStatus::try_from(self.status) {
            Ok(proto::EventStatus::Unspecified) => None,
            Ok(proto::EventStatus::Success) => Some(EventStatus::Success),
            Ok(proto::EventStatus::Failed) => Some(EventStatus::Failed),
            Err(_) => {
                fields.reject("status", "UNKNOWN_VALUE", "is not a status");
                None
            }
        };
        if !self.trace_id.is_empty() && !is_hex(self.trace_id, 32) {
            fields.reject("trace_id", "INVALID_ID", "a trace id has 32 lower-case hex digits");
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

    fn fingerprint(&self, method: &str) -> Fingerprint {
        Fingerprint::of(method)
            .part("type", self.event_type)
            .part("status", self.status)
            .part("service", self.service)
            .part("order_id", self.order_id)
            .part("user_id", self.user_id)
            .part("trace_id", self.trace_id)
    }
}

/// An optional id.
fn id(fields: &mut Fields, field: &str, text: &str) -> Option<Uuid> {
    if text.is_empty() { None } else { fields.id::<kernel::RequestId>(field, text).map(kernel::RequestId::as_uuid) }
}

/// Of the filters only: the page size may change between pages.
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

impl From<Appended> for proto::AppendResult {
    fn from(Appended { event_id, outcome }: Appended) -> Self {
        let (outcome, refusal) = match outcome {
            AppendOutcome::Stored => (append_result::Outcome::Stored, String::new()),
            AppendOutcome::Duplicate => (append_result::Outcome::Duplicate, String::new()),
            AppendOutcome::Rejected(why) => (append_result::Outcome::Refused, why),
        };
        Self { event_id, outcome: outcome.into(), refusal }
    }
}

/// A page from the events read, one more than its size.
pub(crate) fn events(listed: &Listed, list: &ListTraceEvents) -> proto::ListTraceEventsResponse {
    let next = |last: &proto::TraceEvent| list.page.next(&Resume::text(listed.window_start, &last.event_id));
    let Page { entries, next_page_token } = Page::from_rows(&listed.events, list.page_size, encode_event, next);
    proto::ListTraceEventsResponse { events: entries, next_page_token }
}

impl From<Update> for proto::WatchTraceEventsResponse {
    fn from(Update { event, cursor }: Update) -> Self {
        Self { event: event.as_ref().map(encode_event), cursor }
    }
}

impl From<EventCount> for proto::EventCount {
    fn from(count: EventCount) -> Self {
        Self {
            r#type: event_type(&count.event_type).into(),
            status: match count.status {
                EventStatus::Success => proto::EventStatus::Success.into(),
                EventStatus::Failed => proto::EventStatus::Failed.into(),
            },
            error_type: count.error_type,
            count: count.count,
        }
    }
}

fn event_type(word: &str) -> EventType {
    EventType::from_str_name(&format!("EVENT_TYPE_{}", word.to_ascii_uppercase())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use kernel::{IdSource, SystemIds};

    use super::*;

    #[test]
    fn the_limit_equals_the_contracts_and_a_relays_batch_fits_into_a_message() {
        let policy = contracts::POLICIES.find("/data.v1.TraceEventService/AppendTraceEvents").expect("a method");
        assert_eq!((policy.limits[0].field, policy.limits[0].max_items), ("events", MAX_APPEND));
        // A relay's batch is at most 256 KiB; a larger event is sent alone.
        assert!(policy.max_message_bytes.expect("a limit of its own") > 256 * 1_024 + MAX_EVENT_BYTES);
    }

    /// An event of the largest possible size.
    fn largest_event() -> proto::TraceEvent {
        let event = |bytes: usize| proto::TraceEvent {
            event_id: SystemIds.uuid().to_string(),
            r#type: EventType::Audit.into(),
            status: proto::EventStatus::Success.into(),
            service: "order".into(),
            instance: "order-1".into(),
            operation: "o".into(),
            trace_id: "a".repeat(32),
            span_id: "b".repeat(16),
            start_time: Some(prost_types::Timestamp { seconds: 1_772_445_600, nanos: 0 }),
            duration: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            attributes: [("k".to_owned(), "x".repeat(bytes))].into(),
            ..proto::TraceEvent::default()
        };
        let room = MAX_EVENT_BYTES - event(10_000).encoded_len() + 10_000;
        // The length prefix of a larger text may take a byte more.
        (0..8).rev().map(|less| event(room - less)).rfind(|event| event.encoded_len() <= MAX_EVENT_BYTES).expect("fits")
    }

    #[test]
    fn the_largest_events_make_short_pages_and_each_fits_into_a_stream_message() {
        let event = largest_event();
        assert!(event.encoded_len() > MAX_EVENT_BYTES - 8, "{}", event.encoded_len());
        let cursor = "c".repeat(500);
        let update = proto::WatchTraceEventsResponse { event: Some(event.clone()), cursor };
        assert!(update.encoded_len() < 70_000);
        let mut read: Vec<TraceEvent> = (0..501).map(|_| checked("order", largest_event()).expect("valid")).collect();
        read.sort_by_key(|event| std::cmp::Reverse(event.event_id));
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = proto::ListTraceEventsRequest { page_size: 500, page_token, ..Default::default() };
            let list = ListTraceEvents::try_from(request).expect("valid");
            let after = list.page.after.map(|resume| resume.after);
            let events =
                read.iter().filter(|event| after.is_none_or(|after| event.event_id < after)).take(501).cloned();
            let page = super::events(&Listed { events: events.collect(), window_start: None }, &list);
            assert!(page.encoded_len() < 4_194_304, "{}", page.encoded_len());
            listed.extend(page.events.into_iter().map(|event| event.event_id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(listed, read.iter().map(|event| event.event_id.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn an_invalid_long_id_is_not_returned_in_full() {
        let caller = Caller::Service { name: "order".into() };
        let event = proto::TraceEvent { event_id: "x".repeat(3_000_000), ..proto::TraceEvent::default() };
        let received = received(&caller, proto::AppendTraceEventsRequest { events: vec![event] }).expect("received");
        assert_eq!((received[0].event_id.len(), received[0].event.is_err()), (MAX_ID_CHARS, true));
    }
}
