//! Contract ⇄ domain. Every check of a field is here; all violations of a request are reported together.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chassis::to_proto;
use contracts::common::v1 as common;
use contracts::gateway::v1 as proto;
use kernel::{Money, text};
use mesh::Violation;

use crate::charge::{Charge, ChargeCommand, Decline, RefundCommand, RefundResult, Status, Token};
use crate::error::Error;

/// The page size if the request sets none.
const DEFAULT_PAGE_SIZE: u16 = 100;
const MAX_PAGE_SIZE: u16 = 1_000;
/// Maximum length of a key, in characters.
const MAX_KEY_CHARS: usize = 255;
/// Maximum length of an e-mail address, in bytes (RFC 5321).
const MAX_EMAIL_BYTES: usize = 254;

/// The violations of a request.
#[derive(Default)]
struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, field: &str, reason: &'static str, description: &str) {
        self.0.push(Violation { field: field.to_owned(), reason, description: description.to_owned() });
    }

    fn key(&mut self, field: &str, key: &str) {
        if !is_key(key) {
            self.add(
                field,
                "INVALID_KEY",
                "a key has 1 to 255 characters, not all of them blank, and no control character",
            );
        }
    }

    fn amount(&mut self, amount: Option<common::Money>) -> Option<Money> {
        let Some(amount) = amount else {
            self.add("amount", "AMOUNT_REQUIRED", "the amount is required");
            return None;
        };
        if amount.minor_units <= 0 {
            self.add("amount.minor_units", "INVALID_AMOUNT", "the amount must be more than zero");
        }
        let currency = amount.currency_code.parse().ok();
        if currency.is_none() {
            self.add("amount.currency_code", "INVALID_CURRENCY", "not a supported currency of ISO 4217");
        }
        currency.map(|currency| Money::new(currency, amount.minor_units))
    }

    /// `value` is `None` only when a violation was added.
    fn check<T>(self, value: Option<T>) -> Result<T, Error> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            Some(_) | None => Err(Error::InvalidArgument(self.0)),
        }
    }
}

impl TryFrom<proto::CreateChargeRequest> for ChargeCommand {
    type Error = Error;

    fn try_from(request: proto::CreateChargeRequest) -> Result<Self, Error> {
        let mut violations = Violations::default();
        violations.key("charge_key", &request.charge_key);
        let amount = violations.amount(request.amount);
        let email = &request.receipt_email;
        let is_email = email.len() <= MAX_EMAIL_BYTES && email.contains('@') && !email.chars().any(char::is_control);
        if !email.is_empty() && !is_email {
            violations.add("receipt_email", "INVALID_EMAIL", "not an e-mail address");
        }
        // Any payment method is accepted: an unknown one is declined, which is a definite result that can be stored.
        violations.check(amount.map(|amount| Self {
            key: request.charge_key,
            amount,
            token: Token::new(request.payment_method),
        }))
    }
}

/// The charge key of a request that has no other field.
pub(crate) struct ChargeKey(pub(crate) String);

impl ChargeKey {
    fn new(key: String) -> Result<Self, Error> {
        let mut violations = Violations::default();
        violations.key("charge_key", &key);
        violations.check(Some(Self(key)))
    }
}

impl TryFrom<proto::GetChargeRequest> for ChargeKey {
    type Error = Error;

    fn try_from(request: proto::GetChargeRequest) -> Result<Self, Error> {
        Self::new(request.charge_key)
    }
}

impl TryFrom<proto::CancelChargeRequest> for ChargeKey {
    type Error = Error;

    fn try_from(request: proto::CancelChargeRequest) -> Result<Self, Error> {
        Self::new(request.charge_key)
    }
}

impl TryFrom<proto::RefundChargeRequest> for RefundCommand {
    type Error = Error;

    fn try_from(request: proto::RefundChargeRequest) -> Result<Self, Error> {
        let mut violations = Violations::default();
        violations.key("charge_key", &request.charge_key);
        violations.key("refund_key", &request.refund_key);
        violations.check(Some(Self { charge_key: request.charge_key, refund_key: request.refund_key }))
    }
}

/// The requested page of the ledger.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// After this charge key.
    pub(crate) after: Option<String>,
    /// At most this many rows.
    pub(crate) size: u16,
}

/// The prefix of a page token: the version of its format, and that of the (absent) filters.
const TOKEN_PREFIX: &str = "1:charges:";

impl TryFrom<proto::ListChargesRequest> for Page {
    type Error = Error;

