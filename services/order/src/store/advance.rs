//! A batch of orders' transitions, each a compare-and-set on the order's version.
//!
//! Lock order: stock that is to be released; orders, whose versions are compared; lines, which are allocated. So an
//! order whose stock was written off is detected before it is changed.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::future::BoxFuture;
use kernel::{OrderId, Timestamp};
use sea_orm::FromQueryResult;
use storage::batches::Results;
use storage::leases::micros;
use storage::{Backend, Batched, Leases, Rows, Tx};
use uuid::Uuid;

use super::transitions::{Advance, Due, Transition, record_transitions};
use super::{Lease, stock};
use crate::lifecycle::{allocates_stock, pending_effect, releases_stock};
use crate::order::{LineState, Order};

/// Transitions of one order.
#[derive(Clone)]
pub(super) struct OrderUpdate {
    pub(super) before: Order,
    pub(super) after: Order,
    pub(super) transitions: Vec<Transition>,
    /// The lease to take; `None` keeps the order's lease while an effect is pending.
    pub(super) lease: Option<Lease>,
}

impl OrderUpdate {
    fn allocates(&self) -> bool {
        self.transitions.iter().any(|transition| allocates_stock(transition.to))
    }

    fn releases(&self) -> bool {
        self.transitions.iter().any(|transition| releases_stock(transition.to))
    }

    fn id(&self) -> Uuid {
        self.before.id.as_uuid()
    }
}

/// Records transitions with their history and events, and allocates and releases stock.
pub(super) struct AdvanceOrders {
    pub(super) leases: Leases,
}

impl Batched for AdvanceOrders {
    type Command = OrderUpdate;
    type Key = OrderId;
    type Output = Advance;
    type Error = storage::Error;

    const NAME: &'static str = "advance_order";

    fn key(update: &OrderUpdate) -> OrderId {
        update.before.id
    }

    fn rows(update: &OrderUpdate) -> usize {
        2 + update.transitions.len() + update.before.lines.len()
    }

    fn run<'t>(&'t self, tx: &'t Tx, batch: &'t [OrderUpdate]) -> BoxFuture<'t, Results<Self>> {
        Box::pin(self.advance(tx, batch))
    }
}

#[derive(FromQueryResult)]
struct Found {
    order_id: Uuid,
}

#[derive(FromQueryResult)]
struct Released {
    sku: String,
    quantity: i64,
}

impl AdvanceOrders {
    async fn advance(&self, tx: &Tx, batch: &[OrderUpdate]) -> Results<Self> {
        let mut sorted: Vec<&OrderUpdate> = batch.iter().collect();
        sorted.sort_by_key(|update| update.before.id);
        lock_released_stock(tx, &sorted).await?;
        let unchanged = lock_unchanged(tx, &sorted).await?;
        sorted.retain(|update| unchanged.contains(&update.id()));
        let without_stock = allocate(tx, &sorted).await?;
        sorted.retain(|update| !without_stock.contains(&update.id()));
        let due = self.update_orders(tx, &sorted).await?;
        insert_fulfillments(tx, &sorted).await?;
        record_transitions(
            tx,
            sorted.iter().map(|update| (&update.after, update.before.version + 1, update.transitions.as_slice())),
        )
        .await?;
        release(tx, &sorted).await?;
        Ok(batch.iter().map(|update| Ok(result(update, &due, &without_stock))).collect())
    }

