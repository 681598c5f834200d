//! The trace-event store: the audit log of all services.
//!
//! Lists are newest first, by event id: a UUIDv7, made with the event. A page token holds the id of the
//! page's last event. Start reading at [`TraceEvents`].

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chassis::{Fields, PageToken};
use kernel::{Clock, Timestamp, first_id_at};
use telemetry::{EventStatus, TraceEvent};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::error::Error;
use crate::trace_event_store::TraceEventStore;

/// Maximum events in an append.
pub(crate) const MAX_APPEND: usize = 500;
/// The default window of a list or a summary.
pub(crate) const DEFAULT_WINDOW: Duration = Duration::from_secs(3_600);
/// The longest window of a summary, which reads every event in it.
pub(crate) const MAX_SUMMARY_WINDOW: Duration = Duration::from_secs(31 * 86_400);
/// Maximum events that retention deletes in one transaction.
const RETENTION_CHUNK: u64 = 5_000;

/// An event of an append: valid, or rejected with a reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Received {
    /// As sent, so that the caller can match the result.
    pub(crate) event_id: String,
    pub(crate) event: Result<TraceEvent, String>,
}

/// The outcome of an event's append.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum AppendOutcome {
    /// Newly stored.
    Stored,
    /// Already stored.
    Duplicate,
    /// Rejected for good, with a reason.
    Rejected(String),
}

/// The outcome of an append, with the event's id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Appended {
    pub(crate) event_id: String,
    pub(crate) outcome: AppendOutcome,
}

/// A filter of events; all set fields must match.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) event_type: Option<String>,
    pub(crate) status: Option<EventStatus>,
    pub(crate) service: Option<String>,
    pub(crate) order_id: Option<Uuid>,
    pub(crate) user_id: Option<Uuid>,
    pub(crate) trace_id: Option<String>,
    /// Inclusive.
    pub(crate) start: Option<Timestamp>,
    /// Exclusive.
    pub(crate) end: Option<Timestamp>,
}

impl Filter {
    /// The start of the window: an order, a user or a trace has few events; any other filter needs a window.
    fn start_at(&self, now: Timestamp) -> Option<Timestamp> {
        let few = self.order_id.is_some() || self.user_id.is_some() || self.trace_id.is_some();
        if self.start.is_some() || few { self.start } else { Some(self.end.unwrap_or(now).minus(DEFAULT_WINDOW)) }
    }
}

/// A request for a page of events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ListTraceEvents {
    pub(crate) filter: Filter,
    pub(crate) page_size: u32,
    pub(crate) page: PageToken<Resume>,
}

/// The content of a page token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Resume {
    /// The start of the first page's window: if it moved between pages, the last events would be missed.
    pub(crate) window_start: Option<Timestamp>,
    /// The last event of the previous page.
    pub(crate) after: Uuid,
}

impl Resume {
    /// Parses the text of [`Resume::text`].
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let window_start = match parts.next()? {
            "-" => None,
            micros => Some(Timestamp::from_micros(micros.parse().ok()?)),
        };
        let after = Uuid::try_parse(parts.next()?).ok()?;
        parts.next().is_none().then_some(Self { window_start, after })
    }

    /// The text of a token that resumes after an event.
    pub(crate) fn text(window_start: Option<Timestamp>, after: impl fmt::Display) -> String {
        let window_start = window_start.map_or_else(|| "-".to_owned(), |start| start.as_micros().to_string());
        format!("{window_start} {after}")
    }
}

/// The result of a list.
pub(crate) struct Listed {
    /// One more than fits on the page, if there is a next page.
    pub(crate) events: Vec<TraceEvent>,
    /// The start of the first page's window.
    pub(crate) window_start: Option<Timestamp>,
}

/// A request for counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SummarizeTraceEvents {
    /// `None`: an hour before the end.
    pub(crate) start: Option<Timestamp>,
    /// `None`: now.
    pub(crate) end: Option<Timestamp>,
}

