//! A payment: the stored fields, its keys at the gateway, and the events of its states. Pure.

use kernel::{Money, OrderId, Secret, Timestamp, UserId};
use telemetry::{ErrorType, EventError, Outcome, TraceParent};

use crate::lifecycle::{CancelRequested, Effect, State, pending_effect};

/// The type of payments' events.
pub const EVENT_TYPE: &str = "payment_processing";

/// The token of a payment method; only for the gateway and the store.
pub type PaymentMethod = Secret<String>;

/// Why a payment was declined or failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeclineCode {
    /// No reason given.
    GenericDecline,
    InsufficientFunds,
    /// The card has expired.
    ExpiredCard,
    /// The security code is wrong.
    IncorrectCvc,
    /// The card is reported lost.
    LostCard,
    /// The card is reported stolen.
    StolenCard,
    /// The issuer could not process it.
    ProcessingError,
    /// The issuer suspects fraud.
    Fraudulent,
    /// The payment details are malformed, or the payment method is unknown.
    InvalidPaymentDetails,
    /// The amount is not positive, over the limit, or in an unknown currency.
    InvalidAmount,
    /// The gateway did not respond in time; certainly not charged.
    GatewayTimeout,
}

pub const DECLINE_CODES: [DeclineCode; 11] = [
    DeclineCode::GenericDecline,
    DeclineCode::InsufficientFunds,
    DeclineCode::ExpiredCard,
    DeclineCode::IncorrectCvc,
    DeclineCode::LostCard,
    DeclineCode::StolenCard,
    DeclineCode::ProcessingError,
    DeclineCode::Fraudulent,
    DeclineCode::InvalidPaymentDetails,
    DeclineCode::InvalidAmount,
    DeclineCode::GatewayTimeout,
];

/// What the customer can do about a decline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// A retry will not work.
    DoNotRetry,
    /// The same method may work later, with a new order.
    RetryLater,
    /// Place a new order with another payment method.
    UseOtherMethod,
}

impl DeclineCode {
    /// The name in events and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GenericDecline => "GENERIC_DECLINE",
            Self::InsufficientFunds => "INSUFFICIENT_FUNDS",
            Self::ExpiredCard => "EXPIRED_CARD",
            Self::IncorrectCvc => "INCORRECT_CVC",
            Self::LostCard => "LOST_CARD",
            Self::StolenCard => "STOLEN_CARD",
            Self::ProcessingError => "PROCESSING_ERROR",
            Self::Fraudulent => "FRAUDULENT",
            Self::InvalidPaymentDetails => "INVALID_PAYMENT_DETAILS",
            Self::InvalidAmount => "INVALID_AMOUNT",
            Self::GatewayTimeout => "GATEWAY_TIMEOUT",
        }
    }

    /// The code with this name.
    pub fn of(name: &str) -> Option<Self> {
        DECLINE_CODES.into_iter().find(|code| code.name() == name)
    }

    /// What the customer can do.
    #[rustfmt::skip]
    pub const fn advice(self) -> Advice {
        match self {
            Self::LostCard | Self::StolenCard | Self::Fraudulent => Advice::DoNotRetry,
            Self::InvalidAmount                                  => Advice::DoNotRetry,
            Self::ProcessingError | Self::GatewayTimeout         => Advice::RetryLater,
            Self::GenericDecline | Self::InsufficientFunds       => Advice::UseOtherMethod,
            Self::ExpiredCard | Self::IncorrectCvc               => Advice::UseOtherMethod,
            Self::InvalidPaymentDetails                          => Advice::UseOtherMethod,
        }
    }

    /// A sentence for the customer.
    pub const fn message(self) -> &'static str {
        match self {
            Self::GenericDecline => "the issuer declined the payment",
            Self::InsufficientFunds => "the account has insufficient funds",
            Self::ExpiredCard => "the card has expired",
            Self::IncorrectCvc => "the card's security code is wrong",
            Self::LostCard => "the card is reported lost",
            Self::StolenCard => "the card is reported stolen",
            Self::ProcessingError => "the issuer could not process the payment",
            Self::Fraudulent => "the issuer suspects fraud",
            Self::InvalidPaymentDetails => "the payment details are malformed, or the payment method is unknown",
            Self::InvalidAmount => "the amount is not positive, over the limit, or in an unknown currency",
            Self::GatewayTimeout => "the payment gateway did not answer in time; nothing was charged",
        }
    }
}

