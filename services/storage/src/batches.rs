//! Changes that are committed in batches: few statements and one commit for all commands of a kind that wait, and a
//! reply to each. While one batch is committed, the next one gathers; nothing waits for a batch to fill.
//!
//! A command that cannot be performed together with the others is named by its kind, and performed alone beside the
//! batcher. A batch that the database rejects is halved and run again until the command at fault is alone: it delays the
//! others by these runs, and changes nothing for them. So does a command whose row another transaction has locked: it
//! waits for the lock beside the batcher. A batch whose commit was not answered is not run again: each of its commands gets
//! the error, as in a transaction of its own.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sea_orm::DbErr;
use tokio::sync::{mpsc, oneshot};

use crate::connect::Database;
use crate::error::{Error, Failure};
use crate::metrics::BatchMetrics;
use crate::transact::{BEGIN_BATCH, BEGIN_ROWS, Tx, copy};

/// The most commands of a batch.
const MAX_COMMANDS: usize = 64;
/// The most rows that a batch's commands write.
const MAX_ROWS: usize = 1_000;
/// The most commands in a batcher's queue, and the most that it has taken from there for its next batches. Further ones are
/// rejected with [`Error::QueueFull`].
const MAX_QUEUED: usize = 4_096;

/// How many lock timeouts a batch may cost: more than it takes to find one command among all.
const MAX_LOCK_TIMEOUTS: u32 = 8;
/// How long a command waits in the queue. Its caller has given up by then: while the database is unavailable, commands
/// are not kept to be committed after the outage.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// A kind of change.
pub trait Batched: Send + Sync + 'static {
    /// The change, as plain data.
    type Command: Clone + Send + Sync + 'static;
    /// What a command changes. A batch holds at most one command of a key; another waits for the next batch.
    type Key: Eq + Hash + Send;
    /// The result of a command.
    type Output: Send + 'static;
    /// Why a command is rejected.
    type Error: Failure;

    /// The kind's name in metrics.
    const NAME: &'static str;

    /// What the command changes.
    fn key(command: &Self::Command) -> Self::Key;

    /// About how many rows the command writes.
    fn rows(command: &Self::Command) -> usize;

    /// Performs the commands in a transaction, which is committed with the events that it emits: one result for each,
    /// in their order. A command with an error has changed nothing.
    ///
    /// # Errors
    /// Nothing of the batch is committed.
    fn run<'t>(&'t self, tx: &'t Tx, batch: &'t [Self::Command]) -> BoxFuture<'t, Results<Self>>;
}

/// The results of a batch's commands.
pub type Results<S> = Result<Vec<Result<<S as Batched>::Output, <S as Batched>::Error>>, BatchError>;

/// Why a batch is rolled back.
#[derive(Debug)]
pub enum BatchError {
    /// These of the batch's commands, by index, cannot be performed together with the others: each is run alone, and the
    /// others together. Never for a single command.
    Split(Vec<usize>),
    /// The database failed.
    Failed(Error),
}

impl From<Error> for BatchError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<DbErr> for BatchError {
    fn from(error: DbErr) -> Self {
        Self::Failed(error.into())
    }
}

impl Failure for BatchError {
    fn storage(&self) -> Option<&Error> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Split(_) => None,
        }
    }
}

struct Queued<S: Batched> {
    command: S::Command,
    reply: oneshot::Sender<Result<S::Output, S::Error>>,
    since: Instant,
}

/// Commits the commands of one kind, one batch at a time. Clones share the batcher; it ends with the last of them.
pub struct Batcher<S: Batched> {
    queue: mpsc::Sender<Queued<S>>,
}

impl<S: Batched> Clone for Batcher<S> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<S: Batched> fmt::Debug for Batcher<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").field("kind", &S::NAME).finish_non_exhaustive()
    }
}

impl<S: Batched> Batcher<S> {
    /// Starts a batcher. Must be called in a tokio runtime.
    pub fn start(db: Database, kind: S) -> Self {
        let (queue, commands) = mpsc::channel(MAX_QUEUED);
        let worker = Arc::new(Worker { db, kind: Arc::new(kind), metrics: BatchMetrics::new(S::NAME) });
        tokio::spawn(worker.run_despite_panics(commands));
        Self { queue }
    }

