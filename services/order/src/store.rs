//! The tables of the Order Service. Their entities are private to this module.
//!
//! # Layout
//! - here: reading
//! - `transitions`: creating orders, recording transitions; `create`, `advance`: a batch of each
//! - `claim`: claims and backoff
//! - `archive`: final orders in a table of their own
//! - `recent`: what watchers need of the newest orders, in memory
//! - `stock`: inventory
//! - `unpaid`: limits on what a customer may reserve before paying
//! - `invariants`: reads for [`crate::invariants`]

mod advance;
mod archive;
mod claim;
mod create;
mod invariants;
mod recent;
mod stock;
mod transitions;
mod unpaid;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use kernel::{Clock, FulfillmentId, Money, OrderId, RequestId, Timestamp, UserId};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, Statement, Value};
use storage::{Batcher, Database, Error, Leases};
use telemetry::TraceParent;

use crate::entity::{fulfillment, order_history, order_line, orders};
use crate::lifecycle::State;
use crate::order::{Fulfillment, HistoryEntry, Line, LineState, Order, PaymentMethod, Scope, Transit};
use crate::store::archive::Archived;

pub use stock::Adjustment;
pub use storage::Lease;
pub use transitions::Advance;
pub(crate) use transitions::{NoTransition, Transitions};
pub use unpaid::{UnpaidLimit, UnpaidLimits};

/// Maximum number of an order's transitions that are read together. RetryOrder can make a history arbitrarily long.
pub const MAX_HISTORY: u64 = 1_000;

#[derive(Clone)]
pub struct Store {
    db: Database,
    clock: Arc<dyn Clock>,
    leases: Leases,
    unpaid_limits: UnpaidLimits,
    /// Started on first use, when the store's settings are final.
    batchers: Arc<OnceLock<Batchers>>,
    recent: recent::Recent,
}

/// What is committed in batches.
struct Batchers {
    create_orders: Batcher<create::CreateOrders>,
    advance_orders: Batcher<advance::AdvanceOrders>,
}

/// The condition that an order is in a state, in the words of the partial indexes: a parameter, or another condition with the
/// same meaning, would not use them.
fn in_state(state: State) -> String {
    let name = state.name();
    match state {
        State::Created | State::FulfillmentStarted => format!("state = '{name}'"),
        State::Paid
        | State::Allocated
        | State::PaymentFailed
        | State::Cancelling
        | State::Cancelled
        | State::NeedsAttention => {
            format!("(state = '{name}' AND state NOT IN ('CREATED', 'FULFILLMENT_STARTED'))")
        }
    }
}

/// The error for an invalid stored value.
fn corrupt(what: &'static str, value: impl ToString) -> Error {
    Error::Corrupt { what, value: value.to_string() }
}

impl Store {
    /// A store on a database whose schema is up to date.
    pub fn new(db: Database, clock: Arc<dyn Clock>) -> Self {
        let leases = Leases::new(db.clone(), clock.clone(), "orders");
        Self {
            db,
            clock,
            leases,
            unpaid_limits: UnpaidLimits::default(),
            batchers: Arc::default(),
            recent: recent::Recent::default(),
        }
    }

    /// The same, with leases and due times by the given clock on PostgreSQL too: for tests that move the clock.
    #[must_use]
    pub fn by_given_clock(self) -> Self {
        Self { leases: self.leases.by_given_clock(), batchers: Arc::default(), ..self }
    }

    fn batchers(&self) -> &Batchers {
        self.batchers.get_or_init(|| Batchers {
            create_orders: Batcher::start(
                self.db.clone(),
                create::CreateOrders { leases: self.leases.clone(), limits: self.unpaid_limits },
            ),
            advance_orders: Batcher::start(self.db.clone(), advance::AdvanceOrders { leases: self.leases.clone() }),
        })
    }

    fn statement(&self, sql: impl Into<String>, values: impl IntoIterator<Item = Value>) -> Statement {
        Statement::from_sql_and_values(self.db.read().get_database_backend(), sql, values)
    }

    fn now_sql(&self) -> &str {
        self.leases.now_sql()
    }

    fn timed(&self, sql: impl Into<String>, values: impl IntoIterator<Item = Value>) -> Statement {
        self.leases.timed(sql, values)
    }

