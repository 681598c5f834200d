//! Creating an order and recording its transitions, each with its history and its events: committed in batches.

use kernel::{RequestId, Timestamp};
use sea_orm::FromQueryResult;
use storage::{Rows, Tx};
use telemetry::{Operation, Outcome, TraceParent};

use super::advance::OrderUpdate;
use super::create::NewOrder;
use super::{Lease, Store};
use crate::error::Error;
use crate::lifecycle::{
    Decision, INITIAL, Input, State, Table, allocates_stock, is_final, pending_effect, releases_stock,
};
use crate::order::{Fulfillment, HistoryEntry, LineState, Order, PaymentFailure};

/// A transition of an order: the new state, the reason, and the operation that performs it. Apart from the
/// creation, only a table makes one.
#[derive(Clone, Debug)]
pub(crate) struct Transition {
    pub(super) to: State,
    /// For the history.
    pub(super) reason: String,
    pub(super) traceparent: TraceParent,
    /// The operation whose event is written with it, and its outcome.
    pub(super) event: Option<(Operation, Outcome)>,
}

impl Transition {
    /// The creation, by an operation whose event is the creation's.
    pub(super) fn initial(operation: &Operation) -> Self {
        Self {
            to: INITIAL,
            reason: "order created".into(),
            traceparent: operation.traceparent(),
            event: Some((operation.clone(), Outcome::Success)),
        }
    }

    /// The row of the history.
    fn entry(&self, order: &Order, version: i64) -> HistoryEntry {
        HistoryEntry {
            version,
            state: self.to,
            time: order.update_time,
            reason: self.reason.clone(),
            trace_id: self.traceparent.trace_id(),
            span_id: self.traceparent.span_id(),
        }
    }
}

/// Transitions of one order that are recorded together, each by the table.
#[derive(Clone, Debug)]
pub(crate) struct Transitions {
    table: Table,
    from: State,
    taken: Vec<Transition>,
}

/// The table has no such transition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the table has no transition from {} by {input:?}", from.name())]
pub(crate) struct NoTransition {
    from: State,
    input: Input,
}

impl Transitions {
    pub(crate) fn of(table: Table, order: &Order) -> Self {
        Self { table, from: order.state, taken: Vec::new() }
    }

    /// The transition of an input, by an operation without an event.
    pub(crate) fn apply(
        &mut self,
        input: Input,
        reason: impl Into<String>,
        span: &Operation,
    ) -> Result<(), NoTransition> {
        self.push(input, reason.into(), span.traceparent(), None)
    }

    /// The same, with the operation's event.
    pub(crate) fn apply_with_event(
        &mut self,
        input: Input,
        reason: impl Into<String>,
        operation: &Operation,
        outcome: Outcome,
    ) -> Result<(), NoTransition> {
        self.push(input, reason.into(), operation.traceparent(), Some((operation.clone(), outcome)))
    }

    fn push(
        &mut self,
        input: Input,
        reason: String,
        traceparent: TraceParent,
        event: Option<(Operation, Outcome)>,
    ) -> Result<(), NoTransition> {
        let from = self.state();
        let Decision::To(to) = (self.table)(from, input) else { return Err(NoTransition { from, input }) };
        self.taken.push(Transition { to, reason, traceparent, event });
        Ok(())
    }

    /// The state after the transitions.
    fn state(&self) -> State {
        self.taken.last().map_or(self.from, |transition| transition.to)
    }
}

/// The result of recording transitions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Advance {
    /// Committed; the order as it is now.
    Done(Box<Order>),
    /// Another transition was recorded first: nothing was changed; read the order again.
    VersionConflict,
    /// The stock of a line was written off: nothing was changed; the allocation fails.
    StockWrittenOff,
}

