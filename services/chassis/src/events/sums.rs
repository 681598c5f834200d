//! Bounds events of a kind that any caller can cause at any rate: a few of each in a second are stored, the rest are counted.
//!
//! Events are alike when operation, status, error type and reason are; lookups, whatever the reason. The first ones of a second are stored at once; of the
//! rest, the last one is stored when the second is over, and its `suppressed_count` is how many it stands for besides itself. So
//! nothing goes uncounted, and a row is never more than a second late.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kernel::Timestamp;
use telemetry::{EventError, EventStatus, Fate, TraceEvent};
use tokio::sync::Notify;

/// What is bounded is bounded per second.
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// Events that wait for the writer: about as many as there are kinds. While the database is away, further ones are counted.
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
        let error = event.error.as_ref().map(|error| (error.kind.clone(), reason(error)));
        Self { operation: event.operation.clone(), status: event.status, error }
    }
}

#[derive(Debug)]
struct Cell {
    second: Timestamp,
    stored: u32,
    /// The last event that was not stored, and how many there were since one was.
    left_out: Option<(TraceEvent, i32)>,
}

#[derive(Debug, Default)]
struct State {
    cells: HashMap<Key, Cell>,
    ready: Vec<TraceEvent>,
    is_closed: bool,
}

/// Is the second that began then over? One that began in the future was begun by a clock that was set back since.
fn is_over(second: Timestamp, now: Timestamp) -> bool {
    now < second || now.since(second) >= SECOND
}

/// The writer has taken the last events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Closed;

/// The bounded events of a service's instance.
#[derive(Debug, Default)]
pub(super) struct Sums {
    state: Mutex<State>,
    written: Notify,
}

impl Sums {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is the event one of the `most` of its kind that are stored in this second?
    pub(super) fn admit(&self, mut event: TraceEvent, most: u32, now: Timestamp) -> Fate {
        let mut state = self.state();
        let is_full = state.ready.len() >= MAX_READY;
        let fresh = || Cell { second: now, stored: 0, left_out: None };
        let cell = state.cells.entry(Key::of(&event)).or_insert_with(fresh);
        if is_over(cell.second, now) {
            (cell.second, cell.stored) = (now, 0);
        }
        if cell.stored >= most || is_full {
            let count = cell.left_out.take().map_or(0, |(_, count)| count);
            cell.left_out = Some((event.clone(), count.saturating_add(1)));
            return Fate::Summed(event);
        }
        cell.stored += 1;
        event.suppressed_count = cell.left_out.take().map_or(0, |(_, count)| count);
        Fate::Stored(event)
    }

    /// An event that is to be stored; refused once the writer has ended.
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

    /// Makes the events that stand for others ready when their second is over, and forgets kinds that no longer occur.
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

    /// The service ends: what was counted is made ready at once.
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

    /// Is there nothing to take?
    pub(super) fn is_empty(&self) -> bool {
        self.state().ready.is_empty()
    }

    /// Takes what is ready.
    pub(super) fn take(&self) -> Vec<TraceEvent> {
        std::mem::take(&mut self.state().ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{IdSource, SystemIds};
    use telemetry::ErrorClass;

    const START: Timestamp = Timestamp::from_micros(5_000_000);

    fn event(operation: &str, error: Option<ErrorClass>) -> TraceEvent {
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
            error: error.map(|class| EventError::new(class, "REASON", "it failed")),
            attributes: BTreeMap::new(),
            suppressed_count: 0,
        }
    }

    /// As the sink does it: what is admitted is put.
    fn offer(sums: &Sums, event: TraceEvent, most: u32, now: Timestamp) {
        if let Fate::Stored(event) = sums.admit(event, most, now) {
            sums.put(event).expect("it is open");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_hold_up_what_is_counted() {
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
        assert_eq!(sums.take().len(), 1, "the seconds go on");
    }

    #[test]
    fn what_comes_after_the_end_is_refused_and_not_forgotten() {
        let sums = Sums::default();
        offer(&sums, event("lookup", None), 1, START);
        sums.close();
        assert_eq!(sums.put(event("lookup", None)), Err(Closed));
        assert_eq!(sums.take().len(), 1);
    }

    #[test]
    fn a_few_are_stored_at_once_and_the_last_one_stands_for_the_rest_when_the_second_is_over() {
        let sums = Sums::default();
        for _ in 0..1_000 {
            offer(&sums, event("lookup", None), 10, START);
        }
        assert_eq!(sums.take().len(), 10);
        sums.flush(START.plus(SECOND / 2));
        assert!(sums.is_empty(), "the second is not over");
        sums.flush(START.plus(SECOND));
        let counts: Vec<i32> = sums.take().iter().map(|event| event.suppressed_count).collect();
        assert_eq!(counts, [989], "and itself: 1,000 in all");
        sums.flush(START.plus(SECOND * 2));
        assert!(sums.is_empty());
    }

    #[test]
    fn whatever_the_rate_each_kind_has_one_row_a_second_and_all_are_counted() {
        let sums = Sums::default();
        let (mut rows, mut counted, offered) = (0, 0, 10 * 200 * 3);
        for step in 0..2_000_u32 {
            let now = START.plus(Duration::from_millis(5) * step);
            for kind in [event("a", None), event("b", None), event("a", Some(ErrorClass::Timeout))] {
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
    fn while_nothing_is_taken_no_more_than_a_bound_is_kept_and_the_rest_is_counted() {
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
    fn kinds_that_no_longer_occur_are_forgotten() {
        let sums = Sums::default();
        offer(&sums, event("lookup", None), 1, START);
        sums.flush(START.plus(SECOND));
        assert!(sums.state().cells.is_empty());
    }
}