/// The stored payment of an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payment {
    /// The order's id, the primary key.
    pub order_id: OrderId,
    /// The customer. None on a tombstone that was recorded before the payment.
    pub user_id: Option<UserId>,
    pub state: State,
    /// The amount to charge. None on a tombstone, and if the currency is unknown.
    pub amount: Option<Money>,
    /// Kept only while the charge may still have to be sent.
    pub payment_method: Option<PaymentMethod>,
    /// The address for the receipt.
    pub contact_email: Option<String>,
    /// The fingerprint of the ProcessPayment command. None on a tombstone.
    pub fingerprint: Option<String>,
    /// Incremented by every change.
    pub version: i64,
    /// The number of rows in `payment_attempt`.
    pub attempt: i32,
    /// Failed attempts since the last definite result.
    pub failures: u32,
    /// When the pending effect is due; None when there is none.
    pub next_attempt_time: Option<Timestamp>,
    /// The instance that holds the lease.
    pub lease_owner: Option<String>,
    /// When the lease expires.
    pub lease_until: Timestamp,
    /// When the first call with an unknown outcome began.
    pub doubt_since: Option<Timestamp>,
    /// Whether the order has requested a cancellation.
    pub cancel_requested: bool,
    /// The number of the last refund that the order requested; 0 before any.
    pub refund_n: i32,
    /// Why it was declined or failed.
    pub decline_code: Option<DeclineCode>,
    /// The gateway's id of the charge, if charged.
    pub charge_id: Option<String>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// The call that requested the pending effect: attempts are its children.
    pub traceparent: String,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
}

impl Payment {
    pub fn pending_effect(&self) -> Option<Effect> {
        pending_effect(self.state, self.refund_n)
    }

    /// Whether the order has requested a cancellation.
    pub fn cancellation(&self) -> CancelRequested {
        if self.cancel_requested { CancelRequested::Yes } else { CancelRequested::No }
    }

    /// The call that requested the pending effect.
    pub fn parent(&self) -> Option<TraceParent> {
        self.traceparent.parse().ok()
    }
}

/// A row of `payment_attempt`: a call to the gateway, or a change without one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Serial number, from 1.
    pub attempt: i32,
    /// [`Effect::name`], or "record".
    pub effect: String,
    pub outcome: String,
    /// The state after it.
    pub state: State,
    /// When it ended.
    pub time: Timestamp,
    /// The trace of the attempt.
    pub trace_id: String,
    /// The span of the attempt.
    pub span_id: String,
}

/// The idempotency key of an order's charge: one order, one key, one charge.
pub fn charge_key(order_id: OrderId) -> String {
    format!("order-{order_id}-charge")
}

/// The idempotency key of an order's refund number `n`.
pub fn refund_key(order_id: OrderId, n: i32) -> String {
    format!("order-{order_id}-refund-{n}")
}

/// The order of a charge key; None when the key has another form.
pub fn order_of(charge_key: &str) -> Option<OrderId> {
    charge_key.strip_prefix("order-")?.strip_suffix("-charge")?.parse().ok()
}

/// The event of entering a state: the value of its attribute `operation`, and its outcome. None for states with a
/// pending effect: being in doubt is not an event.
pub fn event_of(state: State, decline: Option<DeclineCode>, detail: &str) -> Option<(&'static str, Outcome)> {
    let failed =
        |error_type, reason: &str, message: String| Outcome::Failed(EventError::new(error_type, reason, message));
    let code = decline.unwrap_or(DeclineCode::GenericDecline);
    match state {
        State::Succeeded => Some(("charge", Outcome::Success)),
        State::Refunded => Some(("refund", Outcome::Success)),
        State::Cancelled => Some(("cancel", Outcome::Success)),
        State::Declined => Some(("charge", failed(ErrorType::PaymentDeclined, code.name(), code.message().to_owned()))),
        State::Failed => {
            Some(("charge", failed(ErrorType::GatewayTimeout, "GATEWAY_TIMEOUT", code.message().to_owned())))
        }
        State::RefundRefused => {
            let message = format!("the gateway refuses the refund: {detail}");
            Some(("refund", failed(ErrorType::RefundRefused, "REFUND_REFUSED", message)))
        }
        State::Pending | State::InDoubt | State::Cancelling | State::Refunding => None,
    }
}

/// At most `max` bytes of an external text, without control characters, which databases may reject.
pub(crate) fn shortened(text: &str, max: usize) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::STATES;
    use kernel::{IdSource, SystemIds};

    #[test]
    fn a_charge_key_parses_back_to_its_order() {
        let order_id = OrderId::from_uuid(SystemIds.uuid());
        assert_eq!(order_of(&charge_key(order_id)), Some(order_id));
        assert_ne!(refund_key(order_id, 1), refund_key(order_id, 2));
        for key in
            ["", "order-7-charge", "order--charge", &refund_key(order_id, 1), &charge_key(order_id).to_uppercase()]
        {
            assert_eq!(order_of(key), None, "{key}");
        }
    }

    #[test]
    fn exactly_the_states_without_a_pending_effect_have_an_event() {
        for state in STATES {
            assert_eq!(event_of(state, None, "").is_some(), !state.has_pending_effect(), "{state:?}");
        }
    }

    #[test]
    fn decline_code_names_round_trip() {
        for code in DECLINE_CODES {
            assert_eq!(DeclineCode::of(code.name()), Some(code));
        }
    }

    #[test]
    fn a_text_is_shortened_at_a_character_boundary() {
        assert_eq!(shortened("aäb", 2), "a");
        assert_eq!(shortened("ab", 5), "ab");
    }
}