    /// Commits a command together with others that wait. A cancelled caller's command is committed all the same.
    ///
    /// # Errors
    /// The command's own, or the database's: nothing was changed, unless the commit was not answered.
    pub async fn commit(&self, command: S::Command) -> Result<S::Output, S::Error> {
        let (reply, replied) = oneshot::channel();
        let queued = Queued { command, reply, since: Instant::now() };
        self.queue.try_send(queued).map_err(|rejected| match rejected {
            mpsc::error::TrySendError::Full(_) => Error::QueueFull,
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })?;
        replied.await.unwrap_or_else(|_| Err(Error::Closed.into()))
    }
}

struct Worker<S> {
    db: Database,
    kind: Arc<S>,
    metrics: BatchMetrics,
}

impl<S: Batched> Worker<S> {
    /// Until the last [`Batcher`] is dropped. A panic ends the commands that have been taken from the queue, with an error,
    /// and not the service.
    async fn run_despite_panics(self: Arc<Self>, mut commands: mpsc::Receiver<Queued<S>>) {
        while AssertUnwindSafe(self.run(&mut commands)).catch_unwind().await.is_err() {
            tracing::error!(target: "ordermesh", "a batcher of {} panicked", S::NAME);
        }
    }

    async fn run(self: &Arc<Self>, commands: &mut mpsc::Receiver<Queued<S>>) {
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                let Some(queued) = commands.recv().await else { return };
                waiting.push_back(queued);
            }
            while waiting.len() < MAX_QUEUED
                && let Ok(queued) = commands.try_recv()
            {
                waiting.push_back(queued);
            }
            let batch = gather(&mut waiting, Instant::now());
            if !batch.is_empty() {
                self.metrics.started(batch.len(), batch.iter().map(|queued| queued.since.elapsed()));
                self.commit(batch).await;
            }
        }
    }

    async fn commit(self: &Arc<Self>, batch: Vec<Queued<S>>) {
        let (mut batches, mut lock_timeouts) = (vec![batch], 0);
        while let Some(batch) = batches.pop() {
            let commands: Arc<[S::Command]> = batch.iter().map(|queued| queued.command.clone()).collect();
            match self.transact(BEGIN_BATCH, commands).await {
                Ok(results) => {
                    // A cancelled caller needs no reply.
                    batch.into_iter().zip(results).for_each(|(queued, result)| drop(queued.reply.send(result)));
                }
                Err(BatchError::Split(alone)) if batch.len() > 1 => {
                    self.metrics.split();
                    let (apart, rest): (Vec<_>, Vec<_>) =
                        batch.into_iter().enumerate().partition(|(index, _)| alone.is_empty() || alone.contains(index));
                    apart.into_iter().for_each(|(_, queued)| self.commit_alone(queued));
                    batches.extend((!rest.is_empty()).then(|| rest.into_iter().map(|(_, queued)| queued).collect()));
                }
                Err(BatchError::Failed(error)) if error.is_lock_timeout() && lock_timeouts < MAX_LOCK_TIMEOUTS => {
                    lock_timeouts += 1;
                    self.halve(batch, &mut batches);
                }
                // A row that many of them need is locked.
                Err(BatchError::Failed(error)) if error.is_lock_timeout() => {
                    batch.into_iter().for_each(|queued| self.commit_alone(queued));
                }
                Err(BatchError::Failed(error)) if batch.len() > 1 && !error.is_unavailable() => {
                    self.halve(batch, &mut batches)
                }
                Err(undone) => fail(batch, undone),
            }
        }
    }

    /// The halves of a batch are run next; the only command of a batch is committed alone.
    fn halve(self: &Arc<Self>, mut batch: Vec<Queued<S>>, batches: &mut Vec<Vec<Queued<S>>>) {
        self.metrics.split();
        let second = batch.split_off(batch.len() / 2);
        if batch.is_empty() {
            return second.into_iter().for_each(|queued| self.commit_alone(queued));
        }
        batches.extend([second, batch]);
    }

    /// Commits a command in a transaction of its own, beside the batcher: it may wait for a lock.
    fn commit_alone(self: &Arc<Self>, queued: Queued<S>) {
        let worker = self.clone();
        tokio::spawn(async move {
            match worker.transact(BEGIN_ROWS, Arc::new([queued.command.clone()])).await {
                Ok(results) => drop(results.into_iter().next().map(|result| queued.reply.send(result))),
                Err(undone) => fail(vec![queued], undone),
            }
        });
    }

    async fn transact(&self, begin: &'static str, commands: Arc<[S::Command]>) -> Results<S> {
        let args = (self.kind.clone(), commands);
        let run = self.db.transact_begun(begin, args, |tx, (kind, commands): (Arc<S>, Arc<[S::Command]>)| {
            Box::pin(async move { kind.run(tx, &commands).await })
        });
        run.await
    }
}

