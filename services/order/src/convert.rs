//! Contract ⇄ domain. Every check of a field is here.

use chassis::page::{Page, page_size};
use chassis::{Decoded, Fields, Fingerprint, Invalid, PageToken, encode};
use contracts::common::v1 as common;
use contracts::order::v1 as proto;
use kernel::{OrderId, UserId};
use mesh::{Caller, Role};

use crate::inventory::{AdjustStock, Stock};
use crate::lifecycle::State;
use crate::order::{Address, CreateOrder, HistoryEntry, LineState, Order, PaymentFailure, PaymentMethod, Scope};

/// Maximum number of items of an order.
const MAX_ITEMS: usize = 100;
/// Maximum quantity of an item.
const MAX_QUANTITY: i32 = 999;
/// Maximum change of stock per request, in either direction.
const MAX_DELTA: i64 = 1_000_000_000;

/// The orders visible to the caller. The policy table admits only users.
pub(crate) fn scope(caller: &Caller) -> Scope {
    match caller {
        Caller::User { role: Role::Operator, .. } => Scope::All,
        Caller::User { user_id, .. } => Scope::Of(UserId::from_uuid(*user_id)),
        Caller::Anonymous | Caller::Service { .. } => Scope::Of(UserId::from_uuid(uuid::Uuid::nil())),
    }
}

/// The caller's own id.
pub(crate) fn user(caller: &Caller) -> UserId {
    match caller {
        Caller::User { user_id, .. } => UserId::from_uuid(*user_id),
        Caller::Anonymous | Caller::Service { .. } => UserId::from_uuid(uuid::Uuid::nil()),
    }
}

/// A command that breaks only rules added by a later release may be a retry of one that has its order already.
pub(crate) fn create_order(request: proto::CreateOrderRequest) -> Result<Decoded<CreateOrder>, Invalid> {
    let mut fields = Fields::default();
    let request_id = fields.request_id(&request.request_id);
    let items = items(&mut fields, &request.items);
    let payment_method = fields.payment_method("payment_method", &request.payment_method);
    let address = fields.address("shipping_address", request.shipping_address.as_ref());
    let contact_email = fields.email("contact_email", &request.contact_email);
    let expected_total = request.expected_total.as_ref().map(|total| fields.money("expected_total", Some(total)));
    let command = (|| {
        let address = address?;
        Some(CreateOrder {
            request_id: request_id?,
            items: items?,
            payment_method: PaymentMethod::new(payment_method?),
            address: Address {
                recipient: address.recipient,
                lines: address.lines,
                city: address.city,
                postal_code: address.postal_code,
                country_code: address.country_code,
            },
            contact_email: contact_email?,
            expected_total: match expected_total {
                Some(total) => Some(total?),
                None => None,
            },
        })
    })();
    fields.finish_known(command)
}

fn items(fields: &mut Fields, items: &[proto::OrderItem]) -> Option<Vec<(String, u32)>> {
    if items.is_empty() {
        fields.refuse("items", "EMPTY_ORDER", "an order needs at least one item");
        return None;
    }
    if items.len() > MAX_ITEMS {
        fields.refuse("items", "TOO_MANY_ITEMS", format!("an order has at most {MAX_ITEMS} items"));
        return None;
    }
    let mut decoded: Vec<(String, u32)> = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let sku = fields.sku(format!("items[{index}].sku"), &item.sku);
        let quantity =
            if (1..=MAX_QUANTITY).contains(&item.quantity) { u32::try_from(item.quantity).ok() } else { None };
        if quantity.is_none() {
            let description = format!("must be 1 to {MAX_QUANTITY}");
            fields.refuse(format!("items[{index}].quantity"), "INVALID_QUANTITY", description);
        }
        if let Some(sku) = sku {
            if decoded.iter().any(|(known, _)| *known == sku) {
                let description = format!("{sku} is listed twice; combine the quantities");
                fields.refuse(format!("items[{index}].sku"), "DUPLICATE_ITEM", description);
            }
            decoded.push((sku, quantity.unwrap_or(0)));
        }
    }
    Some(decoded)
}

pub(crate) fn order_id(id: &str) -> Result<OrderId, Invalid> {
    let mut fields = Fields::default();
    let id = fields.id("order_id", id);
    fields.finish(id)
}

/// A page of a list, decoded.
pub(crate) struct ListOrders {
    pub(crate) state: Option<State>,
    pub(crate) page: PageToken<OrderId>,
    pub(crate) size: u32,
}

