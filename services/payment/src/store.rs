//! The queries. What is decided inside a transaction is decided by `lifecycle`. Knows nothing of the gateway.
//!
//! Every change is a compare-and-set on the version, together with its row of `payment_attempt` and its event. Leases and due
//! times are read on ONE clock: the database's on PostgreSQL, where instances run on several machines; ours on SQLite.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kernel::{Clock, Money, OrderId, Timestamp, UserId};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, Statement, Value,
};
use storage::{Backend, Database, Error, Tx};
use telemetry::{Operation, Outcome, TraceParent};

use crate::entity::{payment as row, payment_attempt as attempt_row};
use crate::lifecycle::{State, on_cancel};
use crate::payment::{Attempt, DeclineCode, Payment, PaymentMethod, event_of};
use crate::sql::Sql;

/// How long a payment is left to an instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The instance.
    pub owner: String,
    /// How long.
    pub length: Duration,
}

/// What is to be recorded when a payment is asked for.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The key.
    pub order_id: OrderId,
    /// The customer.
    pub user_id: UserId,
    /// None when the currency is unknown: then `declined` says so.
    pub amount: Option<Money>,
    /// How it is paid.
    pub payment_method: PaymentMethod,
    /// Where the receipt goes.
    pub contact_email: String,
    /// Of the command.
    pub fingerprint: String,
    /// Our own checks refuse it: recorded DECLINED, and the gateway is never asked.
    pub declined: Option<DeclineCode>,
    /// The call that asks.
    pub parent: TraceParent,
}

/// What came of asking for, or of cancelling, a payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// As it is now.
    pub payment: Payment,
    /// The asking instance has the lease: it is to drive it.
    pub is_ours: bool,
}

/// What follows a change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Schedule {
    /// When the effect that is owed is due, from now; None when none is owed.
    pub due_in: Option<Duration>,
    /// Who goes on with it; None for whoever comes first.
    pub lease: Option<Lease>,
}

/// How many payments are in doubt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromQueryResult)]
pub struct InDoubt {
    /// So many.
    pub count: i64,
    /// Since when the oldest is: microseconds since the epoch.
    pub oldest: Option<i64>,
}

/// Opens the operation of a change that is made without the gateway; asked only when the change is made.
pub type OpenOperation = Arc<dyn Fn() -> Operation + Send + Sync>;

/// The payments. Clones share their connections.
#[derive(Clone)]
pub struct Store {
    db: Database,
    clock: Arc<dyn Clock>,
    /// Leases and due times by the database's clock?
    by_database: bool,
    sql: Arc<Sql>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("db", &self.db).finish_non_exhaustive()
    }
}

impl Store {
    /// Over a database that is migrated.
    pub fn new(db: Database, clock: Arc<dyn Clock>) -> Self {
        let is_postgres = db.backend() == Backend::Postgres;
        Self { db, clock, by_database: is_postgres, sql: Arc::new(Sql::new(is_postgres)) }
    }

    /// The same, with leases and due times by the given clock on PostgreSQL too: for tests that move it.
    #[must_use]
    pub fn by_given_clock(self) -> Self {
        Self { by_database: false, ..self }
    }

    /// Brings the schema up to date.
    ///
    /// # Errors
    /// The database refused.
    pub async fn migrate(db: &Database) -> Result<(), Error> {
        db.migrate(crate::migration::MIGRATIONS).await
    }

    /// `$now` of the statements: NULL stands for the database's clock.
    fn now(&self) -> Value {
        (!self.by_database).then(|| self.clock.now().as_micros()).into()
    }

    fn statement(&self, sql: &str, values: Vec<Value>) -> Statement {
        Statement::from_sql_and_values(self.db.read().get_database_backend(), sql, values)
    }

    /// The payment of an order.
    ///
    /// # Errors
    /// The database refused.
    pub async fn find(&self, order_id: OrderId) -> Result<Option<Payment>, Error> {
        let found = row::Entity::find_by_id(order_id.as_uuid()).one(self.db.read()).await?;
        found.map(Payment::try_from).transpose()
    }

    /// The attempts of an order's payment, oldest first.
    ///
    /// # Errors
    /// The database refused.
    pub async fn attempts(&self, order_id: OrderId) -> Result<Vec<Attempt>, Error> {
        let rows = attempt_row::Entity::find()
            .filter(attempt_row::Column::OrderId.eq(order_id.as_uuid()))
            .order_by_asc(attempt_row::Column::Attempt)
            .all(self.db.read())
            .await?;
        rows.into_iter().map(Attempt::try_from).collect()
    }

