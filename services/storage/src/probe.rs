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
use crate::hosts::{IS_READ_ONLY, Primary};
use crate::postgres::{MAX_LIFETIME, Pool};

/// The time limit of an answer, and of a new connection with its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The probe writes by itself at least once in this many checks, whatever else was committed.
const WRITE_EVERY: u64 = 5;
/// One check in this many asks all hosts of the URL: an old primary that still serves has a successor that it does not
/// know.
const DISCOVER_EVERY: u64 = 5;

/// A WAL record that nothing reads. Its commit is answered when it is durable, on a synchronous standby too.
const WRITE: &str = "SELECT pg_logical_emit_message(true, 'ordermesh', '')";

/// Checks the database repeatedly.
#[derive(Debug)]
pub struct Probe {
    db: Database,
    connection: Option<(PgConnection, Instant)>,
    /// The primary that the probe's last connection led to.
    primary: Primary,
    /// Older connections are invalidated once a new one works.
    pending_invalidation: Option<Invalidation>,
    /// The pool's numbers at the last check.
    acquired: u64,
    committed: u64,
    checks: u64,
}

/// Which of the pool's connections are invalidated, after the probe's own connection failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Invalidation {
    /// The idle ones: the probe's connection broke.
    Idle,
    /// Those in use too: the probe's connection was unresponsive, or led to a read-only server, which reads do not show.
    All,
}

/// The result of a check on a connection.
enum Answer {
    Writable,
    ReadOnly,
    Failed(sqlx::Error),
    TimedOut,
}

impl Probe {
    pub(crate) fn new(db: Database) -> Self {
        Self {
            db,
            connection: None,
            primary: Primary::default(),
            pending_invalidation: None,
            acquired: 0,
            committed: 0,
            checks: 0,
        }
    }

    /// Checks whether the database accepts writes, in at most 4 s.
    ///
    /// # Errors
    /// It does not answer, or accepts no writes.
    pub async fn check(&mut self) -> Result<(), Error> {
        match &self.db.0.reader.0 {
            Readers::Sqlite(_) => self.check_sqlite().await,
            Readers::Postgres(pool) => {
                let pool = pool.clone();
                self.check_postgres(&pool).await
            }
        }
    }

    /// How many callers have got a connection so far (on SQLite: the batches that the writer has answered), and how
    /// many are waiting now. If some wait and the first number does not change, the pool serves no caller.
    pub fn progress(&self) -> (u64, u64) {
        match (&self.db.0.reader.0, &self.db.0.writer) {
            (Readers::Postgres(pool), _) => (pool.progress().0, pool.counts().2),
            (Readers::Sqlite(_), Some(writer)) => writer.progress(),
            (Readers::Sqlite(_), None) => (0, 0),
        }
    }

    async fn check_sqlite(&mut self) -> Result<(), Error> {
        let asked = timeout(ANSWER_LIMIT, self.db.read().execute_unprepared("SELECT 1 FROM schema_version LIMIT 1"));
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
        match timeout(ANSWER_LIMIT, asked).await {
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
        // Commits may have had nothing to write, so they replace the probe's own only for a while.
        let has_committed = has_committed && !self.checks.is_multiple_of(WRITE_EVERY);
        // While callers get no connection, the question is whether a new one can be opened.
        let is_starved = pool.counts().2 > 0 && !has_acquired;
        let discovers = pool.hosts().are_several() && self.checks.is_multiple_of(DISCOVER_EVERY);
        let kept = self.connection.take();
        let kept = kept.filter(|(_, made)| made.elapsed() < MAX_LIFETIME && !is_starved && !discovers);
        if let Some((mut connection, made)) = kept {
            let asked = timeout(ANSWER_LIMIT, ask(&mut connection, has_committed));
            let pending_invalidation = match asked.await.unwrap_or(Answer::TimedOut) {
                Answer::Writable => {
                    self.connection = Some((connection, made));
                    return Ok(());
                }
                Answer::Failed(_) => Invalidation::Idle,
                Answer::ReadOnly | Answer::TimedOut => Invalidation::All,
            };
            self.pending_invalidation = self.pending_invalidation.max(Some(pending_invalidation));
        }
        let fresh = timeout(ANSWER_LIMIT, async {
            let mut connection = pool.connect_apart().await?;
            let answer = ask(&mut connection, false).await;
            Ok::<_, sqlx::Error>((connection, answer))
        })
        .await;
        let previous = std::mem::replace(&mut self.primary, pool.hosts().primary());
        if self.primary.is_split {
            // Neither of the two primaries may get another statement.
            pool.invalidate_all();
        } else if self.primary != previous && previous != Primary::default() {
            self.pending_invalidation = Some(Invalidation::All);
        }
        let failed = |error: sqlx::Error| Err(Error::Statement(DbErr::Conn(RuntimeErr::SqlxError(error.into()))));
        match fresh {
            Ok(Ok((connection, Answer::Writable))) => {
                self.connection = Some((connection, Instant::now()));
                match self.pending_invalidation.take() {
                    Some(Invalidation::All) => pool.invalidate_all(),
                    Some(Invalidation::Idle) => pool.invalidate_idle(),
                    None => {}
                }
                Ok(())
            }
            Ok(Ok((_, Answer::ReadOnly))) => {
                self.pending_invalidation = Some(Invalidation::All);
                Err(Error::ReadOnly)
            }
            Ok(Ok((_, Answer::Failed(error))) | Err(error)) => failed(error),
            Ok(Ok((_, Answer::TimedOut))) | Err(_) => {
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
async fn ask(connection: &mut PgConnection, has_committed: bool) -> Answer {
    let is_read_only = match connection.fetch_one(IS_READ_ONLY).await.and_then(|row| row.try_get::<bool, _>(0)) {
        Ok(is_read_only) => is_read_only,
        Err(error) => return Answer::Failed(error),
    };
    if is_read_only {
        return Answer::ReadOnly;
    }
    if has_committed {
        return Answer::Writable;
    }
    match connection.execute(WRITE).await {
        Ok(_) => Answer::Writable,
        Err(error) if is_not_allowed(&error) => Answer::Writable,
        Err(error) => Answer::Failed(error),
    }
}

/// The role lacks the permission for the function, or it does not exist: then the setting must suffice.
fn is_not_allowed(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| matches!(&*code, "42501" | "42883"))
}
