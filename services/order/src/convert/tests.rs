//! The rules about each field, and that the largest messages fit.

use chassis::Decoded;
use contracts::common::v1 as common;
use contracts::order::v1 as proto;
use kernel::{Currency, FulfillmentId, Money, OrderId, Timestamp, UserId};
use prost::Message;
use uuid::Uuid;

use super::request::{MAX_ITEMS, MAX_QUANTITY};
use super::*;
use crate::lifecycle::State;
use crate::order::{
    Address, Fulfillment, HistoryEntry, Line, LineState, Order, PaymentFailure, PaymentMethod, Scope, Transit,
};

#[test]
fn the_contracts_limits_match_the_decoders_and_the_largest_request_fits_into_a_message() {
    let limits = |path: &str| contracts::POLICIES.find(path).expect("a method").limits;
    let items = limits("/order.v1.OrderService/CreateOrder");
    let found: Vec<_> = items.iter().map(|limit| (limit.field, limit.max_items, limit.reason)).collect();
    assert_eq!(found, [("items", MAX_ITEMS, "TOO_MANY_ITEMS"), ("shipping_address.lines", 3, "INVALID_LENGTH")]);
    assert_eq!(limits("/order.v1.InventoryService/BatchGetStock")[0].max_items, MAX_ITEMS);
    let wide = |count: usize| "😀".repeat(count);
    let request = proto::CreateOrderRequest {
        request_id: Uuid::nil().to_string(),
        items: vec![proto::OrderItem { sku: "X".repeat(64), quantity: MAX_QUANTITY }; MAX_ITEMS],
        payment_method: "x".repeat(255),
        shipping_address: Some(common::Address {
            recipient: wide(200),
            lines: vec![wide(200); 3],
            city: wide(200),
            postal_code: wide(20),
            country_code: "DE".into(),
        }),
        contact_email: "x".repeat(254),
        expected_total: Some(common::Money { currency_code: "EUR".into(), minor_units: i64::MAX }),
    };
    assert!(request.encoded_len() < mesh::DEFAULT_MAX_MESSAGE_BYTES / 4, "{}", request.encoded_len());
}

/// An order of the maximum size: its products' names and its address are as long as they may be.
pub(crate) fn largest(id: u128) -> Order {
    let currency: Currency = "EUR".parse().expect("a currency");
    let wide = |count: usize| "😀".repeat(count);
    let line = |sku: usize| Line {
        sku: format!("{sku:0>64}"),
        name: wide(200),
        quantity: 999,
        unit_price: Money::new(currency, i64::MAX),
        state: LineState::Lost,
    };
    let text = || "x".repeat(500);
    Order {
        id: OrderId::from_uuid(Uuid::from_u128(id)),
        user: UserId::from_uuid(Uuid::max()),
        state: State::NeedsAttention,
        version: i64::MAX,
        lines: (0..MAX_ITEMS).map(line).collect(),
        total: Money::new(currency, i64::MAX),
        address: Address {
            recipient: wide(200),
            lines: vec![wide(200); 3],
            city: wide(200),
            postal_code: wide(200),
            country_code: "DE".into(),
        },
        contact_email: "x".repeat(254),
        payment_method: None,
        transit: Transit { business_days: 1, cutoff_hour: 1 },
        refund_attempt: i32::MAX,
        payment_failure: Some(PaymentFailure { reason: text(), decline_code: text(), advice: text(), message: text() }),
        fulfillment: Some(Fulfillment {
            id: FulfillmentId::from_uuid(Uuid::max()),
            delivery_date: "9999-12-31".into(),
        }),
        attempt: i32::MAX,
        next_attempt_time: Some(Timestamp::from_micros(i64::MAX)),
        last_error: Some(wide(500)),
        traceparent: format!("00-{}-{}-01", "a".repeat(32), "b".repeat(16)).parse().expect("a traceparent"),
        create_time: Timestamp::from_micros(i64::MAX),
        update_time: Timestamp::from_micros(i64::MAX),
    }
}

pub(crate) fn largest_order() -> proto::Order {
    order(Scope::All, &largest(1))
}

#[test]
fn pages_of_the_largest_orders_are_shorter_and_skip_none() {
    assert!(largest_order().encoded_len() < 110_000, "{}", largest_order().encoded_len());
    let all: Vec<Order> = (1..=201).rev().map(largest).collect();
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = proto::ListOrdersRequest { page_size: 200, page_token, ..Default::default() };
        let list = list_orders(Scope::All, &request).expect("a valid request");
        let read: Vec<Order> = all
            .iter()
            .filter(|order| list.page.after.is_none_or(|after| order.id < after))
            .take(usize::try_from(list.size).expect("it fits") + 1)
            .cloned()
            .collect();
        let response = orders(Scope::All, &read, &list);
        assert!(response.encoded_len() < 4_194_304, "{}", response.encoded_len());
        listed.extend(response.orders.into_iter().map(|order| order.order_id));
        page_token = response.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, all.iter().map(|order| order.id.to_string()).collect::<Vec<_>>());
}

#[test]
fn the_longest_history_fits_into_the_default_message_limit() {
    let entry = HistoryEntry {
        version: i64::MAX,
        state: State::FulfillmentStarted,
        time: Timestamp::from_micros(i64::MAX),
        reason: "x".repeat(1_000),
        trace_id: "a".repeat(32),
        span_id: "b".repeat(16),
    };
    let history =
        vec![proto::OrderHistoryEntry::from(entry); usize::try_from(crate::store::MAX_HISTORY).expect("it fits")];
    let response = proto::GetOrderResponse { order: Some(largest_order()), history };
    assert!(response.encoded_len() < 4_194_304, "{}", response.encoded_len());
}

