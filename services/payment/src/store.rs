//! The queries. Decisions inside a transaction are made by `lifecycle`. Without any knowledge of the gateway.
//!
//! Every change is a compare-and-set on the version, together with its row of `payment_attempt` and its event. Leases
//! and due times are read on ONE clock: the database's on PostgreSQL, where instances run on several machines; the
//! process's on SQLite.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kernel::{Clock, Money, OrderId, UserId};
use sea_orm::{ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, Statement};
use storage::batches::BatchError;
use storage::{Batcher, Database, Error, Leases, Tx};
use telemetry::{Operation, Outcome, TraceParent};

use crate::entity::{payment as row, payment_attempt as attempt_row};
use crate::lifecycle::{State, on_cancel};
use crate::payment::{Attempt, DeclineCode, Payment, PaymentMethod};

mod archive;
mod batches;
mod rows;
mod write;

use batches::{InsertPayments, NewPayment, UpdatePayments};
use write::PaymentUpdate;

pub use storage::Lease;

/// Maximum number of a payment's attempts that are read together: an outage of days causes very many.
pub const MAX_ATTEMPTS: u64 = 1_000;

/// How often an archived payment is brought back for one command.
const MAX_RESTORES: u32 = 3;

/// A payment to record for a ProcessPayment command.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The order's id, the primary key.
    pub order_id: OrderId,
    pub user_id: UserId,
    /// None if the currency is unknown: then `declined` is set.
    pub amount: Option<Money>,
    /// The payment method's token.
    pub payment_method: PaymentMethod,
    /// The address for the receipt.
    pub contact_email: String,
    /// The fingerprint of the command.
    pub fingerprint: String,
    /// Set if the service's checks fail: the payment is recorded DECLINED, and the gateway is never called.
    pub declined: Option<DeclineCode>,
    /// The requesting call.
    pub parent: TraceParent,
}

/// The result of requesting or cancelling a payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joined {
    /// The payment as it is now.
    pub payment: Payment,
    /// Whether this instance has taken the lease, and drives the payment.
    pub is_ours: bool,
}

/// What follows a change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Schedule {
    /// When the pending effect is due, from now; None if there is none.
    pub due_in: Option<Duration>,
    /// The lease to keep; None if any instance may claim the payment.
    pub lease: Option<Lease>,
}

/// The payments in doubt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromQueryResult)]
pub struct InDoubt {
    pub count: i64,
    /// When the oldest doubt began, in microseconds since the epoch.
    pub oldest: Option<i64>,
}

/// Opens the operation of a change without the gateway; called only if the change is made.
pub type OpenOperation = Arc<dyn Fn() -> Operation + Send + Sync>;

/// The payment tables. Clones share their connections.
#[derive(Clone)]
pub struct Store {
    db: Database,
    clock: Arc<dyn Clock>,
    leases: Leases,
    /// Started on first use, when the store's settings are final.
    batchers: Arc<OnceLock<Batchers>>,
}

/// What is committed in batches.
struct Batchers {
    insert_payments: Batcher<InsertPayments>,
    update_payments: Batcher<UpdatePayments>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("db", &self.db).finish_non_exhaustive()
    }
}

impl Store {
    /// A store on a database whose schema is up to date.
    pub fn new(db: Database, clock: Arc<dyn Clock>) -> Self {
        let leases = Leases::new(db.clone(), clock.clone(), "payment");
        Self { db, clock, leases, batchers: Arc::default() }
    }

    /// The same, with leases and due times by the given clock on PostgreSQL too: for tests that move the clock.
    #[must_use]
    pub fn by_given_clock(self) -> Self {
        Self { leases: self.leases.by_given_clock(), batchers: Arc::default(), ..self }
    }

    fn batchers(&self) -> &Batchers {
        // Without batchers of their own: they would keep themselves running.
        let store = || Self { batchers: Arc::default(), ..self.clone() };
        self.batchers.get_or_init(|| Batchers {
            insert_payments: Batcher::start(self.db.clone(), InsertPayments(store())),
            update_payments: Batcher::start(self.db.clone(), UpdatePayments(store())),
        })
    }

    /// Brings the schema up to date.
    pub async fn migrate(db: &Database) -> Result<(), Error> {
        db.migrate(crate::migration::MIGRATIONS).await
    }

