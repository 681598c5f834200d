//! An order's lifecycle: paid, declined, undecided, woken.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kernel::OrderId;
use order::driver::wake;
use order::lifecycle::State;
use order::order::LineState;
use telemetry::EventStatus;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::fakes::{Call, Reply};
use crate::world::{BACKOFF_CAP, GUARD, LEASE, World, eur, order_of};

const WHOLE_LIFE: [(i64, State); 4] =
    [(1, State::Created), (2, State::Paid), (3, State::Allocated), (4, State::FulfillmentStarted)];

async fn an_order_that_is_paid_is_fulfilled(world: World) {
    let order = world.create(order_of(&[("MUG", 2), ("PLATE", 1)])).await.expect("an order");
    assert_eq!((order.state, order.version, order.total), (State::Created, 1, eur(3_300)));
    assert_eq!(world.stock("MUG").await.1, 2, "the stock is reserved as soon as the order exists");
    world.settle().await;
    assert_eq!(world.history(order.id).await, WHOLE_LIFE);
    let done = world.order(order.id).await;
    assert_eq!((done.state, done.version, done.next_attempt_time), (State::FulfillmentStarted, 4, None));
    assert!(done.payment_method.is_none(), "the token is deleted");
    assert!(done.lines.iter().all(|line| line.state == LineState::Allocated));
    // Monday at ten, two business days.
    assert_eq!(done.fulfillment.expect("a fulfilment").delivery_date, "2026-03-04");
    assert_eq!((world.stock("MUG").await, world.stock("PLATE").await), ((10, 2), (10, 1)));
    let stored: Vec<_> = world
        .events()
        .await
        .into_iter()
        .map(|event| {
            assert_eq!(event.order_id, Some(order.id.as_uuid()));
            assert_eq!(event.user_id, Some(world.user.as_uuid()));
            (event.event_type, event.status, event.operation)
        })
        .collect();
    let success = |kind: &str, operation: &str| (kind.to_owned(), EventStatus::Success, operation.to_owned());
    let expected = [
        success("order_creation", "order.v1.OrderService/CreateOrder"),
        success("order_fulfillment", "allocate_inventory"),
        success("order_fulfillment", "start_fulfillment"),
    ];
    assert_eq!(stored, expected);
    assert_eq!(world.payments.calls(), [Call::Process(order.id)]);
}

#[tokio::test]
async fn an_order_that_is_paid_is_fulfilled_in_memory() {
    an_order_that_is_paid_is_fulfilled(World::new().await).await;
}

#[tokio::test]
async fn an_order_that_is_paid_is_fulfilled_on_a_file() {
    an_order_that_is_paid_is_fulfilled(World::on_file().await).await;
}

#[tokio::test]
async fn a_declined_payment_ends_the_order_and_releases_its_stock() {
    let world = World::new().await;
    world.payments.declines.store(true, Ordering::SeqCst);
    let id = world.order_mugs().await;
    world.settle().await;
    assert_eq!(world.history(id).await, [(1, State::Created), (2, State::PaymentFailed)]);
    let order = world.order(id).await;
    assert!(order.lines.iter().all(|line| line.state == LineState::Released));
    assert_eq!(world.stock("MUG").await, (10, 0));
    let failure = order.payment_failure.expect("a reason");
    assert_eq!((failure.reason.as_str(), failure.decline_code.as_str()), ("PAYMENT_DECLINED", "GENERIC_DECLINE"));
    let fulfillment = world.events().await.into_iter().filter(|event| event.event_type == "order_fulfillment").count();
    assert_eq!(fulfillment, 0, "only the Payment Service writes an event");
}

/// When the next attempt is due, from the order's row.
async fn due_in(world: &World, id: OrderId) -> Duration {
    world.order(id).await.next_attempt_time.expect("a pending effect").since(world.now())
}

