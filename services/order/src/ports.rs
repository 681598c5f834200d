//! The interfaces to other services: traits, and the gRPC clients that implement them.

use chassis::encode;
use contracts::data::v1 as data;
use contracts::data::v1::catalog_service_client::CatalogServiceClient;
use contracts::data::v1::trace_event_service_client::TraceEventServiceClient;
use contracts::payment::v1 as payment;
use contracts::payment::v1::payment_service_client::PaymentServiceClient;
use futures_util::future::BoxFuture;
use kernel::{Currency, Money, OrderId};
use mesh::{CallAttributes, Channel};
use telemetry::{ErrorClass, ORDER_ID, USER_ID};
use tonic::{Code, Status};

use crate::error::Error;
use crate::order::{Order, PaymentFailure};

/// A product, as it is in the catalogue now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Product {
    /// Stock keeping unit.
    pub sku: String,
    /// The product's name.
    pub name: String,
    /// The price of one unit.
    pub price: Money,
}

/// The delivery time to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transit {
    /// Business days in transit.
    pub business_days: u16,
    /// Hour of the day (UTC, 0 to 24) from which a parcel leaves on the next business day.
    pub cutoff_hour: u8,
}

/// The catalogue: the Data Service.
pub trait Catalog: Send + Sync + 'static {
    /// The requested products that exist.
    fn products(&self, attributes: CallAttributes, skus: Vec<String>) -> BoxFuture<'_, Result<Vec<Product>, Error>>;
    /// The delivery time to an address.
    fn transit(
        &self,
        attributes: CallAttributes,
        country: String,
        postal_code: String,
    ) -> BoxFuture<'_, Result<Transit, Error>>;
}

/// The Payment Service's answer about an order's payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PaymentAnswer {
    /// The effect is done: charged, or certainly not charged any more.
    Done,
    /// The effect is refused permanently.
    Refused(PaymentFailure),
    /// No definite result: the same effect is retried under the same key.
    Undecided(String),
}

/// The Payment Service.
pub trait Payments: Send + Sync + 'static {
    /// Charges for an order, once.
    fn process<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentAnswer>;
    /// Makes certain that nothing stays charged for an order.
    fn cancel<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentAnswer>;
}

/// The catalogue over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcCatalog(CatalogServiceClient<Channel>);

impl GrpcCatalog {
    /// A client on a channel to the Data Service.
    pub fn new(data: Channel) -> Self {
        Self(CatalogServiceClient::new(data))
    }
}

/// The error of a failed lookup, with its cause.
fn lookup_failed(status: &Status) -> Error {
    Error::LookupFailed { cause: ErrorClass::named(&mesh::error_class(status).kind).unwrap_or(ErrorClass::Unknown) }
}

fn product(product: data::Product) -> Option<Product> {
    let price = product.price?;
    let currency: Currency = price.currency_code.parse().ok()?;
    Some(Product { sku: product.sku, name: product.name, price: Money::new(currency, price.minor_units) })
}

impl Catalog for GrpcCatalog {
    fn products(&self, attributes: CallAttributes, skus: Vec<String>) -> BoxFuture<'_, Result<Vec<Product>, Error>> {
        Box::pin(async move {
            let request = data::BatchGetProductsRequest { skus };
            let response = self
                .0
                .clone()
                .batch_get_products(attributes.request(request))
                .await
                .map_err(|status| lookup_failed(&status))?;
            let response = response.into_inner();
            let count = response.products.len();
            let products: Vec<Product> = response.products.into_iter().filter_map(product).collect();
            if products.len() < count {
                return Err(Error::LookupFailed { cause: ErrorClass::MalformedAnswer });
            }
            Ok(products)
        })
    }

    fn transit(
        &self,
        attributes: CallAttributes,
        country: String,
        postal_code: String,
    ) -> BoxFuture<'_, Result<Transit, Error>> {
        Box::pin(async move {
            let request =
                data::GetDeliveryEstimateRequest { country_code: country.clone(), postal_code, dispatch_time: None };
            let estimate = match self.0.clone().get_delivery_estimate(attributes.request(request)).await {
                Ok(response) => response.into_inner(),
                Err(status) if status.code() == Code::NotFound => return Err(Error::NoDeliveryZone { country }),
                Err(status) => return Err(lookup_failed(&status)),
            };
            let malformed = || Error::LookupFailed { cause: ErrorClass::MalformedAnswer };
            Ok(Transit {
                business_days: estimate.transit_business_days.try_into().map_err(|_| malformed())?,
                cutoff_hour: estimate.cutoff_hour_utc.try_into().map_err(|_| malformed())?,
            })
        })
    }
}

