//! Checks whether the database accepts writes. On PostgreSQL it uses its own connection, which is independent of the
//! load, and no table, so that a slow or locked one makes no instance unready. On SQLite it reads a row
//! through the shared readers, and takes the write lock unless the writer has just committed.

use std::time::Duration;

use sea_orm::sqlx::postgres::PgConnection;
use sea_orm::sqlx::{self, Executor, Row};
use sea_orm::{ConnectionTrait, DbErr, RuntimeErr};
use tokio::time::{Instant, timeout};

use crate::connect::Database;
use crate::connection::Readers;
use crate::error::Error;
use crate::postgres::{MAX_LIFETIME, Pool};

/// Timeout of a check on the open connection, and of opening a new one with its first check.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The probe writes at least once in this many checks, even if the service commits meanwhile.
const WRITE_EVERY: u64 = 5;
/// One check in this many asks all hosts of the URL: an old primary may keep serving after another host was promoted.
const DISCOVER_EVERY: u64 = 5;

/// Columns: read-only, and whether commits wait for a standby.
const STATE: &str = "SELECT current_setting('transaction_read_only')::boolean, \
     current_setting('synchronous_standby_names') <> '' AND current_setting('synchronous_commit') NOT IN ('off', 'local')";
/// A WAL record that nothing reads. The statement returns when its commit is durable, on a synchronous standby too.
const WRITE: &str = "SELECT pg_logical_emit_message(true, 'ordermesh', '')";

/// Checks the database repeatedly.
#[derive(Debug)]
pub struct Probe {
    db: Database,
    connection: Option<(PgConnection, Instant)>,
    /// Older connections are invalidated once a new one works.
    pending_invalidation: Option<Invalidation>,
    /// The pool's numbers at the last check.
    acquired: u64,
    committed: u64,
    checks: u64,
    is_synchronous: Option<bool>,
}

/// Which of the pool's connections are invalidated, after the probe's own connection failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Invalidation {
    /// The idle ones: the probe's connection broke.
    Idle,
    /// Those in use too: the probe's connection was unresponsive, or led to a read-only server, on which reads still
    /// succeed.
    All,
}

/// The result of a check on a connection.
enum CheckResult {
    Writable { is_synchronous: bool },
    ReadOnly,
    Failed(sqlx::Error),
    TimedOut,
}

impl Probe {
    pub(crate) fn new(db: Database) -> Self {
        Self {
            db,
            connection: None,
            pending_invalidation: None,
            acquired: 0,
            committed: 0,
            checks: 0,
            is_synchronous: None,
        }
    }

    /// Checks whether the database accepts writes, in at most 4 s.
    ///
    /// # Errors
    /// It does not respond, or accepts no writes.
    pub async fn check(&mut self) -> Result<(), Error> {
        match &self.db.0.reader.0 {
            Readers::Sqlite(_) => self.check_sqlite().await,
            Readers::Postgres(pool) => {
                let pool = pool.clone();
                self.check_postgres(&pool).await
            }
        }
    }

    /// How many callers have got a connection so far (on SQLite: how many transactions the writer has completed), and
    /// how many are waiting now. If some wait and the first number does not change, the pool is stuck.
    pub fn progress(&self) -> (u64, u64) {
        match (&self.db.0.reader.0, &self.db.0.writer) {
            (Readers::Postgres(pool), _) => (pool.progress().0, pool.counts().2),
            (Readers::Sqlite(_), Some(writer)) => writer.progress(),
            (Readers::Sqlite(_), None) => (0, 0),
        }
    }

    /// Whether commits waited for a synchronous standby at the last successful check. Failover managers that prefer
    /// availability set `synchronous_standby_names` to nothing while no standby is left. `None` on SQLite.
    pub fn is_synchronous(&self) -> Option<bool> {
        self.is_synchronous
    }

    async fn check_sqlite(&mut self) -> Result<(), Error> {
        let asked =
            timeout(RESPONSE_TIMEOUT, self.db.read().execute_unprepared("SELECT 1 FROM schema_version LIMIT 1"));
        match asked.await {
            // All connections for reads are in use.
            Err(_) | Ok(Err(DbErr::ConnectionAcquire(_))) => {}
            Ok(answer) => {
                answer?;
            }
        }
        let Some(writer) = &self.db.0.writer else { return Ok(()) };
        let committed = writer.committed();
        if std::mem::replace(&mut self.committed, committed) != committed {
            return Ok(());
        }
        // BEGIN IMMEDIATE takes the write lock, and fails on a file that is not writable.
        let (answered, _) = writer.progress();
        let asked = self.db.transact((), |_, ()| Box::pin(async { Ok::<_, Error>(()) }));
        match timeout(RESPONSE_TIMEOUT, asked).await {
            Ok(done) => done,
            // The queue is long, but it advances.
            Err(_) if writer.progress().0 != answered => Ok(()),
            Err(_) => Err(timed_out()),
        }
    }

