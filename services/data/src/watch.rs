//! Followers: a task each reads events after its position, a page at a time, and sends them to its stream.
//!
//! It reads no faster than the stream is read: between the two is a short channel. Reading and waiting are one loop, whether
//! a follower begins, catches up or has seen all. Start reading at [`Watch::follow`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use kernel::{Clock, Timestamp};
use mesh::Caller;
use telemetry::TraceEvent;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cursor::{Cursor, Cursors};
use crate::error::Error;
use crate::feed::{Feed, Head, Position};
use crate::feed_store::FeedStore;
use crate::trace_event::Filter;

/// Messages between a follower's task and its stream.
const WAITING: usize = 16;

/// Asks to follow events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct WatchTraceEvents {
    pub(crate) filter: Filter,
    pub(crate) cursors: Cursors,
    /// `None`: from now on.
    pub(crate) after: Option<Cursor>,
}

/// What a stream sends.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Update {
    /// `None`: a bookmark.
    pub(crate) event: Option<TraceEvent>,
    pub(crate) cursor: String,
}

/// How patient streams are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// A bookmark is sent when nothing else was for so long.
    pub(crate) bookmark: Duration,
    /// A stream that is not read for so long is ended.
    pub(crate) patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bookmark: Duration::from_secs(10), patience: Duration::from_secs(30) }
    }
}

/// What followers need.
#[derive(Clone)]
pub(crate) struct Watch {
    pub(crate) store: FeedStore,
    pub(crate) feed: Feed,
    pub(crate) clock: Arc<dyn Clock>,
    /// How long events are kept.
    pub(crate) retention: Duration,
    /// One for each follower.
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) pace: Pace,
    /// The followers' tasks.
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl Watch {
    /// A bookmark, and then events as they are stored. Ends with [`Error::Draining`] when this instance ends, with
    /// [`Error::TokenExpired`] when the caller's token does, with [`Error::FollowerTooSlow`] when nothing reads it.
    ///
    /// # Errors
    /// A cursor that is too old; too many followers; the database.
    pub(crate) async fn follow(
        &self,
        caller: &Caller,
        asked: WatchTraceEvents,
    ) -> Result<impl Stream<Item = Result<Update, Error>> + Send + 'static, Error> {
        let WatchTraceEvents { filter, cursors, after } = asked;
        let now = self.clock.now();
        after.map(|cursor| cursor.check_age(now, self.retention)).transpose()?;
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| Error::TooManyFollowers)?;
        // Before the head is read: no change of it is missed.
        let head = self.feed.subscribe();
        let known = self.feed.look().await?;
        let position = after.map_or(known.newest, |cursor| known.admit(cursor.position));
        let made = after.map_or(now, |cursor| cursor.made);
        let token_ends = match caller {
            Caller::Person { token_expires, .. } => token_expires.since(now),
            Caller::Anonymous | Caller::Service { .. } => Duration::ZERO,
        };
        let (to, updates) = mpsc::channel(WAITING);
        let follower = Follower {
            store: self.store.clone(),
            clock: self.clock.clone(),
            head,
            filter,
            cursors,
            retention: self.retention,
            made,
            position,
            pace: self.pace,
            sent: Instant::now(),
            to,
            _permit: permit,
        };
        let task = self.tasks.spawn(follower.run(self.shutdown.clone(), Instant::now() + token_ends));
        Ok(stream::unfold(Updates { updates, task: Some(task) }, |mut updates| async move {
            Some((updates.next().await?, updates))
        }))
    }
}

/// The stream's side of a follower.
struct Updates {
    updates: mpsc::Receiver<Update>,
    /// `None` once the reason for its end was sent.
    task: Option<JoinHandle<Error>>,
}

impl Updates {
    /// What was sent, and then why no more is.
    async fn next(&mut self) -> Option<Result<Update, Error>> {
        if let Some(update) = self.updates.recv().await {
            return Some(Ok(update));
        }
        // A task that was cut off, with its runtime, has drained.
        Some(Err(self.task.take()?.await.unwrap_or(Error::Draining)))
    }
}

struct Follower {
    store: FeedStore,
    clock: Arc<dyn Clock>,
    head: watch::Receiver<Head>,
    filter: Filter,
    cursors: Cursors,
    retention: Duration,
    /// When `position` was last known to be all that there is: a cursor is as old as this, however late it is sent.
    made: Timestamp,
    /// Everything up to it was sent, or does not fit.
    position: Position,
    pace: Pace,
    /// When the last message was.
    sent: Instant,
    to: mpsc::Sender<Update>,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    /// Sends until there is a reason to end.
    async fn run(mut self, shutdown: CancellationToken, token_ends: Instant) -> Error {
        let stream = self.to.clone();
        tokio::select! {
            biased;
            // First, so that there is a bookmark whatever follows.
            sent = self.send_all() => match sent {
                Err(error) => error,
            },
            // Nothing reads the reason.
            () = stream.closed() => Error::Draining,
            () = shutdown.cancelled() => Error::Draining,
            () = sleep_until(token_ends) => Error::TokenExpired,
        }
    }

    async fn send_all(&mut self) -> Result<Infallible, Error> {
        self.send(None).await?;
        loop {
            let head = *self.head.borrow_and_update();
            self.position = head.admit(self.position);
            while self.position < head.newest {
                // What comes next may have been deleted meanwhile: never skipped silently.
                self.cursor().check_age(self.clock.now(), self.retention)?;
                let block = self.store.read(&self.filter, self.position, head.newest).await?;
                for (position, event) in block.events {
                    self.position = position;
                    self.send(Some(event)).await?;
                }
                self.position = block.reached;
                if self.position >= head.newest {
                    self.made = self.clock.now();
                }
                if self.sent.elapsed() >= self.pace.bookmark {
                    self.send(None).await?;
                }
            }
            tokio::select! {
                // The sender lives as long as the feed, of which the poller has a clone: its end is the shutdown.
                changed = self.head.changed() => changed.map_err(|_| Error::Draining)?,
                () = sleep_until(self.sent + self.pace.bookmark) => {
                    self.made = self.clock.now();
                    self.send(None).await?;
                }
            }
        }
    }

    fn cursor(&self) -> Cursor {
        Cursor { made: self.made, position: self.position }
    }

    async fn send(&mut self, event: Option<TraceEvent>) -> Result<(), Error> {
        let cursor = self.cursors.encode(self.cursor());
        match timeout(self.pace.patience, self.to.send(Update { event, cursor })).await {
            Ok(sent) => sent.map_err(|_| Error::Draining)?,
            Err(_) => {
                let error = Error::FollowerTooSlow(self.pace.patience);
                tracing::warn!(target: "ordermesh", reason = "FOLLOWER_TOO_SLOW", "a follower of trace events was ended: {error}");
                return Err(error);
            }
        }
        self.sent = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