pub(crate) fn list_orders(scope: Scope, request: &proto::ListOrdersRequest) -> Result<ListOrders, Invalid> {
    let mut fields = Fields::default();
    let size = page_size(&mut fields, request.page_size, 50, 200);
    let state = match proto::OrderState::try_from(request.state) {
        Ok(proto::OrderState::Unspecified) => None,
        Ok(state) => State::of(state.as_str_name().trim_start_matches("ORDER_STATE_")),
        Err(_) => {
            fields.refuse("state", "UNKNOWN_STATE", "not a state of an order");
            None
        }
    };
    let whose = match scope {
        Scope::Of(user) => user.to_string(),
        Scope::All => "all".into(),
    };
    let filters = Fingerprint::of("ListOrders/1").part("whose", whose).part("state", request.state);
    let page = PageToken::decode(&mut fields, &request.page_token, filters, |key| key.parse().ok());
    fields.finish(Some(ListOrders { state, page, size }))
}

pub(crate) fn watch_order(request: &proto::WatchOrderRequest) -> Result<(OrderId, i64), Invalid> {
    let mut fields = Fields::default();
    let id = fields.id("order_id", &request.order_id);
    if request.after_version < 0 {
        fields.refuse("after_version", "NEGATIVE_VERSION", "versions count from 1; 0 means all");
    }
    fields.finish(id.map(|id| (id, request.after_version)))
}

pub(crate) fn skus(skus: Vec<String>) -> Result<Vec<String>, Invalid> {
    let mut fields = Fields::default();
    if skus.is_empty() || skus.len() > MAX_ITEMS {
        fields.refuse("skus", "INVALID_LENGTH", format!("must be 1 to {MAX_ITEMS} SKUs"));
    }
    for (index, sku) in skus.iter().take(MAX_ITEMS).enumerate() {
        fields.sku(format!("skus[{index}]"), sku);
    }
    fields.finish(Some(skus))
}

pub(crate) fn adjust_stock(request: &proto::AdjustStockRequest) -> Result<AdjustStock, Invalid> {
    let mut fields = Fields::default();
    let request_id = fields.request_id(&request.request_id);
    let sku = fields.sku("sku", &request.sku);
    if request.delta == 0 || request.delta.unsigned_abs() > MAX_DELTA.unsigned_abs() {
        fields.refuse("delta", "INVALID_DELTA", format!("must be at most {MAX_DELTA} either way, and not 0"));
    }
    let command = (|| {
        Some(AdjustStock { request_id: request_id?, sku: sku?, delta: request.delta, write_off: request.write_off })
    })();
    fields.finish(command)
}

fn state(state: State) -> proto::OrderState {
    proto::OrderState::from_str_name(&format!("ORDER_STATE_{}", state.name())).unwrap_or_default()
}

fn line_state(state: LineState) -> proto::LineState {
    match state {
        LineState::Held => proto::LineState::Held,
        LineState::Allocated => proto::LineState::Allocated,
        LineState::Released => proto::LineState::Released,
        LineState::Lost => proto::LineState::Lost,
    }
}

/// `YYYY-MM-DD` as the contract's date.
pub(crate) fn date(text: &str) -> Option<common::Date> {
    let mut parts = text.split('-').map(str::parse);
    let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day))) = (parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    Some(common::Date { year, month, day })
}

pub(crate) fn payment_failure(failure: &PaymentFailure) -> proto::PaymentFailure {
    proto::PaymentFailure {
        reason: failure.reason.clone(),
        decline_code: failure.decline_code.clone(),
        advice: failure.shown_advice().to_owned(),
        message: failure.message.clone(),
    }
}

/// Shown to a customer instead of the last error: peers' error texts, with their addresses, are for operators only.
const TRIED_AGAIN: &str = "the last attempt failed and will be retried";

pub(crate) fn order(seen_by: Scope, order: &Order) -> proto::Order {
    let last_error = order.last_error.as_deref().map(|error| match seen_by {
        Scope::All => error,
        Scope::Of(_) => TRIED_AGAIN,
    });
    let Address { recipient, lines, city, postal_code, country_code } = order.address.clone();
    proto::Order {
        order_id: order.id.to_string(),
        user_id: order.user.to_string(),
        state: state(order.state).into(),
        version: order.version,
        lines: order
            .lines
            .iter()
            .map(|line| proto::OrderLine {
                sku: line.sku.clone(),
                name: line.name.clone(),
                quantity: i32::try_from(line.quantity).unwrap_or(i32::MAX),
                unit_price: Some(encode::money(line.unit_price)),
                state: line_state(line.state).into(),
            })
            .collect(),
        total: Some(encode::money(order.total)),
        shipping_address: Some(common::Address { recipient, lines, city, postal_code, country_code }),
        contact_email: order.contact_email.clone(),
        delivery_date: order.fulfillment.as_ref().and_then(|started| date(&started.delivery_date)),
        fulfillment_id: order.fulfillment.as_ref().map(|started| started.id.to_string()).unwrap_or_default(),
        payment_failure: order.payment_failure.as_ref().map(payment_failure),
        next_attempt_time: order.next_attempt_time.map(encode::timestamp),
        last_error: last_error.unwrap_or_default().to_owned(),
        create_time: Some(encode::timestamp(order.create_time)),
        update_time: Some(encode::timestamp(order.update_time)),
        trace_id: order.span_ref.trace_id(),
    }
}

