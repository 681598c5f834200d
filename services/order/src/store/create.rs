//! A batch of new orders: limits and stock are checked in the order of arrival, before anything is written, so that each
//! gets the result that it gets if the batch's orders are created one by one.
//!
//! Rows are locked in one order, here and in [`super::advance`]: customers, stock by SKU, orders, lines.

use std::collections::{BTreeMap, HashMap};

use futures_util::future::BoxFuture;
use kernel::{RequestId, UserId};
use sea_orm::FromQueryResult;
use storage::batches::{BatchError, Results};
use storage::leases::micros;
use storage::{Batched, Leases, Rows, Tx};
use uuid::Uuid;

use super::Lease;
use super::transitions::{Due, Transition, record_transitions};
use super::unpaid::UnpaidLimits;
use crate::error::Error;
use crate::order::Order;

/// An order to be created.
#[derive(Clone)]
pub(super) struct NewOrder {
    pub(super) order: Order,
    pub(super) transition: Transition,
    pub(super) request: RequestId,
    pub(super) fingerprint: String,
    pub(super) lease: Lease,
}

/// Creates orders with their lines and history, and reserves their stock.
pub(super) struct CreateOrders {
    pub(super) leases: Leases,
    pub(super) limits: UnpaidLimits,
}

impl Batched for CreateOrders {
    type Command = NewOrder;
    type Key = (UserId, RequestId);
    type Output = Option<Order>;
    type Error = Error;

    const NAME: &'static str = "create_order";

    fn key(new: &NewOrder) -> Self::Key {
        (new.order.user, new.request)
    }

    fn rows(new: &NewOrder) -> usize {
        3 + new.order.lines.len()
    }

    fn run<'t>(&'t self, tx: &'t Tx, batch: &'t [NewOrder]) -> BoxFuture<'t, Results<Self>> {
        Box::pin(self.create(tx, batch))
    }
}

impl CreateOrders {
    async fn create(&self, tx: &Tx, batch: &[NewOrder]) -> Results<Self> {
        let mut unpaid = self.limits.unpaid(tx, batch.iter().map(|new| new.order.user)).await?;
        let mut free = free_stock(tx, batch).await?;
        let checks: Vec<Result<(), Error>> = batch
            .iter()
            .map(|new| {
                let unpaid = unpaid.entry(new.order.user).or_default();
                let units = new.order.lines.iter().map(|line| u64::from(line.quantity)).sum();
                self.limits.check(unpaid, units).map_err(|limit| Error::TooMuchUnpaid { limit })?;
                take_stock(&mut free, &new.order)?;
                unpaid.add(units);
                Ok(())
            })
            .collect();
        let accepted: Vec<&NewOrder> =
            batch.iter().zip(&checks).filter(|(_, check)| check.is_ok()).map(|(new, _)| new).collect();
        let due = self.insert_orders(tx, &accepted).await?;
        let created: Vec<&NewOrder> =
            accepted.iter().copied().filter(|new| due.contains_key(&new.order.id.as_uuid())).collect();
        if created.len() < accepted.len() && accepted.len() < batch.len() {
            // A repeated request was counted, and another order may have been rejected for it.
            let is_repeated = |c: &NewOrder| !due.contains_key(&c.order.id.as_uuid());
            let repeated = (0..batch.len()).filter(|index| checks[*index].is_ok() && is_repeated(&batch[*index]));
            return Err(BatchError::Split(repeated.collect()));
        }
        insert_lines(tx, &created).await?;
        record_transitions(
            tx,
            created.iter().map(|c| (&c.order, c.order.version, std::slice::from_ref(&c.transition))),
        )
        .await?;
        reserve_stock(tx, &created).await?;
        let result = |new: &NewOrder| {
            let order = &new.order;
            let due = due.get(&order.id.as_uuid())?;
            Some(Order { next_attempt_time: due.map(kernel::Timestamp::from_micros), ..order.clone() })
        };
        Ok(batch.iter().zip(checks).map(|(new, check)| check.map(|()| result(new))).collect())
    }

    /// The due times of the orders that were inserted: a request that has an order already inserts nothing.
    async fn insert_orders(&self, tx: &Tx, orders: &[&NewOrder]) -> Result<HashMap<Uuid, Option<i64>>, storage::Error> {
        // By the key, so that two batches with the same requests do not deadlock.
        let mut sorted = orders.to_vec();
        sorted.sort_by_key(|new| CreateOrders::key(new));
        let rows = order_rows(&sorted, self.leases.now_micros());
        let now = self.leases.now_expression("v.now");
        let insert = format!(
            "INSERT INTO orders (order_id, user_id, request_id, fingerprint, state, version, currency, total, \
             contact_email, address, payment_method, transit_days, cutoff_hour, refund_attempt, attempt, \
             next_attempt_time, lease_owner, lease_until, traceparent, create_time, update_time) \
             SELECT order_id, user_id, request_id, fingerprint, state, version, currency, total, contact_email, address, \
             payment_method, transit_days, cutoff_hour, refund_attempt, 0, {now}, lease_owner, {now} + lease_length, \
             traceparent, create_time, update_time FROM v WHERE TRUE \
             ON CONFLICT (user_id, request_id) DO NOTHING RETURNING order_id, next_attempt_time"
        );
        let inserted = tx.conn().query_rows(rows, &insert).await?;
        let due =
            inserted.iter().map(|row| Due::from_query_result(row, "").map(|due| (due.order_id, due.next_attempt_time)));
        Ok(due.collect::<Result<_, _>>()?)
    }
}

