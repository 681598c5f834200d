//! Compares the payments with the gateway's ledger: one payment with its row, or all of them.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use kernel::OrderId;

use crate::error::Error;
use crate::lifecycle::State;
use crate::payment::{Attempt, DeclineCode, Payment, charge_key, order_of, shortened};
use crate::ports::{Charge, ChargeStatus, Gateway, LedgerPage, NoResponse};
use crate::store::Store;

/// The number of payments per read.
const PAGE: u64 = 1_000;
/// The maximum number of differences that are listed; one page of them is enough to begin with.
pub(crate) const MAX_DIFFERENCES: usize = 1_000;
/// Maximum bytes of a charge key of unknown form.
const MAX_KEY_BYTES: usize = 1_024;

/// The gateway's ledger's entry for a payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LedgerEntry {
    /// There is a row.
    Row(Charge),
    /// There is no row.
    NoRow,
    /// The gateway did not respond.
    NoResponse,
}

impl fmt::Display for LedgerEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(Charge { status: ChargeStatus::Declined(code), .. }) => write!(f, "DECLINED {}", code.name()),
            Self::Row(charge) => f.write_str(charge.status.name()),
            Self::NoRow => f.write_str("no row"),
            Self::NoResponse => f.write_str("no response"),
        }
    }
}

/// A payment with its attempts and its entry in the ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PaymentDetails {
    pub payment: Payment,
    /// Its attempts, oldest first.
    pub attempts: Vec<Attempt>,
    pub ledger: LedgerEntry,
}

/// A difference between a stored payment and the gateway's ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The order, or the charge's key if there is no such order.
    pub order_id: String,
    /// The stored payment's state.
    pub payment: String,
    pub gateway: String,
    /// A sentence about the difference.
    pub message: String,
}

/// The result of a comparison.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reconciliation {
    /// The differences; empty is healthy.
    pub differences: Vec<Difference>,
    /// The number of payments compared.
    pub payment_count: i64,
    /// The number of ledger rows compared.
    pub charge_count: i64,
    /// The number of payments with a pending effect.
    pub unfinished_count: i64,
}

/// Compares payments with the ledger.
#[derive(Clone)]
pub struct Reconciler {
    pub store: Store,
    pub gateway: Arc<dyn Gateway>,
}

impl fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconciler").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Reconciler {
    /// An order's payment, with its attempts and the ledger's entry. A gateway that does not respond is not an error.
    ///
    /// # Errors
    /// There is no such payment; the database failed.
    pub async fn details(&self, order_id: OrderId) -> Result<PaymentDetails, Error> {
        let payment = self.store.find(order_id).await?.ok_or(Error::PaymentNotFound)?;
        let attempts = self.store.attempts(order_id).await?;
        let ledger = self.ledger(order_id).await.unwrap_or(LedgerEntry::NoResponse);
        Ok(PaymentDetails { payment, attempts, ledger })
    }

    async fn ledger(&self, order_id: OrderId) -> Result<LedgerEntry, NoResponse> {
        match self.gateway.get_charge(charge_key(order_id)).await {
            Ok(charge) => Ok(LedgerEntry::Row(charge)),
            Err(error) if error.is_not_found => Ok(LedgerEntry::NoRow),
            Err(error) => Err(error),
        }
    }

    /// Every difference between the payments and the gateway's ledger. Correct while both change: an apparent
    /// difference is checked again, alone, before it counts.
    ///
    /// # Errors
    /// The gateway did not respond; the database failed.
    pub async fn reconcile(&self) -> Result<Reconciliation, Error> {
        let unreachable = Error::GatewayUnreachable;
        let mut found = Reconciliation::default();
        // The orders whose row matches: 16 bytes each.
        let mut matching = HashSet::new();
        let mut token = Some(String::new());
        while let Some(page_token) = token {
            let LedgerPage { charges, next } = self.gateway.list_charges(page_token).await.map_err(unreachable)?;
            found.charge_count = found.charge_count.saturating_add(i64::try_from(charges.len()).unwrap_or(i64::MAX));
            self.compare_charges(charges, &mut matching, &mut found).await?;
            token = next;
        }
        let mut after = None;
        loop {
            let payments = self.store.page(after, PAGE).await?;
            let Some(last) = payments.last() else { return Ok(found) };
            after = Some(last.order_id);
            for payment in payments {
                found.payment_count = found.payment_count.saturating_add(1);
                if payment.state.has_pending_effect() {
                    found.unfinished_count = found.unfinished_count.saturating_add(1);
                } else if !matching.contains(&payment.order_id) {
                    self.look_again(payment.order_id, &mut found).await?;
                }
            }
        }
    }

    /// Collects the orders whose row matches, and the rows without an order.
    async fn compare_charges(
        &self,
        charges: Vec<Charge>,
        matching: &mut HashSet<OrderId>,
        found: &mut Reconciliation,
    ) -> Result<(), Error> {
        let order_ids: Vec<OrderId> = charges.iter().filter_map(|charge| order_of(&charge.charge_key)).collect();
        let payments = self.store.find_all(&order_ids).await?;
        let by_order: std::collections::HashMap<OrderId, Payment> =
            payments.into_iter().map(|payment| (payment.order_id, payment)).collect();
        for charge in charges {
            let payment = order_of(&charge.charge_key).and_then(|order_id| by_order.get(&order_id));
            match payment {
                Some(payment) => {
                    let order_id = payment.order_id;
                    if difference(payment, &LedgerEntry::Row(charge)).is_none() {
                        matching.insert(order_id);
                    }
                }
                None => found.note(Difference {
                    order_id: order_of(&charge.charge_key)
                        .map_or_else(|| shortened(&charge.charge_key, MAX_KEY_BYTES), |id| id.to_string()),
                    payment: "no payment".to_owned(),
                    gateway: charge.status.name().to_owned(),
                    message: "the gateway has a row under a key without a payment".to_owned(),
                }),
            }
        }
        Ok(())
    }

    /// If two reads of the payment are equal, the ledger's response in between belongs to it.
    async fn look_again(&self, order_id: OrderId, found: &mut Reconciliation) -> Result<(), Error> {
        let before = self.store.find(order_id).await?;
        let ledger = self.ledger(order_id).await.map_err(Error::GatewayUnreachable)?;
        let now = self.store.find(order_id).await?;
        let version = |payment: &Option<Payment>| payment.as_ref().map(|payment| payment.version);
        if let Some(payment) = now.as_ref().filter(|_| version(&before) == version(&now))
            && let Some(message) = difference(payment, &ledger)
        {
            found.note(Difference {
                order_id: order_id.to_string(),
                payment: payment.state.name().to_owned(),
                gateway: ledger.to_string(),
                message: message.to_owned(),
            });
        }
        Ok(())
    }
}