#[tokio::test]
async fn an_undecided_payment_is_rescheduled_and_retried_for_the_same_order() {
    let world = World::new().await;
    world.payments.script([Reply::NoResponse, Reply::Lost]);
    let id = world.order_mugs().await;
    world.settle().await;
    let order = world.order(id).await;
    assert_eq!((order.state, order.version, order.attempt), (State::Created, 1, 1));
    assert_eq!(order.last_error.as_deref(), Some("no response"));
    let wait = due_in(&world, id).await;
    assert!(Duration::from_millis(20) <= wait && wait <= Duration::from_millis(200), "{wait:?}");
    let other = world.instance("order-2");
    assert_eq!(other.run_due().await.expect("a poll"), 0, "it is not due");
    world.clock.advance(wait - Duration::from_micros(1));
    assert_eq!(other.run_due().await.expect("a poll"), 0, "it is not due, by a microsecond");
    world.clock.advance(Duration::from_micros(1));
    assert_eq!(other.run_due().await.expect("a poll"), 1, "it is due, and the lease is free");
    assert_eq!(world.order(id).await.attempt, 2);
    assert!(due_in(&world, id).await <= Duration::from_millis(400));
    world.clock.advance(Duration::from_millis(400));
    assert_eq!(other.run_due().await.expect("a poll"), 1);
    world.settle().await;
    assert_eq!(world.history(id).await, WHOLE_LIFE);
    let order = world.order(id).await;
    assert_eq!((order.attempt, order.last_error), (0, None), "a transition resets the attempts");
    assert_eq!(world.payments.calls(), [Call::Process(id); 3]);
}

#[tokio::test]
async fn backoff_grows_up_to_the_cap() {
    let world = World::new().await;
    let driver = world.instance("order-2");
    let id = world.abandoned_order().await;
    for attempt in 1..=30 {
        world.clock.advance(LEASE + BACKOFF_CAP);
        world.payments.script([Reply::NoResponse]);
        assert_eq!(driver.run_due().await.expect("a poll"), 1);
        assert_eq!(world.order(id).await.attempt, attempt);
        assert!(due_in(&world, id).await <= BACKOFF_CAP);
    }
    assert!(due_in(&world, id).await >= BACKOFF_CAP / 10);
    world.drive_to_rest(&driver, 2).await;
    assert_eq!(world.state(id).await, State::FulfillmentStarted);
}

#[tokio::test]
async fn a_confirmation_wakes_a_rescheduled_order() {
    let world = World::new().await;
    world.payments.script([Reply::Lost]);
    let id = world.order_mugs().await;
    world.settle().await;
    assert_eq!(world.state(id).await, State::Created);
    // The clock is stopped: without the confirmation it would not become due.
    wake(&world.instance("order-2"), id).await.expect("woken");
    world.settle().await;
    assert_eq!(world.history(id).await, WHOLE_LIFE);
}

#[tokio::test]
async fn late_repeated_or_forged_confirmations_do_nothing() {
    let world = World::new().await;
    let id = world.order_mugs().await;
    world.settle().await;
    let before = (world.order(id).await, world.events().await);
    for _ in 0..3 {
        wake(&world.driver, id).await.expect("woken");
    }
    wake(&world.driver, OrderId::from_uuid(uuid::Uuid::from_u128(7))).await.expect("woken");
    world.settle().await;
    assert_eq!((world.order(id).await, world.events().await), before);
    assert_eq!(world.payments.calls().len(), 1);
}

#[tokio::test]
async fn a_confirmation_during_an_attempt_is_not_lost_if_the_attempt_fails() {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    world.clock.advance(LEASE);
    let stalled = world.stalled(id, Reply::no_response_held).await;
    // It is being driven: no other instance can claim it. The clock is stopped: the due time hardly changes.
    wake(&world.instance("order-3"), id).await.expect("woken");
    stalled.let_go().await;
    assert_eq!(world.order(id).await.attempt, 1);
    assert_eq!(world.instance("order-3").run_due().await.expect("a poll"), 1, "it is due immediately");
    assert_eq!(world.history(id).await, WHOLE_LIFE);
    world.settle().await;
}

#[tokio::test]
async fn only_one_of_two_instances_claims_an_order() {
    let world = World::on_file().await;
    let id = world.abandoned_order().await;
    let (one, other) = (world.instance("order-2"), world.instance("order-3"));
    assert!(one.claim_due(10).await.expect("a poll").is_empty(), "the crashed instance's lease has not expired");
    world.clock.advance(LEASE);
    let (first, second) = tokio::join!(one.claim_due(10), other.claim_due(10));
    let claimed = first.expect("a poll").len() + second.expect("a poll").len();
    assert_eq!(claimed, 1);
    world.drive_to_rest(&one, 3).await;
    assert_eq!(world.history(id).await, WHOLE_LIFE);
}

#[tokio::test]
async fn an_unreadable_order_does_not_keep_others_from_being_driven() {
    let world = World::new().await;
    let (broken, readable) = (world.abandoned_order().await, world.abandoned_order().await);
    let sql = format!("UPDATE orders SET address = '{{' WHERE order_id = {}", world.literal(broken));
    sea_orm::ConnectionTrait::execute_unprepared(world.db.read(), &sql).await.expect("corrupted");
    world.clock.advance(LEASE);
    assert_eq!(world.instance("order-2").run_due().await.expect("a poll"), 1);
    assert_eq!(world.state(readable).await, State::FulfillmentStarted);
}