    async fn check_postgres(&mut self, pool: &Pool) -> Result<(), Error> {
        self.checks += 1;
        let (acquired, committed) = pool.progress();
        let has_committed = std::mem::replace(&mut self.committed, committed) != committed;
        let has_acquired = std::mem::replace(&mut self.acquired, acquired) != acquired;
        // A commit may have written nothing, so commits replace the probe's own write only for a while.
        let has_committed = has_committed && !self.checks.is_multiple_of(WRITE_EVERY);
        // While callers get no connection, the check is whether a new one can be opened.
        let is_starved = pool.counts().2 > 0 && !has_acquired;
        let failed = |error: sqlx::Error| Err(Error::Statement(DbErr::Conn(RuntimeErr::SqlxError(error.into()))));
        let mut kept = self.connection.take().filter(|(_, made)| made.elapsed() < MAX_LIFETIME && !is_starved);
        if pool.hosts().has_several() && self.checks.is_multiple_of(DISCOVER_EVERY) && kept.is_some() {
            let fences = pool.hosts().fences();
            match timeout(RESPONSE_TIMEOUT, pool.connect_outside_pool()).await {
                Ok(Ok(connection)) => kept = Some((connection, Instant::now())),
                Ok(Err(error)) if pool.hosts().fences() != fences => return failed(error),
                // Whether the database accepts writes is what the kept connection says.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        if let Some((mut connection, made)) = kept {
            let asked = timeout(RESPONSE_TIMEOUT, ask(&mut connection, has_committed));
            let pending_invalidation = match asked.await.unwrap_or(CheckResult::TimedOut) {
                CheckResult::Writable { is_synchronous } => {
                    self.is_synchronous = Some(is_synchronous);
                    self.connection = Some((connection, made));
                    return Ok(());
                }
                CheckResult::Failed(_) => Invalidation::Idle,
                CheckResult::ReadOnly | CheckResult::TimedOut => Invalidation::All,
            };
            self.pending_invalidation = self.pending_invalidation.max(Some(pending_invalidation));
        }
        let fresh = timeout(RESPONSE_TIMEOUT, async {
            let mut connection = pool.connect_outside_pool().await?;
            let answer = ask(&mut connection, false).await;
            Ok::<_, sqlx::Error>((connection, answer))
        })
        .await;
        match fresh {
            Ok(Ok((connection, CheckResult::Writable { is_synchronous }))) => {
                self.is_synchronous = Some(is_synchronous);
                self.connection = Some((connection, Instant::now()));
                match self.pending_invalidation.take() {
                    Some(Invalidation::All) => pool.invalidate_all(),
                    Some(Invalidation::Idle) => pool.invalidate_idle(),
                    None => {}
                }
                Ok(())
            }
            Ok(Ok((_, CheckResult::ReadOnly))) => {
                self.pending_invalidation = Some(Invalidation::All);
                Err(Error::ReadOnly)
            }
            Ok(Ok((_, CheckResult::Failed(error))) | Err(error)) => failed(error),
            Ok(Ok((_, CheckResult::TimedOut))) | Err(_) => {
                self.pending_invalidation = Some(Invalidation::All);
                Err(timed_out())
            }
        }
    }
}

fn timed_out() -> Error {
    Error::Statement(DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::Timeout))
}

/// `has_committed`: another commit has shown that the database accepts writes.
async fn ask(connection: &mut PgConnection, has_committed: bool) -> CheckResult {
    let state = connection.fetch_one(STATE).await.and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let (is_read_only, is_synchronous): (bool, bool) = match state {
        Ok(state) => state,
        Err(error) => return CheckResult::Failed(error),
    };
    if is_read_only {
        return CheckResult::ReadOnly;
    }
    if has_committed {
        return CheckResult::Writable { is_synchronous };
    }
    match connection.execute(WRITE).await {
        Ok(_) => CheckResult::Writable { is_synchronous },
        Err(error) if is_not_allowed(&error) => CheckResult::Writable { is_synchronous },
        Err(error) => CheckResult::Failed(error),
    }
}

/// The role lacks the permission for the function, or the function does not exist: then only the read-only setting is
/// checked.
fn is_not_allowed(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| matches!(&*code, "42501" | "42883"))
}
