//! Prepares the store for the next days' trace events, and deletes those that are older than the retention.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::event_sink::EventSink;
use crate::trace_event::{Expired, TraceEvents};

/// The average interval; jittered, so that the instances of a database do not run it simultaneously.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);

/// Prepares and deletes every `interval`, on average, until `stop`. It does not wait for the event sink: the disk would fill
/// up.
pub(crate) async fn run(
    events: TraceEvents,
    sink: Option<EventSink>,
    keep: Duration,
    interval: Duration,
    stop: CancellationToken,
) {
    // One that lasts, such as a role that does not own the table, is reported once.
    let mut reported = None;
    loop {
        let wait = interval.mul_f64(0.5 + rand::random::<f64>());
        if tokio::time::timeout(wait, stop.cancelled()).await.is_ok() {
            return;
        }
        if stop.run_until_cancelled(sweep(&events, sink.as_ref(), keep, &mut reported)).await.is_none() {
            return;
        }
    }
}

async fn sweep(events: &TraceEvents, sink: Option<&EventSink>, keep: Duration, reported: &mut Option<String>) {
    prepare(events, reported).await;
    match delete(events, sink, keep).await {
        Ok(Expired { partitions: 0, events: 0 }) => {}
        Ok(Expired { partitions, events }) => {
            tracing::info!(target: "ordermesh", partitions, events, "trace events past their retention were deleted");
        }
        Err(error) => {
            tracing::warn!(target: "ordermesh", error = ?error, "trace events past their retention could not be deleted")
        }
    }
}

async fn delete(events: &TraceEvents, sink: Option<&EventSink>, keep: Duration) -> Result<Expired, Error> {
    let cutoff = events.cutoff(keep).await?;
    let Some(sink) = sink else { return events.delete_before(cutoff).await };
    let unpublished = sink.expiring(cutoff).await;
    let expired = events.delete_before(cutoff).await?;
    if expired != Expired::default() {
        sink.expired(unpublished);
    }
    Ok(expired)
}

/// Prepares the store for the next days. A failure is logged, unless it is the one that was reported last: events are
/// stored nevertheless.
pub(crate) async fn prepare(events: &TraceEvents, reported: &mut Option<String>) {
    let failure = events.prepare().await.err().map(|error| format!("{error:?}"));
    if let Some(error) = failure.as_ref().filter(|_| failure != *reported) {
        tracing::warn!(target: "ordermesh", error, "partitions of trace events could not be prepared");
    }
    *reported = failure;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kernel::{ManualClock, Timestamp};
    use storage::{Database, Options};
    use telemetry::TraceEvent;

    use super::*;
    use crate::migration::MIGRATIONS;
    use crate::sample::event;
    use crate::trace_event::{AppendOutcome, Received};
    use crate::trace_event_store::TraceEventStore;

    const DAY: Duration = Duration::from_secs(86_400);
    /// 2026-11-23, 00:00 UTC.
    const NOW: Timestamp = Timestamp::from_micros(1_795_392_000_000_000);

    async fn events_with(clock: Arc<ManualClock>, stored: &[TraceEvent]) -> TraceEvents {
        let db = Database::connect("sqlite::memory:", &Options::default()).await.expect("a database");
        db.migrate(MIGRATIONS).await.expect("migrated");
        let events = TraceEvents::new(TraceEventStore::new(db), clock);
        for batch in stored.chunks(500) {
            let sent =
                batch.iter().map(|event| Received { event_id: String::new(), event: Ok(event.clone()) }).collect();
            events.append(sent).await.expect("stored");
        }
        events
    }

    #[tokio::test]
    async fn only_events_older_than_the_retention_are_deleted() {
        let clock = Arc::new(ManualClock::at(NOW));
        let kept = event(NOW.minus(DAY * 7), 0);
        let stored = [
            event(NOW.minus(DAY * 7 + Duration::from_millis(1)), 0),
            event(NOW.minus(DAY * 30), 0),
            kept.clone(),
            event(NOW, 0),
        ];
        let events = events_with(clock.clone(), &stored).await;
        let deleted = async || events.expire(DAY * 7).await.expect("deleted").events;
        assert_eq!(deleted().await, 2);
        assert_eq!(deleted().await, 0);
        clock.advance(Duration::from_millis(1));
        assert_eq!(deleted().await, 1);
        let again = vec![Received { event_id: "again".into(), event: Ok(kept) }];
        let appended = events.append(again).await.expect("stored");
        assert_eq!(appended[0].outcome, AppendOutcome::Stored, "it had been deleted");
    }

    #[tokio::test]
    async fn on_sqlite_the_last_stored_event_is_kept_until_another_is_stored() {
        let (old, new) = (event(NOW.minus(DAY * 8), 0), event(NOW, 0));
        let events = events_with(Arc::new(ManualClock::at(NOW)), std::slice::from_ref(&old)).await;
        assert_eq!(events.expire(DAY * 7).await.expect("nothing to delete").events, 0, "its rowid must not be reused");
        events.append(vec![Received { event_id: String::new(), event: Ok(new) }]).await.expect("stored");
        assert_eq!(events.expire(DAY * 7).await.expect("deleted").events, 1);
    }

    #[tokio::test]
    async fn more_than_a_chunk_is_deleted_in_one_sweep() {
        let old = NOW.minus(DAY * 8);
        let stored: Vec<_> = (0..5_003).map(|number| event(old, number)).chain([event(NOW, 0)]).collect();
        let events = events_with(Arc::new(ManualClock::at(NOW)), &stored).await;
        assert_eq!(events.expire(DAY * 7).await.expect("deleted").events, 5_003);
    }

    #[tokio::test]
    async fn the_sweeper_runs_until_it_is_cancelled() {
        let old = event(NOW.minus(DAY * 8), 0);
        let events = events_with(Arc::new(ManualClock::at(NOW)), &[old.clone(), event(NOW, 0)]).await;
        let stop = CancellationToken::new();
        let sweeper = tokio::spawn(run(events.clone(), None, DAY * 7, Duration::from_millis(1), stop.clone()));
        let gone = async {
            // Only an event that does not exist can be stored.
            let sent = || vec![Received { event_id: String::new(), event: Ok(old.clone()) }];
            while events.append(sent()).await.expect("appended")[0].outcome != AppendOutcome::Stored {}
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("swept in time");
        stop.cancel();
        sweeper.await.expect("it ends");
    }
}