    /// A pending effect is due immediately, by the same clock as the claims; without one there is no due time and no
    /// lease. Returns the due times.
    async fn update_orders(
        &self,
        tx: &Tx,
        updates: &[&OrderUpdate],
    ) -> Result<HashMap<Uuid, Option<i64>>, storage::Error> {
        let rows = update_rows(updates, self.leases.now_micros());
        let now = self.leases.now_expression("v.now");
        let sql = format!(
            "UPDATE orders SET state = v.state, version = v.version, payment_method = v.payment_method, \
             payment_failure = v.payment_failure, refund_attempt = v.refund_attempt, attempt = 0, last_error = NULL, \
             update_time = v.update_time, next_attempt_time = CASE WHEN v.has_effect THEN {now} END, \
             lease_owner = CASE WHEN v.has_effect THEN COALESCE(v.lease_owner, orders.lease_owner) END, \
             lease_until = CASE WHEN v.has_effect THEN COALESCE({now} + v.lease_length, orders.lease_until) ELSE 0 END \
             FROM v WHERE orders.order_id = v.order_id RETURNING orders.order_id AS order_id, \
             orders.next_attempt_time AS next_attempt_time"
        );
        let updated = tx.conn().query_rows(rows, &sql).await?;
        let due =
            updated.iter().map(|row| Due::from_query_result(row, "").map(|due| (due.order_id, due.next_attempt_time)));
        Ok(due.collect::<Result<_, _>>()?)
    }
}

fn result(update: &OrderUpdate, due: &HashMap<Uuid, Option<i64>>, without_stock: &HashSet<Uuid>) -> Advance {
    match due.get(&update.id()) {
        Some(due) => Advance::Done(Box::new(Order {
            next_attempt_time: due.map(Timestamp::from_micros),
            ..update.after.clone()
        })),
        None if without_stock.contains(&update.id()) => Advance::StockWrittenOff,
        None => Advance::VersionConflict,
    }
}

fn update_rows(updates: &[&OrderUpdate], now: Option<i64>) -> Rows {
    let after = || updates.iter().map(|update| &update.after);
    let failure =
        |order: &Order| order.payment_failure.as_ref().and_then(|failure| serde_json::to_string(failure).ok());
    Rows::new()
        .with("order_id", updates.iter().map(|update| update.id()))
        .with("state", after().map(|order| order.state.name().to_owned()))
        .with("version", after().map(|order| order.version))
        .with(
            "payment_method",
            after().map(|order| order.payment_method.as_ref().map(|method| method.expose().clone())),
        )
        .with("payment_failure", after().map(failure))
        .with("refund_attempt", after().map(|order| order.refund_attempt))
        .with("update_time", after().map(|order| order.update_time.as_micros()))
        .with("now", after().map(|_| now))
        .with("has_effect", after().map(|order| pending_effect(order.state).is_some()))
        .with("lease_owner", updates.iter().map(|update| update.lease.as_ref().map(|lease| lease.owner.clone())))
        .with("lease_length", updates.iter().map(|update| update.lease.as_ref().map(|lease| micros(lease.length))))
}

/// The stock to be released is locked before the orders: AdjustStock locks it before their lines.
async fn lock_released_stock(tx: &Tx, updates: &[&OrderUpdate]) -> Result<(), storage::Error> {
    let lines = updates.iter().filter(|update| update.releases()).flat_map(|update| &update.before.lines);
    let skus: std::collections::BTreeSet<&str> = lines.map(|line| line.sku.as_str()).collect();
    stock::lock(tx, skus.into_iter().map(str::to_owned)).await.map(drop)
}

/// The orders whose version is still the expected one. They are locked.
async fn lock_unchanged(tx: &Tx, updates: &[&OrderUpdate]) -> Result<HashSet<Uuid>, storage::Error> {
    let rows = Rows::new()
        .with("order_id", updates.iter().map(|update| update.id()))
        .with("version", updates.iter().map(|update| update.before.version));
    let lock = match tx.backend() {
        // The whole transaction holds the write lock.
        Backend::Sqlite => "",
        Backend::Postgres => "FOR NO KEY UPDATE OF orders",
    };
    let select = format!(
        "SELECT orders.order_id AS order_id FROM v JOIN orders ON orders.order_id = v.order_id \
         AND orders.version = v.version ORDER BY orders.order_id {lock}"
    );
    found(tx, rows, &select).await.map(|ids| ids.into_iter().collect())
}

