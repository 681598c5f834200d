//! Our payments beside the gateway's ledger: one payment's row, and every difference between all of them.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use kernel::OrderId;

use crate::error::Error;
use crate::lifecycle::State;
use crate::payment::{Attempt, DeclineCode, Payment, charge_key, order_of, shortened};
use crate::ports::{Charge, ChargeStatus, Gateway, LedgerPage, NoAnswer};
use crate::store::Store;

/// How many payments are read at a time.
const PAGE: u64 = 1_000;
/// The most differences that are listed; the rest is as wrong, and one page is enough to begin with.
pub(crate) const MAX_DIFFERENCES: usize = 1_000;
/// The most bytes of a charge's key that is none of ours.
const MAX_KEY_BYTES: usize = 1_024;

/// What the gateway's ledger says of a payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ledger {
    /// It has a row.
    Row(Charge),
    /// It has none.
    NoRow,
    /// It did not say.
    NoAnswer,
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(Charge { status: ChargeStatus::Declined(code), .. }) => write!(f, "DECLINED {}", code.name()),
            Self::Row(charge) => f.write_str(charge.status.name()),
            Self::NoRow => f.write_str("no row"),
            Self::NoAnswer => f.write_str("no answer"),
        }
    }
}

/// All that is known of a payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// As we keep it.
    pub payment: Payment,
    /// Oldest first.
    pub attempts: Vec<Attempt>,
    /// As the gateway keeps it.
    pub ledger: Ledger,
}

/// A difference between our record and the gateway's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The order, or the charge's key when there is no such order.
    pub order_id: String,
    /// What we have.
    pub payment: String,
    /// What the gateway has.
    pub gateway: String,
    /// A sentence.
    pub message: String,
}

/// What a comparison found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reconciliation {
    /// Empty is healthy.
    pub differences: Vec<Difference>,
    /// How many payments were compared.
    pub payment_count: i64,
    /// How many rows of the ledger were compared.
    pub charge_count: i64,
    /// How many payments are on their way.
    pub unfinished_count: i64,
}

/// Compares.
#[derive(Clone)]
pub struct Reconciler {
    /// Our payments.
    pub store: Store,
    /// The gateway.
    pub gateway: Arc<dyn Gateway>,
}

impl fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconciler").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Reconciler {
    /// All that is known of an order's payment. A gateway that does not answer is no error.
    ///
    /// # Errors
    /// There is no such payment; the database.
    pub async fn account(&self, order_id: OrderId) -> Result<Account, Error> {
        let payment = self.store.find(order_id).await?.ok_or(Error::PaymentNotFound)?;
        let attempts = self.store.attempts(order_id).await?;
        let ledger = self.ledger(order_id).await.unwrap_or(Ledger::NoAnswer);
        Ok(Account { payment, attempts, ledger })
    }

    async fn ledger(&self, order_id: OrderId) -> Result<Ledger, NoAnswer> {
        match self.gateway.get_charge(charge_key(order_id)).await {
            Ok(charge) => Ok(Ledger::Row(charge)),
            Err(error) if error.is_not_found => Ok(Ledger::NoRow),
            Err(error) => Err(error),
        }
    }

    /// Every difference between our payments and the gateway's ledger. Works while both change: what seems to differ is
    /// looked at again, alone, before it counts.
    ///
    /// # Errors
    /// The gateway did not answer; the database.
    pub async fn reconcile(&self) -> Result<Reconciliation, Error> {
        let unreachable = Error::GatewayUnreachable;
        let mut found = Reconciliation::default();
        // The orders with a row that fits: 16 bytes each.
        let mut fits = HashSet::new();
        let mut token = Some(String::new());
        while let Some(page_token) = token {
            let LedgerPage { charges, next } = self.gateway.list_charges(page_token).await.map_err(unreachable)?;
            found.charge_count = found.charge_count.saturating_add(i64::try_from(charges.len()).unwrap_or(i64::MAX));
            self.compare_charges(charges, &mut fits, &mut found).await?;
            token = next;
        }
        let mut after = None;
        loop {
            let payments = self.store.page(after, PAGE).await?;
            let Some(last) = payments.last() else { return Ok(found) };
            after = Some(last.order_id);
            for payment in payments {
                found.payment_count = found.payment_count.saturating_add(1);
                if !payment.state.is_settled() {
                    found.unfinished_count = found.unfinished_count.saturating_add(1);
                } else if !fits.contains(&payment.order_id) {
                    self.look_again(payment.order_id, &mut found).await?;
                }
            }
        }
    }

    /// Notes the orders whose row fits, and the rows that have no order.
    async fn compare_charges(
        &self,
        charges: Vec<Charge>,
        fits: &mut HashSet<OrderId>,
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
                    if difference(payment, &Ledger::Row(charge)).is_none() {
                        fits.insert(order_id);
                    }
                }
                None => found.note(Difference {
                    order_id: order_of(&charge.charge_key)
                        .map_or_else(|| shortened(&charge.charge_key, MAX_KEY_BYTES), |id| id.to_string()),
                    payment: "no payment".to_owned(),
                    gateway: charge.status.name().to_owned(),
                    message: "the gateway has a row under a key that no payment of ours has".to_owned(),
                }),
            }
        }
        Ok(())
    }

    /// Between two reads of the payment that are the same, the ledger's answer belongs to it.
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

