//! Limits on what a customer's orders reserve before their payments are decided: reserved stock costs the customer
//! nothing.
//!
//! A reservation is never evicted for another order. Its payment may have been charged already, which is unknown until
//! it is decided: stock given away then might be stock that was paid for. A reservation of a payment in doubt ends
//! within the Payment Service's doubt limit once the gateway responds; the total of a customer's reservations is limited
//! here.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use kernel::UserId;
use sea_orm::FromQueryResult;
use storage::{Backend, Rows, Tx};
use uuid::Uuid;

use super::Store;

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
struct Held {
    user_id: Uuid,
    orders: i64,
    units: i64,
}

/// What a customer's unpaid orders reserve.
#[derive(Clone, Copy, Default)]
pub(super) struct Unpaid {
    orders: u64,
    units: u64,
}

impl Unpaid {
    pub(super) fn add(&mut self, units: u64) {
        self.orders += 1;
        self.units = self.units.saturating_add(units);
    }
}

impl UnpaidLimits {
    /// Whether an order of `units` fits, given what is reserved already.
    pub(super) fn check(self, held: &Unpaid, units: u64) -> Result<(), UnpaidLimit> {
        if let Some(max) = self.orders.filter(|max| held.orders >= *max) {
            return Err(UnpaidLimit::Orders(max));
        }
        match self.units.filter(|max| held.units.saturating_add(units) > *max) {
            Some(max) => Err(UnpaidLimit::Units(max)),
            None => Ok(()),
        }
    }
}

impl Store {
    /// The same, with limits on a customer's unpaid orders.
    #[must_use]
    pub fn with_unpaid_limits(self, limits: UnpaidLimits) -> Self {
        Self { unpaid_limits: limits, batchers: Arc::default(), ..self }
    }
}

impl UnpaidLimits {
    /// What customers' unpaid orders reserve; nothing without limits. On PostgreSQL the customers are locked, so that
    /// the orders of one are created one after the other: concurrent transactions would not see each other's.
    pub(super) async fn unpaid(
        self,
        tx: &Tx,
        users: impl Iterator<Item = UserId>,
    ) -> Result<HashMap<UserId, Unpaid>, storage::Error> {
        if self == Self::default() {
            return Ok(HashMap::new());
        }
        let users: BTreeSet<Uuid> = users.map(UserId::as_uuid).collect();
        if tx.backend() == Backend::Postgres {
            let keys: BTreeSet<i32> = users.iter().map(lock_key).collect();
            let rows = Rows::new().with("key", keys);
            // A separate statement: the one that counts must take its snapshot after the locks. In the order of the
            // rows, which are sorted.
            let lock = format!("SELECT pg_advisory_xact_lock({LOCKS}, v.key) FROM v");
            tx.conn().execute_rows(rows, &lock).await?;
        }
        // Not `WHERE state = 'HELD'`: PostgreSQL would read the whole partial index on held lines for each order.
        let select = "SELECT orders.user_id AS user_id, COUNT(*) AS orders, \
                      CAST(COALESCE(SUM((SELECT SUM(CASE WHEN state = 'HELD' THEN quantity END) FROM order_line \
                      WHERE order_line.order_id = orders.order_id)), 0) AS BIGINT) AS units \
                      FROM v JOIN orders ON orders.user_id = v.user_id AND orders.state = 'CREATED' \
                      GROUP BY orders.user_id";
        let rows = tx.conn().query_rows(Rows::new().with("user_id", users), select).await?;
        let held = rows.iter().map(|row| {
            let Held { user_id, orders, units } = Held::from_query_result(row, "")?;
            Ok((UserId::from_uuid(user_id), Unpaid { orders: count(orders), units: count(units) }))
        });
        held.collect()
    }
}

/// The second key of a customer's advisory lock.
fn lock_key(user: &Uuid) -> i32 {
    let [.., a, b, c, d] = *user.as_bytes();
    i32::from_be_bytes([a, b, c, d])
}

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
