//! Trace events: appends, lists and counts.

use contracts::common::v1::EventType;
use contracts::data::v1::append_result::Outcome::{Duplicate, Refused, Stored};
use contracts::data::v1::{
    AppendTraceEventsRequest, EventStatus, ListTraceEventsRequest, SummarizeTraceEventsRequest, TraceEvent,
};
use tonic::Code;

use crate::world::{World, ago, as_operator, event, failed, rejection, uuid, violations};

const OTHER_TRACE: &str = "11111111111111111111111111111111";

fn all() -> ListTraceEventsRequest {
    ListTraceEventsRequest::default()
}

#[tokio::test]
async fn an_event_is_stored_once_and_returned_as_sent() {
    let world = World::new().await;
    let (one, two) = (event(2), failed(event(1), "TIMEOUT"));
    assert_eq!(world.append(vec![one.clone(), two.clone(), one.clone()]).await, [Stored, Stored, Duplicate]);
    assert_eq!(world.append(vec![two.clone(), event(0)]).await, [Duplicate, Stored]);
    let page = world.list(ListTraceEventsRequest { user_id: one.user_id.clone(), ..all() }).await.expect("a page");
    assert_eq!(page.events, [one]);
    let page = world.list(ListTraceEventsRequest { order_id: two.order_id.clone(), ..all() }).await.expect("a page");
    assert_eq!(page.events, [two]);
}