    /// The order created by a request, and the fingerprint of its command.
    pub(crate) async fn find_request(
        &self,
        user: UserId,
        request: RequestId,
    ) -> Result<Option<(Order, String)>, Error> {
        let row = orders::Entity::find()
            .filter(orders::Column::UserId.eq(user.as_uuid()))
            .filter(orders::Column::RequestId.eq(request.as_uuid()))
            .one(self.db.read())
            .await?;
        let Some(row) = row else { return Ok(None) };
        let fingerprint = row.fingerprint.clone();
        Ok(self.with_lines(vec![row]).await?.pop().map(|order| (order, fingerprint)))
    }

    /// An order, if it exists in this scope.
    pub async fn get(&self, scope: Scope, id: OrderId) -> Result<Option<Order>, Error> {
        let mut find = orders::Entity::find_by_id(id.as_uuid());
        if let Scope::Of(user) = scope {
            find = find.filter(orders::Column::UserId.eq(user.as_uuid()));
        }
        if let Some(row) = find.one(self.db.read()).await? {
            return Ok(self.with_lines(vec![row]).await?.pop());
        }
        let archived = self.archived_one(id).await?.filter(|archived| scope.includes(archived.user()));
        archived.map(Archived::order).transpose()
    }

    /// Whether the order exists in this scope.
    pub(crate) async fn exists(&self, scope: Scope, id: OrderId) -> Result<bool, Error> {
        if let Some(is_in_scope) = self.recent.is_in(scope, id) {
            return Ok(is_in_scope);
        }
        let mut find = orders::Entity::find_by_id(id.as_uuid()).select_only().column(orders::Column::Version);
        if let Scope::Of(user) = scope {
            find = find.filter(orders::Column::UserId.eq(user.as_uuid()));
        }
        let exists = find.into_tuple::<i64>().one(self.db.read()).await?.is_some();
        Ok(exists || self.archived_state(scope, id).await?.is_some())
    }

    /// An order's state and version.
    pub(crate) async fn state_and_version(&self, id: OrderId) -> Result<Option<(State, i64)>, Error> {
        if let Some(last) = self.recent.final_state_and_version(id) {
            return Ok(Some(last));
        }
        let columns = [orders::Column::State, orders::Column::Version];
        let find = orders::Entity::find_by_id(id.as_uuid()).select_only().columns(columns);
        let row: Option<(String, i64)> = find.into_tuple().one(self.db.read()).await?;
        match row {
            Some((state, version)) => Ok(Some((State::of(&state).ok_or_else(|| corrupt("state", &state))?, version))),
            None => self.archived_state(Scope::All, id).await,
        }
    }

    /// An order's fulfilment, if it has started.
    pub(crate) async fn fulfillment(&self, id: OrderId) -> Result<Option<Fulfillment>, Error> {
        if let Some(fulfillment) = self.recent.fulfillment(id) {
            return Ok(Some(fulfillment));
        }
        let find = fulfillment::Entity::find().filter(fulfillment::Column::OrderId.eq(id.as_uuid()));
        if let Some(row) = find.one(self.db.read()).await? {
            return Ok(Some(started(row)));
        }
        Ok(self.archived_one(id).await?.and_then(|archived| archived.fulfillment).map(started))
    }

