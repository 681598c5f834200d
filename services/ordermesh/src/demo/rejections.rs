//! Rejected calls, which change nothing.

use contracts::common::v1::EventType::{DataLookup, OrderCreation, UserLogin};
use contracts::common::v1::{Address, Money};
use contracts::data::v1 as data_v1;
use contracts::data::v1::catalog_service_client::CatalogServiceClient;
use contracts::order::v1 as order_v1;
use contracts::order::v1::inventory_service_client::InventoryServiceClient;
use contracts::user::v1 as user_v1;
use contracts::user::v1::user_service_client::UserServiceClient;
use kernel::{IdSource, SystemIds};
use tonic::Code;
use tonic::Code::{
    FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, Unauthenticated,
};
use tonic_types::StatusExt;

use crate::catalog::{FOREIGN, SCARCE};
use crate::demo::expected::{failed, succeeded};
use crate::demo::run::{Run, item, must_fail, new_customer};
use crate::demo::scenario::{Failure, Scenario, ScenarioOutcome, expect_eq};
use crate::system::request;

type Order = order_v1::CreateOrderRequest;
type Mutation = fn(&mut Order);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = invalid_orders();
    all.extend(invalid_addresses());
    all.extend(unacceptable_orders());
    all.extend(identities());
    all.extend(reads());
    all
}

#[rustfmt::skip]
fn invalid_orders() -> Vec<Scenario> {
    vec![
        invalid("no-request-id", "no request id", |order| order.request_id.clear(), &[("request_id", "REQUEST_ID_REQUIRED")]),
        invalid("malformed-request-id", "a malformed request id", |order| order.request_id = "42".into(), &[("request_id", "INVALID_ID")]),
        invalid("empty-order", "an empty order", |order| order.items.clear(), &[("items", "EMPTY_ORDER")]),
        invalid("too-many-items", "more than 100 items", |order| order.items = many(101), &[("items", "TOO_MANY_ITEMS")]),
        invalid("malformed-sku", "a malformed SKU", |order| order.items = vec![item("mug blue", 1)], &[("items[0].sku", "INVALID_SKU")]),
        invalid("zero-quantity", "a quantity of zero", |order| order.items = vec![item("MUG-BLUE", 0)], &[("items[0].quantity", "INVALID_QUANTITY")]),
        invalid("negative-quantity", "a negative quantity", |order| order.items = vec![item("MUG-BLUE", -3)], &[("items[0].quantity", "INVALID_QUANTITY")]),
        invalid("huge-quantity", "a quantity that is too large", |order| order.items = vec![item("MUG-BLUE", 1_000)], &[("items[0].quantity", "INVALID_QUANTITY")]),
        invalid("duplicate-item", "a SKU twice", |order| order.items.push(item("MUG-BLUE", 2)), &[("items[1].sku", "DUPLICATE_ITEM")]),
        invalid("no-payment-method", "no payment method", |order| order.payment_method.clear(), &[("payment_method", "REQUIRED")]),
        invalid("malformed-payment-method", "a payment method that is not a token", |order| order.payment_method = "4242 4242 4242 4242".into(), &[("payment_method", "INVALID_PAYMENT_METHOD")]),
        invalid("malformed-email", "a malformed e-mail address", |order| order.contact_email = "ada at home".into(), &[("contact_email", "INVALID_EMAIL")]),
        invalid("unknown-currency", "an unknown currency", |order| order.expected_total = money("GOLD"), &[("expected_total.currency_code", "UNKNOWN_CURRENCY")]),
        invalid("everything-wrong", "everything missing or invalid: every violation is listed", |order| *order = Order { items: vec![item("?", 0)], ..Order::default() }, &[
            ("request_id", "REQUEST_ID_REQUIRED"),
            ("items[0].sku", "INVALID_SKU"),
            ("items[0].quantity", "INVALID_QUANTITY"),
            ("payment_method", "REQUIRED"),
            ("shipping_address", "REQUIRED"),
            ("contact_email", "INVALID_EMAIL"),
        ]),
    ]
}

#[rustfmt::skip]
fn invalid_addresses() -> Vec<Scenario> {
    vec![
        invalid("no-address", "no address", |order| order.shipping_address = None, &[("shipping_address", "REQUIRED")]),
        invalid("malformed-country", "an unknown country", |order| address(order).country_code = "Germany".into(), &[("shipping_address.country_code", "INVALID_COUNTRY_CODE")]),
        invalid("no-recipient", "no recipient", |order| address(order).recipient.clear(), &[("shipping_address.recipient", "REQUIRED")]),
        invalid("blank-recipient", "a recipient of invisible characters", |order| address(order).recipient = "\u{200b}\u{a0}".into(), &[("shipping_address.recipient", "REQUIRED")]),
        invalid("misleading-recipient", "a recipient that is displayed backwards", |order| address(order).recipient = "\u{202e}ecalevoL adA".into(), &[("shipping_address.recipient", "MISLEADING_CHARACTER")]),
        invalid("malformed-postal-code", "a postal code that its country does not have", |order| address(order).postal_code = "1011".into(), &[("shipping_address.postal_code", "INVALID_POSTAL_CODE")]),
        invalid("too-many-lines", "an address of too many lines", |order| address(order).lines = vec!["Chausseestr. 1".into(); 4], &[("shipping_address.lines", "INVALID_LENGTH")]),
        invalid("control-character", "a control character in the city", |order| address(order).city = "Ber\u{7}lin".into(), &[("shipping_address.city", "CONTROL_CHARACTER")]),
    ]
}

