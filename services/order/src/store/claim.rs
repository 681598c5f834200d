//! Claims, and backoff after failed attempts. The leases are `storage`'s.

use std::time::Duration;

use kernel::OrderId;
use sea_orm::Value;
use storage::leases::micros;
use storage::{Error, Lease};

use super::Store;
use crate::entity::orders;
use crate::order::Order;

impl Store {
    /// Claims due orders that are not leased.
    pub(crate) async fn claim_due(
        &self,
        limit: u64,
        lease: Lease,
        longest_wait: Duration,
    ) -> Result<Vec<Order>, Error> {
        self.readable(self.leases.claim_due(limit, &lease, longest_wait).await?).await
    }

    /// Claims one order, if it is due and not leased.
    pub(crate) async fn claim(&self, id: OrderId, lease: Lease) -> Result<Option<Order>, Error> {
        let claimed = self.leases.claim(id, &lease).await?;
        Ok(self.readable(claimed.into_iter().collect()).await?.pop())
    }

    /// The orders of claimed rows. One unreadable order must not keep the others claimed with it from being driven.
    async fn readable(&self, rows: Vec<orders::Model>) -> Result<Vec<Order>, Error> {
        match self.with_lines(rows.clone()).await {
            Err(Error::Corrupt { .. }) => {}
            read => return read,
        }
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

    pub(crate) async fn make_due(&self, id: OrderId) -> Result<(), Error> {
        self.leases.make_due(id).await
    }

    pub(crate) async fn free_leases(&self, owner: &str) -> Result<u64, Error> {
        self.leases.free(owner).await
    }

    /// Records a failed attempt: when the next one is due, and the error. The lease is freed. An order that was made
    /// due in the meantime stays due. No-op if the order was moved or the lease was lost.
    pub(crate) async fn schedule_retry(
        &self,
        order: &Order,
        owner: &str,
        wait: Duration,
        why: &str,
    ) -> Result<(), Error> {
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
        self.db.execute(self.timed(sql, values)).await.map(drop)
    }
}