#[tokio::test]
async fn the_poller_finds_due_orders_and_frees_its_leases_on_shutdown() {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    world.clock.advance(LEASE);
    let gate = Arc::new(Notify::new());
    world.payments.script([Reply::held(&gate)]);
    let stop = tokio_util::sync::CancellationToken::new();
    let driver = world.instance_until("order-2", &stop);
    let polling = tokio::spawn(driver.poll());
    timeout(GUARD, world.payments.called(1)).await.expect("driven");
    stop.cancel();
    gate.notify_one();
    timeout(GUARD, polling).await.expect("it stops").expect("no panic");
    world.settle().await;
    assert_eq!(world.state(id).await, State::FulfillmentStarted);
}

#[tokio::test]
async fn an_instance_that_shuts_down_frees_its_orders_immediately() {
    let world = World::new().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let id = world.abandoned_order().await;
    world.clock.advance(LEASE);
    let driver = world.instance_until("order-2", &stop);
    assert_eq!(driver.claim_due(1).await.expect("a poll").len(), 1);
    stop.cancel();
    timeout(GUARD, driver.poll()).await.expect("it stops");
    // No lease has expired.
    assert_eq!(world.instance("order-3").run_due().await.expect("a poll"), 1);
    assert_eq!(world.state(id).await, State::FulfillmentStarted);
}

#[tokio::test]
async fn a_stalled_owner_that_resumes_late_records_its_result_and_the_new_owner_loses() {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    world.clock.advance(LEASE);
    let stalled = world.stalled(id, Reply::response_held).await;
    world.clock.advance(LEASE);
    let second = world.instance("order-3");
    let order = second.claim_due(1).await.expect("a poll").pop().expect("taken over");
    stalled.let_go().await;
    assert_eq!(world.history(id).await, WHOLE_LIFE, "the key makes the result correct, whichever driver records it");
    second.run(order).await;
    assert_eq!(world.history(id).await, WHOLE_LIFE);
    assert_eq!(world.payments.calls(), [Call::Process(id); 2]);
    world.settle().await;
}

#[tokio::test]
async fn a_stalled_owner_does_not_free_the_lease_of_the_new_owner() {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    world.clock.advance(LEASE);
    let stalled = world.stalled(id, Reply::no_response_held).await;
    world.clock.advance(LEASE);
    let second = world.instance("order-3");
    let order = second.claim_due(1).await.expect("a poll").pop().expect("taken over");
    stalled.let_go().await;
    assert_eq!(world.order(id).await.attempt, 0, "an attempt after the lease was lost is not counted");
    world.clock.advance(LEASE - Duration::from_secs(1));
    assert_eq!(world.instance("order-4").run_due().await.expect("a poll"), 0, "the lease still belongs to the second");
    second.run(order).await;
    assert_eq!(world.history(id).await, WHOLE_LIFE);
    world.settle().await;
}

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn setting_the_clock_back_delays_neither_a_crashed_instances_lease_nor_a_due_time() {
    let world = World::new().await;
    // An order whose instance crashed with its lease, and one that waits for its next attempt.
    let leased = world.abandoned_order().await;
    world.clock.advance(LEASE);
    world.payments.script([Reply::NoResponse]);
    let driver = world.instance("order-2");
    assert_eq!(driver.run_due().await.expect("a poll"), 1);
    let waits = leased;
    let leased = world.abandoned_order().await;
    world.clock.set_back(HOUR);
    assert_eq!(driver.run_due().await.expect("a poll"), 2, "both are due, whatever the old clock was");
    for id in [leased, waits] {
        assert_eq!(world.history(id).await, WHOLE_LIFE);
    }
    world.settle().await;
}

#[tokio::test]
async fn a_wake_up_ignores_a_lease_of_a_clock_that_was_set_back() {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    world.clock.set_back(HOUR);
    wake(&world.instance("order-2"), id).await.expect("woken");
    world.settle().await;
    assert_eq!(world.history(id).await, WHOLE_LIFE);
}

#[tokio::test]
async fn setting_the_clock_forward_during_a_drive_repeats_nothing() {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    world.clock.advance(LEASE);
    let stalled = world.stalled(id, Reply::response_held).await;
    world.clock.advance(HOUR);
    let second = world.instance("order-3");
    assert_eq!(second.run_due().await.expect("a poll"), 1, "the lease has expired by this clock");
    stalled.let_go().await;
    assert_eq!(world.history(id).await, WHOLE_LIFE);
    world.settle().await;
    assert_eq!(world.stock("MUG").await, (10, 2));
}
