//! The interfaces to other services: traits, and the gRPC clients that implement them.

use chassis::encode;
use contracts::data::v1 as data;
use contracts::data::v1::catalog_service_client::CatalogServiceClient;
use contracts::data::v1::trace_event_service_client::TraceEventServiceClient;
use contracts::payment::v1 as payment;
use contracts::payment::v1::payment_service_client::PaymentServiceClient;
use futures_util::future::BoxFuture;
use kernel::{Currency, Money, OrderId};
use mesh::{About, Channel};
use telemetry::ErrorClass;
use tonic::{Code, Status};

use crate::error::Error;
use crate::order::{GENERIC_ADVICE, Order, PaymentFailure, Transit};

/// A product, as it is in the catalogue now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Product {
    pub sku: String,
    pub name: String,
    pub price: Money,
}

/// The catalogue: the Data Service.
pub trait Catalog: Send + Sync + 'static {
    /// The requested products that exist.
    fn products(&self, about: About, skus: Vec<String>) -> BoxFuture<'_, Result<Vec<Product>, Error>>;
    /// The delivery time to an address.
    fn transit(&self, about: About, country: String, postal_code: String) -> BoxFuture<'_, Result<Transit, Error>>;
}

/// The Payment Service's response about an order's payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PaymentOutcome {
    /// The effect is done: charged, or certainly not charged any more.
    Done,
    /// The effect is refused permanently.
    Refused(PaymentFailure),
    /// No definite result: the same effect is retried under the same key.
    Undecided(String),
}

