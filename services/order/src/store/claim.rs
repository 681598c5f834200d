//! Leases. A lease saves duplicate work; correctness does not depend on it but on idempotency keys and versions.

use std::time::Duration;

use kernel::OrderId;
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use storage::{Backend, Error, Tx};

use super::{Store, micros};
use crate::entity::orders;
use crate::order::Order;

/// A stored time further in the future than its maximum by more than this is attributed to a clock that was set back
/// since: the clocks of two machines differ by less.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Whether there is work to claim.
#[derive(FromQueryResult)]
struct Look {
    due: i32,
    beyond: i32,
}

/// SQL condition: the lease is free. A lease that ends later than any lease taken now was written by a clock that was
/// set back since; if its owner is still alive, only work is duplicated.
fn is_free(now: &str, longest: &str) -> String {
    format!("(lease_until <= {now} OR lease_until > {now} + {longest})")
}

/// The owner and the length of a lease.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The instance's name.
    pub owner: String,
    /// Counted from the database's current time.
    pub length: Duration,
}

impl Store {
    /// Claims due orders that are not leased.
    pub(crate) async fn claim_due(
        &self,
        limit: u64,
        lease: Lease,
        longest_wait: Duration,
    ) -> Result<Vec<Order>, Error> {
        // A read first: usually nothing is due, and then nothing is written.
        let now = self.now_sql();
        let look = format!(
            "SELECT CASE WHEN EXISTS (SELECT 1 FROM orders WHERE next_attempt_time <= {now} AND {}) THEN 1 ELSE 0 END AS due, \
             CASE WHEN EXISTS (SELECT 1 FROM orders WHERE next_attempt_time > {now} + $3) THEN 1 ELSE 0 END AS beyond",
            is_free(now, "$2")
        );
        let longest = micros(lease.length + CLOCK_TOLERANCE);
        let beyond = micros(longest_wait + CLOCK_TOLERANCE);
        let look = Look::find_by_statement(self.timed(look, [longest.into(), beyond.into()]));
        let Some(Look { due, beyond: is_beyond }) = look.one(self.db.read()).await? else { return Ok(Vec::new()) };
        if is_beyond > 0 {
            self.pull_in(beyond).await?;
        } else if due == 0 {
            return Ok(Vec::new());
        }
        let skip_locked = match self.db.backend() {
            Backend::Sqlite => "",
            Backend::Postgres => "FOR UPDATE SKIP LOCKED",
        };
        let sql = format!(
            "UPDATE orders SET lease_owner = $2, lease_until = {now} + $3 WHERE order_id IN \
             (SELECT order_id FROM orders WHERE next_attempt_time <= {now} AND {} \
             ORDER BY next_attempt_time LIMIT $4 {skip_locked}) RETURNING *",
            is_free(now, "$5")
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values = vec![lease.owner.into(), micros(lease.length).into(), limit.into(), longest.into()];
        self.claim(sql, values).await
    }

    /// Makes orders due now whose due time is later than the maximum backoff: the clock that wrote it was set back
    /// since.
    async fn pull_in(&self, beyond: i64) -> Result<(), Error> {
        let store = self.clone();
        let now = self.now_sql();
        let sql = format!("UPDATE orders SET next_attempt_time = {now} WHERE next_attempt_time > {now} + $2");
        self.db
            .transact(move |tx| {
                let statement = store.timed(sql.clone(), [beyond.into()]);
                Box::pin(async move {
                    tx.conn().execute_raw(statement).await?;
                    Ok::<_, Error>(())
                })
            })
            .await
    }

    /// Claims one order, if it is due and not leased.
    pub(crate) async fn claim_one(&self, id: OrderId, lease: Lease) -> Result<Option<Order>, Error> {
        let now = self.now_sql();
        let sql = format!(
            "UPDATE orders SET lease_owner = $2, lease_until = {now} + $3 \
             WHERE order_id = $4 AND next_attempt_time <= {now} AND {} RETURNING *",
            is_free(now, "$5")
        );
        let longest = micros(lease.length + CLOCK_TOLERANCE);
        let values = vec![lease.owner.into(), micros(lease.length).into(), id.as_uuid().into(), longest.into()];
        Ok(self.claim(sql, values).await?.pop())
    }

    async fn claim(&self, sql: String, values: Vec<Value>) -> Result<Vec<Order>, Error> {
        let store = self.clone();
        let rows = self
            .db
            .transact(move |tx| {
                let statement = store.timed(sql.clone(), values.clone());
                Box::pin(
                    async move { Ok::<_, Error>(orders::Model::find_by_statement(statement).all(tx.conn()).await?) },
                )
            })
            .await?;
        match self.with_lines(rows.clone()).await {
            Err(Error::Corrupt { .. }) => {}
            read => return read,
        }
        // One unreadable order must not keep the others claimed with it from being driven.
        let mut readable = Vec::with_capacity(rows.len());
        for row in rows {
            let id = row.order_id;
            match self.with_lines(vec![row]).await {
                Ok(order) => readable.extend(order),
                Err(error) => {
                    tracing::error!(target: "ordermesh", order_id = %id, %error, "a claimed order cannot be read")
                }
            }
        }
        Ok(readable)
    }

    /// Makes an order due now, if it has a pending effect. An order that is being driven is then retried immediately:
    /// the due time changes even if the order was due already, and its driver compares it with the one it has read.
    pub(crate) async fn make_due(&self, id: OrderId) -> Result<(), Error> {
        let store = self.clone();
        let sql = format!(
            "UPDATE orders SET next_attempt_time = CASE WHEN next_attempt_time > {now} THEN {now} ELSE next_attempt_time - 1 END \
             WHERE order_id = $2 AND next_attempt_time IS NOT NULL",
            now = self.now_sql()
        );
        self.db
            .transact(move |tx| {
                let statement = store.timed(sql.clone(), [id.as_uuid().into()]);
                Box::pin(async move {
                    tx.conn().execute_raw(statement).await?;
                    Ok::<_, Error>(())
                })
            })
            .await
    }

    /// Records a failed attempt: when the next one is due, and the error. The lease is freed. An order that was made
    /// due in the meantime stays due. No-op if the order was moved or the lease was lost.
    pub(crate) async fn put_off(&self, order: &Order, owner: &str, wait: Duration, why: &str) -> Result<(), Error> {
        let store = self.clone();
        let sql = format!(
            "UPDATE orders SET attempt = attempt + 1, last_error = $2, lease_owner = NULL, lease_until = 0, \
             next_attempt_time = CASE WHEN next_attempt_time = $3 THEN {} + $4 ELSE next_attempt_time END \
             WHERE order_id = $5 AND version = $6 AND lease_owner = $7",
            self.now_sql()
        );
        let values: Vec<Value> = vec![
            // A peer's text: PostgreSQL, for one, rejects NUL.
            why.chars().filter(|c| !c.is_control()).take(500).collect::<String>().into(),
            order.next_attempt_time.map(kernel::Timestamp::as_micros).into(),
            micros(wait).into(),
            order.id.as_uuid().into(),
            order.version.into(),
            owner.into(),
        ];
        self.db
            .transact(move |tx| {
                let statement = store.timed(sql.clone(), values.clone());
                Box::pin(async move {
                    tx.conn().execute_raw(statement).await?;
                    Ok::<_, Error>(())
                })
            })
            .await
    }

    pub(super) async fn take_lease(&self, tx: &Tx, id: OrderId, lease: &Lease) -> Result<(), Error> {
        let sql =
            format!("UPDATE orders SET lease_owner = $2, lease_until = {} + $3 WHERE order_id = $4", self.now_sql());
        let values = [lease.owner.clone().into(), micros(lease.length).into(), id.as_uuid().into()];
        tx.conn().execute_raw(self.timed(sql, values)).await?;
        Ok(())
    }

    /// Frees all leases of an instance: on shutdown, so that other instances need not wait for them to expire; and on
    /// start, because the leases found then belong to a crashed process.
    pub(crate) async fn free_leases(&self, owner: &str) -> Result<u64, Error> {
        let store = self.clone();
        let owner = owner.to_owned();
        self.db
            .transact(move |tx| {
                let sql = "UPDATE orders SET lease_owner = NULL, lease_until = 0 \
                           WHERE lease_owner = $1 AND next_attempt_time IS NOT NULL";
                let statement = store.statement(sql, [owner.clone().into()]);
                Box::pin(async move { Ok::<_, Error>(tx.conn().execute_raw(statement).await?.rows_affected()) })
            })
            .await
    }
}