#[tokio::test]
async fn an_invalid_event_is_rejected_with_a_reason_and_delays_no_other() {
    let world = World::new().await;
    let valid = event(1);
    let invalid = |change: fn(&mut TraceEvent)| {
        let mut event = event(1);
        change(&mut event);
        event
    };
    let bad = [
        (invalid(|event| event.event_id = "seven".into()), "event_id is not a UUID"),
        (
            invalid(|event| event.event_id = "67e55044-10b1-426f-9247-bb680e5fe0c8".into()),
            "event_id is not of version 7",
        ),
        (invalid(|event| event.r#type = 0), "type is unknown to this release"),
        (invalid(|event| event.r#type = 99), "type is unknown to this release"),
        (invalid(|event| event.status = 0), "status is neither success nor failed"),
        (invalid(|event| event.status = 2), "an error belongs to a failed event, and to no other"),
        (
            invalid(|event| event.error = Some(Default::default())),
            "an error belongs to a failed event, and to no other",
        ),
        (invalid(|event| event.service = "payment".into()), "service is not the caller"),
        (invalid(|event| event.instance.clear()), "operation and instance are required"),
        (
            invalid(|event| event.trace_id = "0AF7651916CD43DD8448EB211C80319C".into()),
            "trace_id is not 32 lower-case hex digits",
        ),
        (invalid(|event| event.span_id.push('0')), "span_id is not 16 lower-case hex digits"),
        (invalid(|event| event.start_time = None), "start_time is missing, or outside the calendar"),
        (invalid(|event| event.duration = None), "duration is missing, negative or too long"),
        (
            invalid(|event| event.duration = Some(prost_types::Duration { seconds: -1, nanos: 0 })),
            "duration is missing, negative or too long",
        ),
        (invalid(|event| event.order_id = "7".into()), "order_id is not a UUID"),
        (invalid(|event| event.user_id = "7".into()), "user_id is not a UUID"),
        (invalid(|event| event.suppressed_count = -1), "suppressed_count is negative"),
        (invalid(|event| event.operation = "x".repeat(65_536)), "the event is larger than 64 KiB"),
    ];
    let mut events: Vec<_> = bad.iter().map(|(event, _)| event.clone()).collect();
    events.insert(1, valid.clone());
    let request = AppendTraceEventsRequest { events };
    let response = world.events_as("order").append_trace_events(request).await.expect("a response").into_inner();
    let mut results = response.results;
    let good = results.remove(1);
    assert_eq!((good.outcome(), good.event_id.as_str()), (Stored, valid.event_id.as_str()));
    for (result, (event, why)) in results.iter().zip(&bad) {
        assert_eq!((result.outcome(), result.refusal.as_str()), (Refused, *why));
        assert_eq!(result.event_id, event.event_id);
    }
    assert_eq!(world.ids(all()).await, [valid.event_id]);
}

#[tokio::test]
async fn an_append_has_one_to_five_hundred_events() {
    let world = World::new().await;
    for count in [0, 501] {
        let request = AppendTraceEventsRequest { events: vec![event(0); count] };
        let rejected = rejection(world.events_as("order").append_trace_events(request).await);
        let expected = violations(&[("events", "INVALID_LENGTH")]);
        assert_eq!(rejected, (Code::InvalidArgument, "INVALID_ARGUMENT".into(), expected));
    }
    let largest: Vec<_> = (0..500).map(|_| event(0)).collect();
    assert_eq!(world.append(largest).await, [Stored; 500]);
}

#[tokio::test]
async fn concurrent_appends_of_the_same_events_store_each_once() {
    let world = World::new().await;
    let events: Vec<_> = (0..100).map(|_| event(1)).collect();
    let reversed: Vec<_> = events.iter().rev().cloned().collect();
    let (one, two) = tokio::join!(world.append(events), world.append(reversed));
    let stored = one.iter().chain(&two).filter(|outcome| **outcome == Stored).count();
    let duplicate = one.iter().chain(&two).filter(|outcome| **outcome == Duplicate).count();
    assert_eq!((stored, duplicate), (100, 100));
}

#[tokio::test]
async fn a_list_matches_all_its_filters() {
    let world = World::new().await;
    let creation = event(50);
    let payment = TraceEvent { r#type: EventType::PaymentProcessing.into(), trace_id: OTHER_TRACE.into(), ..event(40) };
    let rejected = failed(TraceEvent { trace_id: OTHER_TRACE.into(), ..event(30) }, "ValidationError");
    let again = TraceEvent { order_id: creation.order_id.clone(), user_id: creation.user_id.clone(), ..event(20) };
    let events = [creation, payment, rejected, again];
    assert_eq!(world.append(events.to_vec()).await, [Stored; 4]);
    let order_id = events[0].order_id.clone();
    let (creations, failures) = (EventType::OrderCreation.into(), EventStatus::Failed.into());
    let list = || ListTraceEventsRequest { service: "order".into(), ..all() };
    let cases: [(ListTraceEventsRequest, &[usize]); 15] = [
        (list(), &[3, 2, 1, 0]),
        (ListTraceEventsRequest { service: "payment".into(), ..all() }, &[]),
        (ListTraceEventsRequest { r#type: creations, ..list() }, &[3, 2, 0]),
        (ListTraceEventsRequest { status: failures, ..list() }, &[2]),
        (ListTraceEventsRequest { status: EventStatus::Success.into(), ..list() }, &[3, 1, 0]),
        (ListTraceEventsRequest { r#type: EventType::PaymentProcessing.into(), status: failures, ..list() }, &[]),
        (ListTraceEventsRequest { order_id: order_id.clone(), ..list() }, &[3, 0]),
        (ListTraceEventsRequest { order_id: uuid(), ..list() }, &[]),
        (ListTraceEventsRequest { user_id: events[0].user_id.clone(), r#type: creations, ..list() }, &[3, 0]),
        (ListTraceEventsRequest { trace_id: OTHER_TRACE.into(), ..list() }, &[2, 1]),
        (ListTraceEventsRequest { trace_id: OTHER_TRACE.into(), status: failures, ..list() }, &[2]),
        (ListTraceEventsRequest { start_time: events[1].start_time, ..list() }, &[3, 2, 1]),
        (ListTraceEventsRequest { end_time: events[1].start_time, ..list() }, &[0]),
        (
            ListTraceEventsRequest { start_time: events[1].start_time, end_time: events[3].start_time, ..list() },
            &[2, 1],
        ),
        (ListTraceEventsRequest { order_id, start_time: events[1].start_time, ..list() }, &[3]),
    ];
    for (number, (request, expected)) in cases.into_iter().enumerate() {
        let expected: Vec<_> = expected.iter().map(|index| events[*index].event_id.clone()).collect();
        assert_eq!(world.ids(request).await, expected, "case {number}");
    }
}

#[tokio::test]
async fn without_order_user_trace_or_start_the_window_is_the_last_hour() {
    let world = World::new().await;
    let (old, new) = (event(3_700), event(3_500));
    world.append(vec![old.clone(), new.clone()]).await;
    let (old_id, new_id) = (old.event_id, new.event_id);
    assert_eq!(world.ids(all()).await, [new_id.as_str()]);
    assert_eq!(
        world.ids(ListTraceEventsRequest { start_time: Some(ago(7_200)), ..all() }).await,
        [new_id, old_id.clone()]
    );
    assert_eq!(world.ids(ListTraceEventsRequest { end_time: new.start_time, ..all() }).await, [old_id.as_str()]);
    assert_eq!(world.ids(ListTraceEventsRequest { order_id: old.order_id, ..all() }).await, [old_id.as_str()]);
    assert_eq!(world.ids(ListTraceEventsRequest { user_id: old.user_id, ..all() }).await, [old_id]);
    assert_eq!(world.ids(ListTraceEventsRequest { trace_id: old.trace_id, ..all() }).await.len(), 2);
}

#[tokio::test]
async fn a_window_selects_by_the_start_of_operations() {
    let world = World::new().await;
    // The id of the first is made when it ends, half an hour later; the clock of the second was set back by half a
    // minute meanwhile.
    let long = TraceEvent { start_time: Some(ago(3_400)), ..event(1_600) };
    let set_back = TraceEvent { start_time: Some(ago(1_000)), ..event(1_030) };
    world.append(vec![long.clone(), set_back.clone()]).await;
    let window = |start: u64, end: u64| ListTraceEventsRequest {
        start_time: Some(ago(start)),
        end_time: Some(ago(end)),
        ..all()
    };
    assert_eq!(world.ids(window(3_500, 3_300)).await, [long.event_id]);
    assert_eq!(world.ids(window(3_300, 1_100)).await, [""; 0]);
    assert_eq!(world.ids(window(1_005, 900)).await, [set_back.event_id]);
    let summary = SummarizeTraceEventsRequest { start_time: Some(ago(3_500)), end_time: Some(ago(3_300)) };
    let counts = world.events().summarize_trace_events(as_operator(summary)).await.expect("counts").into_inner().counts;
    assert_eq!(counts.iter().map(|counted| counted.count).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn pages_of_events_reach_the_end_without_gaps_or_repetitions() {
    let world = World::new().await;
    // Ordered by id, whenever the operations began: an id is made when its operation ends.
    let began = ago(10);
    let events: Vec<_> = (0..8)
        .map(|number| if number < 3 { TraceEvent { start_time: Some(began), ..event(0) } } else { event(number) })
        .collect();
    world.append(events.clone()).await;
    let mut expected: Vec<_> = events.into_iter().map(|event| event.event_id).collect();
    expected.sort_by(|one, two| two.cmp(one));
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListTraceEventsRequest { service: "order".into(), page_size: 2, page_token, ..all() };
        let page = world.list(request).await.expect("a page");
        assert!(page.events.len() <= 2);
        listed.extend(page.events.into_iter().map(|event| event.event_id));
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn all_violations_of_a_list_are_reported_together() {
    let world = World::new().await;
    world.append(vec![event(1), event(2)]).await;
    let token = world.list(ListTraceEventsRequest { page_size: 1, ..all() }).await.expect("a page").next_page_token;
    let invalid = ListTraceEventsRequest {
        r#type: 99,
        status: 99,
        service: "x".repeat(65),
        order_id: "seven".into(),
        user_id: "seven".into(),
        trace_id: "seven".into(),
        start_time: Some(ago(0)),
        end_time: Some(ago(60)),
        page_size: -1,
        page_token: token.clone(),
    };
    let expected = violations(&[
        ("type", "UNKNOWN_VALUE"),
        ("status", "UNKNOWN_VALUE"),
        ("trace_id", "INVALID_ID"),
        ("service", "INVALID_LENGTH"),
        ("order_id", "INVALID_ID"),
        ("user_id", "INVALID_ID"),
        ("start_time", "WINDOW_REVERSED"),
        ("page_size", "NEGATIVE_PAGE_SIZE"),
        ("page_token", "PAGE_TOKEN_OF_OTHER_FILTERS"),
    ]);
    assert_eq!(rejection(world.list(invalid).await), (Code::InvalidArgument, "INVALID_ARGUMENT".into(), expected));
    let broken = ListTraceEventsRequest { page_token: format!("{token}x"), ..all() };
    assert_eq!(rejection(world.list(broken).await).2, violations(&[("page_token", "INVALID_PAGE_TOKEN")]));
}

#[tokio::test]
async fn a_summary_counts_by_type_status_and_error_type_in_a_window() {
    let world = World::new().await;
    let payment = |event: TraceEvent| TraceEvent { r#type: EventType::PaymentProcessing.into(), ..event };
    world
        .append(vec![
            event(10),
            event(20),
            failed(event(30), "ValidationError"),
            failed(event(40), "OutOfMemoryError"),
            failed(event(50), "OutOfMemoryError"),
            payment(event(60)),
            payment(event(4_000)),
        ])
        .await;
    let counted = async |request: SummarizeTraceEventsRequest| {
        let response = world.events().summarize_trace_events(as_operator(request)).await.expect("counts").into_inner();
        let counts = response.counts.into_iter();
        counts.map(|it| (it.r#type(), it.status(), it.error_type, it.count)).collect::<Vec<_>>()
    };
    let (creation, processing) = (EventType::OrderCreation, EventType::PaymentProcessing);
    let (success, failure) = (EventStatus::Success, EventStatus::Failed);
    let last_hour = [
        (creation, failure, "OutOfMemoryError".to_owned(), 2),
        (creation, failure, "ValidationError".to_owned(), 1),
        (creation, success, String::new(), 2),
        (processing, success, String::new(), 1),
    ];
    assert_eq!(counted(SummarizeTraceEventsRequest::default()).await, last_hour);
    let more = SummarizeTraceEventsRequest { start_time: Some(ago(7_200)), end_time: None };
    assert_eq!(counted(more).await.last(), Some(&(processing, success, String::new(), 2)));
    let earlier = SummarizeTraceEventsRequest { start_time: None, end_time: Some(ago(3_600)) };
    assert_eq!(counted(earlier).await, [(processing, success, String::new(), 1)]);
    let month = SummarizeTraceEventsRequest { start_time: Some(ago(32 * 86_400)), end_time: None };
    let rejected = rejection(world.events().summarize_trace_events(as_operator(month)).await);
    assert_eq!(rejected.2, violations(&[("start_time", "WINDOW_TOO_LONG")]));
}
