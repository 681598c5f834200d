//! Rejected calls, which change nothing.

use contracts::common::v1::EventType::{OrderCreation, UserLogin};
use contracts::common::v1::{Address, Money};
use contracts::order::v1 as order_v1;
use contracts::order::v1::inventory_service_client::InventoryServiceClient;
use kernel::{IdSource, SystemIds};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use contracts::user::v1 as user_v1;
use contracts::user::v1::user_service_client::UserServiceClient;

use crate::catalog::{FOREIGN, SCARCE};
use crate::demo::scenario::{Report, Scenario, Wrong, same};
use crate::demo::stage::{Act, arrival, failed, item};
use crate::error::reason;
use crate::system::request;

type Spoil = fn(&mut order_v1::CreateOrderRequest);

/// The paths.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        invalid("no-request-id", |order| order.request_id.clear(), &[("request_id", "REQUEST_ID_REQUIRED")]),
        invalid("malformed-request-id", |order| order.request_id = "42".into(), &[("request_id", "INVALID_ID")]),
        invalid("empty-order", |order| order.items.clear(), &[("items", "EMPTY_ORDER")]),
        invalid("too-many-items", |order| order.items = many(101), &[("items", "TOO_MANY_ITEMS")]),
        invalid("malformed-sku", |order| order.items = vec![item("mug blue", 1)], &[("items[0].sku", "INVALID_SKU")]),
        invalid(
            "zero-quantity",
            |order| order.items = vec![item("MUG-BLUE", 0)],
            &[("items[0].quantity", "INVALID_QUANTITY")],
        ),
        invalid(
            "negative-quantity",
            |order| order.items = vec![item("MUG-BLUE", -3)],
            &[("items[0].quantity", "INVALID_QUANTITY")],
        ),
        invalid(
            "huge-quantity",
            |order| order.items = vec![item("MUG-BLUE", 1_000)],
            &[("items[0].quantity", "INVALID_QUANTITY")],
        ),
        invalid("duplicate-item", |order| order.items.push(item("MUG-BLUE", 2)), &[("items[1].sku", "DUPLICATE_ITEM")]),
        invalid("no-payment-method", |order| order.payment_method.clear(), &[("payment_method", "REQUIRED")]),
        invalid("no-address", |order| order.shipping_address = None, &[("shipping_address", "REQUIRED")]),
        invalid(
            "malformed-email",
            |order| order.contact_email = "ada at home".into(),
            &[("contact_email", "INVALID_EMAIL")],
        ),
        invalid("malformed-country", malformed_country, &[("shipping_address.country_code", "INVALID_COUNTRY_CODE")]),
        invalid("no-recipient", no_recipient, &[("shipping_address.recipient", "REQUIRED")]),
        invalid("blank-recipient", blank_recipient, &[("shipping_address.recipient", "REQUIRED")]),
        invalid(
            "misleading-recipient",
            misleading_recipient,
            &[("shipping_address.recipient", "MISLEADING_CHARACTER")],
        ),
        invalid(
            "malformed-postal-code",
            malformed_postal_code,
            &[("shipping_address.postal_code", "INVALID_POSTAL_CODE")],
        ),
        invalid(
            "malformed-payment-method",
            |order| order.payment_method = "4242 4242 4242 4242".into(),
            &[("payment_method", "INVALID_PAYMENT_METHOD")],
        ),
        invalid("too-many-lines", too_many_lines, &[("shipping_address.lines", "INVALID_LENGTH")]),
        invalid("control-character", control_character, &[("shipping_address.city", "CONTROL_CHARACTER")]),
        invalid(
            "unknown-currency",
            |order| order.expected_total = Some(Money { currency_code: "GOLD".into(), minor_units: 1 }),
            &[("expected_total.currency_code", "UNKNOWN_CURRENCY")],
        ),
        invalid(
            "everything-wrong",
            |order| {
                *order = order_v1::CreateOrderRequest { items: vec![item("?", 0)], ..Default::default() };
            },
            &[
                ("request_id", "REQUEST_ID_REQUIRED"),
                ("items[0].sku", "INVALID_SKU"),
                ("items[0].quantity", "INVALID_QUANTITY"),
                ("payment_method", "REQUIRED"),
                ("shipping_address", "REQUIRED"),
                ("contact_email", "INVALID_EMAIL"),
            ],
        ),
    ];
    all.extend([
        refused(
            "unknown-sku",
            |order| order.items.push(item("NO-SUCH-THING", 1)),
            Code::InvalidArgument,
            "UNKNOWN_SKU",
        ),
        refused(
            "mixed-currencies",
            |order| order.items.push(item(FOREIGN, 1)),
            Code::InvalidArgument,
            "MIXED_CURRENCIES",
        ),
        refused(
            "amount-too-large",
            |order| order.items = vec![item("BIKE-CITY", 999)],
            Code::InvalidArgument,
            "AMOUNT_TOO_LARGE",
        ),
        refused("no-delivery-zone", antarctica, Code::FailedPrecondition, "NO_DELIVERY_ZONE"),
        refused(
            "insufficient-stock",
            |order| order.items = vec![item(SCARCE, 2)],
            Code::FailedPrecondition,
            "INSUFFICIENT_STOCK",
        ),
        refused(
            "price-changed",
            |order| order.expected_total = Some(a_cent()),
            Code::FailedPrecondition,
            "PRICE_CHANGED",
        ),
        Scenario::new("request-id-reused", "one request_id, two commands: REQUEST_ID_REUSED", request_id_reused),
        Scenario::new("no-token", "no access token: UNAUTHENTICATED", no_token),
        Scenario::new("not-an-operator", "a customer adjusts stock: PERMISSION_DENIED", not_an_operator),
        Scenario::new("somebody-elses-order", "another customer's order: NOT_FOUND", another_customers_order),
        Scenario::new("wrong-password", "a log-in with a wrong password: INVALID_CREDENTIALS", wrong_password),
    ]);
    all
}