    fn try_from(request: proto::ListChargesRequest) -> Result<Self, Error> {
        let mut violations = Violations::default();
        let size = match u16::try_from(request.page_size) {
            Ok(0) => DEFAULT_PAGE_SIZE,
            Ok(size) => size.min(MAX_PAGE_SIZE),
            Err(_) if request.page_size > 0 => MAX_PAGE_SIZE,
            Err(_) => {
                violations.add("page_size", "INVALID_PAGE_SIZE", "the page size must not be negative");
                DEFAULT_PAGE_SIZE
            }
        };
        let after = (!request.page_token.is_empty()).then(|| read_token(&request.page_token));
        if after == Some(None) {
            violations.add("page_token", "INVALID_PAGE_TOKEN", "not a token of this list");
        }
        violations.check(Some(Self { after: after.flatten(), size }))
    }
}

fn read_token(token: &str) -> Option<String> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    // Tokens are not signed: the key in it is validated like any charge key.
    text.strip_prefix(TOKEN_PREFIX).filter(|key| is_key(key)).map(str::to_owned)
}

fn is_key(key: &str) -> bool {
    !text::is_blank(key) && key.chars().count() <= MAX_KEY_CHARS && !key.chars().any(char::is_control)
}

/// A page of at most `size` rows of `charges`, which was read with one more row to detect another page.
pub(crate) fn page(mut charges: Vec<Charge>, size: u16) -> proto::ListChargesResponse {
    let more = charges.len() > usize::from(size);
    charges.truncate(usize::from(size));
    let last = charges.last().filter(|_| more);
    let next_page_token =
        last.map_or_else(String::new, |charge| URL_SAFE_NO_PAD.encode(format!("{TOKEN_PREFIX}{}", charge.key)));
    proto::ListChargesResponse { charges: charges.into_iter().map(Into::into).collect(), next_page_token }
}

impl From<Charge> for proto::Charge {
    fn from(charge: Charge) -> Self {
        let (status, decline_code) = match charge.status {
            Status::Succeeded => (proto::ChargeStatus::Succeeded, proto::DeclineCode::Unspecified),
            Status::Declined(decline) => (proto::ChargeStatus::Declined, decline.into()),
            Status::Cancelled => (proto::ChargeStatus::Cancelled, proto::DeclineCode::Unspecified),
            Status::Refunded => (proto::ChargeStatus::Refunded, proto::DeclineCode::Unspecified),
        };
        Self {
            charge_id: charge.id.to_string(),
            charge_key: charge.key,
            status: status.into(),
            amount: charge.amount.map(to_proto::money),
            decline_code: decline_code.into(),
            create_time: Some(to_proto::timestamp(charge.created)),
            refund_time: charge.refunded.map(to_proto::timestamp),
        }
    }
}

impl From<Decline> for proto::DeclineCode {
    fn from(decline: Decline) -> Self {
        match decline {
            Decline::GenericDecline => Self::GenericDecline,
            Decline::InsufficientFunds => Self::InsufficientFunds,
            Decline::ExpiredCard => Self::ExpiredCard,
            Decline::IncorrectCvc => Self::IncorrectCvc,
            Decline::LostCard => Self::LostCard,
            Decline::StolenCard => Self::StolenCard,
            Decline::ProcessingError => Self::ProcessingError,
            Decline::InvalidPaymentMethod => Self::InvalidPaymentMethod,
            Decline::Fraudulent => Self::Fraudulent,
        }
    }
}

impl From<RefundResult> for proto::RefundChargeResponse {
    fn from(result: RefundResult) -> Self {
        Self {
            charge: Some(result.charge.into()),
            refunded: result.refusal.is_none(),
            refusal: result.refusal.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use kernel::Timestamp;
    use prost::Message;

    use super::*;

    #[test]
    fn a_blank_key_is_rejected() {
        for key in ["", " ", "\u{200b}\u{3000}"] {
            assert!(ChargeKey::new(key.to_owned()).is_err(), "{key:?}");
        }
        assert!(ChargeKey::new("order-1-charge".to_owned()).is_ok());
    }

    #[test]
    fn the_largest_rows_fit_into_the_default_message_limit() {
        let row = proto::Charge {
            charge_id: "x".repeat(40),
            charge_key: "😀".repeat(MAX_KEY_CHARS),
            status: proto::ChargeStatus::Refunded.into(),
            amount: Some(common::Money { currency_code: "EUR".into(), minor_units: i64::MAX }),
            decline_code: proto::DeclineCode::Fraudulent.into(),
            create_time: Some(to_proto::timestamp(Timestamp::from_micros(i64::MAX))),
            refund_time: Some(to_proto::timestamp(Timestamp::from_micros(i64::MAX))),
        };
        let charges = vec![row; usize::from(MAX_PAGE_SIZE)];
        let page = proto::ListChargesResponse { charges, next_page_token: "x".repeat(2_000) };
        assert!(page.encoded_len() < 4_194_304, "{}", page.encoded_len());
    }
}

#[cfg(test)]
mod fuzz;
