//! Invariants that hold in every scenario: checked after it, and between its steps.

use std::collections::{BTreeMap, BTreeSet};

use order::lifecycle::{Answer, Input, State, next, owes};
use sea_orm::{ConnectionTrait, QueryResult, Statement};
use telemetry::{EventStatus, Kind};
use uuid::Uuid;

use crate::fakes::Ledger;
use crate::world::World;

async fn rows(world: &World, sql: &str) -> Vec<QueryResult> {
    let db = world.db.read();
    db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await.expect("the store is readable")
}

fn get<T: sea_orm::TryGetable>(row: &QueryResult, column: &str) -> T {
    row.try_get("", column).expect("the column")
}

struct OrderRow {
    id: Uuid,
    state: State,
    version: i64,
}

/// Promises 2, 3 and 4 and the consistency of the tables; panics with what is wrong.
pub(crate) async fn invariants(world: &World) {
    let orders = order_rows(world).await;
    stock_is_the_sum_of_its_lines(world, &orders).await;
    let steps = histories_are_whole(world, &orders).await;
    events_are_where_changes_are(world, &steps).await;
    slots_are_not_left_to_chance(world);
    money_is_where_it_belongs(world, &orders);
}

async fn order_rows(world: &World) -> Vec<OrderRow> {
    let sql = "SELECT o.*, (SELECT COUNT(*) FROM fulfillment f WHERE f.order_id = o.order_id) AS started FROM orders o";
    let mut orders = Vec::new();
    for row in rows(world, sql).await {
        let (id, name) = (get::<Uuid>(&row, "order_id"), get::<String>(&row, "state"));
        let state = State::of(&name).expect("a state");
        let due: Option<i64> = get(&row, "next_attempt_time");
        assert_eq!(due.is_some(), owes(state).is_some(), "{id} in {name}: due exactly if an effect is pending");
        let lease: Option<String> = get(&row, "lease_owner");
        assert!(
            lease.is_none() || owes(state).is_some(),
            "{id} in {name} has no pending effect but is leased by {lease:?}"
        );
        let token: Option<String> = get(&row, "payment_method");
        assert_eq!(
            token.is_some(),
            state == State::Created,
            "{id} in {name}: the payment token is kept until it is used"
        );
        let started: i64 = get(&row, "started");
        assert_eq!(started == 1, state == State::FulfillmentStarted, "{id} in {name} has {started} fulfilments");
        orders.push(OrderRow { id, state, version: get(&row, "version") });
    }
    orders
}

async fn stock_is_the_sum_of_its_lines(world: &World, orders: &[OrderRow]) {
    let mut wanted: BTreeMap<String, i64> = BTreeMap::new();
    for row in rows(world, "SELECT order_id, sku, quantity, state FROM order_line").await {
        let (id, line) = (get::<Uuid>(&row, "order_id"), get::<String>(&row, "state"));
        let state = orders.iter().find(|order| order.id == id).expect("a line has an order").state;
        if line == "HELD" || line == "ALLOCATED" {
            let may = [State::Created, State::Paid, State::Allocated, State::FulfillmentStarted];
            assert!(may.contains(&state), "{id} is {state:?} and has a line that is {line}");
            *wanted.entry(get(&row, "sku")).or_default() += get::<i64>(&row, "quantity");
        }
        let allocated = matches!(state, State::Allocated | State::FulfillmentStarted);
        assert_eq!(line == "ALLOCATED", allocated, "{id} is {state:?} and has a line that is {line}");
    }
    for row in rows(world, "SELECT sku, on_hand, reserved FROM stock").await {
        let (sku, on_hand, reserved): (String, i64, i64) =
            (get(&row, "sku"), get(&row, "on_hand"), get(&row, "reserved"));
        assert_eq!(reserved, wanted.remove(&sku).unwrap_or(0), "{sku}: reserved is the sum of the lines");
        assert!(0 <= reserved && reserved <= on_hand, "{sku}: 0 <= {reserved} <= {on_hand}");
    }
    assert!(wanted.is_empty(), "lines without stock: {wanted:?}");
}

/// A transition in an order's history: order, state, span, reason.
type Steps = Vec<(Uuid, State, String, String)>;

async fn histories_are_whole(world: &World, orders: &[OrderRow]) -> Steps {
    let sql = "SELECT order_id, version, state, span_id, reason FROM order_history ORDER BY order_id, version";
    let mut steps = Steps::new();
    let mut last: BTreeMap<Uuid, (i64, State)> = BTreeMap::new();
    for row in rows(world, sql).await {
        let (id, version): (Uuid, i64) = (get(&row, "order_id"), get(&row, "version"));
        let state = State::of(&get::<String>(&row, "state")).expect("a state");
        match last.insert(id, (version, state)) {
            None => assert_eq!((version, state), (1, State::Created), "{id}: the first transition"),
            Some((before, from)) => {
                assert_eq!(version, before + 1, "{id}: versions have no gaps");
                let inputs = [Input::Done, Input::Refused, Input::CancelAsked, Input::RetryAsked];
                let allowed = inputs.into_iter().any(|input| next(from, input) == Answer::To(state));
                assert!(allowed, "{id}: {from:?} to {state:?} is not in the table");
            }
        }
        steps.push((id, state, get(&row, "span_id"), get(&row, "reason")));
    }
    for order in orders {
        assert_eq!(
            last.remove(&order.id),
            Some((order.version, order.state)),
            "{}: the history ends with the current state",
            order.id
        );
    }
    assert!(last.is_empty(), "history without an order: {last:?}");
    steps
}

