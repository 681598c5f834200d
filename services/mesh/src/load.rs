//! An instance's load: peak EWMA. The cost is an average response time, which a slow response raises immediately and
//! fast ones lower slowly; the load is the cost times the calls in flight plus one. An instance that has calls and
//! answers none costs at least its time of silence: a hung instance must not keep its earlier low latency. And one
//! without recent responses gets one call at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The average's time constant: after this time without an outcome a cost has decayed to 37 %, so that an instance that
/// was slow once is tried again.
const MEMORY: Duration = Duration::from_secs(3);
/// … and the most weight that the past keeps after a response: some thirty fast responses outweigh a slow one. With
/// decay by time alone, an instance that was delayed once (its machine is busy) would for seconds be ranked like one
/// that is always slow, and calls would go to that one.
const LEFT_BY_AN_ANSWER: f64 = 31.0 / 32.0;
/// The cost of an instance without outcomes: it gets calls, but not all of them.
const UNKNOWN: Duration = Duration::from_millis(1);
/// Failures are fast: they count as slow responses, at least this slow and twice the known cost, or a broken instance
/// would attract all calls. An occasional failure decays within seconds; consecutive ones are the breaker's.
const FAILURE: Duration = Duration::from_millis(10);
const FAILURE_AT_MOST_SECONDS: f64 = 1.0;
/// An instance without a response for this time (it was slow, and others were preferred; or it hangs) may have changed
/// either way; one that has failed may fail again. Until it responds, it costs `QUIET_COSTS_SECONDS` after its first
/// call, so that further calls go elsewhere if possible.
const QUIET: Duration = Duration::from_secs(1);
const QUIET_COSTS_SECONDS: f64 = 10.0;
/// A cost is never zero: calls in flight must always distinguish instances.
const LEAST_SECONDS: f64 = 1e-6;

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
    heard: Option<Instant>,
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
        if self.at.is_some() && self.heard.is_none_or(is_long_ago) {
            return QUIET_COSTS_SECONDS;
        }
        let since = self.busy_since.max(self.at);
        since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64())
    }

    fn count(&mut self, now: Instant, took: Duration) {
        let took = took.as_secs_f64();
        let past = self.seconds * self.weight(now);
        let weight = self.weight(now).min(LEFT_BY_AN_ANSWER);
        let is_first = self.at.replace(now).is_none();
        self.seconds = if is_first || took > past { took } else { self.seconds * weight + took * (1.0 - weight) };
    }
}