    /// The payment of an order.
    pub async fn find(&self, order_id: OrderId) -> Result<Option<Payment>, Error> {
        let found = row::Entity::find_by_id(order_id.as_uuid()).one(self.db.read()).await?;
        let found = match found {
            Some(row) => Some(row),
            None => self.archived([order_id]).await?.pop().map(|archived| archived.payment),
        };
        found.map(Payment::try_from).transpose()
    }

    /// The newest attempts of an order's payment, oldest first: [`MAX_ATTEMPTS`] at most.
    pub async fn attempts(&self, order_id: OrderId) -> Result<Vec<Attempt>, Error> {
        let rows = attempt_row::Entity::find()
            .filter(attempt_row::Column::OrderId.eq(order_id.as_uuid()))
            .order_by_desc(attempt_row::Column::Attempt)
            .limit(MAX_ATTEMPTS)
            .all(self.db.read())
            .await?;
        if rows.is_empty()
            && let Some(archived) = self.archived([order_id]).await?.pop()
        {
            let older = archived.attempts.len().saturating_sub(usize::try_from(MAX_ATTEMPTS).unwrap_or(usize::MAX));
            return archived.attempts.into_iter().skip(older).map(Attempt::try_from).collect();
        }
        rows.into_iter().rev().map(Attempt::try_from).collect()
    }

    /// The attempts of orders' payments, oldest first, each with its order.
    pub async fn attempts_of(&self, order_ids: &[OrderId]) -> Result<Vec<(OrderId, Attempt)>, Error> {
        let ids = order_ids.iter().map(|id| id.as_uuid());
        let mut rows = attempt_row::Entity::find()
            .filter(attempt_row::Column::OrderId.is_in(ids))
            .order_by_asc(attempt_row::Column::Attempt)
            .all(self.db.read())
            .await?;
        let found: HashSet<OrderId> = rows.iter().map(|row| OrderId::from_uuid(row.order_id)).collect();
        let archived = self.archived(order_ids.iter().filter(|id| !found.contains(id)).copied()).await?;
        rows.extend(archived.into_iter().flat_map(|archived| archived.attempts));
        rows.into_iter().map(|row| Ok((OrderId::from_uuid(row.order_id), Attempt::try_from(row)?))).collect()
    }

    /// A page of all payments, ordered by order id, after `after`.
    pub async fn page(&self, after: Option<OrderId>, count: u64) -> Result<Vec<Payment>, Error> {
        let mut query = row::Entity::find().order_by_asc(row::Column::OrderId).limit(count);
        if let Some(after) = after {
            query = query.filter(row::Column::OrderId.gt(after.as_uuid()));
        }
        let mut rows = query.all(self.db.read()).await?;
        // Read last: one that is deleted meanwhile is there. One that is in both counts here.
        let is_full = u64::try_from(rows.len()).is_ok_and(|found| found >= count);
        let until = rows.last().filter(|_| is_full).map(|last| OrderId::from_uuid(last.order_id));
        rows.extend(self.archive_page(after, until, count).await?.into_iter().map(|archived| archived.payment));
        rows.sort_by_key(|row| row.order_id);
        rows.dedup_by_key(|row| row.order_id);
        rows.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        rows.into_iter().map(Payment::try_from).collect()
    }

    /// The payments that exist among those of `order_ids`.
    pub async fn find_all(&self, order_ids: &[OrderId]) -> Result<Vec<Payment>, Error> {
        let ids = order_ids.iter().map(|id| id.as_uuid());
        let mut rows = row::Entity::find().filter(row::Column::OrderId.is_in(ids)).all(self.db.read()).await?;
        let found: HashSet<OrderId> = rows.iter().map(|row| OrderId::from_uuid(row.order_id)).collect();
        let archived = self.archived(order_ids.iter().filter(|id| !found.contains(id)).copied()).await?;
        rows.extend(archived.into_iter().map(|archived| archived.payment));
        rows.into_iter().map(Payment::try_from).collect()
    }

