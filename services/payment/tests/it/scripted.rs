//! A gateway in memory, with a ledger as reliable as the real one's and scripted failures; and a recorder of
//! confirmations.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use futures_util::future::BoxFuture;
use kernel::OrderId;
use parking_lot::{Mutex, MutexGuard};
use payment::payment::DeclineCode;
use payment::ports::{
    Charge, ChargeCommand, ChargeStatus, Confirmations, Gateway, LedgerPage, NoResponse, RefundOutcome,
};

/// The result of the next call that changes something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    /// Executed and answered.
    Fine,
    /// Neither executed nor answered.
    NoResponse,
    /// Executed, but the response is lost.
    ResponseLost,
    /// Neither executed nor responded to: the call hangs.
    Hangs,
}

#[derive(Default)]
struct Inner {
    replies: VecDeque<Reply>,
    unresponsive: bool,
    decline: Option<DeclineCode>,
    refused_refunds: usize,
    charges: BTreeMap<String, Charge>,
    refunds: BTreeMap<String, RefundOutcome>,
    money_taken: u32,
    calls: Vec<String>,
}

/// The gateway.
#[derive(Default)]
pub(crate) struct Scripted(Mutex<Inner>);

impl Scripted {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// Scripts the results of the next calls; later ones are executed and answered.
    pub(crate) fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        self.lock().replies.extend(replies);
    }

    /// Whether calls without a script stay unanswered from now on.
    pub(crate) fn set_unresponsive(&self, unresponsive: bool) {
        self.lock().unresponsive = unresponsive;
    }

    /// Charges are declined from now on.
    pub(crate) fn declines(&self, code: DeclineCode) {
        self.lock().decline = Some(code);
    }

    /// This many refund keys are refused.
    pub(crate) fn refuses_refunds(&self, count: usize) {
        self.lock().refused_refunds = count;
    }

    /// The number of charges made.
    pub(crate) fn money_taken(&self) -> u32 {
        self.lock().money_taken
    }

    /// Whether a charge exists that was not refunded.
    pub(crate) fn holds_money(&self) -> bool {
        self.lock().charges.values().any(|charge| charge.status == ChargeStatus::Succeeded)
    }

    /// The calls in order: effect and key.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// Removes a row from the ledger, which causes a difference.
    pub(crate) fn loses_row(&self, key: &str) {
        self.lock().charges.remove(key);
    }

    /// Adds a row to the ledger.
    pub(crate) fn invents_row(&self, charge: Charge) {
        self.lock().charges.insert(charge.charge_key.clone(), charge);
    }

    async fn reply<T>(&self, call: String, work: impl FnOnce(&mut Inner) -> T) -> Result<T, NoResponse> {
        let reply = {
            let mut inner = self.lock();
            inner.calls.push(call);
            let scripted = inner.replies.pop_front();
            scripted.unwrap_or(if inner.unresponsive { Reply::NoResponse } else { Reply::Fine })
        };
        match reply {
            Reply::Fine => Ok(work(&mut self.lock())),
            Reply::NoResponse => Err(NoResponse::new("TIMEOUT: unresponsive on purpose")),
            Reply::ResponseLost => {
                work(&mut self.lock());
                Err(NoResponse::new("TIMEOUT: the response is lost on purpose"))
            }
            Reply::Hangs => std::future::pending().await,
        }
    }
}

impl Inner {
    fn keep(&mut self, key: String, status: ChargeStatus, amount: Option<kernel::Money>) -> Charge {
        if let Some(charge) = self.charges.get(&key) {
            return charge.clone();
        }
        if status == ChargeStatus::Succeeded {
            self.money_taken += 1;
        }
        let charge =
            Charge { charge_id: format!("ch_{}", self.charges.len()), charge_key: key.clone(), status, amount };
        self.charges.insert(key, charge.clone());
        charge
    }

    fn refund(&mut self, charge_key: &str, refund_key: String) -> RefundOutcome {
        let refused = self.refused_refunds;
        let number = self.refunds.len();
        let answer = self.refunds.entry(refund_key).or_insert_with(|| {
            if number < refused { RefundOutcome::Refused("on purpose".into()) } else { RefundOutcome::Refunded }
        });
        if *answer == RefundOutcome::Refunded
            && let Some(charge) = self.charges.get_mut(charge_key)
        {
            charge.status = ChargeStatus::Refunded;
        }
        answer.clone()
    }
}

impl Gateway for Scripted {
    fn create_charge(&self, command: ChargeCommand) -> BoxFuture<'_, Result<Charge, NoResponse>> {
        Box::pin(self.reply(format!("create {}", command.charge_key), move |inner| {
            let status = inner.decline.map_or(ChargeStatus::Succeeded, ChargeStatus::Declined);
            inner.keep(command.charge_key, status, Some(command.amount))
        }))
    }

    fn cancel_charge(&self, charge_key: String) -> BoxFuture<'_, Result<Charge, NoResponse>> {
        Box::pin(
            self.reply(format!("cancel {charge_key}"), move |inner| {
                inner.keep(charge_key, ChargeStatus::Cancelled, None)
            }),
        )
    }

    fn refund_charge(
        &self,
        charge_key: String,
        refund_key: String,
    ) -> BoxFuture<'_, Result<RefundOutcome, NoResponse>> {
        Box::pin(self.reply(format!("refund {refund_key}"), move |inner| inner.refund(&charge_key, refund_key)))
    }

    fn get_charge(&self, charge_key: String) -> BoxFuture<'_, Result<Charge, NoResponse>> {
        Box::pin(async move {
            let inner = self.lock();
            if inner.unresponsive {
                return Err(NoResponse::new("TIMEOUT: unresponsive on purpose"));
            }
            let no_row = NoResponse { is_not_found: true, ..NoResponse::new("CHARGE_NOT_FOUND") };
            inner.charges.get(&charge_key).cloned().ok_or(no_row)
        })
    }

    fn list_charges(&self, page_token: String) -> BoxFuture<'_, Result<LedgerPage, NoResponse>> {
        Box::pin(async move {
            let inner = self.lock();
            if inner.unresponsive {
                return Err(NoResponse::new("TIMEOUT: unresponsive on purpose"));
            }
            // Two rows a page, to have several pages.
            let rest: Vec<Charge> =
                inner.charges.range(page_token.clone()..).map(|(_, charge)| charge.clone()).collect();
            let next = rest.get(2).map(|charge| charge.charge_key.clone());
            Ok(LedgerPage { charges: rest.into_iter().take(2).collect(), next })
        })
    }
}

/// Records the confirmed orders.
#[derive(Default)]
pub(crate) struct Confirmed(Mutex<BTreeSet<OrderId>>);

impl Confirmed {
    pub(crate) fn was_confirmed(&self, order_id: OrderId) -> bool {
        self.0.lock().contains(&order_id)
    }
}

impl Confirmations for Confirmed {
    fn confirm(&self, order_id: OrderId) -> BoxFuture<'_, Result<(), NoResponse>> {
        self.0.lock().insert(order_id);
        Box::pin(std::future::ready(Ok(())))
    }
}
