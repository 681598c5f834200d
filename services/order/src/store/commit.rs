//! Creating an order and recording its transitions: each is one transaction, with its history and its events.

use kernel::{OrderId, RequestId, Timestamp};
use sea_orm::{ActiveValue::Set, ConnectionTrait, EntityTrait, FromQueryResult, Value};
use storage::Tx;
use storage::leases::micros;
use telemetry::{Operation, Outcome, TraceParent};

use super::{Lease, Store};
use crate::entity::{fulfillment, order_history, order_line};
use crate::error::Error;
use crate::lifecycle::{Decision, INITIAL, Input, State, Table, allocates_stock, is_final, owes, releases_stock};
use crate::order::{Fulfillment, Line, LineState, Order, PaymentFailure};

/// A transition of an order: the new state, the reason, and the operation that performs it. Only a table makes one.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    to: State,
    /// For the history.
    reason: String,
    span_ref: TraceParent,
    /// The operation whose event is written with it, and its outcome.
    event: Option<(Operation, Outcome)>,
}

/// Transitions of one order that are recorded together, each by the table.
#[derive(Clone, Debug)]
pub(crate) struct Steps {
    table: Table,
    from: State,
    steps: Vec<Step>,
}

/// The table has no such transition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the table has no transition from {} by {input:?}", from.name())]
pub(crate) struct NoTransition {
    from: State,
    input: Input,
}

impl Steps {
    pub(crate) fn of(table: Table, order: &Order) -> Self {
        Self { table, from: order.state, steps: Vec::new() }
    }

    /// The transition of an input, by an operation without an event.
    pub(crate) fn take(
        &mut self,
        input: Input,
        reason: impl Into<String>,
        span: &Operation,
    ) -> Result<(), NoTransition> {
        self.push(input, reason.into(), span.span_ref(), None)
    }

    /// The same, with the operation's event.
    pub(crate) fn take_with_event(
        &mut self,
        input: Input,
        reason: impl Into<String>,
        operation: &Operation,
        outcome: Outcome,
    ) -> Result<(), NoTransition> {
        self.push(input, reason.into(), operation.span_ref(), Some((operation.clone(), outcome)))
    }

    fn push(
        &mut self,
        input: Input,
        reason: String,
        span_ref: TraceParent,
        event: Option<(Operation, Outcome)>,
    ) -> Result<(), NoTransition> {
        let from = self.state();
        let Decision::To(to) = (self.table)(from, input) else { return Err(NoTransition { from, input }) };
        self.steps.push(Step { to, reason, span_ref, event });
        Ok(())
    }

    /// The state after the transitions.
    fn state(&self) -> State {
        self.steps.last().map_or(self.from, |step| step.to)
    }
}

/// The result of recording transitions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Advance {
    /// Committed; the order as it is now.
    Done(Box<Order>),
    /// Another transition was recorded first: nothing was changed; read the order again.
    Lost,
    /// The stock of a line was written off: nothing was changed; the allocation fails.
    StockLost,
}

/// The due time of the pending effect, as the database's clock has set it.
#[derive(FromQueryResult)]
struct Due {
    next_attempt_time: Option<i64>,
}

impl Due {
    fn time(&self) -> Option<Timestamp> {
        self.next_attempt_time.map(Timestamp::from_micros)
    }
}

/// Why a transaction is rolled back.
#[derive(Debug)]
enum Undone {
    Lost,
    StockLost,
    Failed(storage::Error),
}