#[rustfmt::skip]
fn unacceptable_orders() -> Vec<Scenario> {
    vec![
        unacceptable("unknown-sku", "an unknown SKU", |order| order.items.push(item("NO-SUCH-THING", 1)), InvalidArgument, "UNKNOWN_SKU"),
        unacceptable("mixed-currencies", "two currencies", |order| order.items.push(item(FOREIGN, 1)), InvalidArgument, "MIXED_CURRENCIES"),
        unacceptable("amount-too-large", "a total over the limit of its currency", |order| order.items = vec![item("BIKE-CITY", 999)], InvalidArgument, "AMOUNT_TOO_LARGE"),
        unacceptable("no-delivery-zone", "a country without delivery", |order| address(order).country_code = "AQ".into(), FailedPrecondition, "NO_DELIVERY_ZONE"),
        unacceptable("insufficient-stock", "not enough in stock", |order| order.items = vec![item(SCARCE, 2)], FailedPrecondition, "INSUFFICIENT_STOCK"),
        unacceptable("price-changed", "the price is not the one that the customer expects", |order| order.expected_total = money("EUR"), FailedPrecondition, "PRICE_CHANGED"),
        Scenario::new("request-id-reused", "a request id used for another order", request_id_reused)
            .rejected(FailedPrecondition, &["REQUEST_ID_REUSED"])
            .events(&[succeeded(OrderCreation), failed(OrderCreation, "FAILED_PRECONDITION", "REQUEST_ID_REUSED")]),
    ]
}

#[rustfmt::skip]
fn identities() -> Vec<Scenario> {
    let no_login = [failed(UserLogin, "UNAUTHENTICATED", "INVALID_CREDENTIALS")];
    vec![
        Scenario::new("wrong-password", "a wrong password", |run| async move { log_in(&run, run.setup.email.clone()).await })
            .rejected(Unauthenticated, &["INVALID_CREDENTIALS"])
            .events(&no_login),
        Scenario::new("unknown-account", "an unknown account: the same response", |run| async move { log_in(&run, "nobody@example.com".to_owned()).await })
            .rejected(Unauthenticated, &["INVALID_CREDENTIALS"])
            .events(&no_login),
        Scenario::new("no-token", "no access token", |run| async move { create_order(&run, "").await })
            .rejected(Unauthenticated, &["TOKEN_MISSING"]),
        Scenario::new("malformed-token", "a malformed access token", |run| async move { create_order(&run, "nonsense").await })
            .rejected(Unauthenticated, &["TOKEN_MALFORMED"]),
        Scenario::new("not-an-operator", "a customer calls an operator's method", not_an_operator)
            .rejected(PermissionDenied, &["ROLE_NOT_ALLOWED"]),
        Scenario::new("somebody-elses-order", "another customer's order", another_customers_order)
            .rejected(NotFound, &["ORDER_NOT_FOUND"])
            .events(&[succeeded(OrderCreation)]),
    ]
}

fn reads() -> Vec<Scenario> {
    vec![
        Scenario::new("unknown-order", "an unknown order: the same response", |run| async move {
            let order_id = SystemIds.uuid().to_string();
            get_order(&run, order_id).await
        })
        .rejected(NotFound, &["ORDER_NOT_FOUND"]),
        Scenario::new("malformed-order-id", "a malformed order id", |run| async move {
            get_order(&run, "7".to_owned()).await
        })
        .rejected(InvalidArgument, &["INVALID_ID"]),
        Scenario::new("message-too-large", "a message over the limit (64 KiB): rejected unread", |run| async move {
            get_order(&run, "x".repeat(70_000)).await
        })
        .rejected(ResourceExhausted, &["MESSAGE_TOO_LARGE"]),
        Scenario::new("forged-page-token", "a forged page token", |run| async move {
            list_products(&run, "", "nonsense".to_owned()).await
        })
        .rejected(InvalidArgument, &["INVALID_PAGE_TOKEN"]),
        Scenario::new("foreign-page-token", "a page token of another list", foreign_page_token)
            .rejected(InvalidArgument, &["PAGE_TOKEN_OF_OTHER_FILTERS"]),
    ]
}

fn address(order: &mut Order) -> &mut Address {
    order.shipping_address.get_or_insert_default()
}

/// The smallest amount.
fn money(currency: &str) -> Option<Money> {
    Some(Money { currency_code: currency.to_owned(), minor_units: 1 })
}

/// This many different items.
pub(crate) fn many(count: u32) -> Vec<order_v1::OrderItem> {
    (0..count).map(|number| item(&format!("SKU-{number:04}"), 1)).collect()
}

