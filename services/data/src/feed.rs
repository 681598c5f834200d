//! The order in which stored events are sent to WatchTraceEvents streams (followers), and its high-water mark.
//!
//! Events are ordered by when they were stored, not by when they happened: on PostgreSQL by the id of the transaction
//! that inserted them, on SQLite, which has one writer, by the rowid. While there are followers, each instance reads
//! the mark after its own appends (at most every 50 ms) and at an interval, which finds the events of other instances.
//! Start reading at [`HighWaterMark`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::Error;
use crate::feed_store::FeedStore;

/// How long an append of this instance is waited for, after [`MIN_PAUSE`], before the mark is read anyway.
const INTERVAL: Duration = Duration::from_millis(250);
/// The minimum time between two reads by the poll: a burst of appends wakes each follower once. A new follower reads
/// the mark at once.
const MIN_PAUSE: Duration = Duration::from_millis(50);

/// A position in the order of events.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Position {
    /// PostgreSQL: the id of the transaction that inserted the event; SQLite: its rowid.
    pub(crate) serial: u64,
    /// Orders the events of a transaction; nil on SQLite.
    pub(crate) event_id: Uuid,
}

impl Position {
    /// Before all events.
    pub(crate) const START: Self = Self { serial: 0, event_id: Uuid::nil() };
    /// After all events.
    pub(crate) const END: Self = Self { serial: u64::MAX, event_id: Uuid::max() };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.serial, self.event_id)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (serial, event_id) = text.split_once(' ').ok_or(())?;
        let serial = serial.parse().map_err(|_| ())?;
        Ok(Self { serial, event_id: Uuid::try_parse(event_id).map_err(|_| ())? })
    }
}

/// The end of what can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct HighWaterMark {
    /// No event will become visible at or before it.
    pub(crate) newest: Position,
    /// Above the serial of every event so far.
    pub(crate) limit: u64,
}

impl HighWaterMark {
    /// The position from which a follower resumes. If this database has not reached it, it was emptied or replaced by
    /// an older copy: then all its events come after the position.
    pub(crate) fn resume_offset(&self, position: Position) -> Position {
        if position.serial < self.limit { position } else { Position::START }
    }
}

/// Notifies followers of a new high-water mark. Clones share it.
#[derive(Clone)]
pub(crate) struct Feed {
    store: FeedStore,
    /// Notified by appends of this instance.
    stored: Arc<Notify>,
    mark: watch::Sender<HighWaterMark>,
    /// Held while the mark is read, so that an older result cannot replace a newer one.
    reading: Arc<Mutex<()>>,
}

impl Feed {
    pub(crate) fn new(store: FeedStore, stored: Arc<Notify>) -> Self {
        Self { store, stored, mark: watch::Sender::default(), reading: Arc::default() }
    }

    /// A receiver of the known mark and its changes. The mark is kept up to date while there are receivers.
    pub(crate) fn subscribe(&self) -> watch::Receiver<HighWaterMark> {
        self.mark.subscribe()
    }

    /// Reads the mark now.
    pub(crate) async fn refresh(&self) -> Result<HighWaterMark, Error> {
        let _one = self.reading.lock().await;
        let mark = self.store.high_water_mark().await?;
        self.mark.send_if_modified(|known| std::mem::replace(known, mark).newest != mark.newest);
        Ok(mark)
    }

    /// Keeps the mark up to date while there are followers, until `stop`.
    pub(crate) async fn poll(self, stop: CancellationToken) {
        while stop.run_until_cancelled(self.wait_for_next_read()).await.is_some() {
            if self.mark.receiver_count() > 0
                && let Err(error) = self.refresh().await
            {
                tracing::debug!(target: "ordermesh", error = ?error, "the newest trace event cannot be read");
            }
        }
    }

    async fn wait_for_next_read(&self) {
        tokio::time::sleep(MIN_PAUSE).await;
        // The timeout is the regular interval, not a failure.
        let _ = tokio::time::timeout(INTERVAL, self.stored.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(serial: u64) -> Position {
        Position { serial, event_id: Uuid::from_u128(u128::from(serial)) }
    }

    #[test]
    fn a_position_is_parsed_back() {
        for position in [Position::START, at(7), Position { serial: u64::MAX, event_id: Uuid::max() }] {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for bad in
            ["", "7", "7 ", "7 x", "-1 00000000-0000-0000-0000-000000000007", "x 00000000-0000-0000-0000-000000000007"]
        {
            assert_eq!(bad.parse::<Position>(), Err(()), "{bad:?}");
        }
    }

    #[test]
    fn positions_are_ordered_by_the_serial_and_then_the_id() {
        assert!(Position::START < at(1) && at(1) < at(2));
        assert!(Position { serial: 1, event_id: Uuid::max() } < at(2));
        assert!(Position { serial: 2, event_id: Uuid::nil() } < at(2));
    }

    #[test]
    fn a_position_that_the_database_has_not_reached_restarts_from_the_beginning() {
        let mark = HighWaterMark { newest: at(7), limit: 9 };
        assert_eq!(mark.resume_offset(at(7)), at(7));
        // The newest event was deleted.
        assert_eq!(mark.resume_offset(at(8)), at(8));
        assert_eq!(mark.resume_offset(at(9)), Position::START);
        assert_eq!(HighWaterMark::default().resume_offset(at(1)), Position::START);
    }
}
