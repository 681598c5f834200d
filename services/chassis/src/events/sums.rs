//! Bounds the events that any caller can cause at any rate: a few per kind and second are stored, the rest are counted.
//!
//! Events of the same operation, status, error type and reason are of one kind; for lookups, the reason does not
//! matter. The first ones of a second are stored immediately. Of the rest, the last one is stored when the second is
//! over; its `suppressed_count` is the number of other events that it stands for. So every event is counted, and a row
//! is at most a second late.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use kernel::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use telemetry::{Disposition, EventError, EventStatus, TraceEvent};
use tokio::sync::Notify;

/// The period of the bound.
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// Events waiting for the writer: about one per kind. While the database is unavailable, further ones are counted.
const MAX_READY: usize = 256;

#[derive(PartialEq, Eq, Hash, Debug)]
struct Key {
    operation: String,
    status: EventStatus,
    error: Option<(String, String)>,
}

impl Key {
    fn of(event: &TraceEvent) -> Self {
        let by_reason = event.event_type != "data_lookup";
        let reason = |error: &EventError| if by_reason { error.reason.clone() } else { String::new() };
        let error = event.error.as_ref().map(|error| (error.error_type.clone(), reason(error)));
        Self { operation: event.operation.clone(), status: event.status, error }
    }
}

#[derive(Debug)]
struct Cell {
    second: Timestamp,
    stored: u32,
    /// The last event that was not stored, and the number of such events since one was stored.
    left_out: Option<(TraceEvent, i32)>,
}

#[derive(Debug, Default)]
struct State {
    cells: HashMap<Key, Cell>,
    ready: Vec<TraceEvent>,
    is_closed: bool,
}

/// Whether the second that began then is over. A start in the future means that the clock was set back.
fn is_over(second: Timestamp, now: Timestamp) -> bool {
    now < second || now.since(second) >= SECOND
}

/// The writer has taken the last events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Closed;

/// The bounded events of an instance of a service.
#[derive(Debug, Default)]
pub(super) struct Sums {
    state: Mutex<State>,
    written: Notify,
}

impl Sums {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Stored if the event is one of the first `max` of its kind in this second.
    pub(super) fn admit(&self, mut event: TraceEvent, max: u32, now: Timestamp) -> Disposition {
        let mut state = self.state();
        let is_full = state.ready.len() >= MAX_READY;
        let fresh = || Cell { second: now, stored: 0, left_out: None };
        let cell = state.cells.entry(Key::of(&event)).or_insert_with(fresh);
        if is_over(cell.second, now) {
            (cell.second, cell.stored) = (now, 0);
        }
        if cell.stored >= max || is_full {
            let count = cell.left_out.take().map_or(0, |(_, count)| count);
            cell.left_out = Some((event.clone(), count.saturating_add(1)));
            return Disposition::Summed(event);
        }
        cell.stored += 1;
        event.suppressed_count = cell.left_out.take().map_or(0, |(_, count)| count);
        Disposition::Stored(event)
    }

    /// Queues an admitted event; fails once the writer has ended.
    pub(super) fn put(&self, event: TraceEvent) -> Result<(), Closed> {
        let mut state = self.state();
        if state.is_closed {
            return Err(Closed);
        }
        state.ready.push(event);
        self.written.notify_one();
        Ok(())
    }

    /// Waits until there is something to take.
    pub(super) async fn written(&self) {
        self.written.notified().await;
    }

    /// Queues the events that stand for others when their second is over, and drops kinds that no longer occur.
    pub(super) fn flush(&self, now: Timestamp) {
        let mut state = self.state();
        let State { cells, ready, .. } = &mut *state;
        cells.retain(|_, cell| {
            if !is_over(cell.second, now) {
                return true;
            }
            let Some((event, count)) = cell.left_out.take_if(|_| ready.len() < MAX_READY) else {
                return cell.left_out.is_some();
            };
            ready.push(TraceEvent { suppressed_count: count.saturating_sub(1), ..event });
            (cell.second, cell.stored) = (now, 1);
            true
        });
        if !ready.is_empty() {
            self.written.notify_one();
        }
    }

    /// The service ends: events that stand for others are queued immediately.
    pub(super) fn close(&self) {
        let mut state = self.state();
        let left_out: BTreeMap<_, _> = state
            .cells
            .drain()
            .filter_map(|(_, cell)| cell.left_out)
            .map(|(event, count)| (event.event_id, TraceEvent { suppressed_count: count.saturating_sub(1), ..event }))
            .collect();
        state.ready.extend(left_out.into_values());
        state.is_closed = true;
    }

