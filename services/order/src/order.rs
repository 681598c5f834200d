//! The types of this service. The operations on orders are in [`crate::orders`].

use chassis::Fingerprint;
use kernel::{FulfillmentId, Money, OrderId, RequestId, Secret, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use telemetry::TraceParent;

use crate::lifecycle::State;

/// The token of a payment method; only for the Payment Service and the store.
pub type PaymentMethod = Secret<String>;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Address {
    pub recipient: String,
    /// Street and number.
    pub lines: Vec<String>,
    pub city: String,
    /// In the country's own format.
    pub postal_code: String,
    /// ISO 3166-1 alpha-2 code.
    pub country_code: String,
}

/// The state of a line's reservation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineState {
    /// Reserved for the order.
    Held,
    /// Allocated to the order.
    Allocated,
    /// Returned to the stock.
    Released,
    /// Written off as lost.
    Lost,
}

impl LineState {
    /// The name in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Held => "HELD",
            Self::Allocated => "ALLOCATED",
            Self::Released => "RELEASED",
            Self::Lost => "LOST",
        }
    }

    /// The state with this name.
    pub fn of(name: &str) -> Option<Self> {
        [Self::Held, Self::Allocated, Self::Released, Self::Lost].into_iter().find(|state| state.name() == name)
    }
}

/// A line of an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    pub sku: String,
    /// The product's name at creation.
    pub name: String,
    /// Number of units.
    pub quantity: u32,
    /// The price of one unit at creation.
    pub unit_price: Money,
    pub state: LineState,
}

/// Why a payment failed, as far as the customer may be informed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PaymentFailure {
    /// `PAYMENT_DECLINED`, `GATEWAY_TIMEOUT`, `PAYMENT_CANCELLED` or `REFUND_REFUSED`.
    pub reason: String,
    /// For example `INSUFFICIENT_FUNDS`.
    pub decline_code: String,
    /// For example `USE_OTHER_METHOD`.
    pub advice: String,
    /// A sentence for the customer.
    pub message: String,
}

/// The decline code that is shown instead of a hidden one, and its advice: a hidden code is hidden in every field.
pub(crate) const GENERIC_DECLINE: &str = "GENERIC_DECLINE";
pub(crate) const GENERIC_ADVICE: &str = "USE_OTHER_METHOD";

impl PaymentFailure {
    /// The advice that may be shown to the customer. An earlier release stored that of the hidden code.
    pub(crate) fn shown_advice(&self) -> &str {
        if self.decline_code == GENERIC_DECLINE { GENERIC_ADVICE } else { &self.advice }
    }
}

/// A fulfilment that has started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fulfillment {
    pub id: FulfillmentId,
    /// The delivery day: `YYYY-MM-DD`.
    pub delivery_date: String,
}

/// The delivery time to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transit {
    /// Business days in transit.
    pub business_days: u16,
    /// Hour of the day (UTC, 0 to 24) from which a parcel leaves on the next business day.
    pub cutoff_hour: u8,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// The order's id; also the key of its payment.
    pub id: OrderId,
    /// The customer that placed it.
    pub user: UserId,
    pub state: State,
    /// Incremented by every transition.
    pub version: i64,
    pub lines: Vec<Line>,
    /// The sum of the lines.
    pub total: Money,
    pub address: Address,
    /// The address for notifications.
    pub contact_email: String,
    /// The payment method's token; deleted once the payment is decided.
    pub payment_method: Option<PaymentMethod>,
    pub transit: Transit,
    /// Number of the current refund attempt, from 1.
    pub refund_attempt: i32,
    /// Why the payment failed.
    pub payment_failure: Option<PaymentFailure>,
    /// The fulfilment, if it has started.
    pub fulfillment: Option<Fulfillment>,
    /// Consecutive failed attempts at the pending effect.
    pub attempt: i32,
    /// When the pending effect is due; `None` when there is none.
    pub next_attempt_time: Option<Timestamp>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// The span of its creation, the parent of its later spans.
    pub traceparent: TraceParent,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
}

/// A transition of an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryEntry {
    /// The version after the transition.
    pub version: i64,
    /// The state after the transition.
    pub state: State,
    /// When it was committed.
    pub time: Timestamp,
    /// The reason, a sentence.
    pub reason: String,
    /// The trace of the transition.
    pub trace_id: String,
    /// The span of the transition.
    pub span_id: String,
}

/// A decoded CreateOrder request.
#[derive(Clone, Debug)]
pub struct CreateOrder {
    /// The request id chosen by the client.
    pub request_id: RequestId,
    /// The SKUs, each once, with quantities.
    pub items: Vec<(String, u32)>,
    /// The payment method's token.
    pub payment_method: PaymentMethod,
    pub address: Address,
    /// The address for notifications.
    pub contact_email: String,
    /// The total that the customer expects.
    pub expected_total: Option<Money>,
}

impl CreateOrder {
    /// The fingerprint with the items in the order of these SKUs. The order of items has no meaning (a client's cart
    /// may be a map), so a retry is the same command (AIP-155) in any order: it is compared in the order of the lines
    /// it created. The stored fingerprint stays as every release writes and reads it.
    pub fn fingerprint_in_order_of(&self, skus: &[&str]) -> String {
        let mut command = self.clone();
        command.items.sort_by_key(|(sku, _)| skus.iter().position(|known| known == sku));
        command.fingerprint()
    }

    /// The command's content: equal for retries of the same command.
    pub fn fingerprint(&self) -> String {
        let Self { request_id: _, items, payment_method, address, contact_email, expected_total } = self;
        let mut print = Fingerprint::of("CreateOrder/1")
            .part("payment_method", payment_method.expose())
            .part("contact_email", contact_email)
            .part("expected_total", expected_total.map_or(String::new(), |total| total.to_string()))
            .part("recipient", &address.recipient)
            .part("city", &address.city)
            .part("postal_code", &address.postal_code)
            .part("country_code", &address.country_code);
        for line in &address.lines {
            print = print.part("line", line);
        }
        for (sku, quantity) in items {
            print = print.part("sku", sku).part("quantity", quantity);
        }
        print.finish()
    }
}

/// Whose orders a caller may see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// One customer's own.
    Of(UserId),
    /// All orders: an operator.
    All,
}

impl Scope {
    /// Whether this customer's orders are in it.
    pub(crate) fn includes(self, customer: UserId) -> bool {
        match self {
            Self::Of(user) => user == customer,
            Self::All => true,
        }
    }
}
