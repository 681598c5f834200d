//! Leases and due times of a table's rows. A lease saves duplicate work; correctness does not depend on it but on
//! idempotency keys and versions.
//!
//! The table has the columns `order_id` (its key), `next_attempt_time` (NULL: nothing is pending), `lease_owner` and
//! `lease_until` (0: not leased), in microseconds since the epoch. Both times are read and written on ONE clock: the
//! database's on PostgreSQL, where instances run on several machines; the process's on SQLite.

use std::sync::Arc;
use std::time::Duration;

use kernel::{Clock, OrderId, Timestamp};
use sea_orm::{FromQueryResult, Statement, Value};

use crate::connect::{Backend, Database};
use crate::error::Error;
use crate::transact::Tx;

/// A stored time further in the future than its maximum by more than this is attributed to a clock that was set back
/// since. A failover to another database server may change the clock by less.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// The owner and the length of a lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The instance's name.
    pub owner: String,
    /// Counted from the current time.
    pub length: Duration,
}

impl Lease {
    /// The longest remaining time of a valid lease: its length and the clock's tolerance.
    fn longest(&self) -> Value {
        micros(self.length + CLOCK_TOLERANCE).into()
    }
}

/// A duration as a column's value.
pub fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The current time in SQL: `parameter` holds it, or NULL for the database's clock (the transaction's start, so that
/// comparisons can use an index).
pub fn now_sql(backend: Backend, parameter: &str) -> String {
    match backend {
        Backend::Sqlite => parameter.to_owned(),
        Backend::Postgres => {
            format!("COALESCE(CAST({parameter} AS BIGINT), CAST(EXTRACT(EPOCH FROM now()) * 1000000 AS BIGINT))")
        }
    }
}

/// The statements, formatted once. `$1` is the current time.
struct Sql {
    now: String,
    due_check: String,
    reset_far_future: String,
    claim_due: String,
    claim: String,
    make_due: String,
    free: String,
}

/// The leases of a table. Clones share their connections.
#[derive(Clone)]
pub struct Leases {
    db: Database,
    clock: Arc<dyn Clock>,
    /// Whether the database's clock is used.
    by_database: bool,
    sql: Arc<Sql>,
}

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").field("db", &self.db).finish_non_exhaustive()
    }
}

#[derive(FromQueryResult)]
struct Now {
    now: i64,
}

/// Whether there is work to claim.
#[derive(FromQueryResult)]
struct DueCheck {
    due: i32,
    beyond: i32,
}

impl Leases {
    /// The leases of `table`.
    pub fn new(db: Database, clock: Arc<dyn Clock>, table: &str) -> Self {
        let sql = Arc::new(Sql::new(db.backend(), table));
        Self { by_database: db.backend() == Backend::Postgres, db, clock, sql }
    }

    /// The same, by the given clock on PostgreSQL too: for tests that move the clock.
    #[must_use]
    pub fn by_given_clock(self) -> Self {
        Self { by_database: false, ..self }
    }

    /// The current time as a parameter: NULL for the database's clock.
    pub fn now_parameter(&self) -> Value {
        self.now_micros().into()
    }

    /// The same, for a column of [`crate::Rows`].
    pub fn now_micros(&self) -> Option<i64> {
        (!self.by_database).then(|| self.clock.now().as_micros())
    }

    /// The current time in SQL, where `column` holds [`Leases::now_micros`].
    pub fn now_expression(&self, column: &str) -> String {
        now_sql(self.db.backend(), column)
    }

    /// The current time of the clock that is used.
    ///
    /// # Errors
    /// The database failed.
    pub async fn read_now(&self) -> Result<Timestamp, Error> {
        if !self.by_database {
            return Ok(self.clock.now());
        }
        let statement = self.timed(format!("SELECT CAST({} AS BIGINT) AS now", self.now_sql()), []);
        let row = Now::find_by_statement(statement).one(self.db.read()).await?;
        Ok(Timestamp::from_micros(row.ok_or(Error::Closed)?.now))
    }

    /// The current time in the SQL of a [`Leases::timed`] statement.
    pub fn now_sql(&self) -> &str {
        &self.sql.now
    }

    /// A statement whose first parameter is the current time: its text stays constant, so that it is prepared once.
    pub fn timed(&self, sql: impl Into<String>, values: impl IntoIterator<Item = Value>) -> Statement {
        let backend = self.db.read().get_database_backend();
        Statement::from_sql_and_values(backend, sql, std::iter::once(self.now_parameter()).chain(values))
    }