fn order_rows(orders: &[&NewOrder], now: Option<i64>) -> Rows {
    let each = || orders.iter().map(|new| &new.order);
    Rows::new()
        .with("order_id", each().map(|order| order.id.as_uuid()))
        .with("user_id", each().map(|order| order.user.as_uuid()))
        .with("request_id", orders.iter().map(|new| new.request.as_uuid()))
        .with("fingerprint", orders.iter().map(|new| new.fingerprint.clone()))
        .with("state", each().map(|order| order.state.name().to_owned()))
        .with("version", each().map(|order| order.version))
        .with("currency", each().map(|order| order.total.currency().code().to_owned()))
        .with("total", each().map(|order| order.total.minor_units()))
        .with("contact_email", each().map(|order| order.contact_email.clone()))
        .with("address", each().map(|order| serde_json::to_string(&order.address).unwrap_or_default()))
        .with("payment_method", each().map(|order| order.payment_method.as_ref().map(|method| method.expose().clone())))
        .with("transit_days", each().map(|order| i32::from(order.transit.business_days)))
        .with("cutoff_hour", each().map(|order| i32::from(order.transit.cutoff_hour)))
        .with("refund_attempt", each().map(|order| order.refund_attempt))
        .with("now", each().map(|_| now))
        .with("lease_owner", orders.iter().map(|new| new.lease.owner.clone()))
        .with("lease_length", orders.iter().map(|new| micros(new.lease.length)))
        .with("traceparent", each().map(|order| order.traceparent.to_string()))
        .with("create_time", each().map(|order| order.create_time.as_micros()))
        .with("update_time", each().map(|order| order.update_time.as_micros()))
}

async fn insert_lines(tx: &Tx, orders: &[&NewOrder]) -> Result<(), storage::Error> {
    let lines = || orders.iter().flat_map(|c| (0..).zip(&c.order.lines).map(move |(n, line)| (&c.order, n, line)));
    let rows = Rows::new()
        .with("order_id", lines().map(|(order, _, _)| order.id.as_uuid()))
        .with("line", lines().map(|(_, n, _): (_, i32, _)| n))
        .with("sku", lines().map(|(_, _, line)| line.sku.clone()))
        .with("name", lines().map(|(_, _, line)| line.name.clone()))
        .with("quantity", lines().map(|(_, _, line)| i64::from(line.quantity)))
        .with("unit_price", lines().map(|(_, _, line)| line.unit_price.minor_units()))
        .with("state", lines().map(|(_, _, line)| line.state.name().to_owned()));
    let insert = "INSERT INTO order_line (order_id, line, sku, name, quantity, unit_price, state) \
                  SELECT order_id, line, sku, name, quantity, unit_price, state FROM v";
    tx.conn().execute_rows(rows, insert).await
}

/// The quantities of orders by SKU, in SKU order.
fn quantities<'a>(orders: impl Iterator<Item = &'a Order>) -> BTreeMap<&'a str, i64> {
    let mut sums = BTreeMap::new();
    for line in orders.flat_map(|order| &order.lines) {
        *sums.entry(line.sku.as_str()).or_insert(0) += i64::from(line.quantity);
    }
    sums
}

/// The stock that is not reserved of the batch's SKUs, whose rows are locked.
async fn free_stock(tx: &Tx, batch: &[NewOrder]) -> Result<HashMap<String, i64>, storage::Error> {
    let skus = quantities(batch.iter().map(|new| &new.order));
    Ok(super::stock::lock(tx, skus.keys().map(ToString::to_string)).await?.into_iter().collect())
}

/// Takes an order's quantities, all or none.
fn take_stock(free: &mut HashMap<String, i64>, order: &Order) -> Result<(), Error> {
    let needed = quantities(std::iter::once(order));
    let is_short = |sku: &str| free.get(sku).is_none_or(|free| *free < needed[sku]);
    let mut short: Vec<&str> = Vec::new();
    for line in &order.lines {
        if is_short(&line.sku) && !short.contains(&line.sku.as_str()) {
            short.push(&line.sku);
        }
    }
    if !short.is_empty() {
        return Err(Error::InsufficientStock { skus: short.join(", ") });
    }
    for (sku, quantity) in needed {
        free.entry(sku.to_owned()).and_modify(|free| *free -= quantity);
    }
    Ok(())
}

async fn reserve_stock(tx: &Tx, orders: &[&NewOrder]) -> Result<(), storage::Error> {
    let sums = quantities(orders.iter().map(|new| &new.order));
    super::stock::add_reserved(tx, sums.into_iter().map(|(sku, quantity)| (sku.to_owned(), quantity))).await
}
