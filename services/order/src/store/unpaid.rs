//! Limits on what a customer's orders reserve before their payments are decided: reserved stock costs the customer
//! nothing.
//!
//! A reservation is never evicted for another order. Its payment may have been charged already, which is unknown until
//! it is decided: stock given away then might be stock that was paid for. A reservation of a payment in doubt ends
//! within the Payment Service's doubt limit once the gateway responds; the total of a customer's reservations is limited
//! here.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use kernel::UserId;
use parking_lot::{Mutex, MutexGuard};
use sea_orm::{ConnectionTrait, FromQueryResult};
use storage::{Backend, Tx};
use tokio::sync::OwnedMutexGuard;

use super::Store;
use crate::error::Error;
use crate::order::Line;

/// The first key of the customers' advisory locks; the second one is derived from the customer's id.
const LOCKS: i32 = 0x6f72_6465;

/// Limits on a customer's unpaid orders.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UnpaidLimits {
    /// Maximum number of orders; `None`: unlimited.
    pub orders: Option<u64>,
    /// Maximum number of units in all of them; `None`: unlimited.
    pub units: Option<u64>,
}

/// The limit that an order would exceed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnpaidLimit {
    /// [`UnpaidLimits::orders`].
    Orders(u64),
    /// [`UnpaidLimits::units`].
    Units(u64),
}

impl fmt::Display for UnpaidLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Orders(max) => write!(f, "{max} orders"),
            Self::Units(max) => write!(f, "{max} units"),
        }
    }
}

#[derive(FromQueryResult)]
struct Unpaid {
    orders: i64,
    units: i64,
}

impl UnpaidLimits {
    /// Whether an order of `units` fits, given what is reserved already.
    fn check(self, held: &Unpaid, units: u64) -> Result<(), UnpaidLimit> {
        let of = |count: i64| u64::try_from(count).unwrap_or(0);
        if let Some(max) = self.orders.filter(|max| of(held.orders) >= *max) {
            return Err(UnpaidLimit::Orders(max));
        }
        match self.units.filter(|max| of(held.units).saturating_add(units) > *max) {
            Some(max) => Err(UnpaidLimit::Units(max)),
            None => Ok(()),
        }
    }
}

/// Serialises the creation of one customer's orders. Those of one instance queue here, where they occupy no database
/// connection; only one order of a customer per instance waits for the lock in the database.
#[derive(Clone, Debug, Default)]
pub(super) struct CustomerLocks(Arc<Mutex<HashMap<UserId, Arc<tokio::sync::Mutex<()>>>>>);

/// The right to create a customer's next order, until it is dropped.
pub(super) struct CustomerLock {
    locks: CustomerLocks,
    user: UserId,
    lock: Arc<tokio::sync::Mutex<()>>,
    held: Option<OwnedMutexGuard<()>>,
}

impl CustomerLocks {
    fn customers(&self) -> MutexGuard<'_, HashMap<UserId, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock()
    }

    pub(super) async fn of(&self, user: UserId) -> CustomerLock {
        let lock = self.customers().entry(user).or_default().clone();
        let mut locked = CustomerLock { locks: self.clone(), user, lock, held: None };
        locked.held = Some(locked.lock.clone().lock_owned().await);
        locked
    }
}

impl Drop for CustomerLock {
    fn drop(&mut self) {
        self.held = None;
        let mut customers = self.locks.customers();
        // The remaining references are this one and the map's.
        if Arc::strong_count(&self.lock) == 2 {
            customers.remove(&self.user);
        }
    }
}

impl Store {
    /// The same, with limits on a customer's unpaid orders.
    #[must_use]
    pub fn with_unpaid_limits(self, limits: UnpaidLimits) -> Self {
        Self { unpaid_limits: limits, ..self }
    }

    /// Waits for the right to create a customer's next order; `None` where orders need not be serialised. SQLite has one
    /// writer.
    pub(super) async fn lock_customer(&self, user: UserId) -> Option<CustomerLock> {
        let is_serialised = self.db.backend() == Backend::Postgres && self.unpaid_limits != UnpaidLimits::default();
        if is_serialised { Some(self.customer_locks.of(user).await) } else { None }
    }

    /// Rejects an order that would exceed a limit of its customer. Two orders of one customer are counted one after the
    /// other: on PostgreSQL, concurrent transactions would not see each other's order.
    pub(super) async fn check_unpaid(&self, tx: &Tx, user: UserId, lines: &[Line]) -> Result<(), Error> {
        if self.unpaid_limits == UnpaidLimits::default() {
            return Ok(());
        }
        if self.db.backend() == Backend::Postgres {
            let [.., a, b, c, d] = *user.as_uuid().as_bytes();
            let values = [LOCKS.into(), i32::from_be_bytes([a, b, c, d]).into()];
            // A separate statement: the one that counts must take its snapshot after the lock.
            tx.conn()
                .execute_raw(self.statement("SELECT pg_advisory_xact_lock($1, $2)", values))
                .await
                .map_err(storage::Error::from)?;
        }
        let sql = "SELECT COUNT(*) AS orders, CAST(COALESCE(SUM((SELECT SUM(quantity) FROM order_line \
                   WHERE order_line.order_id = orders.order_id AND order_line.state = 'HELD')), 0) AS BIGINT) AS units \
                   FROM orders WHERE user_id = $1 AND state = 'CREATED'";
        let statement = self.statement(sql, [user.as_uuid().into()]);
        let held = Unpaid::find_by_statement(statement).one(tx.conn()).await.map_err(storage::Error::from)?;
        let units = lines.iter().map(|line| u64::from(line.quantity)).sum();
        let Some(held) = held else { return Ok(()) };
        self.unpaid_limits.check(&held, units).map_err(|limit| Error::TooMuchUnpaid { limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use kernel::{IdSource, SystemIds};

    #[tokio::test]
    async fn a_customers_orders_take_turns_and_a_cancelled_wait_leaves_no_entry() {
        let locks = CustomerLocks::default();
        let [ada, bob] = [(); 2].map(|()| UserId::from_uuid(SystemIds.uuid()));
        let first = locks.of(ada).await;
        assert!(locks.of(ada).now_or_never().is_none(), "it waits, and is cancelled");
        let waiting = tokio::spawn({
            let locks = locks.clone();
            async move { locks.of(ada).await }
        });
        drop(locks.of(bob).await);
        drop(first);
        drop(waiting.await.expect("its lock"));
        assert!(locks.customers().is_empty());
    }
}