impl From<storage::Error> for Undone {
    fn from(error: storage::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<sea_orm::DbErr> for Undone {
    fn from(error: sea_orm::DbErr) -> Self {
        Self::Failed(error.into())
    }
}

impl storage::Failure for Undone {
    fn storage(&self) -> Option<&storage::Error> {
        if let Self::Failed(error) = self { Some(error) } else { None }
    }
}

impl Store {
    /// Records an order with its stock reserved, and returns it with its due time; `None` if its request has an order
    /// already, which stays unchanged.
    ///
    /// # Errors
    /// Not enough stock, more unpaid stock than the customer may reserve, or the database: nothing was changed.
    pub(crate) async fn create(
        &self,
        operation: &Operation,
        order: &Order,
        request: RequestId,
        fingerprint: &str,
        lease: Lease,
    ) -> Result<Option<Order>, Error> {
        let _lock = self.lock_customer(order.user).await;
        let args = (self.clone(), operation.clone(), order.clone(), fingerprint.to_owned(), lease);
        self.db
            .transact_with(args, move |tx, (store, operation, order, fingerprint, lease)| {
                Box::pin(async move {
                    store.check_unpaid(tx, order.user, &order.lines).await?;
                    let due = store.insert_order(tx, &order, request, &fingerprint, &lease).await?;
                    let Some(due) = due else { return Ok(None) };
                    insert_lines(tx, &order).await?;
                    let step = Step {
                        to: INITIAL,
                        reason: "order created".into(),
                        span_ref: operation.span_ref(),
                        event: None,
                    };
                    insert_history(tx, order.id, order.version, &[step], order.create_time).await?;
                    // The hot rows come last, to hold their locks as briefly as possible.
                    store.reserve(tx, &order.lines).await?;
                    tx.emit(&operation, &Outcome::Success);
                    Ok(Some(Order { next_attempt_time: due.time(), ..order }))
                })
            })
            .await
    }

    async fn insert_order(
        &self,
        tx: &Tx,
        order: &Order,
        request: RequestId,
        fingerprint: &str,
        lease: &Lease,
    ) -> Result<Option<Due>, storage::Error> {
        let now = self.now_sql();
        let sql = format!(
            "INSERT INTO orders (order_id, user_id, request_id, fingerprint, state, version, currency, total, contact_email, \
             address, payment_method, transit_days, cutoff_hour, refund_attempt, attempt, next_attempt_time, lease_owner, \
             lease_until, traceparent, create_time, update_time) \
             VALUES ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 0, {now}, $16, {now} + $17, $18, $19, $20) \
             ON CONFLICT (user_id, request_id) DO NOTHING RETURNING next_attempt_time"
        );
        let address = serde_json::to_string(&order.address).unwrap_or_default();
        let values: [Value; 19] = [
            order.id.as_uuid().into(),
            order.user.as_uuid().into(),
            request.as_uuid().into(),
            fingerprint.into(),
            order.state.name().into(),
            order.version.into(),
            order.total.currency().code().into(),
            order.total.minor_units().into(),
            order.contact_email.clone().into(),
            address.into(),
            order.payment_method.clone().map(crate::order::PaymentMethod::into_inner).into(),
            i32::from(order.transit.business_days).into(),
            i32::from(order.transit.cutoff_hour).into(),
            order.refund_attempt.into(),
            lease.owner.clone().into(),
            micros(lease.length).into(),
            order.span_ref.to_string().into(),
            order.create_time.as_micros().into(),
            order.update_time.as_micros().into(),
        ];
        Ok(Due::find_by_statement(self.timed(sql, values)).one(tx.conn()).await?)
    }

    /// Records transitions, all or none, by compare-and-set on the order's version. The lease is kept while an effect
    /// is pending, and freed otherwise.
    ///
    /// # Errors
    /// The database: nothing was changed.
    pub(crate) async fn advance(
        &self,
        order: &Order,
        steps: Steps,
        failure: Option<PaymentFailure>,
        fulfillment: Option<Fulfillment>,
    ) -> Result<Advance, storage::Error> {
        let now = self.clock.now();
        let after = after(order, &steps.steps, failure, fulfillment, now);
        let args = (self.clone(), order.clone(), after, steps.steps);
        let result = self
            .db
            .transact_with(args, move |tx, (store, before, after, steps)| {
                Box::pin(async move { store.write_advance(tx, &before, &after, &steps, now).await })
            })
            .await;
        match result {
            Ok(committed) => Ok(Advance::Done(Box::new(committed))),
            Err(Undone::Lost) => Ok(Advance::Lost),
            Err(Undone::StockLost) => Ok(Advance::StockLost),
            Err(Undone::Failed(error)) => Err(error),
        }
    }

    async fn write_advance(
        &self,
        tx: &Tx,
        before: &Order,
        after: &Order,
        steps: &[Step],
        now: Timestamp,
    ) -> Result<Order, Undone> {
        let failure = after.payment_failure.as_ref().and_then(|failure| serde_json::to_string(failure).ok());
        let method = after.payment_method.clone().map(crate::order::PaymentMethod::into_inner);
        let owes_more = owes(after.state).is_some();
        // A pending effect is due immediately, by the same clock as the claims; without one there is no due time and no
        // lease.
        let sql = format!(
            "UPDATE orders SET state = $2, version = $3, payment_method = $4, payment_failure = $5, refund_attempt = $6, \
             attempt = 0, last_error = NULL, update_time = $7, next_attempt_time = CASE WHEN $8 THEN {} END, \
             lease_owner = CASE WHEN $8 THEN lease_owner END, lease_until = CASE WHEN $8 THEN lease_until ELSE 0 END \
             WHERE order_id = $9 AND version = $10 RETURNING next_attempt_time",
            self.now_sql()
        );
        let values: [Value; 9] = [
            after.state.name().into(),
            after.version.into(),
            method.into(),
            failure.into(),
            after.refund_attempt.into(),
            now.as_micros().into(),
            owes_more.into(),
            before.id.as_uuid().into(),
            before.version.into(),
        ];
        let due = Due::find_by_statement(self.timed(sql, values)).one(tx.conn()).await?.ok_or(Undone::Lost)?;
        if steps.iter().any(|step| allocates_stock(step.to)) {
            self.allocate(tx, before).await?;
        }
        if let Some(fulfillment) = after.fulfillment.as_ref().filter(|_| before.fulfillment.is_none()) {
            insert_fulfillment(tx, before.id, fulfillment, now).await?;
        }
        insert_history(tx, before.id, before.version + 1, steps, now).await?;
        if steps.iter().any(|step| releases_stock(step.to)) {
            self.release(tx, before.id).await?;
        }
        for (operation, outcome) in steps.iter().filter_map(|step| step.event.as_ref()) {
            tx.emit(operation, outcome);
        }
        Ok(Order { next_attempt_time: due.time(), ..after.clone() })
    }

    /// Held lines become allocated; if one is no longer held, nothing is.
    async fn allocate(&self, tx: &Tx, order: &Order) -> Result<(), Undone> {
        let sql = "UPDATE order_line SET state = 'ALLOCATED' WHERE order_id = $1 AND state = 'HELD'";
        let updated = tx.conn().execute_raw(self.statement(sql, [order.id.as_uuid().into()])).await?;
        let all = u64::try_from(order.lines.len()).unwrap_or(u64::MAX);
        if updated.rows_affected() == all { Ok(()) } else { Err(Undone::StockLost) }
    }

    /// Records a requested transition (a cancellation, a retry); `None` if another transition was recorded first. This
    /// instance drives the order on: it takes the lease.
    pub(crate) async fn record_request(
        &self,
        order: &Order,
        input: Input,
        steps: Steps,
        lease: Lease,
    ) -> Result<Option<Order>, storage::Error> {
        let now = self.clock.now();
        let is_retry = input == Input::RetryRequested;
        let mut after = after(order, &steps.steps, order.payment_failure.clone(), None, now);
        if is_retry {
            after.refund_attempt = order.refund_attempt.saturating_add(1);
            after.payment_failure = None;
        }
        let args = (self.clone(), order.clone(), after, steps.steps, lease);
        let result = self
            .db
            .transact_with(args, move |tx, (store, before, after, steps, lease)| {
                Box::pin(async move {
                    for (operation, _) in steps.iter().filter_map(|step| step.event.as_ref()) {
                        operation.set("operation", if is_retry { "retry" } else { "cancel" });
                        operation.set("state.before", before.state.name());
                        operation.set("state.after", after.state.name());
                    }
                    let after = store.write_advance(tx, &before, &after, &steps, now).await?;
                    store.leases.take_in(tx, before.id, &lease).await?;
                    Ok(after)
                })
            })
            .await;
        match result {
            Ok(committed) => Ok(Some(committed)),
            Err(Undone::Lost | Undone::StockLost) => Ok(None),
            Err(Undone::Failed(error)) => Err(error),
        }
    }
}

/// The order after the transitions.
fn after(
    before: &Order,
    steps: &[Step],
    failure: Option<PaymentFailure>,
    fulfillment: Option<Fulfillment>,
    now: Timestamp,
) -> Order {
    let state = steps.last().map_or(before.state, |step| step.to);
    let mut after = before.clone();
    after.state = state;
    after.version = before.version + i64::try_from(steps.len()).unwrap_or(0);
    after.payment_failure = failure.or(after.payment_failure);
    after.fulfillment = fulfillment.or(after.fulfillment);
    after.attempt = 0;
    after.last_error = None;
    after.next_attempt_time = (!is_final(state) && owes(state).is_some()).then_some(now);
    after.update_time = now;
    // The token is a secret: it is deleted once the payment is decided.
    if state != INITIAL {
        after.payment_method = None;
    }
    for line in &mut after.lines {
        if matches!(line.state, LineState::Held | LineState::Allocated)
            && steps.iter().any(|step| releases_stock(step.to))
        {
            line.state = LineState::Released;
        } else if line.state == LineState::Held && steps.iter().any(|step| allocates_stock(step.to)) {
            line.state = LineState::Allocated;
        }
    }
    after
}

async fn insert_lines(tx: &Tx, order: &Order) -> Result<(), storage::Error> {
    let rows = order.lines.iter().enumerate().map(|(index, line): (usize, &Line)| order_line::ActiveModel {
        order_id: Set(order.id.as_uuid()),
        line: Set(i32::try_from(index).unwrap_or(i32::MAX)),
        sku: Set(line.sku.clone()),
        name: Set(line.name.clone()),
        quantity: Set(i64::from(line.quantity)),
        unit_price: Set(line.unit_price.minor_units()),
        state: Set(line.state.name().to_owned()),
    });
    order_line::Entity::insert_many(rows).exec_without_returning(tx.conn()).await?;
    Ok(())
}

async fn insert_history(
    tx: &Tx,
    id: OrderId,
    first_version: i64,
    steps: &[Step],
    now: Timestamp,
) -> Result<(), storage::Error> {
    let rows = (first_version..).zip(steps).map(|(version, step)| order_history::ActiveModel {
        order_id: Set(id.as_uuid()),
        version: Set(version),
        state: Set(step.to.name().to_owned()),
        time: Set(now.as_micros()),
        reason: Set(step.reason.clone()),
        trace_id: Set(step.span_ref.trace_id()),
        span_id: Set(step.span_ref.span_id()),
    });
    order_history::Entity::insert_many(rows).exec_without_returning(tx.conn()).await?;
    Ok(())
}

async fn insert_fulfillment(tx: &Tx, id: OrderId, started: &Fulfillment, now: Timestamp) -> Result<(), storage::Error> {
    let row = fulfillment::ActiveModel {
        fulfillment_id: Set(started.id.as_uuid()),
        order_id: Set(id.as_uuid()),
        start_time: Set(now.as_micros()),
        delivery_date: Set(started.delivery_date.clone()),
    };
    fulfillment::Entity::insert(row).exec_without_returning(tx.conn()).await?;
    Ok(())
}
