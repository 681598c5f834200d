//! Streams of trace events.

use contracts::common::v1::EventType;
use contracts::data::v1::append_result::Outcome::Stored;
use contracts::data::v1::{EventStatus, TraceEvent, WatchTraceEventsRequest};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::world::{Followed, World, event, failed, rejection, uuid, violations};

const OTHER_TRACE: &str = "11111111111111111111111111111111";

fn all() -> WatchTraceEventsRequest {
    WatchTraceEventsRequest::default()
}

fn after(cursor: &str) -> WatchTraceEventsRequest {
    WatchTraceEventsRequest { after_cursor: cursor.to_owned(), ..all() }
}

/// A number of events, in the order of their ids.
fn many(count: u64) -> Vec<TraceEvent> {
    (0..count).map(|number| event(count - number)).collect()
}

fn ids(events: &[TraceEvent]) -> Vec<String> {
    events.iter().map(|event| event.event_id.clone()).collect()
}

/// The status that ends a stream; earlier bookmarks are skipped.
async fn end(followed: &mut Followed) -> Status {
    loop {
        match followed.message().await {
            Ok(message) => assert_eq!(message.event, None),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn a_stream_sends_new_events_as_appended_and_no_earlier_ones() {
    let world = World::new().await;
    world.append(vec![event(3)]).await;
    let mut followed = world.watch(all()).await.expect("a stream");
    let events = [event(2), failed(event(1), "TIMEOUT")];
    assert_eq!(world.append(events.to_vec()).await, [Stored; 2]);
    for event in events {
        assert_eq!(followed.message().await.expect("a message").event, Some(event));
    }
}

#[tokio::test]
async fn events_stored_by_one_instance_are_streamed_by_another() {
    let world = World::new().await;
    let other = world.beside().await;
    let mut followed = other.watch(all()).await.expect("a stream");
    let events = many(3);
    world.append(events.clone()).await;
    assert_eq!(followed.ids(3).await, ids(&events));
}

#[tokio::test]
async fn a_stream_resumed_after_any_message_has_neither_gaps_nor_repetitions() {
    let world = World::new().await;
    let instances = [world.beside().await, world];
    let events = many(24);
    for every in [1, 2, 3, 7] {
        let mut followed = instances[0].watch(all()).await.expect("a stream");
        let (mut received, mut stored) = (Vec::new(), 0);
        while received.len() < events.len() {
            // Some are stored while there is a stream, some while there is none.
            let next = events[stored..].iter().take(every * 2).cloned();
            let mut next: Vec<_> = next.map(|event| TraceEvent { event_id: uuid(), ..event }).collect();
            next.sort_by(|one, two| one.event_id.cmp(&two.event_id));
            stored += next.len();
            let expected = ids(&next);
            instances[stored % 2].append(next).await;
            for expected in expected.chunks(every) {
                let cursor = std::mem::take(&mut followed.cursor);
                followed = instances[received.len() % 2].watch(after(&cursor)).await.expect("a resumed stream");
                let sent = followed.ids(expected.len()).await;
                assert_eq!(sent, expected, "resumed after every {every}");
                received.extend(sent);
            }
        }
        // No event is left over.
        let last = event(0);
        instances[0].append(vec![last.clone()]).await;
        assert_eq!(followed.ids(1).await, [last.event_id]);
    }
}

#[tokio::test]
async fn a_restart_ends_the_stream_without_losing_events() {
    let world = World::new().await;
    let mut followed = world.watch(all()).await.expect("a stream");
    let events = many(4);
    world.append(events[..2].to_vec()).await;
    assert_eq!(followed.ids(1).await, ids(&events[..1]));
    let cursor = followed.cursor.clone();
    let (world, (status, received)) = tokio::join!(world.restart(&[], vec![]), async {
        let received = followed.ids(1).await;
        (end(&mut followed).await, received)
    });
    assert_eq!(received, ids(&events[1..2]));
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(rejection(Err::<(), _>(status)), (Code::Unavailable, "DRAINING".into(), vec![]));
    world.append(events[2..].to_vec()).await;
    let mut followed = world.watch(after(&cursor)).await.expect("a resumed stream");
    assert_eq!(followed.ids(3).await, ids(&events[1..]));
}

#[tokio::test]
async fn a_stream_matches_all_its_filters() {
    let world = World::new().await;
    let creation = event(40);
    let payment = TraceEvent { r#type: EventType::PaymentProcessing.into(), trace_id: OTHER_TRACE.into(), ..event(30) };
    let rejected = failed(TraceEvent { trace_id: OTHER_TRACE.into(), ..event(20) }, "ValidationError");
    let again = TraceEvent { order_id: creation.order_id.clone(), user_id: creation.user_id.clone(), ..event(10) };
    let events = [creation, payment, rejected, again];
    let (creations, failures) = (EventType::OrderCreation.into(), EventStatus::Failed.into());
    let order_id = events[0].order_id.clone();
    let list = || WatchTraceEventsRequest { service: "order".into(), ..all() };
    let cases: [(WatchTraceEventsRequest, &[usize]); 7] = [
        (list(), &[0, 1, 2, 3]),
        (WatchTraceEventsRequest { r#type: creations, ..list() }, &[0, 2, 3]),
        (WatchTraceEventsRequest { status: failures, ..list() }, &[2]),
        (WatchTraceEventsRequest { order_id: order_id.clone(), ..list() }, &[0, 3]),
        (WatchTraceEventsRequest { user_id: events[0].user_id.clone(), r#type: creations, ..list() }, &[0, 3]),
        (WatchTraceEventsRequest { trace_id: OTHER_TRACE.into(), ..list() }, &[1, 2]),
        (WatchTraceEventsRequest { trace_id: OTHER_TRACE.into(), status: failures, ..all() }, &[2]),
    ];
    let mut followed = Vec::new();
    for (request, expected) in cases {
        followed.push((world.watch(request).await.expect("a stream"), expected));
    }
    // The last one matches all filters: any event that does not match would arrive before it.
    let error = failed(event(0), "TIMEOUT").error;
    let last = TraceEvent { status: failures, error, trace_id: OTHER_TRACE.into(), ..events[3].clone() };
    let last = TraceEvent { event_id: event(0).event_id, ..last };
    world.append(events.to_vec()).await;
    world.append(vec![last.clone()]).await;
    for (number, (mut followed, expected)) in followed.into_iter().enumerate() {
        let mut expected: Vec<_> = expected.iter().map(|index| events[*index].event_id.clone()).collect();
        expected.push(last.event_id.clone());
        assert_eq!(followed.ids(expected.len()).await, expected, "case {number}");
    }
}

#[tokio::test]
async fn every_event_type_of_the_contract_can_be_followed_on_its_own() {
    let world = World::new().await;
    let types: Vec<EventType> = (1..).map_while(|number| EventType::try_from(number).ok()).collect();
    assert!(types.len() >= 5);
    let events: Vec<_> = types.iter().map(|name| TraceEvent { r#type: (*name).into(), ..event(5) }).collect();
    let mut followed = Vec::new();
    for of in &types {
        followed.push(world.watch(WatchTraceEventsRequest { r#type: (*of).into(), ..all() }).await.expect("a stream"));
    }
    for event in &events {
        world.append(vec![event.clone()]).await;
    }
    for (followed, event) in followed.iter_mut().zip(&events) {
        assert_eq!(followed.message().await.expect("a message").event.as_ref(), Some(event));
    }
}

#[tokio::test]
async fn all_violations_of_a_watch_are_reported_together() {
    let world = World::new().await;
    let cursor = world.watch(all()).await.expect("a stream").cursor;
    let invalid = WatchTraceEventsRequest {
        r#type: 99,
        status: 99,
        service: "x".repeat(65),
        order_id: "seven".into(),
        user_id: "seven".into(),
        trace_id: "seven".into(),
        after_cursor: cursor.clone(),
    };
    let expected = violations(&[
        ("type", "UNKNOWN_VALUE"),
        ("status", "UNKNOWN_VALUE"),
        ("trace_id", "INVALID_ID"),
        ("service", "INVALID_LENGTH"),
        ("order_id", "INVALID_ID"),
        ("user_id", "INVALID_ID"),
        ("after_cursor", "CURSOR_OF_OTHER_FILTERS"),
    ]);
    let rejected = rejection(world.watch(invalid).await.map(|_| ()));
    assert_eq!(rejected, (Code::InvalidArgument, "INVALID_ARGUMENT".into(), expected));
    let broken = rejection(world.watch(after(&format!("{cursor}x"))).await.map(|_| ()));
    assert_eq!(broken.2, violations(&[("after_cursor", "INVALID_CURSOR")]));
    assert!(world.watch(after(&cursor)).await.is_ok(), "control");
}

#[tokio::test]
async fn followers_are_limited_and_a_closed_stream_frees_its_slot() {
    let world = World::with(&["--max-followers", "1"], vec![]).await;
    let first = world.watch(all()).await.expect("a stream");
    let status = world.watch(all()).await.err().expect("a rejection");
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(rejection(Err::<(), _>(status)), (Code::Unavailable, "TOO_MANY_FOLLOWERS".into(), vec![]));
    drop(first);
    let mut second = loop {
        if let Ok(second) = world.watch(all()).await {
            break second;
        }
    };
    let events = many(1);
    world.append(events.clone()).await;
    assert_eq!(second.ids(1).await, ids(&events));
}
