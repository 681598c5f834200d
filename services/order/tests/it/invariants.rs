//! Invariants that hold in every scenario: checked after it, and between its steps.

use std::collections::BTreeSet;
use std::time::Duration;

use order::invariants::CheckedOrder;
use order::lifecycle::State;
use sea_orm::ConnectionTrait;
use telemetry::{EventStatus, Kind, TraceEvent};
use uuid::Uuid;

use crate::fakes::ChargeState;
use crate::world::World;

/// Promises 2, 3 and 4 and the consistency of the tables; panics with what is wrong.
pub(crate) async fn invariants(world: &World) {
    let orders = world.store.orders_to_check(None, 1_000).await.expect("the store is readable");
    let mut problems: Vec<String> = Vec::new();
    for order in &orders {
        let found = order.lifecycle_problems(world.now(), Duration::MAX).into_iter().chain(order.line_problems());
        problems.extend(found.map(|problem| format!("{}: {problem}", order.id)));
    }
    for stock in world.store.stock_to_check().await.expect("the store is readable") {
        problems.extend(stock.problems().into_iter().map(|problem| format!("{}: {problem}", stock.sku)));
    }
    assert_eq!(problems, [""; 0]);
    each_transition_has_one_event(world, &orders).await;
    the_driver_leaves_no_event_slot_open(world);
    charges_match_the_orders_states(world, &orders);
}

/// What the rules compare of an event: order, type, operation, whether it is a success, span.
type Event = (Uuid, String, String, bool, String);

fn records_a_transition(event: &TraceEvent) -> bool {
    let reason = event.error.as_ref().map_or("", |error| error.reason.as_str());
    event.status == EventStatus::Success || reason == "REFUND_REFUSED"
}

async fn each_transition_has_one_event(world: &World, orders: &[CheckedOrder]) {
    let events = world.events().await;
    let (mut ids, mut spans) = (BTreeSet::new(), BTreeSet::new());
    for event in &events {
        assert!(ids.insert(event.event_id), "an event is stored twice: {event:?}");
        assert!(spans.insert(&event.span_id), "a span has two events: {event:?}");
    }
    let mut stored: Vec<Event> = events
        .iter()
        .filter(|event| records_a_transition(event))
        .map(|event| {
            let order = event.order_id.expect("every event has an order");
            let operation = event.attributes.get("operation").cloned().unwrap_or_default();
            let is_success = event.status == EventStatus::Success;
            (order, event.event_type.clone(), operation, is_success, event.span_id.clone())
        })
        .collect();
    let steps = orders.iter().flat_map(|order| order.steps.iter().map(|step| (order.id.as_uuid(), step)));
    let mut expected: Vec<Event> = steps
        .filter_map(|(order, step)| {
            let (kind, operation, status) = step.event()?;
            let is_success = status == EventStatus::Success;
            Some((order, kind.to_owned(), operation.to_owned(), is_success, step.span_id.clone()))
        })
        .collect();
    stored.sort_unstable();
    expected.sort_unstable();
    assert_eq!(stored, expected, "each change must have exactly one event");
}

/// A driver commits or discards every event slot that it opens; a creation whose slot was not claimed was rejected.
fn the_driver_leaves_no_event_slot_open(world: &World) {
    for ended in world.unclaimed.0.lock().iter() {
        let event = &ended.event;
        assert_ne!(ended.kind, Kind::Internal, "a slot of the driver was neither committed nor discarded: {event:?}");
        if event.event_type == "order_creation" {
            assert_eq!(event.status, EventStatus::Failed, "an uncommitted creation has a success event: {event:?}");
        }
    }
}

/// Nothing stays charged for an order that was not fulfilled; nothing is fulfilled without a charge.
fn charges_match_the_orders_states(world: &World, orders: &[CheckedOrder]) {
    for order in orders {
        let money = world.payments.of(order.id);
        let right = match order.state {
            State::FulfillmentStarted | State::Paid | State::Allocated => money == Some(ChargeState::Charged),
            State::PaymentFailed => money == Some(ChargeState::Declined),
            State::Cancelled => {
                matches!(money, Some(ChargeState::Tombstone | ChargeState::Refunded | ChargeState::Declined))
            }
            State::NeedsAttention => matches!(money, Some(ChargeState::RefundRefused(_))),
            State::Created | State::Cancelling => true,
        };
        assert!(right, "{} is {:?} and its charge is {money:?}", order.id, order.state);
    }
}

#[tokio::test]
#[should_panic(expected = "are reserved, but orders hold")]
async fn the_check_detects_leaked_stock() {
    check_corrupted("UPDATE stock SET reserved = reserved + 1 WHERE sku = 'MUG'").await;
}

#[tokio::test]
#[should_panic(expected = "has a pending effect that is never due")]
async fn the_check_detects_a_stuck_order() {
    check_corrupted("UPDATE orders SET next_attempt_time = NULL").await;
}

#[tokio::test]
#[should_panic(expected = "its history has a gap")]
async fn the_check_detects_a_gap_in_a_history() {
    check_corrupted("DELETE FROM order_history WHERE version = 2").await;
}

#[tokio::test]
#[should_panic(expected = "each change must have exactly one event")]
async fn the_check_detects_a_lost_event() {
    check_corrupted("DELETE FROM outbox").await;
}

/// Corrupts a database with a fulfilled order and one in CREATED by this SQL, and checks it.
async fn check_corrupted(sql: &str) {
    let world = World::new().await;
    world.order_mugs().await;
    world.settle().await;
    world.abandoned_order().await;
    world.db.read().execute_unprepared(sql).await.expect("corrupted");
    invariants(&world).await;
}