    /// Whether the queue is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.state().ready.is_empty()
    }

    /// Takes the queued events.
    pub(super) fn take(&self) -> Vec<TraceEvent> {
        std::mem::take(&mut self.state().ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{IdSource, SystemIds};
    use telemetry::ErrorType;

    const START: Timestamp = Timestamp::from_micros(5_000_000);

    fn event(operation: &str, error: Option<ErrorType>) -> TraceEvent {
        TraceEvent {
            event_id: SystemIds.uuid(),
            event_type: "data_lookup".into(),
            status: if error.is_some() { EventStatus::Failed } else { EventStatus::Success },
            service: "data".into(),
            instance: "data-1".into(),
            operation: operation.into(),
            trace_id: String::new(),
            span_id: String::new(),
            start_micros: 0,
            duration_micros: 0,
            order_id: None,
            user_id: None,
            error: error.map(|error_type| EventError::new(error_type, "REASON", "it failed")),
            attributes: BTreeMap::new(),
            suppressed_count: 0,
        }
    }

    /// As the sink does it: an admitted event is put.
    fn offer(sums: &Sums, event: TraceEvent, max: u32, now: Timestamp) {
        if let Disposition::Stored(event) = sums.admit(event, max, now) {
            sums.put(event).expect("not closed");
        }
    }

    #[test]
    fn a_clock_set_back_does_not_delay_counted_events() {
        let sums = Sums::default();
        let hour = Duration::from_secs(3_600);
        for _ in 0..3 {
            offer(&sums, event("lookup", None), 1, START.plus(hour));
        }
        assert_eq!(sums.take().len(), 1);
        sums.flush(START);
        let flushed = sums.take();
        assert_eq!(flushed.iter().map(|event| event.suppressed_count).collect::<Vec<_>>(), [1]);
        offer(&sums, event("lookup", None), 1, START.plus(SECOND));
        assert_eq!(sums.take().len(), 1, "a new second begins");
    }

    #[test]
    fn an_event_after_the_end_is_rejected() {
        let sums = Sums::default();
        offer(&sums, event("lookup", None), 1, START);
        sums.close();
        assert_eq!(sums.put(event("lookup", None)), Err(Closed));
        assert_eq!(sums.take().len(), 1);
    }

    #[test]
    fn the_first_events_are_stored_immediately_and_the_last_one_stands_for_the_rest() {
        let sums = Sums::default();
        for _ in 0..1_000 {
            offer(&sums, event("lookup", None), 10, START);
        }
        assert_eq!(sums.take().len(), 10);
        sums.flush(START.plus(SECOND / 2));
        assert!(sums.is_empty(), "the second is not over");
        sums.flush(START.plus(SECOND));
        let counts: Vec<i32> = sums.take().iter().map(|event| event.suppressed_count).collect();
        assert_eq!(counts, [989], "with itself, 1,000 in all");
        sums.flush(START.plus(SECOND * 2));
        assert!(sums.is_empty());
    }

    #[test]
    fn each_kind_has_one_row_per_second_at_any_rate_and_all_are_counted() {
        let sums = Sums::default();
        let (mut rows, mut counted, offered) = (0, 0, 10 * 200 * 3);
        for step in 0..2_000_u32 {
            let now = START.plus(Duration::from_millis(5) * step);
            for kind in [event("a", None), event("b", None), event("a", Some(ErrorType::Timeout))] {
                offer(&sums, kind, 1, now);
            }
            if step % 200 == 199 {
                sums.flush(now);
            }
            let stored = sums.take();
            rows += stored.len();
            counted += stored.iter().map(|event| event.suppressed_count + 1).sum::<i32>();
        }
        sums.close();
        let stored = sums.take();
        rows += stored.len();
        counted += stored.iter().map(|event| event.suppressed_count + 1).sum::<i32>();
        assert_eq!(counted, offered);
        assert!(rows <= 3 * 11, "{rows} rows in 10 s");
    }

    #[test]
    fn the_queue_is_bounded_and_the_rest_is_counted() {
        let sums = Sums::default();
        for second in 0..3_600 {
            offer(&sums, event("lookup", None), 1, START.plus(SECOND * second));
            sums.flush(START.plus(SECOND * second));
        }
        let stored = sums.take();
        assert_eq!(stored.len(), MAX_READY);
        sums.flush(START.plus(SECOND * 3_700));
        let late = sums.take();
        let all: i32 = stored.iter().chain(&late).map(|event| event.suppressed_count + 1).sum();
        assert_eq!(all, 3_600);
    }

    #[test]
    fn kinds_that_no_longer_occur_are_dropped() {
        let sums = Sums::default();
        offer(&sums, event("lookup", None), 1, START);
        sums.flush(START.plus(SECOND));
        assert!(sums.state().cells.is_empty());
    }
}