impl Reconciliation {
    fn note(&mut self, difference: Difference) {
        if self.differences.len() < MAX_DIFFERENCES {
            self.differences.push(difference);
        }
    }
}

/// The difference between a payment and its row, in a sentence; None if they match. A payment with a pending effect
/// matches.
#[rustfmt::skip]
pub fn difference(payment: &Payment, ledger: &LedgerEntry) -> Option<&'static str> {
    let charge = match ledger {
        LedgerEntry::Row(charge) => Some(charge),
        LedgerEntry::NoRow => None,
        LedgerEntry::NoResponse => return None,
    };
    let is_same_amount = charge.is_some_and(|charge| charge.amount == payment.amount);
    // Declined by this service's checks, or cancelled before it was requested: the gateway was never called.
    let was_never_requested = matches!(payment.decline_code, Some(DeclineCode::InvalidAmount | DeclineCode::InvalidPaymentDetails))
        || (payment.state == State::Cancelled && payment.fingerprint.is_none());
    match (payment.state, charge.map(|charge| charge.status)) {
        (State::Pending | State::InDoubt | State::Cancelling | State::Refunding, _) => None,
        (State::Succeeded | State::RefundRefused, Some(ChargeStatus::Succeeded)) if is_same_amount => None,
        (State::Succeeded | State::RefundRefused, Some(ChargeStatus::Succeeded)) => Some("charged with another amount"),
        (State::Succeeded | State::RefundRefused, _)                             => Some("the payment is charged, but not in the gateway's ledger"),
        (State::Refunded,  Some(ChargeStatus::Refunded))                         => None,
        (State::Refunded,  _)                                                    => Some("the payment is refunded, but not in the gateway's ledger"),
        (State::Declined | State::Failed | State::Cancelled, Some(ChargeStatus::Succeeded))
                                                                                 => Some("the charge is in the gateway's ledger, but the payment is not charged"),
        (State::Declined | State::Failed | State::Cancelled, Some(ChargeStatus::Refunded))
                                                                                 => Some("a refund is in the gateway's ledger, but the payment was never charged"),
        (State::Declined,  Some(ChargeStatus::Declined(_)))                      => None,
        (State::Declined,  Some(ChargeStatus::Cancelled))                        => Some("the payment is declined, but cancelled in the gateway's ledger"),
        (State::Failed | State::Cancelled, Some(ChargeStatus::Cancelled | ChargeStatus::Declined(_))) => None,
        (State::Declined | State::Failed | State::Cancelled, None) if was_never_requested => None,
        (State::Declined, None)                                                  => Some("the payment is declined by the gateway, but its ledger has no row"),
        (State::Failed | State::Cancelled, None)                                 => Some("the tombstone is missing: a late charge could still be made"),
    }
}
