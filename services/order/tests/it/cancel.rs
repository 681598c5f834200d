//! Cancellation: a transition, recorded once; it wins against whatever is in flight.

use std::sync::Arc;

use kernel::FaultPoint;
use order::Error;
use order::lifecycle::State;
use order::order::{LineState, Scope};
use telemetry::EventStatus;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::fakes::{Call, ChargeState, Reply};
use crate::world::{GUARD, LEASE, World, cancel, new_user};

const CANCELLED: [State; 3] = [State::Created, State::Cancelling, State::Cancelled];

#[tokio::test]
async fn a_cancellation_before_the_payment_ends_in_cancelled_and_nothing_is_charged() {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    let cancelled = world.cancel(id).await.expect("it is not too late");
    assert_eq!((cancelled.state, cancelled.version), (State::Cancelling, 2));
    assert!(cancelled.lines.iter().all(|line| line.state == LineState::Released));
    assert_eq!(world.stock("MUG").await, (10, 0), "released with the transition");
    world.settle().await;
    assert_eq!(world.states(id).await, CANCELLED);
    assert_eq!(world.payments.of(id), Some(ChargeState::Tombstone));
    assert_eq!(world.payments.calls(), [Call::Cancel(id, 1)]);
}

#[tokio::test]
async fn cancelling_twice_releases_and_refunds_once() {
    let world = World::new().await;
    let gate = Arc::new(Notify::new());
    let id = world.abandoned_order().await;
    world.payments.script([Reply::held(&gate)]);
    world.cancel(id).await.expect("it is not too late");
    let again = world.cancel(id).await.expect("OK");
    assert_eq!((again.state, again.version), (State::Cancelling, 2), "it stays");
    gate.notify_one();
    world.settle().await;
    assert_eq!(world.states(id).await, CANCELLED);
    let once_more = world.cancel(id).await.expect("OK");
    assert_eq!((once_more.state, once_more.version), (State::Cancelled, 3));
    world.settle().await;
    assert_eq!(world.stock("MUG").await, (10, 0));
    assert_eq!(world.payments.calls().len(), 1);
}

