//! Contract ⇄ domain. Every check of a field is here.

use chassis::decode::is_payment_method;
use chassis::to_proto::{money, timestamp};
use chassis::{Fields, Fingerprint, Invalid};
use contracts::common::v1 as common;
use contracts::payment::v1 as proto;
use kernel::{Money, OrderId, UserId};

use crate::lifecycle::State;
use crate::payment::{Advice, Attempt, DeclineCode, Payment, PaymentMethod, charge_key};
use crate::process::{CancelCommand, ProcessCommand};
use crate::reconcile::{Difference, PaymentDetails, Reconciliation};

impl TryFrom<proto::ProcessPaymentRequest> for ProcessCommand {
    type Error = Invalid;

    /// An invalid id is the caller's error. With an invalid amount or invalid details the payment is recorded, and
    /// declined.
    fn try_from(request: proto::ProcessPaymentRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let order_id = fields.id::<OrderId>("order_id", &request.order_id);
        let user_id = fields.id::<UserId>("user_id", &request.user_id);
        let (order_id, user_id) = fields.finish(order_id.zip(user_id))?;
        // The Order Service has validated it, perhaps by the rules of an earlier release.
        let contact_email = Fields::default().known_email("contact_email", &request.contact_email);
        let fingerprint = fingerprint(order_id, user_id, &request);
        Ok(Self {
            order_id,
            user_id,
            amount: request.amount.as_ref().and_then(amount),
            are_details_valid: is_payment_method(&request.payment_method) && contact_email.is_some(),
            payment_method: PaymentMethod::new(request.payment_method),
            contact_email: contact_email.unwrap_or_default(),
            fingerprint,
        })
    }
}

fn fingerprint(order_id: OrderId, user_id: UserId, request: &proto::ProcessPaymentRequest) -> String {
    let amount = request.amount.clone().unwrap_or_default();
    Fingerprint::of("ProcessPayment/1")
        .part("order_id", order_id)
        .part("user_id", user_id)
        .part("currency_code", amount.currency_code)
        .part("minor_units", amount.minor_units)
        .part("payment_method", &request.payment_method)
        .part("contact_email", &request.contact_email)
        .finish()
}

fn amount(amount: &common::Money) -> Option<Money> {
    Some(Money::new(amount.currency_code.parse().ok()?, amount.minor_units))
}

impl TryFrom<proto::CancelPaymentRequest> for CancelCommand {
    type Error = Invalid;

    fn try_from(request: proto::CancelPaymentRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let order_id = fields.id("order_id", &request.order_id);
        if request.refund_attempt < 1 {
            fields.reject("refund_attempt", "NOT_POSITIVE", "refunds are numbered from 1");
        }
        fields.finish(order_id.map(|order_id| Self { order_id, refund_n: request.refund_attempt }))
    }
}

/// The order of a GetPayment request.
pub(crate) fn order_id(request: &proto::GetPaymentRequest) -> Result<OrderId, Invalid> {
    let mut fields = Fields::default();
    let order_id = fields.id("order_id", &request.order_id);
    fields.finish(order_id)
}

impl From<State> for proto::PaymentState {
    fn from(state: State) -> Self {
        match state {
            State::Pending => Self::Pending,
            State::InDoubt => Self::InDoubt,
            State::Cancelling => Self::Cancelling,
            State::Refunding => Self::Refunding,
            State::Succeeded => Self::Succeeded,
            State::Declined => Self::Declined,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
            State::Refunded => Self::Refunded,
            State::RefundRefused => Self::RefundRefused,
        }
    }
}

impl From<DeclineCode> for proto::DeclineCode {
    fn from(code: DeclineCode) -> Self {
        match code {
            DeclineCode::GenericDecline => Self::GenericDecline,
            DeclineCode::InsufficientFunds => Self::InsufficientFunds,
            DeclineCode::ExpiredCard => Self::ExpiredCard,
            DeclineCode::IncorrectCvc => Self::IncorrectCvc,
            DeclineCode::LostCard => Self::LostCard,
            DeclineCode::StolenCard => Self::StolenCard,
            DeclineCode::ProcessingError => Self::ProcessingError,
            DeclineCode::Fraudulent => Self::Fraudulent,
            DeclineCode::InvalidPaymentDetails => Self::InvalidPaymentDetails,
            DeclineCode::InvalidAmount => Self::InvalidAmount,
            DeclineCode::GatewayTimeout => Self::GatewayTimeout,
        }
    }
}

