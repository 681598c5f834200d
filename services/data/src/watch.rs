//! Followers: WatchTraceEvents streams. Each has a task that reads events after its position, a page at a time, and
//! sends them to its stream.
//!
//! It reads no faster than its client: between the two is a short channel. Reading and waiting are one loop, whether a
//! follower starts, catches up or is up to date. Start reading at [`Watch::follow`].

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
use crate::feed::{Feed, HighWaterMark, Position};
use crate::feed_store::FeedStore;
use crate::trace_event::Filter;

/// Messages between a follower's task and its stream.
const MAX_WAITING: usize = 16;

/// A request to follow events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct WatchTraceEvents {
    pub(crate) filter: Filter,
    pub(crate) cursors: Cursors,
    /// `None`: from now on.
    pub(crate) after: Option<Cursor>,
}

/// A message of the stream.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Update {
    /// `None`: a bookmark.
    pub(crate) event: Option<TraceEvent>,
    pub(crate) cursor: String,
}

/// The timeouts of streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// A bookmark is sent after this long without another message.
    pub(crate) bookmark: Duration,
    /// A stream that is not read for this long is ended.
    pub(crate) send_timeout: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bookmark: Duration::from_secs(10), send_timeout: Duration::from_secs(30) }
    }
}

/// The dependencies of followers.
#[derive(Clone)]
pub(crate) struct Watch {
    pub(crate) store: FeedStore,
    pub(crate) feed: Feed,
    pub(crate) clock: Arc<dyn Clock>,
    /// How long events are kept.
    pub(crate) retention: Duration,
    /// One permit per follower.
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) pace: Pace,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl Watch {
    /// A bookmark, and then events as they are stored. Ends with [`Error::Draining`] when this instance shuts down,
    /// with [`Error::TokenExpired`] when the caller's token expires, with [`Error::FollowerTooSlow`] when the client
    /// does not read.
    ///
    /// # Errors
    /// The cursor is too old, there are too many followers, or the database failed.
    pub(crate) async fn follow(
        &self,
        caller: &Caller,
        watch: WatchTraceEvents,
    ) -> Result<impl Stream<Item = Result<Update, Error>> + Send + use<>, Error> {
        let WatchTraceEvents { filter, cursors, after } = watch;
        let now = self.clock.now();
        after.map(|cursor| cursor.check_age(now, self.retention)).transpose()?;
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| Error::TooManyFollowers)?;
        // Subscribed before the mark is read, so that no change is missed.
        let mark = self.feed.subscribe();
        let known = self.feed.refresh().await?;
        let position = after.map_or(known.newest, |cursor| known.resume_offset(cursor.position));
        let made = after.map_or(now, |cursor| cursor.made);
        let token_ends = match caller {
            Caller::User { token_expires, .. } => token_expires.since(now),
            Caller::Anonymous | Caller::Service { .. } => Duration::ZERO,
        };
        let (to, updates) = mpsc::channel(MAX_WAITING);
        let follower = Follower {
            store: self.store.clone(),
            clock: self.clock.clone(),
            mark,
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
    /// `None` once the reason of the end was sent.
    task: Option<JoinHandle<Error>>,
}

impl Updates {
    /// The next message, or the reason of the end.
    async fn next(&mut self) -> Option<Result<Update, Error>> {
        if let Some(update) = self.updates.recv().await {
            return Some(Ok(update));
        }
        // The task was cancelled with its runtime: the instance has drained.
        Some(Err(self.task.take()?.await.unwrap_or(Error::Draining)))
    }
}

struct Follower {
    store: FeedStore,
    clock: Arc<dyn Clock>,
    mark: watch::Receiver<HighWaterMark>,
    filter: Filter,
    cursors: Cursors,
    retention: Duration,
    /// When `position` was last known to be up to date: this is the age of a cursor, however late it is sent.
    made: Timestamp,
    /// All matching events up to it were sent.
    position: Position,
    pace: Pace,
    /// When the last message was sent.
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
            // First, so that the stream always begins with a bookmark.
            sent = self.send_all() => match sent {
                Err(error) => error,
            },
            // The client is gone, so the reason is not read.
            () = stream.closed() => Error::Draining,
            () = shutdown.cancelled() => Error::Draining,
            () = sleep_until(token_ends) => Error::TokenExpired,
        }
    }

    async fn send_all(&mut self) -> Result<Infallible, Error> {
        self.send(None).await?;
        loop {
            let mark = *self.mark.borrow_and_update();
            self.position = mark.resume_offset(self.position);
            while self.position < mark.newest {
                // The next events may have been deleted meanwhile; they are never skipped silently.
                self.cursor().check_age(self.clock.now(), self.retention)?;
                let block = self.store.read(&self.filter, self.position, mark.newest).await?;
                for (position, event) in block.events {
                    self.position = position;
                    self.send(Some(event)).await?;
                }
                self.position = block.reached;
                if self.position >= mark.newest {
                    self.made = self.clock.now();
                }
                if self.sent.elapsed() >= self.pace.bookmark {
                    self.send(None).await?;
                }
            }
            tokio::select! {
                // The poller has a clone of the feed, which owns the sender: if it is dropped, the instance is shutting
                // down.
                changed = self.mark.changed() => changed.map_err(|_| Error::Draining)?,
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
        match timeout(self.pace.send_timeout, self.to.send(Update { event, cursor })).await {
            Ok(sent) => sent.map_err(|_| Error::Draining)?,
            Err(_) => {
                let error = Error::FollowerTooSlow(self.pace.send_timeout);
                tracing::warn!(target: "ordermesh", reason = "FOLLOWER_TOO_SLOW", "a stream of trace events was ended: {error}");
                return Err(error);
            }
        }
        self.sent = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
