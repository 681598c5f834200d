//! Commits a change together with its events, or nothing.
//!
//! A transaction runs in its own task, so a cancelled caller never drops one half way. On SQLite one writer task
//! commits the queued units of work in ONE transaction, which shares the cost of the commit. If a unit fails, the
//! whole is rolled back and run again with a savepoint for each unit, so that only the failed one is undone: failures
//! are rare, and savepoints cost two statements per unit. On PostgreSQL each unit is a transaction.

use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kernel::backoff::backoff;
use sea_orm::{ConnectionTrait, DbErr, RuntimeErr, Statement};
use telemetry::{Operation, Outcome, TraceEvent};
use tokio::sync::oneshot;

use crate::connect::{Backend, Database};
use crate::connection::{Open, Readers, TxConnection};
use crate::error::{Error, Failure};
use crate::outbox;

mod writer;

use writer::Queued;
pub(crate) use writer::Writer;

/// How often a transaction is tried when the database is busy or reports a deadlock.
const MAX_TRIES: u32 = 10;
/// How often it is tried when connections break or lead to a read-only server.
const MAX_BROKEN: u32 = 3;

/// How a transaction is begun on PostgreSQL.
pub(crate) const BEGIN: &str = "BEGIN";
/// How statements over [`crate::Rows`] are planned: once for a connection, and with indexes. A plan for the given arrays
/// would be made at each execution, and one for a new and still empty table would be a sequential scan for ever. A bitmap
/// scan would not mark index entries of dead rows, so that each scan reads them again until the next vacuum.
macro_rules! planned {
    ($begin:literal) => {
        concat!(
            $begin,
            "; SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_seqscan = off; \
             SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
             SET LOCAL jit = off"
        )
    };
}

/// For statements over [`crate::Rows`].
pub(crate) const BEGIN_ROWS: &str = planned!("BEGIN");
/// The same for a batch, whose commands do not wait long for a row that one of them needs.
pub(crate) const BEGIN_BATCH: &str = planned!("BEGIN; SET LOCAL lock_timeout = '250ms'");
/// For the deletion of many outbox rows, which a crash may undo: it is repeated. The outbox is empty or long, and a plan
/// made for the one is quadratic for the other.
pub(crate) const BEGIN_SETTLE: &str =
    "BEGIN; SET LOCAL synchronous_commit = off; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL jit = off";

/// An open transaction.
pub struct Tx {
    conn: TxConnection,
    events: Mutex<Vec<(Option<Operation>, TraceEvent)>>,
}

impl std::fmt::Debug for Tx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx").finish_non_exhaustive()
    }
}

impl Tx {
    fn new(conn: TxConnection) -> Self {
        Self { conn, events: Mutex::default() }
    }

    /// The connection of the transaction.
    pub fn conn(&self) -> &TxConnection {
        &self.conn
    }

    /// The kind of database.
    pub fn backend(&self) -> Backend {
        match &self.conn.0 {
            Open::Sqlite(_) => Backend::Sqlite,
            Open::Postgres(_) => Backend::Postgres,
        }
    }

    /// Writes the operation's event in this transaction, and claims its slot once that is committed. Does nothing if
    /// the operation has no event, or its slot is claimed.
    pub fn emit(&self, operation: &Operation, outcome: &Outcome) {
        if let Some(event) = operation.event(outcome) {
            self.push(Some(operation.clone()), event);
        }
    }

    pub(crate) fn enqueue(&self, event: TraceEvent) {
        self.push(None, event);
    }

    fn push(&self, operation: Option<Operation>, event: TraceEvent) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push((operation, event));
    }
}

type Events = Vec<(Option<Operation>, TraceEvent)>;

/// A unit of work with its types erased, so that units of all kinds share a group.
trait Unit: Send {
    /// How its transaction is begun on PostgreSQL.
    fn begin(&self) -> &'static str;
    /// Runs the work; `Err`: roll it back.
    fn run<'a>(&'a mut self, tx: &'a Tx) -> BoxFuture<'a, Result<(), ()>>;
    /// Whether its result is worth a retry.
    fn is_transient(&self) -> bool;
    /// Whether its connection broke before anything was committed.
    fn is_broken(&self) -> bool;
    /// Sets the error of its commit or of the transaction around it.
    fn fail(&mut self, error: Error);
    /// Sends the result to the caller.
    fn answer(self: Box<Self>);
}