    /// Orders, newest first, older than `after`; archived ones too.
    pub async fn list(
        &self,
        scope: Scope,
        state: Option<State>,
        after: Option<OrderId>,
        limit: u64,
    ) -> Result<Vec<Order>, Error> {
        let mut find = orders::Entity::find().order_by_desc(orders::Column::OrderId).limit(limit);
        if let Scope::Of(user) = scope {
            find = find.filter(orders::Column::UserId.eq(user.as_uuid()));
        }
        if let Some(state) = state {
            find = find.filter(Expr::cust(in_state(state)));
        }
        if let Some(after) = after {
            find = find.filter(orders::Column::OrderId.lt(after.as_uuid()));
        }
        let rows = find.all(self.db.read()).await?;
        let mut orders = self.with_lines(rows).await?;
        // Read last: an order that is moved meanwhile is in both.
        let is_full = u64::try_from(orders.len()).is_ok_and(|count| count >= limit);
        let until = orders.last().filter(|_| is_full).map(|last| last.id);
        let archived = self.list_archived(scope, state, after, until, limit).await?;
        if !archived.is_empty() {
            let archived: Vec<Order> = archived.into_iter().map(Archived::order).collect::<Result<_, _>>()?;
            orders.extend(archived);
            orders.sort_by_key(|order| std::cmp::Reverse(order.id));
            orders.dedup_by_key(|order| order.id);
            orders.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        Ok(orders)
    }

    /// The first transitions of an order after a version, oldest first: [`MAX_HISTORY`] at most. It includes the version
    /// `known`; those that another instance has committed since may be missing.
    pub(crate) async fn history_after(
        &self,
        id: OrderId,
        version: i64,
        known: i64,
    ) -> Result<Vec<HistoryEntry>, Error> {
        if let Some(history) = self.recent.history_after(id, version, known) {
            return Ok(history);
        }
        let rows = order_history::Entity::find()
            .filter(order_history::Column::OrderId.eq(id.as_uuid()))
            .filter(order_history::Column::Version.gt(version))
            .order_by_asc(order_history::Column::Version)
            .limit(MAX_HISTORY)
            .all(self.db.read())
            .await?;
        if rows.is_empty()
            && let Some(archived) = self.archived_one(id).await?
        {
            return archived.history_after(version);
        }
        rows.into_iter().map(history_entry).collect()
    }

    /// The newest transitions of an order, oldest first: [`MAX_HISTORY`] at most.
    pub async fn history(&self, id: OrderId) -> Result<Vec<HistoryEntry>, Error> {
        let rows = order_history::Entity::find()
            .filter(order_history::Column::OrderId.eq(id.as_uuid()))
            .order_by_desc(order_history::Column::Version)
            .limit(MAX_HISTORY)
            .all(self.db.read())
            .await?;
        if rows.is_empty()
            && let Some(archived) = self.archived_one(id).await?
        {
            let mut history = archived.history_after(0)?;
            return Ok(history.split_off(history.len().saturating_sub(usize::try_from(MAX_HISTORY).unwrap_or(0))));
        }
        rows.into_iter().rev().map(history_entry).collect()
    }

    /// The span in which an order last entered a state.
    pub(crate) async fn span_of(&self, id: OrderId, state: State) -> Result<Option<TraceParent>, Error> {
        let entry = order_history::Entity::find()
            .filter(order_history::Column::OrderId.eq(id.as_uuid()))
            .filter(order_history::Column::State.eq(state.name()))
            .order_by_desc(order_history::Column::Version)
            .one(self.db.read())
            .await?;
        Ok(entry.and_then(|entry| format!("00-{}-{}-01", entry.trace_id, entry.span_id).parse().ok()))
    }

    /// The versions of the orders that exist.
    pub(crate) async fn versions(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, i64>, Error> {
        let Some(last) = ids.last() else { return Ok(HashMap::new()) };
        // Padded to a power of two: each length is a statement of its own, which is prepared and kept.
        let padding = std::iter::repeat_n(last, ids.len().next_power_of_two() - ids.len());
        let rows: Vec<(uuid::Uuid, i64)> = orders::Entity::find()
            .select_only()
            .columns([orders::Column::OrderId, orders::Column::Version])
            .filter(orders::Column::OrderId.is_in(ids.iter().chain(padding).map(|id| id.as_uuid())))
            .into_tuple()
            .all(self.db.read())
            .await?;
        let mut versions: HashMap<OrderId, i64> =
            rows.into_iter().map(|(id, version)| (OrderId::from_uuid(id), version)).collect();
        let missing: Vec<OrderId> = ids.iter().filter(|id| !versions.contains_key(id)).copied().collect();
        versions.extend(self.archived_versions(&missing).await?);
        Ok(versions)
    }

    /// The number of orders in each state that is not final, and the creation time of the oldest with a pending effect.
    pub async fn unfinished(&self) -> Result<(Vec<(String, i64)>, Option<Timestamp>), Error> {
        #[derive(FromQueryResult)]
        struct Row {
            state: String,
            count: i64,
            oldest: i64,
        }
        let sql = format!(
            "SELECT state, COUNT(*) AS count, MIN(create_time) AS oldest FROM orders \
             WHERE next_attempt_time IS NOT NULL OR {} GROUP BY state",
            in_state(State::NeedsAttention)
        );
        let rows = Row::find_by_statement(self.statement(sql, [])).all(self.db.read()).await?;
        let driven = rows.iter().filter(|row| row.state != State::NeedsAttention.name());
        let oldest = driven.map(|row| row.oldest).min().map(Timestamp::from_micros);
        Ok((rows.into_iter().map(|row| (row.state, row.count)).collect(), oldest))
    }

    /// Makes orders of rows: one query for all their lines, one for their fulfilments.
    async fn with_lines(&self, rows: Vec<orders::Model>) -> Result<Vec<Order>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let ids = || rows.iter().map(|row| row.order_id);
        let lines = order_line::Entity::find()
            .filter(order_line::Column::OrderId.is_in(ids()))
            .order_by_asc(order_line::Column::Line)
            .all(self.db.read())
            .await?;
        let started = rows.iter().any(|row| row.state == State::FulfillmentStarted.name());
        let fulfillments = if started {
            let find = fulfillment::Entity::find().filter(fulfillment::Column::OrderId.is_in(ids()));
            find.all(self.db.read()).await?
        } else {
            Vec::new()
        };
        let mut lines_of: HashMap<uuid::Uuid, Vec<order_line::Model>> = HashMap::new();
        for line in lines {
            lines_of.entry(line.order_id).or_default().push(line);
        }
        let mut fulfillment_of: HashMap<uuid::Uuid, fulfillment::Model> =
            fulfillments.into_iter().map(|row| (row.order_id, row)).collect();
        // One that was archived since its row was read has nothing else in these tables.
        let is_complete = |row: &orders::Model| {
            let is_started = row.state == State::FulfillmentStarted.name();
            lines_of.contains_key(&row.order_id) && (!is_started || fulfillment_of.contains_key(&row.order_id))
        };
        let incomplete: Vec<OrderId> =
            rows.iter().filter(|row| !is_complete(row)).map(|row| OrderId::from_uuid(row.order_id)).collect();
        for archived in self.archived(incomplete).await? {
            fulfillment_of.extend(archived.fulfillment.map(|row| (row.order_id, row)));
            lines_of.insert(archived.order.order_id, archived.lines);
        }
        rows.into_iter()
            .map(|row| {
                let lines = lines_of.remove(&row.order_id).unwrap_or_default();
                let fulfillment = fulfillment_of.remove(&row.order_id);
                order(row, lines, fulfillment)
            })
            .collect()
    }
}

fn history_entry(row: order_history::Model) -> Result<HistoryEntry, Error> {
    Ok(HistoryEntry {
        version: row.version,
        state: State::of(&row.state).ok_or_else(|| corrupt("state", &row.state))?,
        time: Timestamp::from_micros(row.time),
        reason: row.reason,
        trace_id: row.trace_id,
        span_id: row.span_id,
    })
}

fn started(row: fulfillment::Model) -> Fulfillment {
    Fulfillment { id: FulfillmentId::from_uuid(row.fulfillment_id), delivery_date: row.delivery_date }
}

fn order(
    row: orders::Model,
    lines: Vec<order_line::Model>,
    fulfillment: Option<fulfillment::Model>,
) -> Result<Order, Error> {
    let currency = row.currency.parse().map_err(|_| corrupt("currency", &row.currency))?;
    let lines = lines
        .into_iter()
        .map(|line| {
            Ok(Line {
                state: LineState::of(&line.state).ok_or_else(|| corrupt("line state", &line.state))?,
                quantity: line.quantity.try_into().map_err(|_| corrupt("quantity", line.quantity))?,
                unit_price: Money::new(currency, line.unit_price),
                sku: line.sku,
                name: line.name,
            })
        })
        .collect::<Result<_, Error>>()?;
    let failure = row.payment_failure.as_deref().map(serde_json::from_str).transpose();
    Ok(Order {
        id: OrderId::from_uuid(row.order_id),
        user: UserId::from_uuid(row.user_id),
        state: State::of(&row.state).ok_or_else(|| corrupt("state", &row.state))?,
        version: row.version,
        lines,
        total: Money::new(currency, row.total),
        address: serde_json::from_str(&row.address).map_err(|_| corrupt("address", &row.address))?,
        contact_email: row.contact_email,
        payment_method: row.payment_method.map(PaymentMethod::new),
        transit: Transit {
            business_days: row.transit_days.try_into().map_err(|_| corrupt("transit", row.transit_days))?,
            cutoff_hour: row.cutoff_hour.try_into().map_err(|_| corrupt("cutoff hour", row.cutoff_hour))?,
        },
        refund_attempt: row.refund_attempt,
        payment_failure: failure.map_err(|_| corrupt("payment failure", row.order_id))?,
        fulfillment: fulfillment.map(started),
        attempt: row.attempt,
        next_attempt_time: row.next_attempt_time.map(Timestamp::from_micros),
        last_error: row.last_error,
        traceparent: row.traceparent.parse().map_err(|_| corrupt("traceparent", &row.traceparent))?,
        create_time: Timestamp::from_micros(row.create_time),
        update_time: Timestamp::from_micros(row.update_time),
    })
}
