//! SQLite's single writer: commits the queued units of work in one transaction.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, SqliteTransactionMode, Statement,
    TransactionOptions, TransactionTrait,
};
use telemetry::TraceEvent;
use tokio::sync::{mpsc, oneshot};

use super::{Events, MAX_TRIES, Tx, Unit, commit, copy, pause};
use crate::connect::Database;
use crate::connection::{Open, TxConnection};
use crate::error::Error;
use crate::file_lock::FileLock;
use crate::metrics::Metrics;
use crate::outbox;

/// The most units that are committed in one transaction.
const MAX_GROUP: usize = 64;
/// The length of the queue; further callers wait for a slot.
const MAX_QUEUE: usize = 4_096;

pub(super) struct Queued {
    pub(super) unit: Box<dyn Unit>,
    pub(super) db: Database,
    pub(super) since: Instant,
}

enum Job {
    Unit(Queued),
    DataVersion(oneshot::Sender<i64>),
}

/// SQLite's single writer.
#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Job>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Groups, whatever their outcome.
    answered: AtomicU64,
    /// Groups that were committed.
    committed: AtomicU64,
}

impl Writer {
    /// `file_lock`: shared with the other processes that write the same file.
    pub(crate) fn start(pool: DatabaseConnection, file_lock: Option<FileLock>, metrics: Metrics) -> Self {
        let (queue, mut jobs) = mpsc::channel(MAX_QUEUE);
        let counts = Arc::new(Counts::default());
        let counted = counts.clone();
        tokio::spawn(async move {
            let mut received = Vec::with_capacity(MAX_GROUP);
            while jobs.recv_many(&mut received, MAX_GROUP).await > 0 {
                let (mut group, mut questions) = (Vec::with_capacity(received.len()), Vec::new());
                for job in received.drain(..) {
                    match job {
                        Job::Unit(queued) => group.push(queued),
                        Job::DataVersion(reply) => questions.push(reply),
                    }
                }
                if !group.is_empty() {
                    group.iter().for_each(|queued| metrics.waited(queued.since.elapsed()));
                    run_group(&pool, file_lock.as_ref(), group, &counted).await;
                    counted.answered.fetch_add(1, Ordering::Relaxed);
                }
                if !questions.is_empty()
                    && let Some(version) = data_version(&pool).await
                {
                    for reply in questions {
                        // A cancelled caller needs no reply.
                        let _ = reply.send(version);
                    }
                }
            }
        });
        Self { queue, counts }
    }

    /// Waits for a slot in the queue.
    pub(super) async fn enqueue(&self, queued: Queued) -> Result<(), Error> {
        self.queue.send(Job::Unit(queued)).await.map_err(|_| Error::Closed)
    }

    /// A number that changes with the commits of other connections (SQLite's `PRAGMA data_version`).
    pub(crate) async fn data_version(&self) -> Option<i64> {
        let (reply, version) = oneshot::channel();
        self.queue.send(Job::DataVersion(reply)).await.ok()?;
        version.await.ok()
    }

    /// The numbers of groups answered and of jobs queued.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let queued = self.queue.max_capacity() - self.queue.capacity();
        (self.counts.answered.load(Ordering::Relaxed), u64::try_from(queued).unwrap_or(u64::MAX))
    }

    /// The number of groups committed.
    pub(crate) fn committed(&self) -> u64 {
        self.counts.committed.load(Ordering::Relaxed)
    }
}

async fn data_version(pool: &DatabaseConnection) -> Option<i64> {
    let pragma = Statement::from_string(DbBackend::Sqlite, "PRAGMA data_version");
    pool.query_one_raw(pragma).await.ok()??.try_get_by_index(0).ok()
}

async fn run_group(pool: &DatabaseConnection, file_lock: Option<&FileLock>, mut group: Vec<Queued>, counts: &Counts) {
    let Some(db) = group.first().map(|job| job.db.clone()) else { return };
    for attempt in 1..=MAX_TRIES {
        let guard = match file_lock {
            Some(file_lock) => file_lock.take().await,
            None => None,
        };
        let tried = try_group(pool, &mut group).await;
        drop(guard);
        match tried {
            Ok((events, again)) => {
                counts.committed.fetch_add(1, Ordering::Relaxed);
                db.committed(&events);
                let (retried, done): (Vec<_>, Vec<_>) = std::mem::take(&mut group)
                    .into_iter()
                    .enumerate()
                    .partition(|(index, _)| attempt < MAX_TRIES && again.contains(index));
                done.into_iter().for_each(|(_, job)| job.unit.answer());
                group = retried.into_iter().map(|(_, job)| job).collect();
                if group.is_empty() {
                    return;
                }
            }
            Err(error) if error.is_transient() && attempt < MAX_TRIES => {}
            Err(error) => {
                let error = Arc::new(error);
                for mut job in group {
                    job.unit.fail(copy(&error));
                    job.unit.answer();
                }
                return;
            }
        }
        pause(attempt).await;
    }
}

/// Commits the units that succeed; returns their events, and the units to be retried.
async fn try_group(pool: &DatabaseConnection, group: &mut [Queued]) -> Result<(Events, Vec<usize>), Error> {
    match try_together(pool, group).await? {
        Some(events) => Ok((events, Vec::new())),
        None if group.len() == 1 => {
            let again = group.first().is_some_and(|job| job.unit.is_transient());
            Ok((Events::new(), if again { vec![0] } else { vec![] }))
        }
        None => try_apart(pool, group).await,
    }
}

pub(super) async fn begin(pool: &DatabaseConnection) -> Result<DatabaseTransaction, Error> {
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    Ok(pool.begin_with_options(options).await?)
}

/// All or nothing: `None` if a unit failed and everything was rolled back.
async fn try_together(pool: &DatabaseConnection, group: &mut [Queued]) -> Result<Option<Events>, Error> {
    let tx = Tx::new(TxConnection(Open::Sqlite(begin(pool).await?)));
    for job in group.iter_mut() {
        if job.unit.run(&tx).await.is_err() {
            tx.conn.rollback().await?;
            return Ok(None);
        }
    }
    let events = tx.events.into_inner().unwrap_or_else(PoisonError::into_inner);
    finish(tx.conn, &events).await?;
    Ok(Some(events))
}

/// Runs each unit in its own savepoint.
async fn try_apart(pool: &DatabaseConnection, group: &mut [Queued]) -> Result<(Events, Vec<usize>), Error> {
    let outer = begin(pool).await?;
    let mut events = Events::new();
    let mut again = Vec::new();
    for (index, job) in group.iter_mut().enumerate() {
        let tx = Tx::new(TxConnection(Open::Sqlite(outer.begin().await?)));
        if job.unit.run(&tx).await.is_ok() {
            tx.conn.commit().await?;
            events.extend(tx.events.into_inner().unwrap_or_else(PoisonError::into_inner));
        } else {
            tx.conn.rollback().await?;
            if job.unit.is_transient() {
                again.push(index);
            }
        }
    }
    finish(TxConnection(Open::Sqlite(outer)), &events).await?;
    Ok((events, again))
}

async fn finish(conn: TxConnection, events: &Events) -> Result<(), Error> {
    let rows: Vec<TraceEvent> = events.iter().map(|(_, event)| event.clone()).collect();
    outbox::insert(&conn, &rows).await?;
    commit(conn, events).await
}