struct Work<A, T, E, F> {
    begin: &'static str,
    args: A,
    work: F,
    result: Option<Result<T, E>>,
    answer: oneshot::Sender<Result<T, E>>,
}

impl<A, T, E, F> Unit for Work<A, T, E, F>
where
    A: Clone + Send + Sync + 'static,
    T: Send + 'static,
    E: Failure,
    F: for<'t> Fn(&'t Tx, A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
{
    fn begin(&self) -> &'static str {
        self.begin
    }

    fn run<'a>(&'a mut self, tx: &'a Tx) -> BoxFuture<'a, Result<(), ()>> {
        Box::pin(async move {
            let work = AssertUnwindSafe(async { (self.work)(tx, self.args.clone()).await }).catch_unwind().await;
            let result = work.unwrap_or_else(|_| Err(Error::Panicked.into()));
            let done = result.as_ref().map(|_| ()).map_err(|_| ());
            self.result = Some(result);
            done
        })
    }

    fn is_transient(&self) -> bool {
        matches!(&self.result, Some(Err(error)) if error.storage().is_some_and(Error::is_transient))
    }

    fn is_broken(&self) -> bool {
        matches!(&self.result, Some(Err(error)) if error.storage().is_some_and(Error::is_broken_connection))
    }

    fn fail(&mut self, error: Error) {
        self.result = Some(Err(error.into()));
    }

    fn answer(self: Box<Self>) {
        // A cancelled caller needs no answer; the work is committed anyway.
        let _ = self.answer.send(self.result.unwrap_or_else(|| Err(Error::Closed.into())));
    }
}

impl Database {
    /// Runs `work` with its arguments in a transaction; if it returns `Ok`, commits it with the events that it emitted,
    /// otherwise rolls it back. `work` may run again if the database was busy: the arguments are cloned for each run,
    /// and it must only use the transaction.
    ///
    /// # Errors
    /// The error of `work`, or the database's error if beginning or committing failed.
    pub async fn transact<A, T, E, F>(&self, args: A, work: F) -> Result<T, E>
    where
        A: Clone + Send + Sync + 'static,
        T: Send + 'static,
        E: Failure,
        F: for<'t> Fn(&'t Tx, A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        self.transact_begun(BEGIN, args, work).await
    }

    pub(crate) async fn transact_begun<A, T, E, F>(&self, begin: &'static str, args: A, work: F) -> Result<T, E>
    where
        A: Clone + Send + Sync + 'static,
        T: Send + 'static,
        E: Failure,
        F: for<'t> Fn(&'t Tx, A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let unit = Box::new(Work { begin, args, work, result: None, answer });
        match &self.0.writer {
            Some(writer) => {
                let queued = Queued { unit, db: self.clone(), since: Instant::now() };
                writer.enqueue(queued).await?;
            }
            None => drop(tokio::spawn(run_alone(self.clone(), unit))),
        }
        answered.await.unwrap_or_else(|_| Err(Error::Closed.into()))
    }

    /// Like [`Database::transact`], for work that executes statements over [`crate::Rows`].
    ///
    /// # Errors
    /// The error of `work`, or the database's error if beginning or committing failed.
    pub async fn transact_rows<A, T, E, F>(&self, args: A, work: F) -> Result<T, E>
    where
        A: Clone + Send + Sync + 'static,
        T: Send + 'static,
        E: Failure,
        F: for<'t> Fn(&'t Tx, A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        self.transact_begun(BEGIN_ROWS, args, work).await
    }

    /// Executes one statement in a transaction of its own, and returns the number of rows that it changed.
    ///
    /// # Errors
    /// The database's error.
    pub async fn execute(&self, statement: Statement) -> Result<u64, Error> {
        self.transact(statement, |tx, statement| {
            Box::pin(async move { Ok(tx.conn().execute_raw(statement).await?.rows_affected()) })
        })
        .await
    }

    fn committed(&self, events: &Events) {
        for (operation, event) in events {
            if let Some(operation) = operation {
                operation.commit_event(event);
            }
        }
        if !events.is_empty() {
            self.0.events_written.notify_one();
        }
    }
}

/// [`try_until_done`], boxed: otherwise each crate that calls [`Database::transact`] compiles it, with what sqlx does to
/// connect, again (a fifth of their code).
fn run_alone(db: Database, unit: Box<dyn Unit>) -> BoxFuture<'static, ()> {
    Box::pin(async move { try_until_done(&db, unit).await })
}