/// The Payment Service over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcPayments(PaymentServiceClient<Channel>);

impl GrpcPayments {
    /// A client on a channel to the Payment Service.
    pub fn new(payment: Channel) -> Self {
        Self(PaymentServiceClient::new(payment))
    }

    /// The payment and its attempts, for the timeline.
    pub(crate) async fn get(&self, order: OrderId) -> Result<payment::GetPaymentResponse, Status> {
        let request = payment::GetPaymentRequest { order_id: order.to_string() };
        Ok(self.0.clone().get_payment(request).await?.into_inner())
    }
}

/// A gRPC error, whatever its code, leaves the outcome unknown.
fn undecided(status: &Status) -> PaymentAnswer {
    PaymentAnswer::Undecided(format!("{}: {}", no_answer(status.code()), status.message()))
}

fn no_answer(code: Code) -> String {
    format!("the Payment Service did not decide: {code:?}")
}

/// What ProcessPayment's answer decides: only final states decide.
pub fn processed(payment: Option<payment::Payment>) -> PaymentAnswer {
    use payment::PaymentState::*;
    let Some(payment) = payment else { return PaymentAnswer::Undecided("an answer without a payment".into()) };
    match payment.state() {
        Succeeded => PaymentAnswer::Done,
        // Refunded here means that the gateway refunded on its own initiative: nothing stays charged.
        Declined | Failed | Cancelled | Refunded => PaymentAnswer::Refused(PaymentFailure::from_payment(&payment)),
        state @ (Unspecified | Pending | InDoubt | Cancelling | Refunding | RefundRefused) => {
            PaymentAnswer::Undecided(format!("the payment is {}", name(state)))
        }
    }
}

/// What CancelPayment's answer decides, for the requested refund attempt.
pub fn cancelled(payment: Option<payment::Payment>, refund_attempt: i32) -> PaymentAnswer {
    use payment::PaymentState::*;
    let Some(payment) = payment else { return PaymentAnswer::Undecided("an answer without a payment".into()) };
    match payment.state() {
        Cancelled | Refunded | Declined | Failed => PaymentAnswer::Done,
        RefundRefused if payment.refund_attempt >= refund_attempt => {
            PaymentAnswer::Refused(PaymentFailure::refund_refused())
        }
        state @ (Unspecified | Pending | InDoubt | Cancelling | Refunding | Succeeded | RefundRefused) => {
            PaymentAnswer::Undecided(format!("the payment is {}", name(state)))
        }
    }
}

fn name(state: payment::PaymentState) -> &'static str {
    state.as_str_name().trim_start_matches("PAYMENT_STATE_")
}

fn attributes(order: &Order) -> CallAttributes {
    // Only if the last attempt failed with this error too: an order's first one is not a repetition.
    let is_repeated = order.last_error.as_deref().is_some_and(|error| error.starts_with(&no_answer(Code::Unavailable)));
    let attempt = u32::try_from(order.attempt).ok().filter(|_| is_repeated).map(|failures| failures + 1);
    let attributes = CallAttributes::new().with(ORDER_ID, order.id.as_uuid()).with(USER_ID, order.user.as_uuid());
    attempt.into_iter().fold(attributes, |attributes, attempt| attributes.with(mesh::ATTEMPT, attempt))
}