async fn found(tx: &Tx, rows: Rows, sql: &str) -> Result<Vec<Uuid>, storage::Error> {
    let found = tx.conn().query_rows(rows, sql).await?;
    let ids = found.iter().map(|row| Found::from_query_result(row, "").map(|found| found.order_id));
    Ok(ids.collect::<Result<_, _>>()?)
}

/// Allocates the held lines. Returns the orders with a line that is no longer held: none of their lines is allocated.
async fn allocate(tx: &Tx, updates: &[&OrderUpdate]) -> Result<HashSet<Uuid>, storage::Error> {
    let allocating: Vec<&OrderUpdate> = updates.iter().copied().filter(|update| update.allocates()).collect();
    // Not compared with a constant: PostgreSQL would read the whole partial index on held lines for each order.
    let rows = Rows::new()
        .with("order_id", allocating.iter().map(|update| update.id()))
        .with("held", allocating.iter().map(|_| LineState::Held.name().to_owned()));
    let sql = "UPDATE order_line SET state = 'ALLOCATED' FROM v WHERE order_line.order_id = v.order_id \
               AND order_line.state = v.held RETURNING order_line.order_id AS order_id";
    let mut counts: HashMap<Uuid, usize> = HashMap::new();
    for id in found(tx, rows, sql).await? {
        *counts.entry(id).or_default() += 1;
    }
    let is_short = |update: &&&OrderUpdate| counts.get(&update.id()).copied().unwrap_or(0) < update.before.lines.len();
    let short: HashSet<Uuid> = allocating.iter().filter(is_short).map(|update| update.id()).collect();
    let back = Rows::new().with("order_id", short.iter().copied());
    // An order's lines are allocated together: those allocated here are all of them.
    let undo = "UPDATE order_line SET state = 'HELD' FROM v WHERE order_line.order_id = v.order_id \
                AND order_line.state = 'ALLOCATED'";
    tx.conn().execute_rows(back, undo).await?;
    Ok(short)
}

async fn insert_fulfillments(tx: &Tx, updates: &[&OrderUpdate]) -> Result<(), storage::Error> {
    let started: Vec<_> = updates
        .iter()
        .filter(|update| update.before.fulfillment.is_none())
        .filter_map(|update| Some((&update.after, update.after.fulfillment.as_ref()?)))
        .collect();
    let rows = Rows::new()
        .with("fulfillment_id", started.iter().map(|(_, fulfillment)| fulfillment.id.as_uuid()))
        .with("order_id", started.iter().map(|(order, _)| order.id.as_uuid()))
        .with("start_time", started.iter().map(|(order, _)| order.update_time.as_micros()))
        .with("delivery_date", started.iter().map(|(_, fulfillment)| fulfillment.delivery_date.clone()));
    let insert = "INSERT INTO fulfillment (fulfillment_id, order_id, start_time, delivery_date) \
                  SELECT fulfillment_id, order_id, start_time, delivery_date FROM v";
    tx.conn().execute_rows(rows, insert).await
}

/// Releases what orders still reserve: exactly their held and allocated lines, so that releasing is idempotent.
async fn release(tx: &Tx, updates: &[&OrderUpdate]) -> Result<(), storage::Error> {
    let releasing = updates.iter().filter(|update| update.releases());
    let rows = Rows::new().with("order_id", releasing.map(|update| update.id()));
    let sql = "UPDATE order_line SET state = 'RELEASED' FROM v WHERE order_line.order_id = v.order_id \
                  AND order_line.state IN ('HELD', 'ALLOCATED') \
                  RETURNING order_line.sku AS sku, order_line.quantity AS quantity";
    let mut sums: BTreeMap<String, i64> = BTreeMap::new();
    for row in tx.conn().query_rows(rows, sql).await? {
        let Released { sku, quantity } = Released::from_query_result(&row, "")?;
        *sums.entry(sku).or_default() -= quantity;
    }
    stock::add_reserved(tx, sums).await
}
