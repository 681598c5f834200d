//! The event sink: every stored event is published to a stream of NATS at least once, in the order of the feed.
//!
//! One instance publishes at a time, under a lease. It publishes a block of events, waits for the acknowledgements, and
//! then moves a cursor in the database: after a crash the next owner of the lease repeats at most a block, and the
//! stream drops by their ids those that it has. What fails is tried again after a backoff, from the cursor; nothing else
//! of this service waits for it. A message that the stream does not take is kept apart, and sent again hourly. Start
//! reading at [`EventSink::run`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_nats::ConnectError;
use async_nats::jetstream::context::{CreateStreamError, PublishError, PublishErrorKind};
use chassis::Chassis;
use futures_util::FutureExt;
use kernel::backoff::backoff;
use kernel::{Clock, Timestamp, first_id_at};
use opentelemetry::global;
use opentelemetry::metrics::{Counter, Gauge};
use telemetry::Masked;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::Error;
use crate::event_sink_store::EventSinkStore;
use crate::feed::{Feed, HighWaterMark, Position};
use crate::feed_store::{Block, FeedStore};
use crate::nats::{Connection, Nats, Outcome};
use crate::trace_event::Filter;

/// How often the lease is renewed while there are no events, and claimed by the others.
const RENEWAL: Duration = Duration::from_secs(5);
/// The backoff after a failure; doubles, up to the cap.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_CAP: Duration = Duration::from_secs(10);
/// How often refused events are sent again: the stream's limits may have been raised.
const RESEND_INTERVAL: Duration = Duration::from_secs(3_600);
/// How often the gauges are recorded.
const GAUGE_INTERVAL: Duration = Duration::from_secs(5);