/// An order with invalid fields: every violation is reported.
fn invalid(
    name: &'static str,
    cause: &str,
    mutate: Mutation,
    violations: &'static [(&'static str, &'static str)],
) -> Scenario {
    let mut reasons: Vec<&'static str> = Vec::new();
    for (_, reason) in violations {
        if !reasons.contains(reason) {
            reasons.push(reason);
        }
    }
    Scenario::new(name, cause, move |run| async move {
        let mut order = run.order("pm_card_visa");
        mutate(&mut order);
        let status = run.rejected(order).await?;
        let details = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
        let found: Vec<_> = details.iter().map(|one| (one.field.as_str(), one.reason.as_str())).collect();
        expect_eq("the violations", found.as_slice(), violations)?;
        Ok(ScenarioOutcome::rejected(status))
    })
    .rejected(InvalidArgument, &reasons)
    .events(&[failed(OrderCreation, "ValidationError", "INVALID_ARGUMENT")])
}

/// A well-formed order that cannot be accepted.
fn unacceptable(name: &'static str, cause: &str, mutate: Mutation, code: Code, reason: &'static str) -> Scenario {
    let error_type = if code == InvalidArgument { "ValidationError" } else { "FAILED_PRECONDITION" };
    Scenario::new(name, cause, move |run| async move {
        let mut order = run.order("pm_card_visa");
        mutate(&mut order);
        Ok(ScenarioOutcome::rejected(run.rejected(order).await?))
    })
    .rejected(code, &[reason])
    .events(&[succeeded(DataLookup), failed(OrderCreation, error_type, reason)])
}

async fn request_id_reused(run: Run) -> Result<ScenarioOutcome, Failure> {
    let first = run.order("pm_card_visa");
    let order_id = run.accepted(first.clone()).await?;
    let again = run.accepted(first.clone()).await?;
    expect_eq("the response to the same command", again, order_id)?;
    let other = Order { items: vec![item("MUG-RED", 3)], ..first };
    Ok(ScenarioOutcome::rejected(run.rejected(other).await?))
}

async fn log_in(run: &Run, email: String) -> Result<ScenarioOutcome, Failure> {
    let message = user_v1::LoginRequest { email, password: "wrong horse battery".to_owned() };
    let mut users = UserServiceClient::new(run.setup.system.user.clone());
    Ok(ScenarioOutcome::rejected(must_fail(users.login(request(message, "", Some(run.trace))).await)?))
}

async fn create_order(run: &Run, token: &str) -> Result<ScenarioOutcome, Failure> {
    let message = run.order("pm_card_visa");
    let response = run.orders().create_order(request(message, token, Some(run.trace))).await;
    Ok(ScenarioOutcome::rejected(must_fail(response)?))
}

async fn not_an_operator(run: Run) -> Result<ScenarioOutcome, Failure> {
    let message = order_v1::AdjustStockRequest {
        request_id: SystemIds.uuid().to_string(),
        sku: "MUG-BLUE".to_owned(),
        delta: 1,
        write_off: false,
    };
    let mut inventory = InventoryServiceClient::new(run.setup.system.order.clone());
    let response = inventory.adjust_stock(request(message, run.customer(), Some(run.trace))).await;
    Ok(ScenarioOutcome::rejected(must_fail(response)?))
}

async fn another_customers_order(run: Run) -> Result<ScenarioOutcome, Failure> {
    let order_id = run.accepted(run.order("pm_card_visa")).await?;
    let (_, other_client) = new_customer(&run.setup.system).await?;
    let message = order_v1::GetOrderRequest { order_id };
    let response = run.orders().get_order(request(message, &other_client, Some(run.trace))).await;
    Ok(ScenarioOutcome::rejected(must_fail(response)?))
}

async fn get_order(run: &Run, order_id: String) -> Result<ScenarioOutcome, Failure> {
    let message = order_v1::GetOrderRequest { order_id };
    let response = run.orders().get_order(request(message, run.customer(), Some(run.trace))).await;
    Ok(ScenarioOutcome::rejected(must_fail(response)?))
}

async fn list_products(run: &Run, text: &str, page_token: String) -> Result<ScenarioOutcome, Failure> {
    let message = data_v1::ListProductsRequest { text: text.to_owned(), page_token, ..Default::default() };
    let mut catalog = CatalogServiceClient::new(run.setup.system.data.clone());
    let response = catalog.list_products(request(message, run.customer(), Some(run.trace))).await;
    Ok(ScenarioOutcome::rejected(must_fail(response)?))
}

async fn foreign_page_token(run: Run) -> Result<ScenarioOutcome, Failure> {
    let first_page = data_v1::ListProductsRequest { page_size: 1, ..Default::default() };
    let mut catalog = CatalogServiceClient::new(run.setup.system.data.clone());
    let page = catalog.list_products(request(first_page, run.customer(), None)).await;
    let token = page.map_err(Failure::rejected("ListProducts"))?.into_inner().next_page_token;
    list_products(&run, "mug", token).await
}
