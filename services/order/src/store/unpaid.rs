//! What a customer's orders may hold before their payment is decided: stock that costs the customer nothing.
//!
//! A hold never gives way to another order. Its payment may have been taken already, and nobody knows until it is decided: goods
//! given away then would be goods that were paid for. What ends a hold is the end of the doubt, within the Payment Service's
//! doubt limit once the gateway answers; what bounds all of a customer's holds is here.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernel::UserId;
use sea_orm::{ConnectionTrait, FromQueryResult};
use storage::{Backend, Tx};
use tokio::sync::OwnedMutexGuard;

use super::Store;
use crate::error::Error;
use crate::order::Line;

/// The first key of the advisory locks of customers; the second is of the customer.
const LOCKS: i32 = 0x6f72_6465;

/// The most that a customer's unpaid orders may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UnpaidLimits {
    /// So many orders; `None`: any number.
    pub orders: Option<u64>,
    /// So many units in all of them; `None`: any number.
    pub units: Option<u64>,
}

/// The limit that an order would be above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnpaidLimit {
    /// Of [`UnpaidLimits::orders`].
    Orders(u64),
    /// Of [`UnpaidLimits::units`].
    Units(u64),
}

impl fmt::Display for UnpaidLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Orders(most) => write!(f, "{most} orders"),
            Self::Units(most) => write!(f, "{most} units"),
        }
    }
}

#[derive(FromQueryResult)]
struct Unpaid {
    orders: i64,
    units: i64,
}

impl UnpaidLimits {
    /// May an order of `units` come to what is held already?
    fn check(self, held: &Unpaid, units: u64) -> Result<(), UnpaidLimit> {
        let of = |count: i64| u64::try_from(count).unwrap_or(0);
        if let Some(most) = self.orders.filter(|most| of(held.orders) >= *most) {
            return Err(UnpaidLimit::Orders(most));
        }
        match self.units.filter(|most| of(held.units).saturating_add(units) > *most) {
            Some(most) => Err(UnpaidLimit::Units(most)),
            None => Ok(()),
        }
    }
}

/// Orders of one customer are counted one after the other. Those of one instance wait here, where they hold no connection of the
/// database: of each instance, a customer's one order waits there for another instance's.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<UserId, Arc<tokio::sync::Mutex<()>>>>>);

/// A customer's turn; the next one's in drop.
pub(super) struct Turn {
    turns: Turns,
    user: UserId,
    lock: Arc<tokio::sync::Mutex<()>>,
    held: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    fn customers(&self) -> MutexGuard<'_, HashMap<UserId, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn of(&self, user: UserId) -> Turn {
        let lock = self.customers().entry(user).or_default().clone();
        let mut turn = Turn { turns: self.clone(), user, lock, held: None };
        turn.held = Some(turn.lock.clone().lock_owned().await);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.held = None;
        let mut customers = self.turns.customers();
        // Ours and the map's.
        if Arc::strong_count(&self.lock) == 2 {
            customers.remove(&self.user);
        }
    }
}

impl Store {
    /// The same, with limits of what a customer holds unpaid.
    #[must_use]
    pub fn with_unpaid_limits(self, limits: UnpaidLimits) -> Self {
        Self { unpaid_limits: limits, ..self }
    }

    /// A customer's turn to make an order, where it takes turns. SQLite has one writer.
    pub(super) async fn in_turn(&self, user: UserId) -> Option<Turn> {
        let takes_turns = self.db.backend() == Backend::Postgres && self.unpaid_limits != UnpaidLimits::default();
        if takes_turns { Some(self.turns.of(user).await) } else { None }
    }

    /// Refuses an order that would take its customer above a limit. Two orders of one customer are counted one after the other:
    /// on PostgreSQL each would not see the other's.
    pub(super) async fn check_unpaid(&self, tx: &Tx, user: UserId, lines: &[Line]) -> Result<(), Error> {
        if self.unpaid_limits == UnpaidLimits::default() {
            return Ok(());
        }
        if self.db.backend() == Backend::Postgres {
            let [.., a, b, c, d] = *user.as_uuid().as_bytes();
            let values = [LOCKS.into(), i32::from_be_bytes([a, b, c, d]).into()];
            // In a statement of its own: one that counts has to begin after the lock.
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
    async fn a_customers_orders_take_turns_and_whoever_gave_up_waiting_leaves_nothing() {
        let turns = Turns::default();
        let [ada, bob] = [(); 2].map(|()| UserId::from_uuid(SystemIds.uuid()));
        let first = turns.of(ada).await;
        assert!(turns.of(ada).now_or_never().is_none(), "it waits, and gives up");
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { turns.of(ada).await }
        });
        drop(turns.of(bob).await);
        drop(first);
        drop(waiting.await.expect("its turn"));
        assert!(turns.customers().is_empty());
    }
}