fn request() -> proto::CreateOrderRequest {
    proto::CreateOrderRequest {
        request_id: "0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e".into(),
        items: vec![proto::OrderItem { sku: "MUG".into(), quantity: 2 }],
        payment_method: "pm_card_visa".into(),
        shipping_address: Some(common::Address {
            recipient: "Ada".into(),
            lines: vec!["Street 1".into()],
            city: "Berlin".into(),
            postal_code: "10115".into(),
            country_code: "DE".into(),
        }),
        contact_email: "Ada@Example.com".into(),
        expected_total: None,
    }
}

fn reasons(change: impl FnOnce(&mut proto::CreateOrderRequest)) -> Vec<(String, &'static str)> {
    let mut request = request();
    change(&mut request);
    let violations = match create_order(request) {
        Ok(decoded) => decoded.violations.expect("a rejection").0,
        Err(invalid) => invalid.0,
    };
    violations.into_iter().map(|violation| (violation.field, violation.reason)).collect()
}

#[test]
fn a_valid_order_is_decoded() {
    let Decoded { command, violations } = create_order(request()).expect("a valid order");
    assert_eq!(violations, None);
    assert_eq!(command.items, [("MUG".to_owned(), 2)]);
    assert_eq!(command.contact_email, "ada@example.com");
}

#[test]
fn every_violation_of_an_order_is_reported() {
    let item = |sku: &str, quantity| proto::OrderItem { sku: sku.into(), quantity };
    assert_eq!(reasons(|r| r.request_id.clear()), [("request_id".into(), "REQUEST_ID_REQUIRED")]);
    assert_eq!(reasons(|r| r.request_id = "7".into()), [("request_id".into(), "INVALID_ID")]);
    assert_eq!(reasons(|r| r.items.clear()), [("items".into(), "EMPTY_ORDER")]);
    assert_eq!(reasons(|r| r.items = vec![item("A", 1); 101]), [("items".into(), "TOO_MANY_ITEMS")]);
    for quantity in [0, -1, 1000, i32::MAX, i32::MIN] {
        assert_eq!(
            reasons(|r| r.items = vec![item("A", quantity)]),
            [("items[0].quantity".into(), "INVALID_QUANTITY")]
        );
    }
    assert_eq!(reasons(|r| r.items = vec![item("A", 1), item("A", 2)]), [("items[1].sku".into(), "DUPLICATE_ITEM")]);
    assert_eq!(reasons(|r| r.items = vec![item("a", 1)]), [("items[0].sku".into(), "INVALID_SKU")]);
    assert_eq!(reasons(|r| r.payment_method.clear()), [("payment_method".into(), "REQUIRED")]);
    assert_eq!(reasons(|r| r.shipping_address = None), [("shipping_address".into(), "REQUIRED")]);
    assert_eq!(reasons(|r| r.contact_email = "nobody".into()), [("contact_email".into(), "INVALID_EMAIL")]);
    let unknown = common::Money { currency_code: "XXX".into(), minor_units: 1 };
    assert_eq!(
        reasons(|r| r.expected_total = Some(unknown)),
        [("expected_total.currency_code".into(), "UNKNOWN_CURRENCY")]
    );
    assert_eq!(reasons(|r| *r = proto::CreateOrderRequest::default()).len(), 5);
}

#[test]
fn a_command_valid_in_an_earlier_release_is_rejected_but_still_decoded() {
    let to = |change: fn(&mut common::Address)| reasons(|r| change(r.shipping_address.as_mut().expect("an address")));
    assert_eq!(to(|a| a.recipient = "\u{a0}".into()), [("shipping_address.recipient".into(), "REQUIRED")]);
    assert_eq!(to(|a| a.city = "\u{200b}".into()), [("shipping_address.city".into(), "REQUIRED")]);
    assert_eq!(
        to(|a| a.lines[0] = "1 \u{202e}teertS".into()),
        [("shipping_address.lines[0]".into(), "MISLEADING_CHARACTER")]
    );
    assert_eq!(
        to(|a| a.postal_code = "SW1A 1AA".into()),
        [("shipping_address.postal_code".into(), "INVALID_POSTAL_CODE")]
    );
    assert_eq!(reasons(|r| r.payment_method = "pm card".into()), [("payment_method".into(), "INVALID_PAYMENT_METHOD")]);
    assert_eq!(reasons(|r| r.contact_email = "ada@7".into()), [("contact_email".into(), "INVALID_EMAIL")]);
    let blank = proto::CreateOrderRequest { payment_method: " ".into(), ..request() };
    assert_eq!(create_order(blank).expect("decoded").command.payment_method, PaymentMethod::new(" ".into()));
}

#[test]
fn a_page_token_of_another_users_list_is_rejected() {
    let of = |n: u128| Scope::Of(UserId::from_uuid(uuid::Uuid::from_u128(n)));
    let mut request = proto::ListOrdersRequest::default();
    let page = list_orders(of(1), &request).expect("the first page").page;
    request.page_token = page.next("0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e");
    assert!(list_orders(of(1), &request).expect("the next page").page.after.is_some());
    assert!(list_orders(of(2), &request).is_err());
    assert!(list_orders(Scope::All, &request).is_err());
}

#[test]
fn states_have_the_same_names_in_the_contract() {
    for each in crate::lifecycle::STATES {
        assert_eq!(proto::OrderState::from(each).as_str_name(), format!("ORDER_STATE_{}", each.name()));
    }
}