impl From<Advice> for proto::DeclineAdvice {
    fn from(advice: Advice) -> Self {
        match advice {
            Advice::DoNotRetry => Self::DoNotRetry,
            Advice::RetryLater => Self::RetryLater,
            Advice::UseOtherMethod => Self::UseOtherMethod,
        }
    }
}

impl From<Payment> for proto::Payment {
    fn from(payment: Payment) -> Self {
        let decline = payment.decline_code;
        Self {
            order_id: payment.order_id.to_string(),
            state: proto::PaymentState::from(payment.state).into(),
            amount: payment.amount.map(money),
            decline_code: decline.map_or(proto::DeclineCode::Unspecified, Into::into).into(),
            advice: decline.map_or(proto::DeclineAdvice::Unspecified, |code| code.advice().into()).into(),
            charge_id: payment.charge_id.unwrap_or_default(),
            charge_key: charge_key(payment.order_id),
            refund_attempt: payment.refund_n,
            version: payment.version,
            create_time: Some(timestamp(payment.create_time)),
            update_time: Some(timestamp(payment.update_time)),
        }
    }
}

impl From<Attempt> for proto::PaymentAttempt {
    fn from(attempt: Attempt) -> Self {
        Self {
            attempt: attempt.attempt,
            effect: attempt.effect,
            outcome: attempt.outcome,
            state: proto::PaymentState::from(attempt.state).into(),
            time: Some(timestamp(attempt.time)),
            trace_id: attempt.trace_id,
            span_id: attempt.span_id,
        }
    }
}

impl From<PaymentDetails> for proto::GetPaymentResponse {
    fn from(details: PaymentDetails) -> Self {
        Self {
            payment: Some(details.payment.into()),
            attempts: details.attempts.into_iter().map(Into::into).collect(),
            gateway_ledger: details.ledger.to_string(),
        }
    }
}

impl From<Difference> for proto::Difference {
    fn from(difference: Difference) -> Self {
        let Difference { order_id, payment, gateway, message } = difference;
        Self { order_id, payment, gateway, message }
    }
}

impl From<Reconciliation> for proto::ReconcilePaymentsResponse {
    fn from(found: Reconciliation) -> Self {
        Self {
            differences: found.differences.into_iter().map(Into::into).collect(),
            payment_count: found.payment_count,
            charge_count: found.charge_count,
            unfinished_count: found.unfinished_count,
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::reconcile::MAX_DIFFERENCES;
    use crate::store::MAX_ATTEMPTS;

    #[test]
    fn the_maximum_of_attempts_and_differences_fit_into_the_default_message_limit() {
        let text = |bytes: usize| "x".repeat(bytes);
        let attempt = proto::PaymentAttempt {
            attempt: i32::MAX,
            effect: text(20),
            outcome: text(1_024),
            state: proto::PaymentState::RefundRefused.into(),
            time: Some(timestamp(kernel::Timestamp::from_micros(i64::MAX))),
            trace_id: text(32),
            span_id: text(16),
        };
        let attempts = vec![attempt; usize::try_from(MAX_ATTEMPTS).expect("it fits")];
        let response = proto::GetPaymentResponse { attempts, ..Default::default() };
        assert!(response.encoded_len() < 4_194_304, "{}", response.encoded_len());
        let difference =
            proto::Difference { order_id: text(1_024), payment: text(40), gateway: text(40), message: text(200) };
        let differences = vec![difference; MAX_DIFFERENCES];
        let response = proto::ReconcilePaymentsResponse { differences, ..Default::default() };
        assert!(response.encoded_len() < 4_194_304, "{}", response.encoded_len());
    }
}

#[cfg(test)]
mod fuzz;
