//! What a customer's orders may hold before their payment is decided: stock that costs the customer nothing.
//!
//! A hold never gives way to another order. Its payment may have been taken already, and nobody knows until it is decided: goods
//! given away then would be goods that were paid for. What ends a hold is the end of the doubt, within the Payment Service's
//! doubt limit once the gateway answers; what bounds all of a customer's holds is here.

use std::fmt;

use kernel::UserId;
use sea_orm::{ConnectionTrait, FromQueryResult};
use storage::{Backend, Tx};

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

impl Store {
    /// The same, with limits of what a customer holds unpaid.
    #[must_use]
    pub fn with_unpaid_limits(self, limits: UnpaidLimits) -> Self {
        Self { unpaid_limits: limits, ..self }
    }

    /// Refuses an order that would take its customer above a limit. Two orders of one customer are counted one after the other:
    /// on PostgreSQL each would not see the other, so the second waits for the first; SQLite has one writer.
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
