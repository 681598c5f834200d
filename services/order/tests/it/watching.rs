//! WatchOrder: every transition once, in order, until the stream ends with a status.

use contracts::payment::v1::PaymentState;
use tokio::time::timeout;
use tonic::Code;

use crate::system::{System, SystemOptions, error_of, mugs, rejection, retry_after, state};
use crate::world::GUARD;

#[tokio::test]
async fn only_transitions_after_the_version_are_sent() {
    let system = System::new().await;
    let ada = system.client("customer");
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    ada.watch_to_the_end(&id, 0).await.1.expect("a clean end");
    let (states, end) = ada.watch_to_the_end(&id, 2).await;
    end.expect("a clean end");
    assert_eq!(states, ["ALLOCATED", "FULFILLMENT_STARTED"]);
    let status = ada.watch_to_the_end(&id, -1).await.1.expect_err("versions count from 1");
    assert_eq!(rejection(&status), error_of(Code::InvalidArgument, "INVALID_ARGUMENT", "order"));
}

#[tokio::test]
async fn a_stream_after_the_final_transition_ends_immediately() {
    let system = System::new().await;
    let ada = system.client("customer");
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    ada.watch_to_the_end(&id, 0).await.1.expect("a clean end");
    for after in [4, 100] {
        let (states, end) = ada.watch_to_the_end(&id, after).await;
        end.expect("a clean end");
        assert!(states.is_empty());
    }
}

#[tokio::test]
async fn an_order_that_needs_attention_keeps_its_stream_open_until_it_is_final() {
    let system = System::new().await;
    system.payments.set_state(PaymentState::Pending);
    let (ada, operator) = (system.client("customer"), system.client("operator"));
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    system.payments.called_for(&id).await;
    system.payments.set_state(PaymentState::RefundRefused);
    ada.cancel(&id).await.expect("it is not too late");
    let mut steps = ada.watch(&id, 2).await.expect("the order");
    let step = timeout(GUARD, steps.message()).await.expect("soon").expect("an open stream").expect("a step");
    assert_eq!(state(step.entry.expect("an entry").state()), "NEEDS_ATTENTION");
    assert_eq!(step.payment_failure.expect("a reason").reason, "REFUND_REFUSED");
    system.payments.set_state(PaymentState::Refunded);
    let retry = contracts::order::v1::RetryOrderRequest { order_id: id };
    operator.orders().retry_order(operator.request(retry)).await.expect("an operator may");
    for expected in ["CANCELLING", "CANCELLED"] {
        let step = timeout(GUARD, steps.message()).await.expect("soon").expect("an open stream").expect("a step");
        assert_eq!(state(step.entry.expect("an entry").state()), expected);
    }
    assert!(steps.message().await.expect("a clean end").is_none());
}

#[tokio::test]
async fn transitions_committed_by_another_instance_are_sent_too() {
    let system = System::new().await;
    system.payments.set_state(PaymentState::Pending);
    let ada = system.client("customer");
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    system.payments.called_for(&id).await;
    let other = system.another_instance().await;
    let mut steps = ada.at(&other).watch(&id, 1).await.expect("the order");
    system.payments.set_state(PaymentState::Cancelled);
    ada.cancel(&id).await.expect("it is not too late");
    let step = timeout(GUARD, steps.message()).await.expect("soon").expect("an open stream").expect("a step");
    assert_eq!(state(step.entry.expect("an entry").state()), "CANCELLING");
}

#[tokio::test]
async fn a_stream_ends_when_its_callers_token_expires() {
    let system = System::new().await;
    system.payments.set_state(PaymentState::Pending);
    // It has just expired; the leeway for clock skew still admits it.
    let ada = system.client_until("customer", -1);
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    let (states, end) = ada.watch_to_the_end(&id, 0).await;
    assert_eq!(states, ["CREATED"]);
    assert_eq!(
        rejection(&end.expect_err("the token has expired")),
        error_of(Code::Unauthenticated, "TOKEN_EXPIRED", "order")
    );
}

#[tokio::test]
async fn a_customers_streams_are_limited_and_a_closed_one_frees_its_slot() {
    let system = System::with(SystemOptions { max_watchers: 1, ..SystemOptions::default() }).await;
    system.payments.set_state(PaymentState::Pending);
    let ada = system.client("customer");
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    let mut first = ada.watch(&id, 0).await.expect("the order");
    first.message().await.expect("an open stream").expect("a step");
    let status = ada.watch_to_the_end(&id, 0).await.1.expect_err("too many");
    assert_eq!(rejection(&status), error_of(Code::ResourceExhausted, "TOO_MANY_WATCHERS", "order"));
    assert!(retry_after(&status).is_some());
    // An operator and another customer have their own limits.
    let mut others = system.client("operator").watch(&id, 0).await.expect("any customer's order");
    others.message().await.expect("an open stream").expect("a step");
    let bob = system.client("customer");
    let bobs = bob.create(mugs(1)).await.expect("an order").order_id;
    bob.watch(&bobs, 0).await.expect("the order");
    ada.get(&id).await.expect("other calls are served");
    system.payments.called_for(&id).await;
    system.payments.set_state(PaymentState::Cancelled);
    ada.cancel(&id).await.expect("it is not too late");
    while first.message().await.expect("a clean end").is_some() {}
    ada.watch_to_the_end(&id, 0).await.1.expect("a free slot");
}

#[tokio::test]
async fn a_drain_ends_streams_with_unavailable_and_a_retry_delay() {
    let system = System::new().await;
    system.payments.set_state(PaymentState::Pending);
    let ada = system.client("customer");
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    let mut steps = ada.watch(&id, 0).await.expect("the order");
    steps.message().await.expect("an open stream").expect("a step");
    system.payments.called_for(&id).await;
    system.shutdown.cancel();
    let status = timeout(GUARD, steps.message()).await.expect("soon").expect_err("drained");
    assert_eq!(rejection(&status), error_of(Code::Unavailable, "DRAINING", "order"));
    assert!(retry_after(&status).is_some());
    drop(steps);
    timeout(GUARD, system.running).await.expect("it stops").expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn a_draining_instance_is_alive_and_not_ready() {
    let system = System::new().await;
    system.payments.set_state(PaymentState::Pending);
    assert_eq!(system.admin("/readyz").await, "HTTP/1.1 200 OK");
    let ada = system.client("customer");
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    let mut steps = ada.watch(&id, 0).await.expect("the order");
    steps.message().await.expect("an open stream").expect("a step");
    system.shutdown.cancel();
    let turned = async {
        while system.admin("/readyz").await.contains("200") {
            tokio::task::yield_now().await;
        }
    };
    timeout(GUARD, turned).await.expect("it becomes unready immediately");
    assert!(!system.running.is_finished(), "the drain waits for the open stream");
    assert_eq!(system.admin("/livez").await, "HTTP/1.1 200 OK");
    drop(steps);
    timeout(GUARD, system.running).await.expect("it stops").expect("no panic").expect("a clean end");
}
