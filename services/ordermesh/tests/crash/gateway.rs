//! A gateway in memory: its ledger is as reliable as the real one's, its responses as unreliable as configured.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use kernel::Money;
use parking_lot::{Mutex, MutexGuard};
use payment::payment::DeclineCode;
use payment::ports::{Charge, ChargeCommand, ChargeStatus, Gateway, LedgerPage, NoResponse, RefundOutcome};

/// The failure mode of calls that change something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FailureMode {
    /// The call is executed, and its response arrives.
    None,
    /// The first call of each kind is neither executed nor gets a response.
    NoResponseOnce,
    /// The first call of each kind is executed, but its response is lost.
    ResponseLostOnce,
    /// Charges are never made and get no response.
    NeverCharges,
    /// Charges are made, but their responses are lost.
    ChargeResponsesLost,
}

/// The kinds of calls that failure modes distinguish.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Create,
    Cancel,
    Refund,
}

struct Inner {
    failure_mode: FailureMode,
    /// Every call is duplicated, as a network may do.
    twice: bool,
    decline: Option<DeclineCode>,
    refused_refunds: usize,
    /// Off in the first design: `tombstone` shows why that was wrong.
    keeps_tombstones: bool,
    calls: BTreeMap<Kind, u32>,
    charges: BTreeMap<String, Charge>,
    refunds: BTreeMap<String, RefundOutcome>,
    taken: u32,
}

pub(crate) struct Ledger(Mutex<Inner>);

impl Default for Ledger {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            failure_mode: FailureMode::None,
            twice: false,
            decline: None,
            refused_refunds: 0,
            keeps_tombstones: true,
            calls: BTreeMap::new(),
            charges: BTreeMap::new(),
            refunds: BTreeMap::new(),
            taken: 0,
        }))
    }
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    pub(crate) fn set_failure_mode(&self, failure_mode: FailureMode) {
        self.lock().failure_mode = failure_mode;
    }

    pub(crate) fn duplicate_calls(&self) {
        self.lock().twice = true;
    }

    pub(crate) fn decline_with(&self, code: DeclineCode) {
        self.lock().decline = Some(code);
    }

    pub(crate) fn refuse_refunds(&self, count: usize) {
        self.lock().refused_refunds = count;
    }

    pub(crate) fn forget_tombstones(&self) {
        self.lock().keeps_tombstones = false;
    }

    /// The total number of charges made.
    pub(crate) fn charge_count(&self) -> u32 {
        self.lock().taken
    }

    async fn call<T>(&self, kind: Kind, work: impl Fn(&mut Inner) -> T) -> Result<T, NoResponse> {
        let mut inner = self.lock();
        let count = inner.calls.entry(kind).or_default();
        *count += 1;
        let (is_first, is_charge) = (*count == 1, kind == Kind::Create);
        let is_unanswered = match inner.failure_mode {
            FailureMode::None | FailureMode::ResponseLostOnce | FailureMode::ChargeResponsesLost => false,
            FailureMode::NoResponseOnce => is_first,
            FailureMode::NeverCharges => is_charge,
        };
        let lost = match inner.failure_mode {
            FailureMode::None | FailureMode::NoResponseOnce | FailureMode::NeverCharges => false,
            FailureMode::ResponseLostOnce => is_first,
            FailureMode::ChargeResponsesLost => is_charge,
        };
        if is_unanswered {
            return Err(NoResponse::new("TIMEOUT: silent on purpose"));
        }
        if inner.twice {
            work(&mut inner);
        }
        let response = work(&mut inner);
        if lost { Err(NoResponse::new("TIMEOUT: the response is lost on purpose")) } else { Ok(response) }
    }
}

impl Inner {
    /// The row of a key: the first one stays.
    fn keep(&mut self, key: &str, status: ChargeStatus, amount: Option<Money>) -> Charge {
        if let Some(kept) = self.charges.get(key) {
            return kept.clone();
        }
        self.taken += u32::from(status == ChargeStatus::Succeeded);
        let charge = Charge { charge_id: format!("ch_{}", self.taken), charge_key: key.to_owned(), status, amount };
        if status != ChargeStatus::Cancelled || self.keeps_tombstones {
            self.charges.insert(key.to_owned(), charge.clone());
        }
        charge
    }

    fn refund(&mut self, charge_key: &str, refund_key: &str) -> RefundOutcome {
        let is_refused = !self.refunds.contains_key(refund_key) && self.refunds.len() < self.refused_refunds;
        let new = if is_refused { RefundOutcome::Refused("on purpose".into()) } else { RefundOutcome::Refunded };
        let response = self.refunds.entry(refund_key.to_owned()).or_insert(new).clone();
        if let (RefundOutcome::Refunded, Some(charge)) = (&response, self.charges.get_mut(charge_key)) {
            charge.status = ChargeStatus::Refunded;
        }
        response
    }
}

impl Gateway for Ledger {
    fn create_charge(&self, command: ChargeCommand) -> BoxFuture<'_, Result<Charge, NoResponse>> {
        Box::pin(self.call(Kind::Create, move |inner| {
            let status = inner.decline.map_or(ChargeStatus::Succeeded, ChargeStatus::Declined);
            inner.keep(&command.charge_key, status, Some(command.amount))
        }))
    }

    fn cancel_charge(&self, charge_key: String) -> BoxFuture<'_, Result<Charge, NoResponse>> {
        Box::pin(self.call(Kind::Cancel, move |inner| inner.keep(&charge_key, ChargeStatus::Cancelled, None)))
    }

    fn refund_charge(
        &self,
        charge_key: String,
        refund_key: String,
    ) -> BoxFuture<'_, Result<RefundOutcome, NoResponse>> {
        Box::pin(self.call(Kind::Refund, move |inner| inner.refund(&charge_key, &refund_key)))
    }

    fn get_charge(&self, charge_key: String) -> BoxFuture<'_, Result<Charge, NoResponse>> {
        let found = self.lock().charges.get(&charge_key).cloned();
        let no_row = NoResponse { is_not_found: true, ..NoResponse::new("CHARGE_NOT_FOUND") };
        Box::pin(std::future::ready(found.ok_or(no_row)))
    }

    fn list_charges(&self, _page_token: String) -> BoxFuture<'_, Result<LedgerPage, NoResponse>> {
        let charges = self.lock().charges.values().cloned().collect();
        Box::pin(std::future::ready(Ok(LedgerPage { charges, next: None })))
    }
}