/// The due time of an order's pending effect, as the database's clock has set it.
#[derive(FromQueryResult)]
pub(super) struct Due {
    pub(super) order_id: uuid::Uuid,
    pub(super) next_attempt_time: Option<i64>,
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
        let (order, fingerprint) = (order.clone(), fingerprint.to_owned());
        let transition = Transition::initial(operation);
        let new = NewOrder { transition: transition.clone(), order, request, fingerprint, lease };
        let created = self.batchers().create_orders.commit(new).await?;
        if let Some(order) = &created {
            self.recent.created(order, transition.entry(order, order.version));
        }
        Ok(created)
    }

    /// Records transitions, all or none, by compare-and-set on the order's version. The lease is kept while an effect
    /// is pending, and freed otherwise.
    ///
    /// # Errors
    /// The database: nothing was changed.
    pub(crate) async fn advance(
        &self,
        order: &Order,
        transitions: Transitions,
        failure: Option<PaymentFailure>,
        fulfillment: Option<Fulfillment>,
    ) -> Result<Advance, storage::Error> {
        let after = after(order, &transitions.taken, failure, fulfillment, self.clock.now());
        self.commit(OrderUpdate { before: order.clone(), after, transitions: transitions.taken, lease: None }).await
    }

    async fn commit(&self, update: OrderUpdate) -> Result<Advance, storage::Error> {
        let (before, transitions) = (update.before.clone(), update.transitions.clone());
        let advance = self.batchers().advance_orders.commit(update).await?;
        match &advance {
            Advance::Done(after) => {
                let versions = before.version + 1..;
                let entries = versions.zip(&transitions).map(|(version, transition)| transition.entry(after, version));
                self.recent.advanced(&before, after, entries);
            }
            Advance::VersionConflict => self.recent.forget(before.id),
            Advance::StockWrittenOff => {}
        }
        Ok(advance)
    }

    /// Records a requested transition (a cancellation, a retry); `None` if another transition was recorded first. This
    /// instance drives the order on: it takes the lease.
    pub(crate) async fn record_request(
        &self,
        order: &Order,
        input: Input,
        transitions: Transitions,
        lease: Lease,
    ) -> Result<Option<Order>, storage::Error> {
        let is_retry = input == Input::RetryRequested;
        let mut after = after(order, &transitions.taken, order.payment_failure.clone(), None, self.clock.now());
        if is_retry {
            after.refund_attempt = order.refund_attempt.saturating_add(1);
            after.payment_failure = None;
        }
        for (operation, _) in transitions.taken.iter().filter_map(|transition| transition.event.as_ref()) {
            operation.set("operation", if is_retry { "retry" } else { "cancel" });
            operation.set("state.before", order.state.name());
            operation.set("state.after", after.state.name());
        }
        let update = OrderUpdate { before: order.clone(), after, transitions: transitions.taken, lease: Some(lease) };
        match self.commit(update).await? {
            Advance::Done(committed) => Ok(Some(*committed)),
            Advance::VersionConflict | Advance::StockWrittenOff => Ok(None),
        }
    }
}

/// The order after the transitions.
fn after(
    before: &Order,
    transitions: &[Transition],
    failure: Option<PaymentFailure>,
    fulfillment: Option<Fulfillment>,
    now: Timestamp,
) -> Order {
    let state = transitions.last().map_or(before.state, |transition| transition.to);
    let mut after = before.clone();
    after.state = state;
    after.version = before.version + i64::try_from(transitions.len()).unwrap_or(0);
    after.payment_failure = failure.or(after.payment_failure);
    after.fulfillment = fulfillment.or(after.fulfillment);
    after.attempt = 0;
    after.last_error = None;
    after.next_attempt_time = (!is_final(state) && pending_effect(state).is_some()).then_some(now);
    after.update_time = now;
    // The token is a secret: it is deleted when the order leaves CREATED.
    if state != INITIAL {
        after.payment_method = None;
    }
    for line in &mut after.lines {
        if matches!(line.state, LineState::Held | LineState::Allocated)
            && transitions.iter().any(|transition| releases_stock(transition.to))
        {
            line.state = LineState::Released;
        } else if line.state == LineState::Held && transitions.iter().any(|transition| allocates_stock(transition.to)) {
            line.state = LineState::Allocated;
        }
    }
    after
}

/// Inserts the history of orders' transitions, and emits their events. Each order has its first new version.
pub(super) async fn record_transitions<'a>(
    tx: &Tx,
    orders: impl Iterator<Item = (&'a Order, i64, &'a [Transition])>,
) -> Result<(), storage::Error> {
    let entries: Vec<(&Order, i64, &Transition)> = orders
        .flat_map(|(order, first, transitions)| {
            (first..).zip(transitions).map(move |(version, transition)| (order, version, transition))
        })
        .collect();
    let rows = Rows::new()
        .with("order_id", entries.iter().map(|(order, _, _)| order.id.as_uuid()))
        .with("version", entries.iter().map(|(_, version, _)| *version))
        .with("state", entries.iter().map(|(_, _, transition)| transition.to.name().to_owned()))
        .with("time", entries.iter().map(|(order, _, _)| order.update_time.as_micros()))
        .with("reason", entries.iter().map(|(_, _, transition)| transition.reason.clone()))
        .with("trace_id", entries.iter().map(|(_, _, transition)| transition.traceparent.trace_id()))
        .with("span_id", entries.iter().map(|(_, _, transition)| transition.traceparent.span_id()));
    let insert = "INSERT INTO order_history (order_id, version, state, time, reason, trace_id, span_id) \
                  SELECT order_id, version, state, time, reason, trace_id, span_id FROM v";
    tx.conn().execute_rows(rows, insert).await?;
    for (operation, outcome) in entries.iter().filter_map(|(_, _, transition)| transition.event.as_ref()) {
        tx.emit(operation, outcome);
    }
    Ok(())
}