/// The last command gets the error itself, and the others an equivalent: they are several only if the database is
/// unavailable.
fn fail<S: Batched>(mut batch: Vec<Queued<S>>, undone: BatchError) {
    let error = match undone {
        BatchError::Failed(error) => error,
        // A kind that returns this for a single command is at fault itself.
        BatchError::Split(_) => Error::Panicked,
    };
    let last = batch.pop();
    batch.into_iter().for_each(|queued| drop(queued.reply.send(Err(copy(&error).into()))));
    if let Some(queued) = last {
        drop(queued.reply.send(Err(error.into())));
    }
}

/// Takes the next batch: commands with different keys, in the order of their arrival. Those that have waited too long are
/// rejected.
fn gather<S: Batched>(waiting: &mut VecDeque<Queued<S>>, now: Instant) -> Vec<Queued<S>> {
    let (mut batch, mut rest) = (Vec::new(), VecDeque::new());
    let (mut keys, mut rows) = (HashSet::new(), 0);
    while let Some(queued) = waiting.pop_front() {
        if now.saturating_duration_since(queued.since) > MAX_WAIT {
            drop(queued.reply.send(Err(Error::QueueFull.into())));
            continue;
        }
        rows += S::rows(&queued.command);
        if !batch.is_empty() && (batch.len() == MAX_COMMANDS || rows > MAX_ROWS) {
            rest.push_back(queued);
            break;
        }
        if keys.insert(S::key(&queued.command)) {
            batch.push(queued);
        } else {
            rest.push_back(queued);
        }
    }
    rest.append(waiting);
    *waiting = rest;
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbers;

    impl Batched for Numbers {
        type Command = u32;
        type Key = u32;
        type Output = ();
        type Error = Error;

        const NAME: &'static str = "numbers";

        fn key(number: &u32) -> u32 {
            *number
        }

        fn rows(number: &u32) -> usize {
            if *number < 1_000 { 1 } else { MAX_ROWS }
        }

        fn run<'t>(&'t self, _: &'t Tx, batch: &'t [u32]) -> BoxFuture<'t, Results<Self>> {
            Box::pin(std::future::ready(Ok(batch.iter().map(|_| Ok(())).collect())))
        }
    }

    type Reply = oneshot::Receiver<Result<(), Error>>;

    fn queue(numbers: &[u32], since: Instant) -> (VecDeque<Queued<Numbers>>, Vec<Reply>) {
        let queued = numbers.iter().map(|number| {
            let (reply, replied) = oneshot::channel();
            (Queued { command: *number, reply, since }, replied)
        });
        queued.unzip()
    }

    fn next(waiting: &mut VecDeque<Queued<Numbers>>, now: Instant) -> Vec<u32> {
        gather(waiting, now).iter().map(|queued| queued.command).collect()
    }

    #[test]
    fn a_batch_has_each_key_once_and_ends_at_its_limits() {
        let now = Instant::now();
        let (mut waiting, _replies) = queue(&[1, 2, 1, 3, 1, 2_000, 4], now);
        assert_eq!(next(&mut waiting, now), [1, 2, 3]);
        assert_eq!(next(&mut waiting, now), [1]);
        assert_eq!(next(&mut waiting, now), [1]);
        assert_eq!(next(&mut waiting, now), [2_000], "many rows are a batch of their own");
        assert_eq!(next(&mut waiting, now), [4]);
        let numbers: Vec<u32> = (0..100).collect();
        let (mut waiting, _replies) = queue(&numbers, now);
        assert_eq!(next(&mut waiting, now).len(), MAX_COMMANDS);
        assert_eq!(next(&mut waiting, now).len(), 100 - MAX_COMMANDS);
    }

    #[test]
    fn a_command_that_has_waited_for_long_is_rejected_and_not_committed_late() {
        let start = Instant::now();
        let (mut waiting, mut replies) = queue(&[1], start);
        let (later, _replies) = queue(&[2], start + MAX_WAIT);
        waiting.extend(later);
        assert_eq!(next(&mut waiting, start + MAX_WAIT + Duration::from_millis(1)), [2]);
        assert!(matches!(replies[0].try_recv(), Ok(Err(Error::QueueFull))));
    }
}