impl SummarizeTraceEvents {
    /// The window: its start (inclusive) and its end (exclusive).
    fn window(self, now: Timestamp) -> Result<(Timestamp, Timestamp), Error> {
        let end = self.end.unwrap_or(now);
        let start = self.start.unwrap_or_else(|| end.minus(DEFAULT_WINDOW));
        let mut fields = Fields::default();
        if end < start {
            fields.reject("start_time", "WINDOW_REVERSED", "the window must not end before it starts");
        } else if end.since(start) > MAX_SUMMARY_WINDOW {
            fields.reject("start_time", "WINDOW_TOO_LONG", "the window must not be longer than 31 days");
        }
        Ok(fields.finish(Some((start, end)))?)
    }
}

/// A count of events of the same kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct EventCount {
    pub(crate) event_type: String,
    pub(crate) status: EventStatus,
    /// Empty on success.
    pub(crate) error_type: String,
    pub(crate) count: i64,
}

#[derive(Clone)]
pub(crate) struct TraceEvents {
    store: TraceEventStore,
    clock: Arc<dyn Clock>,
    /// Notified when events are stored.
    pub(crate) stored: Arc<Notify>,
}

impl TraceEvents {
    pub(crate) fn new(store: TraceEventStore, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, stored: Arc::default() }
    }

    /// Stores the valid events, each once; returns an outcome for each in the order sent.
    pub(crate) async fn append(&self, received: Vec<Received>) -> Result<Vec<Appended>, Error> {
        // Sorted by id, the order of the primary key, so that two appends of the same events lock in the same order.
        let mut valid = BTreeMap::new();
        let mut outcomes = Vec::with_capacity(received.len());
        for Received { event_id, event } in received {
            let outcome = match event {
                Ok(event) => {
                    let id = event.event_id;
                    let first = !valid.contains_key(&id);
                    if first {
                        valid.insert(id, event);
                    }
                    Ok((id, first))
                }
                Err(why) => Err(why),
            };
            outcomes.push((event_id, outcome));
        }
        let stored = self.store(valid.into_values().collect()).await?;
        let appended = |(event_id, outcome)| {
            let outcome = match outcome {
                Ok((id, true)) if stored.contains(&id) => AppendOutcome::Stored,
                Ok(_) => AppendOutcome::Duplicate,
                Err(why) => AppendOutcome::Rejected(why),
            };
            Appended { event_id, outcome }
        };
        Ok(outcomes.into_iter().map(appended).collect())
    }

    /// Stores events with distinct ids, sorted by them; returns the ids of those that are new.
    pub(crate) async fn store(&self, events: Vec<TraceEvent>) -> Result<HashSet<Uuid>, storage::Error> {
        let stored = if events.is_empty() { HashSet::new() } else { self.store.insert(events).await? };
        if !stored.is_empty() {
            self.stored.notify_one();
        }
        Ok(stored)
    }

    /// Events, newest first, one more than fits on the page.
    pub(crate) async fn list(&self, list: &ListTraceEvents) -> Result<Listed, Error> {
        let ListTraceEvents { filter, page_size, page } = list;
        let resume = page.after;
        let mut filter = filter.clone();
        let window_start = match resume {
            Some(resume) => resume.window_start,
            None => filter.start_at(self.clock.now()),
        };
        filter.start = window_start;
        let after = resume.map(|resume| resume.after);
        let events = self.store.page(filter, after, u64::from(*page_size) + 1).await?;
        Ok(Listed { events, window_start })
    }

    /// Counts events by type, status and error type.
    pub(crate) async fn summarize(&self, summary: SummarizeTraceEvents) -> Result<Vec<EventCount>, Error> {
        let (start, end) = summary.window(self.clock.now())?;
        Ok(self.store.count(start, end).await?)
    }

    /// Prepares the store for the next days' events.
    pub(crate) async fn prepare(&self) -> Result<(), storage::Error> {
        self.store.partition(self.clock.now()).await
    }

    /// Events with lower ids are past their retention, and are to be deleted. Where the store has them by days, those of a
    /// day are kept until its last one has expired.
    pub(crate) async fn cutoff(&self, retention: Duration) -> Result<Uuid, Error> {
        Ok(self.store.cutoff(first_id_at(self.clock.now().minus(retention))).await?)
    }

    /// Deletes the events below a cutoff: whole days where the store has them, others in chunks.
    pub(crate) async fn delete_before(&self, cutoff: Uuid) -> Result<Expired, Error> {
        let partitions = self.store.drop_before(cutoff).await?;
        let mut events = 0;
        loop {
            let chunk = self.store.delete_before(cutoff, RETENTION_CHUNK).await?;
            events += chunk;
            if chunk < RETENTION_CHUNK {
                return Ok(Expired { partitions, events });
            }
        }
    }

    /// Both.
    #[cfg(test)]
    pub(crate) async fn expire(&self, retention: Duration) -> Result<Expired, Error> {
        self.delete_before(self.cutoff(retention).await?).await
    }
}