fn address(order: &mut order_v1::CreateOrderRequest) -> &mut Address {
    order.shipping_address.get_or_insert_default()
}

fn antarctica(order: &mut order_v1::CreateOrderRequest) {
    address(order).country_code = "AQ".to_owned();
}

fn malformed_country(order: &mut order_v1::CreateOrderRequest) {
    address(order).country_code = "Germany".to_owned();
}

fn no_recipient(order: &mut order_v1::CreateOrderRequest) {
    address(order).recipient.clear();
}

fn blank_recipient(order: &mut order_v1::CreateOrderRequest) {
    address(order).recipient = "\u{200b}\u{a0}".to_owned();
}

fn misleading_recipient(order: &mut order_v1::CreateOrderRequest) {
    address(order).recipient = "\u{202e}ecalevoL adA".to_owned();
}

fn malformed_postal_code(order: &mut order_v1::CreateOrderRequest) {
    address(order).postal_code = "1011".to_owned();
}

fn too_many_lines(order: &mut order_v1::CreateOrderRequest) {
    address(order).lines = vec!["Chausseestr. 1".to_owned(); 4];
}

fn control_character(order: &mut order_v1::CreateOrderRequest) {
    address(order).city = "Ber\u{7}lin".to_owned();
}

fn a_cent() -> Money {
    Money { currency_code: "EUR".to_owned(), minor_units: 1 }
}

/// This many different items.
pub(crate) fn many(count: u32) -> Vec<order_v1::OrderItem> {
    (0..count).map(|number| item(&format!("SKU-{number:04}"), 1)).collect()
}

/// An order with invalid fields: every violation is reported.
fn invalid(name: &'static str, spoil: Spoil, violations: &'static [(&'static str, &'static str)]) -> Scenario {
    let reasons: Vec<_> = violations.iter().map(|(_, reason)| *reason).collect();
    Scenario::new(name, format!("validation: {}", reasons.join(", ")), move |act| async move {
        let mut order = act.order("pm_card_visa");
        spoil(&mut order);
        let status = act.refused(order).await?;
        same("the refusal", (status.code(), reason(&status)), (Code::InvalidArgument, "INVALID_ARGUMENT".to_owned()))?;
        let named = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
        let named: Vec<_> =
            named.iter().map(|violation| (violation.field.as_str(), violation.reason.as_str())).collect();
        same("the violations", named.as_slice(), violations)?;
        creation_failed(&act, &status, "ValidationError", "INVALID_ARGUMENT").await
    })
}

