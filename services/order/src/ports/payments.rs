//! The Payment Service: requests, and what its responses decide.

use chassis::to_proto;
use contracts::payment::v1 as payment;
use contracts::payment::v1::payment_service_client::PaymentServiceClient;
use futures_util::future::BoxFuture;
use kernel::OrderId;
use mesh::{CallAttributes, Channel};
use telemetry::{ORDER_ID, USER_ID};
use tonic::{Code, Status};

use super::{PaymentOutcome, Payments};
use crate::order::{GENERIC_ADVICE, Order, PaymentFailure};

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
        let request = CallAttributes::new().with(ORDER_ID, order.as_uuid()).request(request);
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

fn attributes(order: &Order) -> CallAttributes {
    // Only if the last attempt failed with this error too: an order's first one is not a repetition.
    let is_repeated =
        order.last_error.as_deref().is_some_and(|error| error.starts_with(&no_response(Code::Unavailable)));
    let attempt = u32::try_from(order.attempt).ok().filter(|_| is_repeated).map(|failures| failures + 1);
    let attributes = CallAttributes::new().with(ORDER_ID, order.id.as_uuid()).with(USER_ID, order.user.as_uuid());
    attempt.into_iter().fold(attributes, |attributes, attempt| attributes.with(mesh::ATTEMPT, attempt))
}

/// The request to charge for an order.
pub fn process_request(order: &Order) -> payment::ProcessPaymentRequest {
    payment::ProcessPaymentRequest {
        order_id: order.id.to_string(),
        user_id: order.user.to_string(),
        amount: Some(to_proto::money(order.total)),
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
            match self.0.clone().process_payment(attributes(order).request(process_request(order))).await {
                Ok(response) => processed(response.into_inner().payment),
                Err(status) => undecided(&status),
            }
        })
    }

    fn cancel<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentOutcome> {
        Box::pin(async move {
            match self.0.clone().cancel_payment(attributes(order).request(cancel_request(order))).await {
                Ok(response) => cancelled(response.into_inner().payment, order.refund_attempt),
                Err(status) => undecided(&status),
            }
        })
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