#[tokio::test]
async fn eight_concurrent_cancellations_are_recorded_once() {
    let world = World::on_file().await;
    let id = world.abandoned_order().await;
    let all = futures_util::future::join_all((0..8).map(|_| world.cancel(id))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    world.settle().await;
    assert_eq!(world.states(id).await, CANCELLED);
    assert_eq!(world.payments.calls(), [Call::Cancel(id, 1)]);
}

/// The order is cancelled while ProcessPayment is in flight; then the late result arrives.
async fn a_cancel_in_the_middle_of(reply: fn(&Arc<Notify>) -> Reply, ends: ChargeState) {
    let world = World::new().await;
    let gate = Arc::new(Notify::new());
    world.payments.script([reply(&gate)]);
    let id = world.order_mugs().await;
    timeout(GUARD, world.payments.called(1)).await.expect("driven");
    world.cancel(id).await.expect("it is not too late");
    timeout(GUARD, world.payments.called(2)).await.expect("the cancellation does not wait for the payment");
    gate.notify_one();
    world.settle().await;
    assert_eq!(world.states(id).await, CANCELLED, "the late result loses");
    assert_eq!(world.payments.of(id), Some(ends));
    assert_eq!(world.stock("MUG").await, (10, 0));
}

#[tokio::test]
async fn a_cancellation_during_a_payment_that_charges_refunds_it() {
    a_cancel_in_the_middle_of(Reply::response_held, ChargeState::Refunded).await;
}

#[tokio::test]
async fn a_cancellation_that_overtakes_the_charge_prevents_it() {
    a_cancel_in_the_middle_of(Reply::held, ChargeState::Tombstone).await;
}

#[tokio::test]
async fn a_cancellation_during_the_charge_wins_against_its_result() {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    let (orders, unclaimed) = (world.orders.clone(), world.unclaimed.clone());
    world.payments.script([Reply::ResponseAfter(Box::pin(async move {
        cancel(&orders, &unclaimed, id).await.expect("it is not too late");
    }))]);
    world.clock.advance(LEASE);
    assert_eq!(world.instance("order-2").run_due().await.expect("a poll"), 1);
    world.settle().await;
    assert_eq!(world.states(id).await, CANCELLED);
    assert_eq!(world.payments.of(id), Some(ChargeState::Refunded));
}

#[tokio::test]
async fn if_the_cancelling_instance_crashes_the_losing_driver_continues_only_after_the_lease_has_expired() {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    world.clock.advance(LEASE);
    let stalled = world.stalled(id, Reply::response_held).await;
    world.faults.die(FaultPoint::BeforeEffect, State::Cancelling);
    world.cancel(id).await.expect("it is not too late");
    world.clock.advance(LEASE);
    // It loses its compare-and-set, finds the lease free, and continues from CANCELLING.
    stalled.let_go().await;
    assert_eq!(world.states(id).await, CANCELLED);
    assert_eq!(world.payments.of(id), Some(ChargeState::Refunded));
    world.settle().await;
}

#[tokio::test]
async fn cancelling_is_too_late_once_fulfilment_has_started_or_the_payment_has_failed() {
    let world = World::new().await;
    let fulfilled = world.order_mugs().await;
    world.settle().await;
    world.payments.declines.store(true, std::sync::atomic::Ordering::SeqCst);
    let failed = world.order_mugs().await;
    world.settle().await;
    for (id, state) in [(fulfilled, "FULFILLMENT_STARTED"), (failed, "PAYMENT_FAILED")] {
        let before = (world.order(id).await, world.events().await);
        let rejection = world.cancel(id).await.expect_err("too late");
        assert!(matches!(&rejection, Error::OrderNotCancellable { state: is } if *is == state), "{rejection}");
        assert_eq!(mesh::status("order", &rejection).code(), tonic::Code::FailedPrecondition);
        world.settle().await;
        assert_eq!((world.order(id).await, world.events().await), before);
    }
}

#[tokio::test]
async fn another_customers_order_is_not_found_and_not_cancelled() {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    let operation = world.operation("order.v1.OrderService/CancelOrder", Some("audit"));
    let rejection = world.orders.cancel(&operation, Scope::Of(new_user()), id).await.expect_err("another customer's");
    assert!(matches!(rejection, Error::OrderNotFound));
    assert_eq!(world.state(id).await, State::Created);
    world.orders.cancel(&operation, Scope::Of(world.user), id).await.expect("the customer's own");
    world.settle().await;
}

#[tokio::test]
async fn a_refused_refund_needs_attention_until_an_operator_retries_it() {
    let world = World::new().await;
    *world.payments.refused_refunds.lock() = 1;
    let gate = Arc::new(Notify::new());
    world.payments.script([Reply::response_held(&gate)]);
    let id = world.order_mugs().await;
    timeout(GUARD, world.payments.called(1)).await.expect("driven");
    world.cancel(id).await.expect("it is not too late");
    gate.notify_one();
    world.settle().await;
    assert_eq!(world.states(id).await, [State::Created, State::Cancelling, State::NeedsAttention]);
    let order = world.order(id).await;
    assert_eq!(order.payment_failure.expect("a reason").reason, "REFUND_REFUSED");
    let failed: Vec<_> = world.events().await.into_iter().filter(|event| event.status == EventStatus::Failed).collect();
    let [event] = &failed[..] else { panic!("one failed event: {failed:?}") };
    assert_eq!((event.event_type.as_str(), event.operation.as_str()), ("order_fulfillment", "cancel_order"));

    assert_eq!(world.cancel(id).await.expect("OK").state, State::NeedsAttention, "a cancellation changes nothing");
    world.clock.advance(LEASE * 100);
    assert_eq!(world.instance("order-2").run_due().await.expect("a poll"), 0, "no pending effect");

    let retried = world.retry(id).await.expect("an operator may");
    assert_eq!((retried.state, retried.refund_attempt), (State::Cancelling, 2));
    world.settle().await;
    assert_eq!(world.states(id).await[2..], [State::NeedsAttention, State::Cancelling, State::Cancelled]);
    assert_eq!(world.payments.of(id), Some(ChargeState::Refunded));
    let calls = world.payments.calls();
    assert_eq!(calls, [Call::Process(id), Call::Cancel(id, 1), Call::Cancel(id, 2)]);
    let rejection = world.retry(id).await.expect_err("there is nothing to retry");
    assert!(matches!(rejection, Error::OrderNotRetryable { state: "CANCELLED" }), "{rejection}");
}

#[tokio::test]
async fn two_concurrent_retries_are_recorded_once() {
    let world = World::on_file().await;
    *world.payments.refused_refunds.lock() = 2;
    let id = world.order_that_needs_attention().await;
    let gate = Arc::new(Notify::new());
    world.payments.script([Reply::held(&gate)]);
    let (one, other) = tokio::join!(world.retry(id), world.retry(id));
    let (won, lost) = if one.is_ok() { (one, other) } else { (other, one) };
    assert_eq!(won.expect("one has won").refund_attempt, 2);
    assert!(matches!(lost, Err(Error::OrderNotRetryable { .. })), "{lost:?}");
    gate.notify_one();
    world.settle().await;
    assert_eq!(world.state(id).await, State::NeedsAttention, "the second refund is refused, too");
    world.retry(id).await.expect("an operator may");
    world.settle().await;
    assert_eq!(world.state(id).await, State::Cancelled);
    assert_eq!(world.order(id).await.refund_attempt, 3);
}
