//! Limits, and unavailable peers.

use std::time::Duration;

use contracts::common::v1::EventType;
use contracts::data::v1 as data;
use contracts::order::v1 as proto;
use tonic::Code;

use crate::system::{System, SystemOptions, error_of, mugs, rejection, retry_after};

#[tokio::test]
async fn a_message_over_the_limit_is_rejected_unread() {
    let system = System::new().await;
    let ada = system.client("customer");
    let mut request = mugs(1);
    request.contact_email = "a".repeat(70 * 1_024);
    let status = ada.create(request).await.expect_err("too long");
    assert_eq!(rejection(&status), error_of(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", "mesh"));
    ada.create(mugs(1)).await.expect("a shorter one");
}

#[tokio::test]
async fn an_order_that_exceeds_the_memory_budget_is_out_of_memory_and_a_small_one_is_accepted() {
    let budget = Some(chassis::ByteSize(4 * 1_024));
    let system = System::with(SystemOptions { memory_budget: budget, ..SystemOptions::default() }).await;
    let ada = system.client("customer");
    let mut request = mugs(1);
    request.items =
        (0..100).map(|number| proto::OrderItem { sku: format!("MUG-OF-COLOUR-{number}"), quantity: 1 }).collect();
    let status = ada.create(request).await.expect_err("it does not fit");
    assert_eq!(rejection(&status), error_of(Code::ResourceExhausted, "OUT_OF_MEMORY", "mesh"));
    assert!(retry_after(&status).is_some());
    let event = system.data.failure(EventType::OrderCreation, "OutOfMemoryError").await;
    assert_eq!((event.order_id.as_str(), event.error.expect("a reason").reason.as_str()), ("", "OUT_OF_MEMORY"));
    let order = ada.create(mugs(1)).await.expect("it fits");
    ada.watch_to_the_end(&order.order_id, 0).await.1.expect("a clean end");
}

#[tokio::test]
async fn a_customer_over_the_quota_gets_a_retry_delay_and_others_are_served() {
    let quota = Some(mesh::Quota { calls: 2, per: Duration::from_secs(3_600) });
    let system = System::with(SystemOptions { create_order_quota: quota, ..SystemOptions::default() }).await;
    let (ada, bob) = (system.client("customer"), system.client("customer"));
    for _ in 0..2 {
        ada.create(mugs(1)).await.expect("within the quota");
    }
    let status = ada.create(mugs(1)).await.expect_err("one too many");
    assert_eq!(rejection(&status), error_of(Code::ResourceExhausted, "RATE_LIMITED", "mesh"));
    assert!(retry_after(&status).is_some_and(|wait| wait > Duration::from_secs(60)));
    bob.create(mugs(1)).await.expect("another's quota");
    ada.orders().list_orders(ada.request(proto::ListOrdersRequest::default())).await.expect("another method");
}

#[tokio::test]
async fn without_the_data_service_orders_are_rejected_and_events_are_queued() {
    let mut system = System::with(SystemOptions { data_is_down: true, ..SystemOptions::default() }).await;
    let ada = system.client("customer");
    let request = mugs(1);
    let status = ada.create(request.clone()).await.expect_err("the catalogue is down");
    assert_eq!(rejection(&status), error_of(Code::Unavailable, "LOOKUP_FAILED", "order"));
    assert!(retry_after(&status).is_some());
    let list = ada.orders().list_orders(ada.request(proto::ListOrdersRequest::default())).await.expect("the list");
    assert!(list.into_inner().orders.is_empty());
    system.data_comes_up();
    let creation = system.data.failure(EventType::OrderCreation, "CONNECTION_ERROR").await;
    assert_eq!(creation.error.expect("a reason").reason, "LOOKUP_FAILED");
    let lookup = system.data.failure(EventType::DataLookup, "CONNECTION_ERROR").await;
    assert_eq!((lookup.service.as_str(), &lookup.trace_id), ("order", &lookup.trace_id));
    assert!(lookup.operation.starts_with("data.v1.CatalogService/"));
    ada.create(request).await.expect("the same request may be retried");
}

#[tokio::test]
async fn an_unavailable_payment_service_is_an_event_for_each_order_and_repetitions_are_counted() {
    let system = System::with(SystemOptions { payments_are_down: true, ..SystemOptions::default() }).await;
    let ada = system.client("customer");
    let orders = [ada.create(mugs(1)).await.expect("acknowledged"), ada.create(mugs(1)).await.expect("acknowledged")];
    let is_try = |event: &data::TraceEvent| {
        event.r#type() == EventType::PaymentProcessing
            && event.error.as_ref().is_some_and(|error| error.reason == "UNREACHABLE")
    };
    for order in orders {
        let is_first = |event: &data::TraceEvent| {
            is_try(event) && event.order_id == order.order_id && !event.attributes.contains_key(mesh::ATTEMPT)
        };
        assert_eq!(system.data.event(is_first).await.suppressed_count, 0);
    }
    let sum = system.data.event(|event| is_try(event) && event.suppressed_count > 0).await;
    let attempt: u32 = sum.attributes[mesh::ATTEMPT].parse().expect("a number");
    assert!(attempt > 1, "a summary row counts only repetitions: {sum:?}");
}