/// A well-formed order that cannot be accepted.
fn refused(name: &'static str, spoil: Spoil, code: Code, why: &'static str) -> Scenario {
    Scenario::new(name, format!("refused: {why}"), move |act| async move {
        let mut order = act.order("pm_card_visa");
        spoil(&mut order);
        let status = act.refused(order).await?;
        same("the refusal", (status.code(), reason(&status)), (code, why.to_owned()))?;
        let class = if code == Code::InvalidArgument { "ValidationError" } else { "FAILED_PRECONDITION" };
        creation_failed(&act, &status, class, why).await
    })
}

async fn creation_failed(act: &Act, status: &Status, class: &'static str, why: &'static str) -> Result<Report, Wrong> {
    let event = failed(OrderCreation, class, why);
    act.expect_events(None, &[event]).await?;
    Ok(Report::default().refusal(status).line(event.line()))
}

async fn request_id_reused(act: Act) -> Result<Report, Wrong> {
    let first = act.order("pm_card_visa");
    let order_id = act.accepted(first.clone()).await?;
    let again = act.accepted(first.clone()).await?;
    same("the answer to the same command", again, order_id)?;
    let mut other = first;
    other.items = vec![item("MUG-RED", 3)];
    let status = act.refused(other).await?;
    same("the refusal", (status.code(), reason(&status)), (Code::FailedPrecondition, "REQUEST_ID_REUSED".to_owned()))?;
    creation_failed(&act, &status, "FAILED_PRECONDITION", "REQUEST_ID_REUSED").await
}

async fn no_token(act: Act) -> Result<Report, Wrong> {
    let message = act.order("pm_card_visa");
    let answer = act.orders().create_order(request(message, "", Some(act.trace))).await;
    let status = must_fail(answer)?;
    same("the code", status.code(), Code::Unauthenticated)?;
    Ok(Report::default().refusal(&status))
}

async fn not_an_operator(act: Act) -> Result<Report, Wrong> {
    let message = order_v1::AdjustStockRequest {
        request_id: SystemIds.uuid().to_string(),
        sku: "MUG-BLUE".to_owned(),
        delta: 1,
        write_off: false,
    };
    let mut inventory = InventoryServiceClient::new(act.stage.system.order.clone());
    let status = must_fail(inventory.adjust_stock(request(message, act.customer(), Some(act.trace))).await)?;
    same("the code", status.code(), Code::PermissionDenied)?;
    Ok(Report::default().refusal(&status))
}

async fn another_customers_order(act: Act) -> Result<Report, Wrong> {
    let order_id = act.accepted(act.order("pm_card_visa")).await?;
    let (_, other_client) = arrival(&act.stage.system).await?;
    let message = order_v1::GetOrderRequest { order_id };
    let status = must_fail(act.orders().get_order(request(message, &other_client, Some(act.trace))).await)?;
    same("the refusal", (status.code(), reason(&status)), (Code::NotFound, "ORDER_NOT_FOUND".to_owned()))?;
    Ok(Report::default().refusal(&status))
}

async fn wrong_password(act: Act) -> Result<Report, Wrong> {
    let message = user_v1::LoginRequest { email: act.stage.email.clone(), password: "wrong horse battery".to_owned() };
    let mut users = UserServiceClient::new(act.stage.system.user.clone());
    let status = must_fail(users.login(request(message, "", Some(act.trace))).await)?;
    same("the reason", reason(&status), "INVALID_CREDENTIALS".to_owned())?;
    let event = failed(UserLogin, "UNAUTHENTICATED", "INVALID_CREDENTIALS");
    act.expect_events(None, &[event]).await?;
    Ok(Report::default().refusal(&status).line(event.line()))
}

fn must_fail<T>(answer: Result<T, Status>) -> Result<Status, Wrong> {
    match answer {
        Ok(_) => Err(Wrong::Unexpected("the call was answered".to_owned())),
        Err(status) => Ok(status),
    }
}