    /// A page of all payments, by order.
    ///
    /// # Errors
    /// The database refused.
    pub async fn page(&self, after: Option<OrderId>, count: u64) -> Result<Vec<Payment>, Error> {
        let mut query = row::Entity::find().order_by_asc(row::Column::OrderId).limit(count);
        if let Some(after) = after {
            query = query.filter(row::Column::OrderId.gt(after.as_uuid()));
        }
        query.all(self.db.read()).await?.into_iter().map(Payment::try_from).collect()
    }

    /// Those of some orders' payments that there are.
    ///
    /// # Errors
    /// The database refused.
    pub async fn find_all(&self, order_ids: &[OrderId]) -> Result<Vec<Payment>, Error> {
        let ids = order_ids.iter().map(|id| id.as_uuid());
        let rows = row::Entity::find().filter(row::Column::OrderId.is_in(ids)).all(self.db.read()).await?;
        rows.into_iter().map(Payment::try_from).collect()
    }

    /// How many payments are in doubt.
    ///
    /// # Errors
    /// The database refused.
    pub async fn in_doubt(&self) -> Result<InDoubt, Error> {
        let counted =
            InDoubt::find_by_statement(self.statement(&self.sql.in_doubt, vec![])).one(self.db.read()).await?;
        Ok(counted.unwrap_or(InDoubt { count: 0, oldest: None }))
    }

    /// Records a payment before the gateway is asked, or answers with the one that the order has. With a `lease` the asking
    /// instance gets it when nobody else has it and the payment is due.
    ///
    /// # Errors
    /// The database refused.
    pub async fn open(&self, draft: Draft, lease: Option<Lease>, open: OpenOperation) -> Result<Opened, Error> {
        let store = self.clone();
        self.db
            .transact(move |tx| {
                let (store, draft, lease, open) = (store.clone(), draft.clone(), lease.clone(), open.clone());
                Box::pin(async move { store.open_in(tx, draft, lease, &open).await })
            })
            .await
    }

    async fn open_in(
        &self,
        tx: &Tx,
        draft: Draft,
        lease: Option<Lease>,
        open: &OpenOperation,
    ) -> Result<Opened, Error> {
        let fingerprint = draft.fingerprint.clone();
        let new = self.from_draft(draft, lease.as_ref());
        let schedule = Schedule {
            due_in: new.owes().map(|_| Duration::ZERO),
            lease: lease.clone().filter(|_| new.owes().is_some()),
        };
        if self.insert(tx, &new, &schedule).await? {
            if new.state.is_settled() {
                self.tell(tx, &new, "refused by our own checks", open).await?;
            }
            return Ok(Opened { is_ours: schedule.lease.is_some(), payment: new });
        }
        let payment = self.lock(tx, new.order_id).await?;
        if payment.fingerprint.as_ref() != Some(&fingerprint) {
            return Ok(Opened { payment, is_ours: false });
        }
        self.join(tx, payment, lease).await
    }

