//! The effect of a token, and of a call on the ledger.
//!
//! A charge key has one row, for ever: a charge (succeeded or declined) or a tombstone, whichever commits first. Every
//! call returns that row. Only definite results are stored, so a key that failed otherwise can be retried.

use std::sync::Arc;

use kernel::{Clock, IdSource, Money, Secret, Timestamp};
use uuid::Uuid;

use crate::error::Error;
use crate::fault::{self, Faults};
use crate::store::Store;

/// Why an issuer declined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decline {
    /// No reason given.
    GenericDecline,
    /// Not enough money.
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
    /// The payment method does not exist.
    InvalidPaymentMethod,
    /// The issuer suspects fraud.
    Fraudulent,
}

/// The status of a charge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Succeeded,
    /// Declined by the issuer.
    Declined(Decline),
    /// A tombstone: the key is never charged.
    Cancelled,
    /// Charged and refunded.
    Refunded,
}

/// The rule for refunds of a charge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefundRule {
    Accept,
    /// The first refund key is refused, later ones are accepted.
    RefuseFirst,
    RefuseAlways,
}

/// A row of the ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Charge {
    /// The gateway's id.
    pub id: Uuid,
    /// The merchant's key.
    pub key: String,
    pub status: Status,
    /// The amount that was, or would have been, charged; `None` on a tombstone.
    pub amount: Option<Money>,
    /// The rule for its refunds.
    pub refund_rule: RefundRule,
    /// When the row was created.
    pub created: Timestamp,
    /// When the charge was refunded.
    pub refunded: Option<Timestamp>,
}

/// A payment method's token. Any text is one; most are of no payment method.
pub type Token = Secret<String>;

/// A request to charge.
#[derive(Clone, Debug)]
pub struct ChargeCommand {
    /// The merchant's key.
    pub key: String,
    /// The amount, positive.
    pub amount: Money,
    /// The payment method to charge.
    pub token: Token,
}

/// A request to refund.
#[derive(Clone, Debug)]
pub struct RefundCommand {
    /// The merchant's key of the charge.
    pub charge_key: String,
    /// The merchant's key of the refund.
    pub refund_key: String,
}

/// The result of a refund.
#[derive(Clone, Debug)]
pub struct RefundResult {
    /// The ledger's row after it.
    pub charge: Charge,
    /// Why it was refused; `None` if it was refunded.
    pub refusal: Option<String>,
}

/// The tokens of Stripe's test mode that succeed (<https://docs.stripe.com/testing>).
const CHARGED: [&str; 3] = ["pm_card_visa", "pm_card_mastercard", "pm_card_amex"];

/// The tokens that are declined: what follows `pm_card_` or `pm_card_visa_`.
const DECLINED: [(&str, Decline); 8] = [
    ("chargeDeclined", Decline::GenericDecline),
    ("chargeDeclinedInsufficientFunds", Decline::InsufficientFunds),
    ("chargeDeclinedExpiredCard", Decline::ExpiredCard),
    ("chargeDeclinedIncorrectCvc", Decline::IncorrectCvc),
    ("chargeDeclinedLostCard", Decline::LostCard),
    ("chargeDeclinedStolenCard", Decline::StolenCard),
    ("chargeDeclinedProcessingError", Decline::ProcessingError),
    ("chargeDeclinedFraudulent", Decline::Fraudulent),
];

/// The reason of a refused refund.
const REFUSAL: &str = "the issuer refuses the refund";

/// The issuer's decision on a token, and the rule for refunds.
fn decide(token: &Token) -> (Status, RefundRule) {
    let token = token.expose().as_str();
    if CHARGED.contains(&token) {
        return (Status::Succeeded, RefundRule::Accept);
    }
    if let Some(rule) = fault::refund_rule(token) {
        return (Status::Succeeded, rule);
    }
    let ending = token.strip_prefix("pm_card_").map(|rest| rest.strip_prefix("visa_").unwrap_or(rest));
    let known = DECLINED.iter().find(|(name, _)| Some(*name) == ending);
    let decline = known.map_or(Decline::InvalidPaymentMethod, |(_, decline)| *decline);
    (Status::Declined(decline), RefundRule::Accept)
}

/// Whether a charge is refunded under a new refund key: `Ok(None)` if it is, `Ok(Some(why))` if that is refused.
/// `tried_before`: another refund key was decided already. `at_random`: an injected fault refuses it.
///
/// # Errors
/// The charge was not successful: there is nothing to refund.
pub(crate) fn decide_refund(charge: &Charge, tried_before: bool, at_random: bool) -> Result<Option<String>, Error> {
    let refused = match (charge.status, charge.refund_rule) {
        (Status::Declined(_) | Status::Cancelled, _) => return Err(Error::ChargeNotRefundable),
        (Status::Refunded, _) => false,
        (Status::Succeeded, RefundRule::Accept) => at_random,
        (Status::Succeeded, RefundRule::RefuseFirst) => !tried_before || at_random,
        (Status::Succeeded, RefundRule::RefuseAlways) => true,
    };
    Ok(refused.then(|| REFUSAL.to_owned()))
}

