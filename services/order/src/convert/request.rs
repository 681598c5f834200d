//! Messages to commands.

use chassis::page::page_size;
use chassis::{Decoded, Fields, Fingerprint, Invalid, PageToken};
use contracts::order::v1 as proto;
use kernel::{OrderId, UserId};
use mesh::{Caller, Role};

use crate::inventory::AdjustStock;
use crate::lifecycle::State;
use crate::order::{Address, CreateOrder, PaymentMethod, Scope};

/// Maximum number of items of an order.
pub(super) const MAX_ITEMS: usize = 100;
/// Maximum quantity of an item.
pub(super) const MAX_QUANTITY: i32 = 999;
/// Maximum change of stock per request, in either direction.
const MAX_DELTA: i64 = 1_000_000_000;

impl From<&Caller> for Scope {
    /// The orders visible to a caller.
    fn from(caller: &Caller) -> Self {
        match caller {
            Caller::User { role: Role::Operator, .. } => Self::All,
            Caller::User { role: Role::Customer, .. } | Caller::Anonymous | Caller::Service { .. } => {
                Self::Of(caller_id(caller))
            }
        }
    }
}

/// The caller's own id; the policy table admits only users.
pub(crate) fn caller_id(caller: &Caller) -> UserId {
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
        fields.reject("items", "EMPTY_ORDER", "an order needs at least one item");
        return None;
    }
    if items.len() > MAX_ITEMS {
        fields.reject("items", "TOO_MANY_ITEMS", format!("an order has at most {MAX_ITEMS} items"));
        return None;
    }
    let mut decoded: Vec<(String, u32)> = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let sku = fields.sku(format!("items[{index}].sku"), &item.sku);
        let quantity =
            if (1..=MAX_QUANTITY).contains(&item.quantity) { u32::try_from(item.quantity).ok() } else { None };
        if quantity.is_none() {
            let description = format!("must be 1 to {MAX_QUANTITY}");
            fields.reject(format!("items[{index}].quantity"), "INVALID_QUANTITY", description);
        }
        if let Some(sku) = sku {
            if decoded.iter().any(|(known, _)| *known == sku) {
                let description = format!("{sku} is listed twice; combine the quantities");
                fields.reject(format!("items[{index}].sku"), "DUPLICATE_ITEM", description);
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
            fields.reject("state", "UNKNOWN_STATE", "not a state of an order");
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

/// A subscription to an order's transitions after a version, decoded.
pub(crate) struct WatchOrder {
    pub(crate) order_id: OrderId,
    pub(crate) after: i64,
}

impl TryFrom<proto::WatchOrderRequest> for WatchOrder {
    type Error = Invalid;

    fn try_from(request: proto::WatchOrderRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let order_id = fields.id("order_id", &request.order_id);
        if request.after_version < 0 {
            fields.reject("after_version", "NEGATIVE_VERSION", "versions count from 1; 0 means all");
        }
        fields.finish(order_id.map(|order_id| Self { order_id, after: request.after_version }))
    }
}

pub(crate) fn skus(skus: Vec<String>) -> Result<Vec<String>, Invalid> {
    let mut fields = Fields::default();
    if skus.is_empty() || skus.len() > MAX_ITEMS {
        fields.reject("skus", "INVALID_LENGTH", format!("must be 1 to {MAX_ITEMS} SKUs"));
    }
    for (index, sku) in skus.iter().take(MAX_ITEMS).enumerate() {
        fields.sku(format!("skus[{index}]"), sku);
    }
    fields.finish(Some(skus))
}

impl TryFrom<proto::AdjustStockRequest> for AdjustStock {
    type Error = Invalid;

    fn try_from(request: proto::AdjustStockRequest) -> Result<Self, Invalid> {
        let proto::AdjustStockRequest { request_id, sku, delta, write_off } = request;
        let mut fields = Fields::default();
        let request_id = fields.request_id(&request_id);
        let sku = fields.sku("sku", &sku);
        if delta == 0 || delta.unsigned_abs() > MAX_DELTA.unsigned_abs() {
            fields.reject("delta", "INVALID_DELTA", format!("must be at most {MAX_DELTA} either way, and not 0"));
        }
        let keys = request_id.zip(sku);
        fields.finish(keys.map(|(request_id, sku)| Self { request_id, sku, delta, write_off }))
    }
}