/// A page, cut from one order more than the page's size.
pub(crate) fn orders(seen_by: Scope, orders: &[Order], list: &ListOrders) -> proto::ListOrdersResponse {
    let next = |last: &proto::Order| list.page.next(&last.order_id);
    let Page { entries, next_page_token } = Page::cut(orders, list.size, |each| order(seen_by, each), next);
    proto::ListOrdersResponse { orders: entries, next_page_token }
}

pub(crate) fn history(entry: &HistoryEntry) -> proto::OrderHistoryEntry {
    proto::OrderHistoryEntry {
        version: entry.version,
        state: state(entry.state).into(),
        time: Some(encode::timestamp(entry.time)),
        reason: entry.reason.clone(),
        trace_id: entry.trace_id.clone(),
        span_id: entry.span_id.clone(),
    }
}

pub(crate) fn stock(stock: Stock) -> proto::Stock {
    proto::Stock { sku: stock.sku, on_hand: stock.on_hand, reserved: stock.reserved }
}

#[cfg(test)]
pub(crate) mod tests {
    use kernel::{Currency, FulfillmentId, Money, Timestamp};
    use prost::Message;
    use uuid::Uuid;

    use super::*;
    use crate::order::{Fulfillment, Line};
    use crate::ports::Transit;

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
    fn largest(id: u128) -> Order {
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
            payment_failure: Some(PaymentFailure {
                reason: text(),
                decline_code: text(),
                advice: text(),
                message: text(),
            }),
            fulfillment: Some(Fulfillment {
                id: FulfillmentId::from_uuid(Uuid::max()),
                delivery_date: "9999-12-31".into(),
            }),
            attempt: i32::MAX,
            next_attempt_time: Some(Timestamp::from_micros(i64::MAX)),
            last_error: Some(wide(500)),
            span_ref: format!("00-{}-{}-01", "a".repeat(32), "b".repeat(16)).parse().expect("a traceparent"),
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
        let (mut seen, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = proto::ListOrdersRequest { page_size: 200, page_token, ..Default::default() };
            let list = list_orders(Scope::All, &request).expect("a valid request");
            let read: Vec<Order> = all
                .iter()
                .filter(|order| list.page.after.is_none_or(|after| order.id < after))
                .take(usize::try_from(list.size).expect("it fits") + 1)
                .cloned()
                .collect();
            let answer = orders(Scope::All, &read, &list);
            assert!(answer.encoded_len() < 4_194_304, "{}", answer.encoded_len());
            seen.extend(answer.orders.into_iter().map(|order| order.order_id));
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, all.iter().map(|order| order.id.to_string()).collect::<Vec<_>>());
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
        let history = vec![history(&entry); usize::try_from(crate::store::MAX_STEPS).expect("it fits")];
        let answer = proto::GetOrderResponse { order: Some(largest_order()), history };
        assert!(answer.encoded_len() < 4_194_304, "{}", answer.encoded_len());
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
            Ok(decoded) => decoded.breaks.expect("a refusal").0,
            Err(invalid) => invalid.0,
        };
        violations.into_iter().map(|violation| (violation.field, violation.reason)).collect()
    }

    #[test]
    fn a_valid_order_is_decoded() {
        let Decoded { command, breaks } = create_order(request()).expect("a valid order");
        assert_eq!(breaks, None);
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
        assert_eq!(
            reasons(|r| r.items = vec![item("A", 1), item("A", 2)]),
            [("items[1].sku".into(), "DUPLICATE_ITEM")]
        );
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
        let to =
            |change: fn(&mut common::Address)| reasons(|r| change(r.shipping_address.as_mut().expect("an address")));
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
        assert_eq!(
            reasons(|r| r.payment_method = "pm card".into()),
            [("payment_method".into(), "INVALID_PAYMENT_METHOD")]
        );
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
            assert_eq!(state(each).as_str_name(), format!("ORDER_STATE_{}", each.name()));
        }
    }
}

#[cfg(test)]
mod fuzz;