    /// Makes certain that a payment ends uncharged: a tombstone when there is none, else the transition of the table. The
    /// asking instance gets the lease of what it has changed, also from another: that one's compare-and-set is lost.
    ///
    /// # Errors
    /// The database refused.
    pub async fn cancel(
        &self,
        order_id: OrderId,
        n: i32,
        parent: TraceParent,
        lease: Option<Lease>,
        open: OpenOperation,
    ) -> Result<Opened, Error> {
        let store = self.clone();
        self.db
            .transact(move |tx| {
                let (store, lease, open) = (store.clone(), lease.clone(), open.clone());
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
    ) -> Result<Opened, Error> {
        let tombstone = self.tombstone(order_id, n, parent);
        if self.insert(tx, &tombstone, &Schedule::default()).await? {
            self.tell(tx, &tombstone, "cancelled before it was asked for: a tombstone", open).await?;
            return Ok(Opened { payment: tombstone, is_ours: false });
        }
        let before = self.lock(tx, order_id).await?;
        let to = on_cancel(Some(before.state), n, before.refund_n);
        let asks_anew = to != before.state || (to == State::Cancelling && !before.cancel_asked);
        if !asks_anew {
            return self.join(tx, before, lease).await;
        }
        let after = Payment {
            state: to,
            cancel_asked: true,
            refund_n: n.max(before.refund_n),
            attempt: before.attempt + 1,
            tries: 0,
            payment_method: None,
            traceparent: parent.to_string(),
            last_error: None,
            ..before.clone()
        };
        let attempt = self.record_of(&after, "cancel asked", parent);
        let schedule = Schedule { due_in: Some(Duration::ZERO), lease };
        // The row is locked: nobody can have changed it.
        let after = self.write(tx, &before, after, &attempt, &schedule).await?.ok_or(Error::Closed)?;
        Ok(Opened { is_ours: schedule.lease.is_some(), payment: after })
    }

    /// Takes the lease of a payment that is due and left by everybody.
    async fn join(&self, tx: &Tx, payment: Payment, lease: Option<Lease>) -> Result<Opened, Error> {
        let Some(lease) = lease.filter(|_| payment.owes().is_some()) else {
            return Ok(Opened { payment, is_ours: false });
        };
        let claimed = self.claim_in(tx, payment.order_id, &lease).await?;
        Ok(claimed.map_or(Opened { payment, is_ours: false }, |payment| Opened { payment, is_ours: true }))
    }

    /// Takes the lease of a payment, when it is due and nobody has it.
    ///
    /// # Errors
    /// The database refused.
    pub async fn claim(&self, order_id: OrderId, lease: Lease) -> Result<Option<Payment>, Error> {
        let store = self.clone();
        self.db
            .transact(move |tx| {
                let (store, lease) = (store.clone(), lease.clone());
                Box::pin(async move { store.claim_in(tx, order_id, &lease).await })
            })
            .await
    }

    async fn claim_in(&self, tx: &Tx, order_id: OrderId, lease: &Lease) -> Result<Option<Payment>, Error> {
        let values =
            vec![lease.owner.clone().into(), micros(lease.length).into(), self.now(), order_id.as_uuid().into()];
        let claimed = row::Model::find_by_statement(self.statement(&self.sql.claim, values)).one(tx.conn()).await?;
        claimed.map(Payment::try_from).transpose()
    }

    /// Takes the leases of at most `count` payments that are due and that nobody has. Writes nothing when there are none.
    ///
    /// # Errors
    /// The database refused.
    pub async fn claim_due(&self, count: u32, lease: Lease) -> Result<Vec<Payment>, Error> {
        let due = self.statement(&self.sql.any_due, vec![self.now()]);
        if self.db.read().query_one_raw(due).await?.is_none() {
            return Ok(vec![]);
        }
        let store = self.clone();
        self.db
            .transact(move |tx| {
                let (store, lease) = (store.clone(), lease.clone());
                Box::pin(async move {
                    let values =
                        vec![lease.owner.into(), micros(lease.length).into(), store.now(), i64::from(count).into()];
                    let claim = store.statement(&store.sql.claim_due, values);
                    let claimed = row::Model::find_by_statement(claim).all(tx.conn()).await?;
                    claimed.into_iter().map(Payment::try_from).collect()
                })
            })
            .await
    }

    /// Gives back all leases of an instance.
    ///
    /// # Errors
    /// The database refused.
    pub async fn free(&self, owner: &str) -> Result<u64, Error> {
        let (store, owner) = (self.clone(), owner.to_owned());
        self.db
            .transact(move |tx| {
                let free = store.statement(&store.sql.free, vec![owner.clone().into()]);
                Box::pin(async move { Ok(tx.conn().execute_raw(free).await?.rows_affected()) })
            })
            .await
    }

    /// Records what came of an effect, when the payment is still as it was `before`; None when it is not. With it its row
    /// of `payment_attempt` and, when the change is an event, the operation's event.
    ///
    /// # Errors
    /// The database refused.
    pub async fn record(
        &self,
        before: &Payment,
        after: Payment,
        attempt: Attempt,
        schedule: Schedule,
        event: Option<(Operation, Outcome)>,
    ) -> Result<Option<Payment>, Error> {
        let (store, before) = (self.clone(), before.clone());
        self.db
            .transact(move |tx| {
                let (store, before, after) = (store.clone(), before.clone(), after.clone());
                let (attempt, schedule, event) = (attempt.clone(), schedule.clone(), event.clone());
                Box::pin(async move {
                    let written = store.write(tx, &before, after, &attempt, &schedule).await?;
                    if let (Some(_), Some((operation, outcome))) = (&written, &event) {
                        tx.emit(operation, outcome);
                    }
                    Ok(written)
                })
            })
            .await
    }

    async fn insert(&self, tx: &Tx, new: &Payment, schedule: &Schedule) -> Result<bool, Error> {
        let values = vec![
            new.order_id.as_uuid().into(),
            new.user_id.map(UserId::as_uuid).into(),
            new.state.name().into(),
            new.amount.map(Money::minor_units).into(),
            new.amount.map(|amount| amount.currency().code().to_owned()).into(),
            secret(new),
            new.contact_email.clone().into(),
            new.fingerprint.clone().into(),
            new.attempt.into(),
            schedule.due_in.map(micros).into(),
            schedule.lease.as_ref().map(|lease| lease.owner.clone()).into(),
            schedule.lease.as_ref().map(|lease| micros(lease.length)).into(),
            new.cancel_asked.into(),
            new.refund_n.into(),
            new.decline_code.map(|code| code.name().to_owned()).into(),
            new.traceparent.clone().into(),
            new.create_time.as_micros().into(),
            self.now(),
        ];
        Ok(tx.conn().execute_raw(self.statement(&self.sql.insert, values)).await?.rows_affected() == 1)
    }

    /// The compare-and-set and its attempt.
    async fn write(
        &self,
        tx: &Tx,
        before: &Payment,
        after: Payment,
        attempt: &Attempt,
        schedule: &Schedule,
    ) -> Result<Option<Payment>, Error> {
        let now = self.clock.now();
        let lease = schedule.lease.as_ref();
        let values = vec![
            after.state.name().into(),
            after.attempt.into(),
            i32::try_from(after.tries).unwrap_or(i32::MAX).into(),
            schedule.due_in.map(micros).into(),
            lease.map(|lease| lease.owner.clone()).into(),
            lease.map(|lease| micros(lease.length)).into(),
            after.doubt_since.map(Timestamp::as_micros).into(),
            after.cancel_asked.into(),
            after.refund_n.into(),
            after.decline_code.map(|code| code.name().to_owned()).into(),
            after.charge_id.clone().into(),
            after.last_error.clone().into(),
            after.traceparent.clone().into(),
            secret(&after),
            now.as_micros().into(),
            self.now(),
            before.order_id.as_uuid().into(),
            before.version.into(),
        ];
        if tx.conn().execute_raw(self.statement(&self.sql.write, values)).await?.rows_affected() == 0 {
            return Ok(None);
        }
        self.insert_attempt(tx, before.order_id, attempt).await?;
        Ok(Some(Payment {
            version: before.version + 1,
            next_attempt_time: schedule.due_in.map(|wait| now.plus(wait)),
            lease_owner: lease.map(|lease| lease.owner.clone()),
            lease_until: lease.map_or(Timestamp::default(), |lease| now.plus(lease.length)),
            update_time: now,
            ..after
        }))
    }

    async fn insert_attempt(&self, tx: &Tx, order_id: OrderId, attempt: &Attempt) -> Result<(), Error> {
        let values = vec![
            order_id.as_uuid().into(),
            attempt.attempt.into(),
            attempt.effect.clone().into(),
            attempt.outcome.clone().into(),
            attempt.state.name().into(),
            attempt.time.as_micros().into(),
            attempt.trace_id.clone().into(),
            attempt.span_id.clone().into(),
        ];
        tx.conn().execute_raw(self.statement(&self.sql.insert_attempt, values)).await?;
        Ok(())
    }

    /// The attempt and the event of a payment that was settled as it was inserted.
    async fn tell(&self, tx: &Tx, new: &Payment, outcome: &str, open: &OpenOperation) -> Result<(), Error> {
        let operation = open();
        self.insert_attempt(tx, new.order_id, &self.record_of(new, outcome, operation.place())).await?;
        if let Some((name, event)) = event_of(new.state, new.decline_code, outcome) {
            operation.set("operation", name);
            tx.emit(&operation, &event);
        }
        Ok(())
    }

    /// A change that was made without the gateway.
    fn record_of(&self, payment: &Payment, outcome: &str, place: TraceParent) -> Attempt {
        Attempt {
            attempt: payment.attempt,
            effect: "record".to_owned(),
            outcome: payment
                .decline_code
                .map_or_else(|| outcome.to_owned(), |code| format!("{outcome}: {}", code.name())),
            state: payment.state,
            time: self.clock.now(),
            trace_id: place.trace_id(),
            span_id: place.span_id(),
        }
    }

    async fn lock(&self, tx: &Tx, order_id: OrderId) -> Result<Payment, Error> {
        let found = row::Entity::find_by_id(order_id.as_uuid()).lock_exclusive().one(tx.conn()).await?;
        // Payments are never deleted, and this one was in the way of an insert.
        found.ok_or(Error::Corrupt { what: "payment", value: order_id.to_string() })?.try_into()
    }

    fn from_draft(&self, draft: Draft, lease: Option<&Lease>) -> Payment {
        let now = self.clock.now();
        let settled = draft.declined.is_some();
        Payment {
            order_id: draft.order_id,
            user_id: Some(draft.user_id),
            state: if settled { State::Declined } else { State::Pending },
            amount: draft.amount,
            payment_method: (!settled).then_some(draft.payment_method),
            contact_email: (!settled).then_some(draft.contact_email),
            fingerprint: Some(draft.fingerprint),
            attempt: i32::from(settled),
            next_attempt_time: (!settled).then_some(now),
            lease_owner: lease.filter(|_| !settled).map(|lease| lease.owner.clone()),
            lease_until: lease.filter(|_| !settled).map_or(Timestamp::default(), |lease| now.plus(lease.length)),
            decline_code: draft.declined,
            traceparent: draft.parent.to_string(),
            ..self.blank(draft.order_id)
        }
    }

    fn tombstone(&self, order_id: OrderId, n: i32, parent: TraceParent) -> Payment {
        Payment {
            state: on_cancel(None, n, 0),
            attempt: 1,
            cancel_asked: true,
            refund_n: n,
            traceparent: parent.to_string(),
            ..self.blank(order_id)
        }
    }

    fn blank(&self, order_id: OrderId) -> Payment {
        let now = self.clock.now();
        Payment {
            order_id,
            user_id: None,
            state: State::Pending,
            amount: None,
            payment_method: None,
            contact_email: None,
            fingerprint: None,
            version: 1,
            attempt: 0,
            tries: 0,
            next_attempt_time: None,
            lease_owner: None,
            lease_until: Timestamp::default(),
            doubt_since: None,
            cancel_asked: false,
            refund_n: 0,
            decline_code: None,
            charge_id: None,
            last_error: None,
            traceparent: String::new(),
            create_time: now,
            update_time: now,
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn secret(payment: &Payment) -> Value {
    payment.payment_method.as_ref().map(|method| method.expose().to_owned()).into()
}

impl TryFrom<row::Model> for Payment {
    type Error = Error;

    fn try_from(row: row::Model) -> Result<Self, Error> {
        let amount = match (row.currency, row.amount) {
            (Some(code), Some(minor_units)) => {
                let currency = code.parse().map_err(|_| Error::Corrupt { what: "currency", value: code.clone() })?;
                Some(Money::new(currency, minor_units))
            }
            (_, _) => None,
        };
        let decline_code = row
            .decline_code
            .map(|name| DeclineCode::of(&name).ok_or(Error::Corrupt { what: "decline code", value: name }))
            .transpose()?;
        Ok(Self {
            order_id: OrderId::from_uuid(row.order_id),
            user_id: row.user_id.map(UserId::from_uuid),
            state: state(row.state)?,
            amount,
            payment_method: row.payment_method.map(PaymentMethod::new),
            contact_email: row.contact_email,
            fingerprint: row.fingerprint,
            version: row.version,
            attempt: row.attempt,
            tries: u32::try_from(row.tries).unwrap_or(0),
            next_attempt_time: row.next_attempt_time.map(Timestamp::from_micros),
            lease_owner: row.lease_owner,
            lease_until: Timestamp::from_micros(row.lease_until),
            doubt_since: row.doubt_since.map(Timestamp::from_micros),
            cancel_asked: row.cancel_asked,
            refund_n: row.refund_n,
            decline_code,
            charge_id: row.charge_id,
            last_error: row.last_error,
            traceparent: row.traceparent,
            create_time: Timestamp::from_micros(row.create_time),
            update_time: Timestamp::from_micros(row.update_time),
        })
    }
}

impl TryFrom<attempt_row::Model> for Attempt {
    type Error = Error;

    fn try_from(row: attempt_row::Model) -> Result<Self, Error> {
        Ok(Self {
            attempt: row.attempt,
            effect: row.effect,
            outcome: row.outcome,
            state: state(row.state)?,
            time: Timestamp::from_micros(row.time),
            trace_id: row.trace_id,
            span_id: row.span_id,
        })
    }
}

fn state(name: String) -> Result<State, Error> {
    State::of(&name).ok_or(Error::Corrupt { what: "payment state", value: name })
}
