//! The contract over real sockets: authorization, and the responses.

use std::time::Duration;

use contracts::common::v1::EventType;
use contracts::data::v1::EventStatus;
use contracts::order::v1 as proto;
use contracts::payment::v1::PaymentState;
use kernel::{IdSource, SystemIds};
use telemetry::TraceEvent;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::system::{Client, System, SystemOptions, error_of, mugs, rejection, state};
use crate::world::GUARD;

#[tokio::test]
async fn an_order_goes_from_creation_to_fulfilment_and_its_customer_watches_it() {
    let system = System::new().await;
    let ada = system.client("customer");
    let order = ada.create(mugs(3)).await.expect("an order");
    assert_eq!((state(order.state()), order.version, order.user_id), ("CREATED".into(), 1, ada.id.to_string()));
    assert!(order.order_id.ends_with("07"), "{} is of cell 7", order.order_id);
    assert_eq!(order.total.expect("a total").minor_units, 300);
    let (states, end) = ada.watch_to_the_end(&order.order_id, 0).await;
    end.expect("a clean end");
    assert_eq!(states, ["CREATED", "PAID", "ALLOCATED", "FULFILLMENT_STARTED"]);
    let got = ada.get(&order.order_id).await.expect("the order");
    assert_eq!(got.history.len(), 4);
    let done = got.order.expect("an order");
    assert!(done.delivery_date.is_some() && !done.fulfillment_id.is_empty());
    // Its events arrive at the Data Service, all in one trace.
    for (kind, operation) in [
        (EventType::OrderCreation, "order.v1.OrderService/CreateOrder"),
        (EventType::OrderFulfillment, "allocate_inventory"),
        (EventType::OrderFulfillment, "start_fulfillment"),
    ] {
        let event = system.data.event(|event| event.operation == operation).await;
        assert_eq!((event.r#type(), event.status()), (kind, EventStatus::Success));
        assert_eq!((event.order_id, event.user_id), (order.order_id.clone(), ada.id.to_string()));
        assert_eq!((event.service.as_str(), event.instance.as_str()), ("order", "order-1"));
    }
}

#[tokio::test]
async fn a_declined_payment_has_a_reason() {
    let system = System::new().await;
    system.payments.set_state(PaymentState::Declined);
    let ada = system.client("customer");
    let order = ada.create(mugs(1)).await.expect("an order");
    let mut steps = ada.watch(&order.order_id, 1).await.expect("the order");
    let step = steps.message().await.expect("an open stream").expect("a step");
    assert_eq!(state(step.entry.expect("an entry").state()), "PAYMENT_FAILED");
    assert!(!step.payment_failure.expect("a reason").reason.is_empty());
    assert!(steps.message().await.expect("a clean end").is_none());
}

#[tokio::test]
async fn another_customers_order_is_not_found() {
    let system = System::new().await;
    let (ada, eve) = (system.client("customer"), system.client("customer"));
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    let absent = SystemIds.uuid().to_string();
    let expected = error_of(Code::NotFound, "ORDER_NOT_FOUND", "order");
    for id in [&id, &absent] {
        let rejections: [Status; 3] = [
            eve.get(id).await.expect_err("another customer's"),
            eve.cancel(id).await.expect_err("another customer's"),
            eve.watch_to_the_end(id, 0).await.1.expect_err("another customer's"),
        ];
        for status in rejections {
            assert_eq!(rejection(&status), expected);
            assert_eq!(status.message(), "there is no such order");
        }
    }
    let list = eve.orders().list_orders(eve.request(proto::ListOrdersRequest::default())).await.expect("the list");
    assert!(list.into_inner().orders.is_empty());
    let operator = system.client("operator");
    operator.get(&id).await.expect("an operator sees all orders");
    ada.get(&id).await.expect("the own order");
}

#[tokio::test]
async fn customers_have_no_operator_rpcs_and_anonymous_callers_none() {
    let system = System::new().await;
    let (ada, anonymous_client) = (system.client("customer"), system.anonymous_client());
    // Authorization comes before existence: neither the id nor the fields are checked.
    for (client, expected) in [
        (&ada, error_of(Code::PermissionDenied, "ROLE_NOT_ALLOWED", "mesh")),
        (&anonymous_client, error_of(Code::Unauthenticated, "TOKEN_MISSING", "mesh")),
    ] {
        let mut orders = client.orders();
        let retry =
            orders.retry_order(client.request(proto::RetryOrderRequest::default())).await.expect_err("rejected");
        let explain =
            orders.explain_order(client.request(proto::ExplainOrderRequest::default())).await.expect_err("rejected");
        let mut inventory = client.inventory();
        let adjust = inventory.adjust_stock(client.request(proto::AdjustStockRequest::default()));
        for status in [retry, explain, adjust.await.expect_err("rejected")] {
            assert_eq!(rejection(&status), expected);
        }
    }
    let no_token = error_of(Code::Unauthenticated, "TOKEN_MISSING", "mesh");
    assert_eq!(rejection(&anonymous_client.create(mugs(1)).await.expect_err("rejected")), no_token);
    assert_eq!(rejection(&anonymous_client.get("x").await.expect_err("rejected")), no_token);
    assert_eq!(rejection(&anonymous_client.watch_to_the_end("x", 0).await.1.expect_err("rejected")), no_token);
    let operator = system.client("operator");
    let status = operator.create(mugs(1)).await.expect_err("an operator cannot order");
    assert_eq!(status.code(), Code::PermissionDenied);
    let anonymous_client = proto::ConfirmPaymentRequest { order_id: SystemIds.uuid().to_string() };
    let status = system.confirmations("user").confirm_payment(anonymous_client).await.expect_err("payment only");
    assert_eq!(rejection(&status), error_of(Code::PermissionDenied, "CALLER_NOT_ALLOWED", "mesh"));
}

#[tokio::test]
async fn all_violations_of_an_order_are_reported_together_and_as_an_event() {
    let system = System::new().await;
    let ada = system.client("customer");
    let mut request = mugs(0);
    request.request_id.clear();
    request.items.push(proto::OrderItem { sku: "MUG".into(), quantity: 1 });
    request.items.push(proto::OrderItem { sku: "no sku".into(), quantity: 1 });
    request.payment_method.clear();
    request.contact_email = "nobody".into();
    request.shipping_address = None;
    let status = ada.create(request).await.expect_err("rejected");
    assert_eq!(rejection(&status), error_of(Code::InvalidArgument, "INVALID_ARGUMENT", "order"));
    let named: Vec<_> = status
        .get_details_bad_request()
        .expect("the fields")
        .field_violations
        .into_iter()
        .map(|field| (field.field, field.reason))
        .collect();
    let expected = [
        ("request_id", "REQUEST_ID_REQUIRED"),
        ("items[0].quantity", "INVALID_QUANTITY"),
        ("items[1].sku", "DUPLICATE_ITEM"),
        ("items[2].sku", "INVALID_SKU"),
        ("payment_method", "REQUIRED"),
        ("shipping_address", "REQUIRED"),
        ("contact_email", "INVALID_EMAIL"),
    ];
    assert_eq!(named, expected.map(|(field, reason)| (field.to_owned(), reason.to_owned())));
    let event = system.data.failure(EventType::OrderCreation, "ValidationError").await;
    assert_eq!((event.user_id, event.order_id.is_empty()), (ada.id.to_string(), false));
}

#[tokio::test]
async fn a_blank_address_is_rejected_unless_the_request_has_an_order_of_an_earlier_release() {
    let system = System::new().await;
    let ada = system.client("customer");
    let mut request = mugs(1);
    let address = request.shipping_address.as_mut().expect("an address");
    address.recipient = "\u{200b} ".into();
    address.postal_code = "1011".into();
    let status = ada.create(request.clone()).await.expect_err("rejected");
    let named: Vec<_> = status
        .get_details_bad_request()
        .expect("the fields")
        .field_violations
        .into_iter()
        .map(|field| (field.field, field.reason))
        .collect();
    let expected =
        [("shipping_address.recipient", "REQUIRED"), ("shipping_address.postal_code", "INVALID_POSTAL_CODE")];
    assert_eq!(named, expected.map(|(field, reason)| (field.to_owned(), reason.to_owned())));

    let valid = mugs(1);
    let made = ada.create(valid.clone()).await.expect("an order");
    system.as_of_an_earlier_release(&made.order_id, &request).await;
    let again = ada.create(request.clone()).await.expect("an idempotent replay");
    assert_eq!(again.order_id, made.order_id);
    request.contact_email = "eve@example.com".into();
    let status = ada.create(request).await.expect_err("another command");
    assert_eq!(rejection(&status), error_of(Code::FailedPrecondition, "REQUEST_ID_REUSED", "order"));
}

#[tokio::test]
async fn an_amount_above_the_limit_is_rejected_with_the_limit() {
    let amount_limit = Some("EUR=9.99".parse().expect("a limit"));
    let system = System::with(SystemOptions { amount_limit, ..SystemOptions::default() }).await;
    let ada = system.client("customer");
    let status = ada.create(mugs(10)).await.expect_err("10 euros");
    assert_eq!(rejection(&status), error_of(Code::InvalidArgument, "AMOUNT_TOO_LARGE", "order"));
    let facts = status.get_details_error_info().expect("ErrorInfo").metadata;
    assert_eq!(facts.get("limit").map(String::as_str), Some("9.99 EUR"));
    assert_eq!(facts.get("total").map(String::as_str), Some("10.00 EUR"));
    let event = system.data.failure(EventType::OrderCreation, "ValidationError").await;
    assert_eq!(event.error.expect("an error").reason, "AMOUNT_TOO_LARGE");
    ada.create(mugs(9)).await.expect("control: 9 euros");
}

#[tokio::test]
async fn a_list_is_paged_without_gaps_and_a_page_token_is_bound_to_its_filters() {
    let system = System::new().await;
    let (ada, eve) = (system.client("customer"), system.client("customer"));
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(ada.create(mugs(1)).await.expect("an order").order_id);
        eve.create(mugs(1)).await.expect("an order");
    }
    made.reverse();
    let list = |request: proto::ListOrdersRequest| {
        let ada = ada.clone();
        async move { Ok::<_, Status>(ada.orders().list_orders(ada.request(request)).await?.into_inner()) }
    };
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = list(proto::ListOrdersRequest { page_size: 2, page_token, state: 0 }).await.expect("a page");
        assert!(page.orders.len() <= 2);
        listed.extend(page.orders.into_iter().map(|order| order.order_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, made, "newest first, each once, only the customer's own");

    let token = list(proto::ListOrdersRequest { page_size: 2, ..Default::default() }).await.expect("a page");
    let page_token = token.next_page_token;
    let invalid = [
        proto::ListOrdersRequest { page_size: 2, page_token: page_token.clone(), state: 1 },
        proto::ListOrdersRequest { page_size: 2, page_token: "nonsense".into(), state: 0 },
        proto::ListOrdersRequest { page_size: -1, page_token: String::new(), state: 0 },
        proto::ListOrdersRequest { page_size: 2, page_token: String::new(), state: 77 },
    ];
    for request in invalid {
        let status = list(request).await.expect_err("rejected");
        assert_eq!(rejection(&status), error_of(Code::InvalidArgument, "INVALID_ARGUMENT", "order"));
    }
    let request = proto::ListOrdersRequest { page_size: 2, page_token, state: 0 };
    let status = eve.orders().list_orders(eve.request(request)).await.expect_err("another customer's token");
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_crashed_instances_events_are_sent_although_this_one_never_stops_writing_its_own() {
    let system = System::new().await;
    let ada = system.client("customer");
    // The service has its schema once it responds.
    ada.create(mugs(1)).await.expect("an order");
    let left = TraceEvent {
        event_id: SystemIds.uuid(),
        event_type: "order_creation".into(),
        status: telemetry::EventStatus::Success,
        service: "order".into(),
        instance: String::new(),
        operation: "left behind".into(),
        trace_id: "a".repeat(32),
        span_id: "b".repeat(16),
        start_micros: 0,
        duration_micros: 0,
        order_id: None,
        user_id: None,
        error: None,
        attributes: Default::default(),
        suppressed_count: 0,
    };
    system.leave_event_of("order-9", left).await;
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    let busy = async {
        loop {
            pace.tick().await;
            ada.create(mugs(-1)).await.expect_err("rejected, which is an event");
        }
    };
    tokio::select! {
        event = system.data.event(|event| event.operation == "left behind") => assert_eq!(event.instance, "order-9"),
        () = busy => {}
    }
}

#[tokio::test]
async fn an_operator_sees_the_whole_timeline_and_adjusts_the_stock() {
    let system = System::new().await;
    let (ada, operator) = (system.client("customer"), system.client("operator"));
    let id = ada.create(mugs(2)).await.expect("an order").order_id;
    ada.watch_to_the_end(&id, 0).await.1.expect("a clean end");
    system.data.event(|event| event.operation == "start_fulfillment").await;
    let request = proto::ExplainOrderRequest { order_id: id.clone() };
    let story = operator.orders().explain_order(operator.request(request)).await.expect("the story").into_inner();
    assert_eq!((story.gateway_ledger.as_str(), story.gaps.len()), ("SUCCEEDED", 0));
    let of = |source: &str| story.timeline.iter().filter(|entry| entry.source == source).count();
    assert_eq!((of("history"), of("event")), (4, 3));
    let timestamp = |entry: &proto::TimelineEntry| entry.time.map(|time| (time.seconds, time.nanos));
    assert!(story.timeline.is_sorted_by_key(timestamp));
    assert!(story.timeline.iter().all(|entry| entry.span_id.len() == 16));

    let adjust = proto::AdjustStockRequest {
        request_id: SystemIds.uuid().to_string(),
        sku: "MUG".into(),
        delta: -999,
        write_off: false,
    };
    let status = operator.inventory().adjust_stock(operator.request(adjust.clone())).await.expect_err("reserved");
    assert_eq!(rejection(&status), error_of(Code::FailedPrecondition, "STOCK_RESERVED", "order"));
    let fewer = proto::AdjustStockRequest { delta: -998, ..adjust };
    let stock =
        operator.inventory().adjust_stock(operator.request(fewer)).await.expect("free stock").into_inner().stock;
    assert_eq!(stock.map(|stock| (stock.on_hand, stock.reserved)), Some((2, 2)));
    let request = proto::RetryOrderRequest { order_id: id };
    let status = operator.orders().retry_order(operator.request(request)).await.expect_err("nothing to retry");
    assert_eq!(rejection(&status), error_of(Code::FailedPrecondition, "ORDER_NOT_RETRYABLE", "order"));
}

#[tokio::test]
async fn a_confirmation_by_the_payment_service_wakes_an_order_with_a_pending_payment() {
    let system = System::new().await;
    system.payments.set_state(PaymentState::Pending);
    let ada = system.client("customer");
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    let mut steps = ada.watch(&id, 1).await.expect("the order");
    system.payments.called_for(&id).await;
    system.payments.set_state(PaymentState::Succeeded);
    // The backoff is a minute: only the confirmation makes it continue.
    let confirmation = proto::ConfirmPaymentRequest { order_id: id.clone() };
    system.confirmations("payment").confirm_payment(confirmation).await.expect("confirmed");
    let step = steps.message().await.expect("an open stream").expect("a step");
    assert_eq!(state(step.entry.expect("an entry").state()), "PAID");
}

#[tokio::test]
async fn the_error_of_a_failed_attempt_is_shown_to_operators_only() {
    let system = System::new().await;
    system.payments.set_state(PaymentState::Pending);
    let (ada, operator) = (system.client("customer"), system.client("operator"));
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    let error_shown_to = async |client: &Client| loop {
        let last_error = client.get(&id).await.expect("a response").order.expect("the order").last_error;
        if !last_error.is_empty() {
            return last_error;
        }
    };
    let for_the_operator = tokio::time::timeout(GUARD, error_shown_to(&operator)).await.expect("recorded");
    assert_eq!(for_the_operator, "the payment is PENDING");
    assert_eq!(error_shown_to(&ada).await, "the last attempt failed and will be retried");
}

#[tokio::test]
async fn a_customer_cancels_an_order_and_watches_it() {
    let system = System::new().await;
    system.payments.set_state(PaymentState::Pending);
    let ada = system.client("customer");
    let id = ada.create(mugs(1)).await.expect("an order").order_id;
    system.payments.called_for(&id).await;
    system.payments.set_state(PaymentState::Cancelled);
    let cancelled = ada.cancel(&id).await.expect("it is not too late");
    assert_eq!(state(cancelled.state()), "CANCELLING");
    let (states, end) = ada.watch_to_the_end(&id, 0).await;
    end.expect("a clean end");
    assert_eq!(states, ["CREATED", "CANCELLING", "CANCELLED"]);
    assert_eq!(state(ada.cancel(&id).await.expect("twice is OK").state()), "CANCELLED");
    let again = ada.create(mugs(1)).await.expect("another order");
    assert_ne!(again.order_id, id);
}