    /// Takes the leases of at most `limit` rows that are due and not leased. A due time that is later than `longest_wait`
    /// and the tolerance from now was written before the clock was set back: it is set to now. Otherwise nothing is written
    /// unless a row is due.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim_due<M: FromQueryResult + Send + 'static>(
        &self,
        limit: u64,
        lease: &Lease,
        longest_wait: Duration,
    ) -> Result<Vec<M>, Error> {
        // A read first: usually nothing is due, and then nothing is written.
        let beyond = micros(longest_wait + CLOCK_TOLERANCE);
        let check = self.timed(&self.sql.due_check, [lease.longest(), beyond.into()]);
        let Some(found) = DueCheck::find_by_statement(check).one(self.db.read()).await? else { return Ok(Vec::new()) };
        if found.beyond > 0 {
            self.execute(self.sql.reset_far_future.clone(), vec![beyond.into()]).await?;
        } else if found.due == 0 {
            return Ok(Vec::new());
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values = vec![lease.owner.clone().into(), micros(lease.length).into(), limit.into(), lease.longest()];
        let claim = self.timed(&self.sql.claim_due, values);
        self.db
            .transact(claim, |tx, claim| Box::pin(async move { Ok(M::find_by_statement(claim).all(tx.conn()).await?) }))
            .await
    }

    /// Takes the lease of one row, if it is due and not leased.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim<M: FromQueryResult + Send + 'static>(
        &self,
        id: OrderId,
        lease: &Lease,
    ) -> Result<Option<M>, Error> {
        self.db
            .transact((self.clone(), lease.clone()), move |tx, (leases, lease)| {
                Box::pin(async move { leases.claim_in(tx, id, &lease).await })
            })
            .await
    }

    /// The same, in a transaction.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim_in<M: FromQueryResult>(&self, tx: &Tx, id: OrderId, lease: &Lease) -> Result<Option<M>, Error> {
        let values = [lease.owner.clone().into(), micros(lease.length).into(), id.as_uuid().into(), lease.longest()];
        Ok(M::find_by_statement(self.timed(&self.sql.claim, values)).one(tx.conn()).await?)
    }

    /// Makes a row due now, if it has a pending effect. If the current attempt of a leased row fails, the next one is due
    /// immediately: the due time changes even if the row was due already, and its driver compares it with the one it has read.
    ///
    /// # Errors
    /// The database failed.
    pub async fn make_due(&self, id: OrderId) -> Result<(), Error> {
        self.execute(self.sql.make_due.clone(), vec![id.as_uuid().into()]).await.map(drop)
    }

    /// Frees all leases of an instance: on shutdown, so that other instances need not wait for them to expire; and on
    /// start, because the leases found then belong to a crashed process. Returns their number.
    ///
    /// # Errors
    /// The database failed.
    pub async fn free(&self, owner: &str) -> Result<u64, Error> {
        self.execute(self.sql.free.clone(), vec![owner.into()]).await
    }

    async fn execute(&self, sql: String, values: Vec<Value>) -> Result<u64, Error> {
        self.db.execute(self.timed(sql, values)).await
    }
}

impl Sql {
    fn new(backend: Backend, table: &str) -> Self {
        let now = now_sql(backend, "$1");
        // `reset_far_future` and `free` lock rows in the order of their keys, as batches of changes do; `claim_due` skips locked
        // rows, so its order does not matter.
        let (skip_locked, lock) = match backend {
            Backend::Sqlite => ("", ""),
            Backend::Postgres => ("FOR UPDATE SKIP LOCKED", "FOR NO KEY UPDATE"),
        };
        // A lease that ends later than any lease taken now was written by a clock that was set back since; if its owner
        // is still alive, only work is duplicated.
        let is_free = |longest: &str| format!("(lease_until <= {now} OR lease_until > {now} + {longest})");
        Self {
            // The first and the last of the index. With EXISTS, PostgreSQL's generic plan scans the table: it assumes that
            // a third of the rows are due, so that it would find one soon.
            due_check: format!(
                "SELECT CASE WHEN (SELECT 1 FROM {table} WHERE next_attempt_time <= {now} AND {} ORDER BY next_attempt_time \
                 LIMIT 1) IS NULL THEN 0 ELSE 1 END AS due, CASE WHEN (SELECT MAX(next_attempt_time) FROM {table} \
                 WHERE next_attempt_time IS NOT NULL) > {now} + $3 THEN 1 ELSE 0 END AS beyond",
                is_free("$2")
            ),
            reset_far_future: format!(
                "UPDATE {table} SET next_attempt_time = {now} WHERE order_id IN (SELECT order_id FROM {table} \
                 WHERE next_attempt_time > {now} + $2 ORDER BY order_id {lock})"
            ),
            claim_due: format!(
                "UPDATE {table} SET lease_owner = $2, lease_until = {now} + $3 WHERE order_id IN \
                 (SELECT order_id FROM {table} WHERE next_attempt_time <= {now} AND {} \
                 ORDER BY next_attempt_time LIMIT $4 {skip_locked}) RETURNING *",
                is_free("$5")
            ),
            claim: format!(
                "UPDATE {table} SET lease_owner = $2, lease_until = {now} + $3 \
                 WHERE order_id = $4 AND next_attempt_time <= {now} AND {} RETURNING *",
                is_free("$5")
            ),
            make_due: format!(
                "UPDATE {table} SET next_attempt_time = CASE WHEN next_attempt_time > {now} THEN {now} ELSE next_attempt_time - 1 \
                 END WHERE order_id = $2 AND next_attempt_time IS NOT NULL"
            ),
            // With the time, as all of them: PostgreSQL cannot determine the type of a parameter that is not used.
            free: format!(
                "UPDATE {table} SET lease_owner = NULL, lease_until = 0 WHERE order_id IN (SELECT order_id FROM {table} \
                 WHERE lease_owner = $2 AND next_attempt_time IS NOT NULL AND {now} IS NOT NULL ORDER BY order_id {lock})"
            ),
            now,
        }
    }
}