/// What is wrong with a payment beside its row, in a sentence; None when they fit. A payment that is on its way fits.
#[rustfmt::skip]
pub fn difference(payment: &Payment, ledger: &Ledger) -> Option<&'static str> {
    let charge = match ledger {
        Ledger::Row(charge) => Some(charge),
        Ledger::NoRow => None,
        Ledger::NoAnswer => return None,
    };
    let is_same_amount = charge.is_some_and(|charge| charge.amount == payment.amount);
    // Refused by our own checks, or cancelled before it was asked for: the gateway never heard of it.
    let was_never_asked = matches!(payment.decline_code, Some(DeclineCode::InvalidAmount | DeclineCode::InvalidPaymentDetails))
        || (payment.state == State::Cancelled && payment.fingerprint.is_none());
    match (payment.state, charge.map(|charge| charge.status)) {
        (State::Pending | State::InDoubt | State::Cancelling | State::Refunding, _) => None,
        (State::Succeeded | State::RefundRefused, Some(ChargeStatus::Succeeded)) if is_same_amount => None,
        (State::Succeeded | State::RefundRefused, Some(ChargeStatus::Succeeded)) => Some("charged, but another amount"),
        (State::Succeeded | State::RefundRefused, _)                             => Some("we have it as charged; the gateway has not"),
        (State::Refunded,  Some(ChargeStatus::Refunded))                         => None,
        (State::Refunded,  _)                                                    => Some("we have it as given back; the gateway has not"),
        (State::Declined | State::Failed | State::Cancelled, Some(ChargeStatus::Succeeded))
                                                                                 => Some("the gateway has it as charged; we have not"),
        (State::Declined | State::Failed | State::Cancelled, Some(ChargeStatus::Refunded))
                                                                                 => Some("the gateway has it as given back; we never had it as charged"),
        (State::Declined,  Some(ChargeStatus::Declined(_)))                      => None,
        (State::Declined,  Some(ChargeStatus::Cancelled))                        => Some("we have it as declined; the gateway as cancelled"),
        (State::Failed | State::Cancelled, Some(ChargeStatus::Cancelled | ChargeStatus::Declined(_))) => None,
        (State::Declined | State::Failed | State::Cancelled, None) if was_never_asked => None,
        (State::Declined, None)                                                  => Some("we have it as declined by the gateway, which has no row"),
        (State::Failed | State::Cancelled, None)                                 => Some("the tombstone is missing: a late charge could still be made"),
    }
}