/// PostgreSQL: a unit is a transaction. Before its commit is sent nothing has happened, and it may run again.
async fn try_until_done(db: &Database, mut unit: Box<dyn Unit>) {
    let mut broken = 0;
    for attempt in 1..=MAX_TRIES {
        let is_broken = match try_alone(db, unit.as_mut()).await {
            Ok(events) => {
                db.committed(&events);
                break;
            }
            Err(NotCommitted::InDoubt(error)) => {
                let is_transient = error.is_transient();
                unit.fail(error);
                if !is_transient {
                    break;
                }
                false
            }
            Err(NotCommitted::Before(error)) => {
                let (is_transient, is_broken) = (error.is_transient(), error.is_broken_connection());
                unit.fail(error);
                if !is_transient && !is_broken {
                    break;
                }
                is_broken
            }
            Err(NotCommitted::Rejected) if unit.is_transient() => false,
            Err(NotCommitted::Rejected) if unit.is_broken() => true,
            Err(NotCommitted::Rejected) => break,
        };
        broken += u32::from(is_broken);
        if broken >= MAX_BROKEN {
            break;
        }
        pause(attempt).await;
    }
    unit.answer();
}

/// Why a transaction was not committed.
enum NotCommitted {
    /// The work itself failed, and holds its error.
    Rejected,
    /// The database failed before the commit.
    Before(Error),
    /// The commit failed or was not answered: the outcome is in doubt.
    InDoubt(Error),
}

async fn try_alone(db: &Database, unit: &mut dyn Unit) -> Result<Events, NotCommitted> {
    let asked = Instant::now();
    let begun = begin_alone(db, unit.begin()).await.map_err(NotCommitted::Before)?;
    db.0.metrics.waited(asked.elapsed());
    let tx = Tx::new(begun);
    if unit.run(&tx).await.is_err() {
        let _ = tx.conn.rollback().await;
        return Err(NotCommitted::Rejected);
    }
    let events = tx.events.into_inner().unwrap_or_else(PoisonError::into_inner);
    let rows: Vec<TraceEvent> = events.iter().map(|(_, event)| event.clone()).collect();
    outbox::insert(&tx.conn, &rows).await.map_err(NotCommitted::Before)?;
    commit(tx.conn, &events).await.map_err(NotCommitted::InDoubt)?;
    Ok(events)
}

pub(crate) async fn begin_alone(db: &Database, sql: &'static str) -> Result<TxConnection, Error> {
    match &db.0.reader.0 {
        Readers::Postgres(pool) => {
            let mut lease = pool.acquire().await.map_err(Error::Begin)?;
            lease.begin(sql).await.map_err(|error| Error::Begin(DbErr::Exec(RuntimeErr::SqlxError(error.into()))))?;
            Ok(TxConnection(Open::Postgres(lease.into())))
        }
        Readers::Sqlite(pool) => writer::begin(pool).await.map(|tx| TxConnection(Open::Sqlite(tx))),
    }
}

/// The commit's outcome may be in doubt, and that of its events too: their operations write no other event.
async fn commit(conn: TxConnection, events: &Events) -> Result<(), Error> {
    let Err(error) = conn.commit().await else { return Ok(()) };
    let error = Error::from(error);
    // A definite rejection has changed nothing, and the work may run again.
    if error.is_unavailable() && !error.is_transient() {
        events.iter().filter_map(|(operation, _)| operation.as_ref()).for_each(Operation::discard);
    }
    Err(error)
}

/// The error for another unit of the same group: the same, or `Closed` where it cannot be cloned.
pub(crate) fn copy(error: &Error) -> Error {
    match error {
        Error::Statement(inner) => Error::Statement(inner.clone()),
        Error::Begin(inner) => Error::Begin(inner.clone()),
        Error::Connect(inner) => Error::Connect(inner.clone()),
        Error::Url
        | Error::UrlMalformed
        | Error::TargetSessionAttrs
        | Error::UrlParameter
        | Error::TransactionPooling
        | Error::Folder { .. }
        | Error::Exposed(_)
        | Error::Permissions { .. }
        | Error::ReadOnly
        | Error::Corrupt { .. }
        | Error::QueueFull
        | Error::Closed => Error::Closed,
        Error::Panicked => Error::Panicked,
    }
}

pub(crate) async fn pause(attempt: u32) {
    let wait = backoff(attempt, Duration::from_millis(5), Duration::from_millis(250), rand::random());
    tokio::time::sleep(wait).await;
}

#[cfg(test)]
mod tests;
