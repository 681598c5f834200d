//! Changes that are committed in sets: few statements and one commit for all commands of a kind that wait, and a
//! reply to each. While one set is committed, the next one gathers; nothing waits for a set to fill.
//!
//! A set that fails before its commit, or whose commit the database rejects, is halved and run again until the command
//! at fault is alone: it delays the others by these runs, and changes nothing for them. A set whose commit was not
//! answered is not run again: each of its commands gets the error, as in a transaction of its own.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use sea_orm::DbErr;
use tokio::sync::{mpsc, oneshot};

use crate::connect::Database;
use crate::error::{Error, Failure};
use crate::metrics::SetMetrics;
use crate::transact::{Tx, copy};

/// The most commands of a set.
const MAX_COMMANDS: usize = 64;
/// The most rows that a set's commands write.
const MAX_ROWS: usize = 1_000;
/// The most commands that wait for a lane; further ones are rejected with [`Error::QueueFull`].
const MAX_QUEUED: usize = 4_096;

/// A kind of change.
pub trait SetOf: Send + Sync + 'static {
    /// The change, as plain data.
    type Command: Clone + Send + Sync + 'static;
    /// What a command changes. A set holds at most one command of a key; another waits for the next set.
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
    /// Nothing of the set is committed.
    fn run<'t>(&'t self, tx: &'t Tx, set: &'t [Self::Command]) -> BoxFuture<'t, Results<Self>>;
}

/// The results of a set's commands.
pub type Results<S> = Result<Vec<Result<<S as SetOf>::Output, <S as SetOf>::Error>>, Undone>;

/// Why a set is rolled back.
#[derive(Debug)]
pub enum Undone {
    /// A command cannot be performed together with the others: the halves are run. Never for a single command.
    Apart,
    /// The database failed.
    Failed(Error),
}

impl From<Error> for Undone {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<DbErr> for Undone {
    fn from(error: DbErr) -> Self {
        Self::Failed(error.into())
    }
}

impl Failure for Undone {
    fn storage(&self) -> Option<&Error> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Apart => None,
        }
    }
}

struct Queued<S: SetOf> {
    command: S::Command,
    reply: oneshot::Sender<Result<S::Output, S::Error>>,
    since: Instant,
}

/// Commits the commands of one kind, one set at a time. Clones share the lane; it ends with the last of them.
pub struct Lane<S: SetOf> {
    queue: mpsc::Sender<Queued<S>>,
}

impl<S: SetOf> Clone for Lane<S> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<S: SetOf> fmt::Debug for Lane<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("kind", &S::NAME).finish_non_exhaustive()
    }
}

impl<S: SetOf> Lane<S> {
    /// Starts a lane. Must be called in a tokio runtime.
    pub fn start(db: Database, kind: S) -> Self {
        let (queue, commands) = mpsc::channel(MAX_QUEUED);
        let worker = Worker { db, kind: Arc::new(kind), metrics: SetMetrics::new(S::NAME) };
        tokio::spawn(worker.run(commands));
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
    metrics: SetMetrics,
}

impl<S: SetOf> Worker<S> {
    async fn run(self, mut commands: mpsc::Receiver<Queued<S>>) {
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
            let set = gather(&mut waiting);
            self.metrics.started(set.len(), set.iter().map(|queued| queued.since.elapsed()));
            self.commit(set).await;
        }
    }

    async fn commit(&self, set: Vec<Queued<S>>) {
        let mut sets = vec![set];
        while let Some(mut set) = sets.pop() {
            let commands: Arc<[S::Command]> = set.iter().map(|queued| queued.command.clone()).collect();
            let args = (self.kind.clone(), commands);
            let run = self.db.transact_set(args, |tx, (kind, commands): (Arc<S>, Arc<[S::Command]>)| {
                Box::pin(async move { kind.run(tx, &commands).await })
            });
            match run.await {
                Ok(results) => {
                    // A cancelled caller needs no reply.
                    set.into_iter().zip(results).for_each(|(queued, result)| drop(queued.reply.send(result)));
                }
                Err(undone) if set.len() > 1 && may_run_again(&undone) => {
                    self.metrics.halved();
                    let second = set.split_off(set.len() / 2);
                    sets.extend([second, set]);
                }
                Err(undone) => {
                    let error = match undone {
                        Undone::Failed(error) => error,
                        // A kind that rejects a single command so is at fault itself.
                        Undone::Apart => Error::Panicked,
                    };
                    let fail = |queued: Queued<S>| drop(queued.reply.send(Err(copy(&error).into())));
                    set.into_iter().for_each(fail);
                }
            }
        }
    }
}

/// Whether the set has certainly changed nothing, and another run may do better: an unavailable database would reject
/// the halves too.
fn may_run_again(undone: &Undone) -> bool {
    match undone {
        Undone::Apart => true,
        Undone::Failed(error) => !error.is_unavailable() || error.is_transient(),
    }
}

/// Takes the next set: commands with different keys, in the order of their arrival.
fn gather<S: SetOf>(waiting: &mut VecDeque<Queued<S>>) -> Vec<Queued<S>> {
    let (mut set, mut rest) = (Vec::new(), VecDeque::new());
    let (mut keys, mut rows) = (HashSet::new(), 0);
    while let Some(queued) = waiting.pop_front() {
        rows += S::rows(&queued.command);
        if !set.is_empty() && (set.len() == MAX_COMMANDS || rows > MAX_ROWS) {
            rest.push_back(queued);
            break;
        }
        if keys.insert(S::key(&queued.command)) {
            set.push(queued);
        } else {
            rest.push_back(queued);
        }
    }
    rest.append(waiting);
    *waiting = rest;
    set
}