/// What was deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Expired {
    /// Days, with all their events.
    pub(crate) partitions: u64,
    /// Others.
    pub(crate) events: u64,
}

#[cfg(test)]
mod tests {
    use uuid::Builder;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_list_without_order_user_or_trace_defaults_to_an_hour() {
        let now = at(100_000);
        let all = Filter::default();
        assert_eq!(all.start_at(now), Some(at(96_400)));
        assert_eq!(Filter { end: Some(at(50_000)), ..all.clone() }.start_at(now), Some(at(46_400)));
        assert_eq!(Filter { start: Some(at(1)), ..all.clone() }.start_at(now), Some(at(1)));
        let id = Some(Uuid::from_u128(1));
        assert_eq!(Filter { order_id: id, ..all.clone() }.start_at(now), None);
        assert_eq!(Filter { user_id: id, ..all.clone() }.start_at(now), None);
        assert_eq!(Filter { trace_id: Some("t".into()), ..all.clone() }.start_at(now), None);
        assert_eq!(Filter { order_id: id, start: Some(at(5)), ..all }.start_at(now), Some(at(5)));
    }

    #[test]
    fn a_summary_defaults_to_the_last_hour_and_covers_at_most_31_days() {
        let now = at(100 * 86_400);
        let window = |start: Option<i64>, end: Option<i64>| {
            SummarizeTraceEvents { start: start.map(at), end: end.map(at) }
                .window(now)
                .map_err(|error| error.to_string())
        };
        assert_eq!(window(None, None), Ok((now.minus(DEFAULT_WINDOW), now)));
        assert_eq!(window(None, Some(7_200)), Ok((at(3_600), at(7_200))));
        assert_eq!(window(Some(0), Some(31 * 86_400)), Ok((at(0), at(31 * 86_400))));
        assert!(window(Some(0), Some(31 * 86_400 + 1)).is_err_and(|error| error.contains("WINDOW_TOO_LONG")));
        assert!(window(Some(2), Some(1)).is_err_and(|error| error.contains("WINDOW_REVERSED")));
        assert!(window(Some(0), None).is_err_and(|error| error.contains("WINDOW_TOO_LONG")));
    }

    #[test]
    fn a_page_token_keeps_the_window_and_the_position() {
        let after = Uuid::from_u128(7);
        for window_start in [None, Some(at(3))] {
            let resume = Resume { window_start, after };
            assert_eq!(Resume::parse(&Resume::text(window_start, after)), Some(resume));
        }
        // The last one is a token of the previous release: by start time and id.
        for bad in [
            "",
            "-",
            "- x",
            "x 00000000-0000-0000-0000-000000000007",
            "SKU-1",
            "- 1 00000000-0000-0000-0000-000000000007",
        ] {
            assert_eq!(Resume::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_first_id_of_an_instant_separates_older_from_newer_ids() {
        let id = |millis, random| Builder::from_unix_timestamp_millis(millis, &[random; 10]).into_uuid();
        let first = first_id_at(Timestamp::from_micros(5_000_000));
        assert!(id(4_999, 0xff) < first);
        assert!(id(5_000, 0x00) >= first);
        assert_eq!(first.get_version_num(), 7);
    }
}