/// Why publishing ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("another instance publishes")]
    NotOwner,
    #[error("the position cannot be read or moved")]
    Store(#[from] Error),
    #[error("NATS cannot be reached")]
    Connect(#[from] ConnectError),
    #[error("a message was not acknowledged")]
    Publish(#[from] PublishError),
    #[error("no stream has the subjects, and it cannot be created")]
    Stream(#[from] CreateStreamError),
}

impl From<storage::Error> for Ended {
    fn from(error: storage::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The instruments. Without a meter provider, recording does nothing.
#[derive(Clone)]
struct Metrics {
    lag: Gauge<f64>,
    refused: Gauge<i64>,
    published: Counter<u64>,
    expired: Counter<u64>,
}

impl Metrics {
    fn new() -> Self {
        let meter = global::meter("ordermesh");
        let counter = |name, description| {
            let counter = meter.u64_counter(name).with_unit("{event}").with_description(description).build();
            // From the start, so that the first event is an increase.
            counter.add(0, &[]);
            counter
        };
        Self {
            lag: meter
                .f64_gauge("ordermesh.event_sink.lag")
                .with_unit("s")
                .with_description("Age of the oldest event that is not yet published to NATS; 0 when all are")
                .build(),
            refused: meter
                .i64_gauge("ordermesh.event_sink.refused")
                .with_description("Events that the stream of NATS has refused; they are sent again hourly")
                .build(),
            published: counter("ordermesh.event_sink.published", "Events published to NATS"),
            expired: counter(
                "ordermesh.event_sink.expired",
                "Events that retention has deleted before they were published",
            ),
        }
    }
}

/// Publishes the stored events. Clones share everything.
#[derive(Clone)]
pub(crate) struct EventSink {
    nats: Nats,
    store: EventSinkStore,
    events: FeedStore,
    feed: Feed,
    clock: Arc<dyn Clock>,
    /// How long events are kept.
    retention: Duration,
    metrics: Metrics,
}

impl EventSink {
    pub(crate) fn new(nats: Nats, chassis: &Chassis, events: FeedStore, feed: Feed, retention: Duration) -> Self {
        Self {
            nats,
            store: EventSinkStore::new(chassis.db.clone(), chassis.clock.clone(), &chassis.instance),
            events,
            feed,
            clock: chassis.clock.clone(),
            retention,
            metrics: Metrics::new(),
        }
    }

    /// Publishes until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut failures = 0;
        while let Some(Err(ended)) = stop.run_until_cancelled(self.publish_all(&mut failures)).await {
            let wait = if matches!(ended, Ended::NotOwner) {
                RENEWAL.mul_f64(0.5 + rand::random::<f64>())
            } else {
                failures += 1;
                // Once per outage.
                if failures == 1 {
                    tracing::warn!(target: "ordermesh", error = %Masked(&ended), "events cannot be published to NATS; they stay stored, and are published later");
                } else {
                    tracing::debug!(target: "ordermesh", error = %Masked(&ended), "events cannot be published yet");
                }
                backoff(failures, BACKOFF, BACKOFF_CAP, rand::random())
            };
            if timeout(wait, stop.cancelled()).await.is_ok() {
                break;
            }
        }
        if let Err(error) = self.store.release().await {
            tracing::debug!(target: "ordermesh", %error, "the event sink's lease was not freed; it will expire");
        }
    }

    /// Publishes under the lease, until something fails. Sets `failures` to 0 when something has succeeded.
    async fn publish_all(&self, failures: &mut u32) -> Result<Infallible, Ended> {
        let mut position = self.store.claim().await?.ok_or(Ended::NotOwner)?;
        let nats = self.nats.connect().await?;
        let mut resend = interval(RESEND_INTERVAL);
        let mut mark = self.feed.subscribe();
        self.feed.refresh().await?;
        loop {
            let known = *mark.borrow_and_update();
            loop {
                position = self.publish_block(&nats, position, known).await?;
                if std::mem::take(failures) > 0 {
                    tracing::info!(target: "ordermesh", "events are published to NATS again");
                }
                if position >= known.newest {
                    break;
                }
            }
            if resend.tick().now_or_never().is_some() {
                self.resend(&nats).await?;
            }
            // The regular renewal is no failure. The feed has its sender until the instance stops.
            let _ = timeout(RENEWAL, mark.changed()).await;
        }
    }

    /// Publishes the next block, moves the cursor and renews the lease; returns the new position.
    async fn publish_block(
        &self,
        nats: &Connection,
        position: Position,
        known: HighWaterMark,
    ) -> Result<Position, Ended> {
        let from = known.resume_offset(position);
        let Block { events, mut reached } = if from < known.newest {
            self.events.read(&Filter::default(), from, known.newest).await?
        } else {
            Block { events: vec![], reached: from }
        };
        let (outcomes, result) = nats.publish(events.iter().map(|(_, event)| event)).await;
        if result.is_err() {
            reached = outcomes.len().checked_sub(1).and_then(|last| events.get(last)).map_or(from, |(last, _)| *last);
        }
        let (mut published, mut refused) = (0, Vec::new());
        for ((_, event), outcome) in events.iter().zip(outcomes) {
            match outcome {
                Outcome::Stored => published += 1,
                Outcome::Duplicate => {}
                Outcome::Refused(refusal) => refused.push((event.event_id, refusal)),
            }
        }
        self.metrics.published.add(published, &[]);
        if let Some((event_id, refusal)) = refused.first() {
            tracing::warn!(target: "ordermesh", count = refused.len(), %event_id, %refusal,
                "events were refused by the stream of NATS: they are kept apart, and sent again hourly");
        }
        if !self.store.advance(position, reached, refused).await? {
            return Err(Ended::NotOwner);
        }
        if let Err(error) = result {
            if error.kind() == PublishErrorKind::StreamNotFound {
                nats.create_stream().await?;
            }
            return Err(error.into());
        }
        Ok(reached)
    }

    /// Sends refused events again.
    async fn resend(&self, nats: &Connection) -> Result<(), Ended> {
        self.store.forget_before(first_id_at(self.clock.now().minus(self.retention))).await?;
        let mut after = Uuid::nil();
        loop {
            let events = self.store.refused(after).await?;
            let Some(last) = events.last() else { return Ok(()) };
            after = last.event_id;
            let (outcomes, result) = nats.publish(events.iter()).await;
            let accepted = events.iter().zip(outcomes).filter(|(_, outcome)| !matches!(outcome, Outcome::Refused(_)));
            let accepted: Vec<Uuid> = accepted.map(|(event, _)| event.event_id).collect();
            if !accepted.is_empty() {
                self.metrics.published.add(accepted.len() as u64, &[]);
                self.store.forget(accepted).await?;
            }
            result?;
        }
    }

    /// The number of unpublished events with lower ids, which retention will delete now; 0 if it cannot be read.
    pub(crate) async fn expiring(&self, before: Uuid) -> u64 {
        let count = async {
            let position = self.events.high_water_mark().await?.resume_offset(self.store.position().await?);
            self.events.count(position, before).await
        };
        count.await.unwrap_or_else(|error: Error| {
            tracing::debug!(target: "ordermesh", %error, "events that expire unpublished cannot be counted");
            0
        })
    }

    /// Counts events that were deleted before they were published.
    pub(crate) fn expired(&self, count: u64) {
        if count > 0 {
            self.metrics.expired.add(count, &[]);
            tracing::warn!(target: "ordermesh", count, "trace events past their retention were deleted before they could be published to NATS");
        }
    }

    /// Records the gauges until `stop`: on every instance, so that they rise also when none publishes.
    pub(crate) async fn record(self, stop: CancellationToken) {
        while let Some(read) = stop.run_until_cancelled(self.gauges()).await {
            match read {
                Ok((lag, refused)) => {
                    self.metrics.lag.record(lag.as_secs_f64(), &[]);
                    self.metrics.refused.record(refused, &[]);
                }
                Err(error) => tracing::debug!(target: "ordermesh", %error, "the event sink's lag cannot be read"),
            }
            if timeout(GAUGE_INTERVAL, stop.cancelled()).await.is_ok() {
                return;
            }
        }
    }

    /// The age of the oldest unpublished event, and the number of refused ones.
    async fn gauges(&self) -> Result<(Duration, i64), Error> {
        let mark = self.events.high_water_mark().await?;
        let position = mark.resume_offset(self.store.position().await?);
        let oldest = if position < mark.newest { self.events.first(position, mark.newest).await? } else { None };
        let lag = oldest.map_or(Duration::ZERO, |oldest| self.clock.now().since(created(oldest)));
        Ok((lag, self.store.count_refused().await?))
    }
}

/// When a UUIDv7 was made.
fn created(id: Uuid) -> Timestamp {
    let (seconds, nanos) = id.get_timestamp().map_or((0, 0), |time| time.to_unix());
    Timestamp::from_micros(
        i64::try_from(seconds).unwrap_or(i64::MAX / 2_000_000) * 1_000_000 + i64::from(nanos / 1_000),
    )
}

#[cfg(test)]
mod tests {
    use kernel::ManualClock;
    use storage::{Database, Options};

    use super::*;
    use crate::event_sink_store::LEASE;
    use crate::migration::MIGRATIONS;
    use crate::sample::event;
    use crate::trace_event_store::TraceEventStore;

    /// 2026-11-23, 00:00 UTC.
    const NOW: Timestamp = Timestamp::from_micros(1_795_392_000_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    async fn database() -> Database {
        let test_database = testkit::database();
        let options = Options { schema: test_database.schema, ..Options::default() };
        let db = Database::connect(&test_database.url, &options).await.expect("a database");
        db.migrate(MIGRATIONS).await.expect("migrated");
        db
    }

    #[tokio::test]
    async fn the_lag_is_the_age_of_the_oldest_unpublished_event_and_expiring_ones_are_counted() {
        let db = database().await;
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW));
        let (store, events) = (EventSinkStore::new(db.clone(), clock.clone(), "data-1"), FeedStore::new(db.clone()));
        let sink = EventSink {
            nats: Nats::parse("nats://127.0.0.1:1").expect("a URL"),
            store: store.clone(),
            events: events.clone(),
            feed: Feed::new(events.clone(), Arc::default()),
            clock,
            retention: DAY * 7,
            metrics: Metrics::new(),
        };
        assert_eq!(sink.gauges().await.expect("read"), (Duration::ZERO, 0));
        let stored = TraceEventStore::new(db);
        let cutoff = first_id_at(NOW.minus(DAY * 7));
        // In the order of ids, which is also that of positions on PostgreSQL.
        let ages = [9, 8, 7, 2].map(|days| event(NOW.minus(DAY * days), 0));
        stored.insert(ages.to_vec()).await.expect("stored");
        assert_eq!(sink.gauges().await.expect("read"), (DAY * 9, 0));
        assert_eq!(sink.expiring(cutoff).await, 2, "one of exactly 7 days is kept");
        let newest = events.high_water_mark().await.expect("read").newest;
        let block = events.read(&Filter::default(), Position::START, newest).await.expect("read");
        let start = store.claim().await.expect("claimed").expect("free");
        let [(first, refused), ..] = block.events.as_slice() else { panic!("{block:?}") };
        let refused = vec![(refused.event_id, "too large".to_owned())];
        assert!(store.advance(start, *first, refused).await.expect("moved"));
        assert_eq!(sink.gauges().await.expect("read"), (DAY * 8, 1));
        assert_eq!(sink.expiring(cutoff).await, 1);
        // A stale owner moves nothing.
        assert!(!store.advance(start, newest, vec![]).await.expect("no error"));
        assert!(store.advance(*first, newest, vec![]).await.expect("moved"));
        assert_eq!(sink.gauges().await.expect("read"), (Duration::ZERO, 1));
        assert_eq!(sink.expiring(cutoff).await, 0);
    }

    #[tokio::test]
    async fn one_instance_has_the_lease_until_it_frees_it_or_lets_it_expire() {
        let db = database().await;
        let clock = Arc::new(ManualClock::at(NOW));
        let [one, two] =
            ["data-1", "data-2"].map(|name| EventSinkStore::by_given_clock(db.clone(), clock.clone(), name));
        let claimed = async |store: &EventSinkStore| store.claim().await.expect("read").is_some();
        assert!(claimed(&one).await && claimed(&one).await && !claimed(&two).await);
        one.release().await.expect("freed");
        assert!(claimed(&two).await && !claimed(&one).await);
        clock.advance(LEASE - Duration::from_secs(1));
        assert!(!claimed(&one).await);
        clock.advance(Duration::from_secs(1));
        assert!(claimed(&one).await);
        // Without the lease nothing is moved, not even from the right position.
        assert!(!two.advance(Position::START, Position::START, vec![]).await.expect("no error"));
        assert!(one.advance(Position::START, Position::START, vec![]).await.expect("renewed"));
    }
}
