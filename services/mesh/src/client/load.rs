//! An instance's load: peak EWMA. The cost is an average response time, which a slow response raises immediately and
//! fast ones lower slowly; the load is the cost times the calls in flight plus one. An instance that has calls and
//! responds to none costs at least its time of silence: a hung instance must not keep its earlier low latency. And one
//! without recent responses gets one call at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// The average's time constant: after this time without an outcome a cost has decayed to 37 %, so that an instance that
/// was slow once is tried again.
const MEMORY: Duration = Duration::from_secs(3);
/// … and the most weight that the past keeps after a response: some thirty fast responses outweigh a slow one. With
/// decay by time alone, an instance that was delayed once (its machine is busy) would for seconds be ranked like one
/// that is always slow, and calls would go to that one.
const PAST_WEIGHT_AFTER_RESPONSE: f64 = 31.0 / 32.0;
/// The cost of an instance without outcomes: it gets calls, but not all of them.
const UNKNOWN: Duration = Duration::from_millis(1);
/// Failures are fast: they count as slow responses, at least this slow and twice the known cost, or a broken instance
/// would attract all calls. An occasional failure decays within seconds; consecutive ones are the breaker's.
const FAILURE: Duration = Duration::from_millis(10);
const MAX_FAILURE_SECONDS: f64 = 1.0;
/// An instance without a response for this time (it was slow, and others were preferred; or it hangs) may have changed
/// either way; one that has failed may fail again. Until it responds, it costs `QUIET_COSTS_SECONDS` after its first
/// call, so that further calls go elsewhere if possible.
const QUIET: Duration = Duration::from_secs(1);
const QUIET_COSTS_SECONDS: f64 = 10.0;
/// A cost is never zero: calls in flight must always distinguish instances.
const MIN_SECONDS: f64 = 1e-6;

/// The load of one instance.
pub(crate) struct Load {
    in_flight: AtomicUsize,
    cost: Mutex<Cost>,
}

struct Cost {
    seconds: f64,
    /// When the last outcome was recorded. Before the first one nothing decays, or the instance that is listed first
    /// would be every client's first choice.
    at: Option<Instant>,
    /// When it last responded, if it has not failed since.
    last_response: Option<Instant>,
    /// When its calls in flight rose from zero.
    busy_since: Option<Instant>,
}

impl Cost {
    /// The remaining weight of the past, in 0..=1.
    fn weight(&self, now: Instant) -> f64 {
        let Some(at) = self.at else { return 1.0 };
        (-now.saturating_duration_since(at).as_secs_f64() / MEMORY.as_secs_f64()).exp()
    }

    /// The cost of its waiting calls, if it has any: their waiting time, or more when it has not responded recently.
    fn of_waiting_seconds(&self, now: Instant) -> f64 {
        let is_long_ago = |then: Instant| now.saturating_duration_since(then) > QUIET;
        if self.at.is_some() && self.last_response.is_none_or(is_long_ago) {
            return QUIET_COSTS_SECONDS;
        }
        let since = self.busy_since.max(self.at);
        since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64())
    }

    fn count(&mut self, now: Instant, took: Duration) {
        let took = took.as_secs_f64();
        let past = self.seconds * self.weight(now);
        let weight = self.weight(now).min(PAST_WEIGHT_AFTER_RESPONSE);
        let is_first = self.at.replace(now).is_none();
        self.seconds = if is_first || took > past { took } else { self.seconds * weight + took * (1.0 - weight) };
    }
}

impl Load {
    pub(crate) fn new() -> Self {
        let cost = Cost { seconds: UNKNOWN.as_secs_f64(), at: None, last_response: None, busy_since: None };
        Self { in_flight: AtomicUsize::new(0), cost: Mutex::new(cost) }
    }

    pub(crate) fn begin(&self, now: Instant) {
        if self.in_flight.fetch_add(1, Ordering::Relaxed) == 0 {
            self.cost().busy_since = Some(now);
        }
    }

    pub(crate) fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// It responded after this time.
    pub(crate) fn took(&self, now: Instant, took: Duration) {
        let mut cost = self.cost();
        cost.count(now, took);
        cost.last_response = Some(now);
    }

    /// The call was cancelled after this time.
    pub(crate) fn no_response(&self, now: Instant, took: Duration) {
        self.cost().count(now, took);
    }

    /// It failed after this time. Until it responds again, it may keep failing.
    pub(crate) fn failed(&self, now: Instant, took: Duration) {
        let mut cost = self.cost();
        let known = cost.seconds * cost.weight(now);
        let counts = took.max(FAILURE).as_secs_f64().max((2.0 * known).min(MAX_FAILURE_SECONDS));
        cost.count(now, Duration::from_secs_f64(counts));
        cost.last_response = None;
    }

    /// Its breaker closed: the cost of its failures is forgotten.
    pub(crate) fn recovered(&self, now: Instant, took: Duration) {
        let mut cost = self.cost();
        (cost.seconds, cost.at, cost.last_response) = (took.as_secs_f64(), Some(now), Some(now));
    }

    /// The load, in seconds.
    #[expect(clippy::cast_precision_loss, reason = "there are never 2^52 calls in flight")]
    pub(crate) fn now(&self, now: Instant) -> f64 {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let cost = self.cost();
        let waiting = if in_flight == 0 { 0.0 } else { cost.of_waiting_seconds(now) };
        let seconds = (cost.seconds * cost.weight(now)).max(waiting).max(MIN_SECONDS);
        seconds * (in_flight + 1) as f64
    }

    fn cost(&self) -> MutexGuard<'_, Cost> {
        self.cost.lock()
    }
}

#[cfg(test)]
mod tests;