/// The request to charge for an order.
pub fn process_request(order: &Order) -> payment::ProcessPaymentRequest {
    payment::ProcessPaymentRequest {
        order_id: order.id.to_string(),
        user_id: order.user.to_string(),
        amount: Some(encode::money(order.total)),
        payment_method: order.payment_method.clone().unwrap_or_default().into_inner(),
        contact_email: order.contact_email.clone(),
    }
}

/// The request to make certain that nothing stays charged for an order.
pub fn cancel_request(order: &Order) -> payment::CancelPaymentRequest {
    payment::CancelPaymentRequest { order_id: order.id.to_string(), refund_attempt: order.refund_attempt }
}

impl Payments for GrpcPayments {
    fn process<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentAnswer> {
        Box::pin(async move {
            match self.0.clone().process_payment(attributes(order).request(process_request(order))).await {
                Ok(response) => processed(response.into_inner().payment),
                Err(status) => undecided(&status),
            }
        })
    }

    fn cancel<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentAnswer> {
        Box::pin(async move {
            match self.0.clone().cancel_payment(attributes(order).request(cancel_request(order))).await {
                Ok(response) => cancelled(response.into_inner().payment, order.refund_attempt),
                Err(status) => undecided(&status),
            }
        })
    }
}

/// Soft limit of an order's events to read: the last page may exceed it.
const MAX_EVENTS: i32 = 500;

/// The trace events over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcEvents(TraceEventServiceClient<Channel>);

impl GrpcEvents {
    /// A client on a channel to the Data Service.
    pub fn new(data: Channel) -> Self {
        Self(TraceEventServiceClient::new(data))
    }

    /// The newest events of an order, and whether there are more.
    pub(crate) async fn of_order(&self, order: OrderId) -> Result<(Vec<data::TraceEvent>, bool), Status> {
        let (mut events, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = data::ListTraceEventsRequest {
                order_id: order.to_string(),
                page_size: MAX_EVENTS,
                page_token,
                ..Default::default()
            };
            let page = self.0.clone().list_trace_events(request).await?.into_inner();
            events.extend(page.events);
            page_token = page.next_page_token;
            // A page may be shorter than its requested size.
            if page_token.is_empty() || events.len() >= usize::try_from(MAX_EVENTS).unwrap_or(usize::MAX) {
                return Ok((events, !page_token.is_empty()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use payment::PaymentState;

    fn payment(state: PaymentState, refund_attempt: i32) -> Option<payment::Payment> {
        Some(payment::Payment { state: state.into(), refund_attempt, ..Default::default() })
    }

    #[test]
    fn only_final_states_decide_a_payment() {
        use PaymentState::*;
        for state in [Unspecified, Pending, InDoubt, Cancelling, Refunding, RefundRefused] {
            assert!(matches!(processed(payment(state, 0)), PaymentAnswer::Undecided(_)), "{state:?}");
        }
        assert_eq!(processed(payment(Succeeded, 0)), PaymentAnswer::Done);
        for state in [Declined, Failed, Cancelled, Refunded] {
            assert!(matches!(processed(payment(state, 0)), PaymentAnswer::Refused(_)), "{state:?}");
        }
    }

    #[test]
    fn a_refused_refund_decides_only_for_its_own_attempt() {
        use PaymentState::*;
        for state in [Cancelled, Refunded, Declined, Failed] {
            assert_eq!(cancelled(payment(state, 0), 1), PaymentAnswer::Done, "{state:?}");
        }
        assert!(matches!(cancelled(payment(RefundRefused, 1), 1), PaymentAnswer::Refused(_)));
        assert!(matches!(cancelled(payment(RefundRefused, 1), 2), PaymentAnswer::Undecided(_)));
        for state in [Unspecified, Pending, InDoubt, Cancelling, Refunding, Succeeded] {
            assert!(matches!(cancelled(payment(state, 0), 1), PaymentAnswer::Undecided(_)), "{state:?}");
        }
    }

    #[test]
    fn an_error_of_any_code_leaves_the_outcome_unknown() {
        for code in 1..=16 {
            assert!(matches!(undecided(&Status::new(Code::from(code), "m")), PaymentAnswer::Undecided(_)));
        }
    }
}