/// The gateway. Clones share one ledger.
#[derive(Clone)]
pub(crate) struct Gateway {
    store: Store,
    faults: Arc<Faults>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

impl Gateway {
    pub(crate) fn new(store: Store, faults: Faults, clock: Arc<dyn Clock>, ids: Arc<dyn IdSource>) -> Self {
        Self { store, faults: Arc::new(faults), clock, ids }
    }

    /// Charges once per key; a key with a row gets an idempotent replay.
    pub(crate) async fn create_charge(&self, command: ChargeCommand) -> Result<Charge, Error> {
        self.faults.latency().await;
        // A token's fault ends once its key has a row. Other tokens need no lookup: keeping the first row replays it.
        let is_fresh = fault::has_fault(&command.token) && self.store.find(&command.key).await?.is_none();
        let by_token = if is_fresh { self.faults.of_charge(&command.key, &command.token) } else { None };
        let fault = by_token.or_else(|| self.faults.at_random());
        let gateway = self.clone();
        let key = command.key.clone();
        self.faults.inject(fault, &key, async move { gateway.charge(command).await }).await
    }

    async fn charge(&self, command: ChargeCommand) -> Result<Charge, Error> {
        let (status, refund_rule) = decide(&command.token);
        let row = self.row(command.key, status, Some(command.amount), refund_rule);
        // Checked at the commit, not before: a tombstone may have been written in the meantime.
        let kept = self.store.insert_if_absent(row).await?;
        self.faults.forget(&kept.key);
        match kept.amount {
            Some(amount) if amount != command.amount => Err(Error::ChargeKeyReused),
            Some(_) | None => Ok(kept),
        }
    }

    /// The row of a key.
    pub(crate) async fn get_charge(&self, key: &str) -> Result<Charge, Error> {
        self.faults.latency().await;
        self.store.find(key).await?.ok_or(Error::ChargeNotFound)
    }

    /// Writes a tombstone, unless the key has a row: then nothing changes and the row is returned.
    pub(crate) async fn cancel_charge(&self, key: String) -> Result<Charge, Error> {
        self.faults.latency().await;
        let row = self.row(key.clone(), Status::Cancelled, None, RefundRule::Accept);
        let gateway = self.clone();
        let work = async move {
            let kept = gateway.store.insert_if_absent(row).await?;
            gateway.faults.forget(&kept.key);
            Ok(kept)
        };
        self.faults.inject(self.faults.at_random(), &key, work).await
    }

    /// Refunds, once per refund key; a repeated key gets an idempotent replay.
    pub(crate) async fn refund_charge(&self, command: RefundCommand) -> Result<RefundResult, Error> {
        self.faults.latency().await;
        let (store, now) = (self.store.clone(), self.clock.now());
        let refused_at_random = self.faults.refuses_refund();
        let key = command.charge_key.clone();
        let work = async move { store.refund(command, now, refused_at_random).await };
        self.faults.inject(self.faults.at_random(), &key, work).await
    }

    /// A page of the ledger, by charge key.
    pub(crate) async fn list_charges(&self, after: Option<String>, count: u64) -> Result<Vec<Charge>, Error> {
        self.faults.latency().await;
        Ok(self.store.page(after, count).await?)
    }

    fn row(&self, key: String, status: Status, amount: Option<Money>, refund_rule: RefundRule) -> Charge {
        Charge { id: self.ids.uuid(), key, status, amount, refund_rule, created: self.clock.now(), refunded: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(token: &str) -> Status {
        decide(&Token::new(token.to_owned())).0
    }

    #[test]
    fn every_test_token_has_its_documented_result_with_and_without_the_brand() {
        for token in CHARGED {
            assert_eq!(status(token), Status::Succeeded, "{token}");
        }
        for (name, decline) in DECLINED {
            for token in [format!("pm_card_{name}"), format!("pm_card_visa_{name}")] {
                assert_eq!(status(&token), Status::Declined(decline), "{token}");
            }
        }
    }

    #[test]
    fn an_unknown_token_is_an_invalid_payment_method() {
        for token in [
            "",
            "pm_card_",
            "pm_card_visa_",
            "pm_card_visa_visa_chargeDeclined",
            "chargeDeclined",
            "4242",
            "pm_gateway_",
        ] {
            assert_eq!(status(token), Status::Declined(Decline::InvalidPaymentMethod), "{token}");
        }
    }
}