    /// The number of payments in doubt, and the age of the oldest doubt.
    pub async fn in_doubt(&self) -> Result<InDoubt, Error> {
        let sql = "SELECT COUNT(*) AS count, MIN(doubt_since) AS oldest FROM payment \
                   WHERE next_attempt_time IS NOT NULL AND doubt_since IS NOT NULL";
        let select = Statement::from_string(self.db.read().get_database_backend(), sql);
        let counted = InDoubt::find_by_statement(select).one(self.db.read()).await?;
        Ok(counted.unwrap_or(InDoubt { count: 0, oldest: None }))
    }

    /// Records a payment before the gateway is called, or returns the order's existing payment. With a `lease`, this
    /// instance takes it if the payment is due and not leased.
    pub async fn create_or_join(
        &self,
        draft: Draft,
        lease: Option<Lease>,
        open: OpenOperation,
    ) -> Result<Joined, Error> {
        self.batchers().insert_payments.commit(NewPayment { draft, lease, open }).await
    }

    /// A command whose order has a payment already is run alone: joining locks the payment, and a batch holds no locks
    /// while it waits for one.
    async fn create_or_join_in(&self, tx: &Tx, batch: &[NewPayment]) -> Result<Vec<Joined>, BatchError> {
        let payments: Vec<(Payment, Schedule)> = batch.iter().map(|new| self.new_payment(new)).collect();
        let mut sorted: Vec<(&Payment, &Schedule)> =
            payments.iter().map(|(payment, schedule)| (payment, schedule)).collect();
        sorted.sort_by_key(|(payment, _)| payment.order_id);
        let inserted = self.insert(tx, &sorted).await?;
        if inserted.len() < batch.len() && batch.len() > 1 {
            let exists = |new: &NewPayment| !inserted.contains(&new.draft.order_id.as_uuid());
            return Err(BatchError::Split((0..batch.len()).filter(|index| exists(&batch[*index])).collect()));
        }
        let mut joined = Vec::with_capacity(batch.len());
        for (new, (payment, schedule)) in batch.iter().zip(payments) {
            if !inserted.contains(&payment.order_id.as_uuid()) {
                joined.push(self.join_existing(tx, new).await?);
                continue;
            }
            if !payment.state.has_pending_effect() {
                self.record_insert(tx, &payment, "declined by the service's own checks", &new.open).await?;
            }
            joined.push(Joined { is_ours: schedule.lease.is_some(), payment });
        }
        Ok(joined)
    }

    /// The payment that a command inserts if its order has none, and its schedule.
    fn new_payment(&self, new: &NewPayment) -> (Payment, Schedule) {
        let payment = self.pending(new.draft.clone(), new.lease.as_ref());
        let is_due = payment.pending_effect().is_some();
        let schedule =
            Schedule { due_in: is_due.then_some(Duration::ZERO), lease: new.lease.clone().filter(|_| is_due) };
        (payment, schedule)
    }

    async fn join_existing(&self, tx: &Tx, new: &NewPayment) -> Result<Joined, Error> {
        let payment = self.lock(tx, new.draft.order_id).await?;
        if payment.fingerprint.as_ref() != Some(&new.draft.fingerprint) {
            return Ok(Joined { payment, is_ours: false });
        }
        self.join(tx, payment, new.lease.clone()).await
    }

    /// Makes certain that a payment ends uncharged: records a tombstone if there is no payment, else the table's
    /// transition. This instance takes the lease of a payment it has changed, even from another instance, whose
    /// compare-and-set then fails.
    pub async fn cancel(
        &self,
        order_id: OrderId,
        n: i32,
        parent: TraceParent,
        lease: Option<Lease>,
        open: OpenOperation,
    ) -> Result<Joined, Error> {
        self.db
            .transact_rows((self.clone(), lease, open), move |tx, (store, lease, open)| {
                Box::pin(async move { store.cancel_in(tx, order_id, n, parent, lease, &open).await })
            })
            .await
    }