pub trait Payments: Send + Sync + 'static {
    /// Charges for an order, once.
    fn process<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentOutcome>;
    /// Makes certain that nothing stays charged for an order.
    fn cancel<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentOutcome>;
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
    fn products(&self, about: About, skus: Vec<String>) -> BoxFuture<'_, Result<Vec<Product>, Error>> {
        Box::pin(async move {
            let request = data::BatchGetProductsRequest { skus };
            let response = self
                .0
                .clone()
                .batch_get_products(about.request(request))
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

    fn transit(&self, about: About, country: String, postal_code: String) -> BoxFuture<'_, Result<Transit, Error>> {
        Box::pin(async move {
            let request =
                data::GetDeliveryEstimateRequest { country_code: country.clone(), postal_code, dispatch_time: None };
            let estimate = match self.0.clone().get_delivery_estimate(about.request(request)).await {
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
fn undecided(status: &Status) -> PaymentOutcome {
    PaymentOutcome::Undecided(format!("{}: {}", no_response(status.code()), status.message()))
}

fn no_response(code: Code) -> String {
    format!("the Payment Service did not decide: {code:?}")
}

/// What ProcessPayment's response decides: only final states decide.
pub fn processed(payment: Option<payment::Payment>) -> PaymentOutcome {
    use payment::PaymentState::*;
    let Some(payment) = payment else { return PaymentOutcome::Undecided("an answer without a payment".into()) };
    match payment.state() {
        Succeeded => PaymentOutcome::Done,
        // Refunded here means that the gateway refunded on its own initiative: nothing stays charged.
        Declined | Failed | Cancelled | Refunded => PaymentOutcome::Refused(payment_failure(&payment)),
        state @ (Unspecified | Pending | InDoubt | Cancelling | Refunding | RefundRefused) => {
            PaymentOutcome::Undecided(format!("the payment is {}", name(state)))
        }
    }
}

/// What CancelPayment's response decides, for the requested refund attempt.
pub fn cancelled(payment: Option<payment::Payment>, refund_attempt: i32) -> PaymentOutcome {
    use payment::PaymentState::*;
    let Some(payment) = payment else { return PaymentOutcome::Undecided("an answer without a payment".into()) };
    match payment.state() {
        Cancelled | Refunded | Declined | Failed => PaymentOutcome::Done,
        RefundRefused if payment.refund_attempt >= refund_attempt => PaymentOutcome::Refused(refund_failure()),
        state @ (Unspecified | Pending | InDoubt | Cancelling | Refunding | Succeeded | RefundRefused) => {
            PaymentOutcome::Undecided(format!("the payment is {}", name(state)))
        }
    }
}

/// The failure of a payment. The codes for lost, stolen and fraudulent cards are hidden: the customer may be the
/// thief.
fn payment_failure(payment: &payment::Payment) -> PaymentFailure {
    use payment::DeclineCode as Code;
    let code = payment.decline_code();
    let helps_a_thief = matches!(code, Code::LostCard | Code::StolenCard | Code::Fraudulent);
    let shown = if helps_a_thief { Code::GenericDecline } else { code };
    let advice = match shown {
        // The advice of every code that is shown as this one.
        Code::GenericDecline => GENERIC_ADVICE.to_owned(),
        Code::Unspecified
        | Code::InsufficientFunds
        | Code::ExpiredCard
        | Code::IncorrectCvc
        | Code::LostCard
        | Code::StolenCard
        | Code::ProcessingError
        | Code::Fraudulent
        | Code::InvalidPaymentDetails
        | Code::InvalidAmount
        | Code::GatewayTimeout => named(payment.advice().as_str_name(), "DECLINE_ADVICE_"),
    };
    let (reason, message) = match shown {
        Code::GatewayTimeout => ("GATEWAY_TIMEOUT", "the payment gateway did not answer in time; nothing was charged"),
        Code::Unspecified => ("PAYMENT_CANCELLED", "the payment was cancelled; nothing was charged"),
        Code::InsufficientFunds => ("PAYMENT_DECLINED", "the account has insufficient funds"),
        Code::ExpiredCard => ("PAYMENT_DECLINED", "the card has expired"),
        Code::IncorrectCvc => ("PAYMENT_DECLINED", "the card's security code is wrong"),
        Code::ProcessingError => ("PAYMENT_DECLINED", "the issuer could not process the payment"),
        Code::InvalidPaymentDetails => {
            ("PAYMENT_DECLINED", "the payment details are malformed, or the payment method is unknown")
        }
        Code::InvalidAmount => {
            ("PAYMENT_DECLINED", "the amount is not positive, over the limit, or in an unknown currency")
        }
        Code::GenericDecline | Code::LostCard | Code::StolenCard | Code::Fraudulent => {
            ("PAYMENT_DECLINED", "the issuer declined the payment")
        }
    };
    PaymentFailure {
        reason: reason.into(),
        decline_code: named(shown.as_str_name(), "DECLINE_CODE_"),
        advice,
        message: message.into(),
    }
}

/// The failure of a refund that the gateway refuses.
fn refund_failure() -> PaymentFailure {
    PaymentFailure {
        reason: "REFUND_REFUSED".into(),
        decline_code: String::new(),
        advice: String::new(),
        message: "the payment gateway refuses the refund; an operator must intervene".into(),
    }
}

/// An enum value's name without its prefix; empty for UNSPECIFIED.
fn named(name: &str, prefix: &str) -> String {
    let name = name.trim_start_matches(prefix);
    if name == "UNSPECIFIED" { String::new() } else { name.to_owned() }
}

fn name(state: payment::PaymentState) -> &'static str {
    state.as_str_name().trim_start_matches("PAYMENT_STATE_")
}

fn about(order: &Order) -> About {
    // Only if the last attempt failed with this error too: an order's first one is not a repetition.
    let is_repeated =
        order.last_error.as_deref().is_some_and(|error| error.starts_with(&no_response(Code::Unavailable)));
    let attempt = u32::try_from(order.attempt).ok().filter(|_| is_repeated).map(|failures| failures + 1);
    About { order_id: Some(order.id.as_uuid()), user_id: Some(order.user.as_uuid()), attempt }
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
    fn process<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentOutcome> {
        Box::pin(async move {
            match self.0.clone().process_payment(about(order).request(process_request(order))).await {
                Ok(response) => processed(response.into_inner().payment),
                Err(status) => undecided(&status),
            }
        })
    }

    fn cancel<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentOutcome> {
        Box::pin(async move {
            match self.0.clone().cancel_payment(about(order).request(cancel_request(order))).await {
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
            assert!(matches!(processed(payment(state, 0)), PaymentOutcome::Undecided(_)), "{state:?}");
        }
        assert_eq!(processed(payment(Succeeded, 0)), PaymentOutcome::Done);
        for state in [Declined, Failed, Cancelled, Refunded] {
            assert!(matches!(processed(payment(state, 0)), PaymentOutcome::Refused(_)), "{state:?}");
        }
    }

    #[test]
    fn a_refused_refund_decides_only_for_its_own_attempt() {
        use PaymentState::*;
        for state in [Cancelled, Refunded, Declined, Failed] {
            assert_eq!(cancelled(payment(state, 0), 1), PaymentOutcome::Done, "{state:?}");
        }
        assert!(matches!(cancelled(payment(RefundRefused, 1), 1), PaymentOutcome::Refused(_)));
        assert!(matches!(cancelled(payment(RefundRefused, 1), 2), PaymentOutcome::Undecided(_)));
        for state in [Unspecified, Pending, InDoubt, Cancelling, Refunding, Succeeded] {
            assert!(matches!(cancelled(payment(state, 0), 1), PaymentOutcome::Undecided(_)), "{state:?}");
        }
    }

    #[test]
    fn an_error_of_any_code_leaves_the_outcome_unknown() {
        for code in 1..=16 {
            assert!(matches!(undecided(&Status::new(Code::from(code), "m")), PaymentOutcome::Undecided(_)));
        }
    }
    #[test]
    fn no_field_of_a_failure_reveals_that_a_card_is_lost_stolen_or_used_for_fraud() {
        use payment::{DeclineAdvice, DeclineCode};
        let of = |code: DeclineCode, advice: DeclineAdvice| {
            let payment = payment::Payment { decline_code: code.into(), advice: advice.into(), ..Default::default() };
            payment_failure(&payment)
        };
        let generic = of(DeclineCode::GenericDecline, DeclineAdvice::UseOtherMethod);
        assert_eq!((generic.decline_code.as_str(), generic.advice.as_str()), ("GENERIC_DECLINE", "USE_OTHER_METHOD"));
        for code in [DeclineCode::LostCard, DeclineCode::StolenCard, DeclineCode::Fraudulent] {
            assert_eq!(of(code, DeclineAdvice::DoNotRetry), generic, "{code:?}");
        }
        let stored_before = PaymentFailure { advice: "DO_NOT_RETRY".into(), ..generic };
        assert_eq!(stored_before.shown_advice(), "USE_OTHER_METHOD");
        let amount = of(DeclineCode::InvalidAmount, DeclineAdvice::DoNotRetry);
        assert_eq!((amount.advice.as_str(), amount.shown_advice()), ("DO_NOT_RETRY", "DO_NOT_RETRY"));
    }
}