/// The success event that a transition is written with: its type and operation.
fn expected_event(state: State, reason: &str) -> Option<(&'static str, &'static str)> {
    match state {
        State::Cancelling => match reason {
            "the customer asked to cancel" | "an operator asked to cancel" => Some(("audit", "cancel")),
            "an operator asked to retry" => Some(("audit", "retry")),
            _ => None,
        },
        State::Created => Some(("order_creation", "")),
        State::Allocated => Some(("order_fulfillment", "allocate_inventory")),
        State::FulfillmentStarted => Some(("order_fulfillment", "start_fulfillment")),
        State::Cancelled => Some(("order_fulfillment", "cancel_order")),
        State::Paid | State::PaymentFailed | State::NeedsAttention => None,
    }
}

async fn events_are_where_changes_are(world: &World, steps: &Steps) {
    let events = world.events().await;
    let mut successes: Vec<(Uuid, &str, &str, &str)> = Vec::new();
    let mut needs_attention: Vec<(Uuid, &str)> = Vec::new();
    let (mut ids, mut spans) = (BTreeSet::new(), BTreeSet::new());
    for event in &events {
        assert!(ids.insert(event.event_id), "an event is stored twice: {event:?}");
        assert!(spans.insert(&event.span_id), "a span has two events: {event:?}");
        let order = event.order_id.expect("every event has an order");
        match event.status {
            EventStatus::Success => {
                let operation = event.attributes.get("operation").map_or("", String::as_str);
                successes.push((order, &event.event_type, operation, &event.span_id));
            }
            EventStatus::Failed => {
                let reason = event.error.as_ref().expect("a failed event has an error").reason.as_str();
                if reason == "REFUND_REFUSED" {
                    needs_attention.push((order, &event.span_id));
                }
            }
        }
    }
    let mut expected: Vec<(Uuid, &str, &str, &str)> = steps
        .iter()
        .filter_map(|(id, state, span, reason)| {
            expected_event(*state, reason).map(|(kind, operation)| (*id, kind, operation, span.as_str()))
        })
        .collect();
    expected.sort_unstable();
    successes.sort_unstable();
    assert_eq!(successes, expected, "a success event exists exactly for each change");
    let mut refused: Vec<(Uuid, &str)> = steps
        .iter()
        .filter(|(_, state, _, _)| *state == State::NeedsAttention)
        .map(|(id, _, span, _)| (*id, span.as_str()))
        .collect();
    refused.sort_unstable();
    needs_attention.sort_unstable();
    assert_eq!(needs_attention, refused, "NEEDS_ATTENTION has exactly one failed event");
}

/// A driver commits or discards every event slot that it opens; a creation whose slot was not claimed was rejected.
fn slots_are_not_left_to_chance(world: &World) {
    for ended in world.seen.0.lock().expect("not poisoned").iter() {
        let event = &ended.event;
        assert_ne!(ended.kind, Kind::Internal, "a slot of the driver was neither committed nor discarded: {event:?}");
        if event.event_type == "order_creation" {
            assert_eq!(event.status, EventStatus::Failed, "a creation that was not committed: {event:?}");
        }
    }
}

/// Nothing stays charged for an order that was not fulfilled; nothing is fulfilled without a charge.
fn money_is_where_it_belongs(world: &World, orders: &[OrderRow]) {
    for order in orders {
        let money = world.payments.of(kernel::OrderId::from_uuid(order.id));
        let right = match order.state {
            State::FulfillmentStarted | State::Paid | State::Allocated => money == Some(Ledger::Charged),
            State::PaymentFailed => money == Some(Ledger::Declined),
            State::Cancelled => matches!(money, Some(Ledger::Tombstone | Ledger::Refunded | Ledger::Declined)),
            State::NeedsAttention => matches!(money, Some(Ledger::RefundRefused(_))),
            State::Created | State::Cancelling => true,
        };
        assert!(right, "{} is {:?} and its charge is {money:?}", order.id, order.state);
    }
}

#[tokio::test]
#[should_panic(expected = "reserved is the sum of the lines")]
async fn the_check_detects_leaked_stock() {
    broken("UPDATE stock SET reserved = reserved + 1 WHERE sku = 'MUG'").await;
}

#[tokio::test]
#[should_panic(expected = "due exactly if an effect is pending")]
async fn the_check_detects_a_stuck_order() {
    broken("UPDATE orders SET next_attempt_time = NULL").await;
}

#[tokio::test]
#[should_panic(expected = "versions have no gaps")]
async fn the_check_detects_a_gap_in_a_history() {
    broken("UPDATE order_history SET version = 7 WHERE version = 4").await;
}

#[tokio::test]
#[should_panic(expected = "exactly for each change")]
async fn the_check_detects_a_lost_event() {
    broken("DELETE FROM outbox").await;
}

/// Corrupts a database with a fulfilled order and one in CREATED by this SQL, and checks it.
async fn broken(sql: &str) {
    let world = World::new().await;
    world.order_mugs().await;
    world.settle().await;
    world.abandoned_order().await;
    world.db.read().execute_unprepared(sql).await.expect("corrupted");
    invariants(&world).await;
}