    async fn cancel_in(
        &self,
        tx: &Tx,
        order_id: OrderId,
        n: i32,
        parent: TraceParent,
        lease: Option<Lease>,
        open: &OpenOperation,
    ) -> Result<Joined, Error> {
        let tombstone = self.tombstone(order_id, n, parent);
        if !self.insert(tx, &[(&tombstone, &Schedule::default())]).await?.is_empty() {
            self.record_insert(tx, &tombstone, "cancelled before it was requested: a tombstone", open).await?;
            return Ok(Joined { payment: tombstone, is_ours: false });
        }
        let before = self.lock(tx, order_id).await?;
        let to = on_cancel(Some(before.state), n, before.refund_n);
        let is_new_request = to != before.state || (to == State::Cancelling && !before.cancel_requested);
        if !is_new_request {
            return self.join(tx, before, lease).await;
        }
        let after = Payment {
            state: to,
            cancel_requested: true,
            refund_n: n.max(before.refund_n),
            attempt: before.attempt + 1,
            failures: 0,
            payment_method: None,
            traceparent: parent.to_string(),
            last_error: None,
            ..before.clone()
        };
        let attempt = self.record_of(&after, "cancellation requested", parent);
        let schedule = Schedule { due_in: Some(Duration::ZERO), lease };
        // The row is locked: no concurrent change is possible.
        let is_ours = schedule.lease.is_some();
        let update = PaymentUpdate { before, after, attempt, schedule, event: None };
        let written = self.write(tx, std::slice::from_ref(&update)).await?;
        Ok(Joined { is_ours, payment: written.into_iter().flatten().next().ok_or(Error::Closed)? })
    }

    /// Takes the lease of a payment if it is due and not leased.
    async fn join(&self, tx: &Tx, payment: Payment, lease: Option<Lease>) -> Result<Joined, Error> {
        let Some(lease) = lease.filter(|_| payment.pending_effect().is_some()) else {
            return Ok(Joined { payment, is_ours: false });
        };
        let claimed = self.claim_in(tx, payment.order_id, &lease).await?;
        Ok(claimed.map_or(Joined { payment, is_ours: false }, |payment| Joined { payment, is_ours: true }))
    }

    /// Takes the lease of a payment if it is due and not leased.
    pub async fn claim(&self, order_id: OrderId, lease: Lease) -> Result<Option<Payment>, Error> {
        self.leases.claim::<row::Model>(order_id, &lease).await?.map(Payment::try_from).transpose()
    }

    async fn claim_in(&self, tx: &Tx, order_id: OrderId, lease: &Lease) -> Result<Option<Payment>, Error> {
        self.leases.claim_in::<row::Model>(tx, order_id, lease).await?.map(Payment::try_from).transpose()
    }

    /// Takes the leases of at most `count` payments that are due and not leased. Writes nothing if there are none. One
    /// unreadable payment does not keep the others claimed with it from being driven.
    pub async fn claim_due(&self, count: u32, lease: Lease, longest_wait: Duration) -> Result<Vec<Payment>, Error> {
        let claimed = self.leases.claim_due::<row::Model>(count.into(), &lease, longest_wait).await?;
        let readable = claimed.into_iter().filter_map(|row| {
            let order_id = row.order_id;
            Payment::try_from(row)
                .inspect_err(|error| {
                    tracing::error!(target: "ordermesh", %order_id, %error, "a claimed payment cannot be read");
                })
                .ok()
        });
        Ok(readable.collect())
    }

    /// Frees all leases of an instance.
    pub async fn free_leases(&self, owner: &str) -> Result<u64, Error> {
        self.leases.free(owner).await
    }

    /// Records the result of an effect if the payment is still as it was `before`; returns None if it is not. With it
    /// go its row of `payment_attempt` and the operation's event, if any.
    pub async fn record(
        &self,
        before: &Payment,
        after: Payment,
        attempt: Attempt,
        schedule: Schedule,
        event: Option<(Operation, Outcome)>,
    ) -> Result<Option<Payment>, Error> {
        self.batchers()
            .update_payments
            .commit(PaymentUpdate { before: before.clone(), after, attempt, schedule, event })
            .await
    }

    async fn lock(&self, tx: &Tx, order_id: OrderId) -> Result<Payment, Error> {
        let lock = || row::Entity::find_by_id(order_id.as_uuid()).lock_exclusive().one(tx.conn());
        let mut found = lock().await?;
        // An archived payment may be deleted again at once.
        for _ in 0..MAX_RESTORES {
            if found.is_some() {
                break;
            }
            self.restore(tx, order_id).await?;
            found = lock().await?;
        }
        // A payment that has just conflicted with an insert exists.
        found.ok_or(Error::Corrupt { what: "payment", value: order_id.to_string() })?.try_into()
    }
}