impl Load {
    pub(crate) fn new() -> Self {
        let cost = Cost { seconds: UNKNOWN.as_secs_f64(), at: None, heard: None, busy_since: None };
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

    /// It responded after this time.
    pub(crate) fn took(&self, now: Instant, took: Duration) {
        let mut cost = self.cost();
        cost.count(now, took);
        cost.heard = Some(now);
    }

    /// The call was cancelled after this time.
    pub(crate) fn gave_no_answer(&self, now: Instant, took: Duration) {
        self.cost().count(now, took);
    }

    /// It failed after this time. Until it responds again, it may keep failing.
    pub(crate) fn failed(&self, now: Instant, took: Duration) {
        let mut cost = self.cost();
        let known = cost.seconds * cost.weight(now);
        let counts = took.max(FAILURE).as_secs_f64().max((2.0 * known).min(FAILURE_AT_MOST_SECONDS));
        cost.count(now, Duration::from_secs_f64(counts));
        cost.heard = None;
    }

    /// Its breaker closed: the cost of its failures is forgotten.
    pub(crate) fn healed(&self, now: Instant, took: Duration) {
        let mut cost = self.cost();
        (cost.seconds, cost.at, cost.heard) = (took.as_secs_f64(), Some(now), Some(now));
    }

    /// The load, in seconds.
    #[expect(clippy::cast_precision_loss, reason = "there are never 2^52 calls in flight")]
    pub(crate) fn now(&self, now: Instant) -> f64 {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let cost = self.cost();
        let waiting = if in_flight == 0 { 0.0 } else { cost.of_waiting_seconds(now) };
        let seconds = (cost.seconds * cost.weight(now)).max(waiting).max(LEAST_SECONDS);
        seconds * (in_flight + 1) as f64
    }

    fn cost(&self) -> MutexGuard<'_, Cost> {
        self.cost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slow_response_counts_immediately_and_fast_ones_slowly() {
        let start = Instant::now();
        let load = Load::new();
        load.took(start, 200 * MS);
        assert!((load.now(start) - 0.2).abs() < 1e-9);
        load.took(start + 10 * MS, MS);
        assert!(load.now(start + 10 * MS) > 0.19, "one fast response changes little");
        for step in 2..10_000 {
            load.took(start + 10 * step * MS, MS);
        }
        assert!(load.now(start + 99_990 * MS) < 0.0011);
    }

    #[test]
    fn an_instance_that_was_slow_once_is_better_than_one_that_is_always_slow() {
        let start = Instant::now();
        let (slow, held_up) = (Load::new(), Load::new());
        slow.took(start, 200 * MS);
        held_up.took(start, 200 * MS);
        for step in 1..=100 {
            held_up.took(start + 5 * step * MS, 5 * MS);
        }
        let later = start + 500 * MS;
        assert!(held_up.now(later) < 0.015, "{}", held_up.now(later));
        assert!(slow.now(later) > 0.15, "control: it has no further outcomes");
    }

    #[test]
    fn silence_counts_while_it_lasts() {
        let start = Instant::now();
        let load = Load::new();
        load.took(start, MS);
        load.begin(start + 500 * MS);
        assert!(load.now(start + 500 * MS) < 0.002, "no call was waiting before");
        load.begin(start + 550 * MS);
        assert!((load.now(start + 600 * MS) - 3.0 * 0.1).abs() < 1e-9, "100 ms, and two calls wait");
        load.took(start + 600 * MS, 50 * MS);
        load.end();
        assert!(load.now(start + 601 * MS) < 2.0 * 0.051, "it has answered one of them");
        load.end();
        assert!(load.now(start + 1_000 * MS) < 0.05, "no call waits: the past has decayed");
    }

    #[test]
    fn an_instance_without_recent_responses_or_after_a_failure_gets_one_call_at_a_time() {
        let start = Instant::now();
        let (quiet, hanging, failing) = (Load::new(), Load::new(), Load::new());
        quiet.took(start, MS);
        hanging.gave_no_answer(start, MS);
        let later = start + 2 * QUIET;
        failing.failed(later, MS);
        for load in [&quiet, &hanging, &failing] {
            assert!(load.now(later) < 0.011, "it gets a call");
            load.begin(later);
            assert!(load.now(later) >= 2.0 * QUIET_COSTS_SECONDS, "and no second one");
        }
        quiet.took(later, MS);
        assert!(quiet.now(later) < 0.003, "it has responded");
        hanging.gave_no_answer(later, MS);
        assert!(hanging.now(later) >= QUIET_COSTS_SECONDS, "control: no response");
    }

    #[test]
    fn instances_without_outcomes_are_alike_however_old() {
        let load = Load::new();
        let start = Instant::now();
        assert_eq!(load.now(start).to_bits(), load.now(start + Duration::from_secs(60)).to_bits());
    }

    #[test]
    fn calls_in_flight_multiply_the_load() {
        let start = Instant::now();
        let load = Load::new();
        load.took(start, 10 * MS);
        load.begin(start);
        load.begin(start);
        assert!((load.now(start) - 0.03).abs() < 1e-9);
        load.end();
        assert!((load.now(start) - 0.02).abs() < 1e-9);
    }

    #[test]
    fn without_outcomes_the_past_decays_and_calls_in_flight_still_count() {
        let start = Instant::now();
        let load = Load::new();
        load.took(start, 1_000 * MS);
        let later = start + Duration::from_secs(3_600);
        let idle = load.now(later);
        assert!(idle < 0.001);
        load.begin(later);
        assert!(load.now(later) > idle);
    }

    #[test]
    fn a_failure_is_not_a_fast_response_and_closing_the_breaker_forgets_it() {
        let start = Instant::now();
        let (good, bad) = (Load::new(), Load::new());
        good.took(start, 5 * MS);
        bad.failed(start, MS / 10);
        assert!(bad.now(start) > good.now(start));
        for _ in 0..10 {
            let before = bad.now(start);
            bad.failed(start, MS / 10);
            assert!(bad.now(start) > before || before >= FAILURE_AT_MOST_SECONDS);
        }
        bad.healed(start, MS);
        assert!(bad.now(start) < good.now(start));
    }
}
