//! How busy an instance is: peak EWMA. The cost is an average of how long it takes to answer, which a slow answer raises
//! at once and quick ones lower slowly; the load is the cost times the calls that it has, and the one more. An instance
//! that has calls and answers none costs at least as much as it has been silent: who hangs must not be known for the quick
//! answers that he gave before. And one that was not heard of for a while is asked with one call at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The average's memory: after this long without news a cost is down to 37 %, so that an instance that was slow once is
/// tried again.
const MEMORY: Duration = Duration::from_secs(3);
/// … and what an answer leaves of the past at most: some thirty quick answers outweigh a slow one. By time alone, an instance
/// that was held up once (its machine is busy) would for seconds be as little liked as one that is slow each time, and
/// calls would go to that one.
const LEFT_BY_AN_ANSWER: f64 = 31.0 / 32.0;
/// What nobody has measured yet: a new instance gets calls, and not all of them.
const UNKNOWN: Duration = Duration::from_millis(1);
/// Failures are fast: they count as slow answers, at least this slow and twice as slow as what the instance was known for,
/// or a broken one would be everybody's favourite. One that fails once in a while is forgiven within seconds; one that
/// goes on failing is the breaker's.
const FAILURE: Duration = Duration::from_millis(10);
const FAILURE_AT_MOST_SECONDS: f64 = 1.0;
/// An instance that gave no answer for so long (it was slow, and the others were preferred; or it hangs) may have changed
/// either way; one that has failed may go on failing. Until it answers, the calls after the first go elsewhere while there
/// is anywhere else: it costs so much.
const QUIET: Duration = Duration::from_secs(1);
const QUIET_COSTS_SECONDS: f64 = 10.0;
/// No cost is nothing: calls in flight must always tell instances apart.
const LEAST_SECONDS: f64 = 1e-6;

/// The load of one instance.
pub(crate) struct Load {
    in_flight: AtomicUsize,
    cost: Mutex<Cost>,
}

struct Cost {
    seconds: f64,
    /// Of the last news. Before the first one nothing is forgotten, or the instance that was listed first would be
    /// everybody's first choice.
    at: Option<Instant>,
    /// Of the last answer, if nothing has failed since.
    heard: Option<Instant>,
    /// When it got a call and had none.
    busy_since: Option<Instant>,
}

impl Cost {
    /// What is left of the past, in 0..=1.
    fn weight(&self, now: Instant) -> f64 {
        let Some(at) = self.at else { return 1.0 };
        (-now.saturating_duration_since(at).as_secs_f64() / MEMORY.as_secs_f64()).exp()
    }

    /// What it costs that its calls wait, if it has any: how long they have, or more when nobody knows whether it answers.
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

    /// It answered after so long.
    pub(crate) fn took(&self, now: Instant, took: Duration) {
        let mut cost = self.cost();
        cost.count(now, took);
        cost.heard = Some(now);
    }

    /// It was given up after so long.
    pub(crate) fn gave_no_answer(&self, now: Instant, took: Duration) {
        self.cost().count(now, took);
    }

    /// It failed after so long. Until it answers well, nobody knows whether it will.
    pub(crate) fn failed(&self, now: Instant, took: Duration) {
        let mut cost = self.cost();
        let known = cost.seconds * cost.weight(now);
        let counts = took.max(FAILURE).as_secs_f64().max((2.0 * known).min(FAILURE_AT_MOST_SECONDS));
        cost.count(now, Duration::from_secs_f64(counts));
        cost.heard = None;
    }

    /// It has healed: what it cost while it was broken is forgotten.
    pub(crate) fn healed(&self, now: Instant, took: Duration) {
        let mut cost = self.cost();
        (cost.seconds, cost.at, cost.heard) = (took.as_secs_f64(), Some(now), Some(now));
    }

    /// In seconds.
    #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 calls in flight")]
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
    fn a_slow_answer_counts_at_once_and_quick_ones_slowly() {
        let start = Instant::now();
        let load = Load::new();
        load.took(start, 200 * MS);
        assert!((load.now(start) - 0.2).abs() < 1e-9);
        load.took(start + 10 * MS, MS);
        assert!(load.now(start + 10 * MS) > 0.19, "one quick answer changes little");
        for step in 2..10_000 {
            load.took(start + 10 * step * MS, MS);
        }
        assert!(load.now(start + 99_990 * MS) < 0.0011);
    }

    #[test]
    fn one_that_was_held_up_once_is_better_than_one_that_is_slow_each_time() {
        let start = Instant::now();
        let (slow, held_up) = (Load::new(), Load::new());
        slow.took(start, 200 * MS);
        held_up.took(start, 200 * MS);
        for step in 1..=100 {
            held_up.took(start + 5 * step * MS, 5 * MS);
        }
        let later = start + 500 * MS;
        assert!(held_up.now(later) < 0.015, "{}", held_up.now(later));
        assert!(slow.now(later) > 0.15, "the twin: nothing was heard of it");
    }

    #[test]
    fn silence_counts_while_it_lasts() {
        let start = Instant::now();
        let load = Load::new();
        load.took(start, MS);
        load.begin(start + 500 * MS);
        assert!(load.now(start + 500 * MS) < 0.002, "no call was kept waiting before");
        load.begin(start + 550 * MS);
        assert!((load.now(start + 600 * MS) - 3.0 * 0.1).abs() < 1e-9, "100 ms, and two calls wait");
        load.took(start + 600 * MS, 50 * MS);
        load.end();
        assert!(load.now(start + 601 * MS) < 2.0 * 0.051, "it has answered one of them");
        load.end();
        assert!(load.now(start + 1_000 * MS) < 0.05, "nobody waits: the past is forgotten");
    }

    #[test]
    fn one_that_was_not_heard_of_for_a_while_or_failed_is_asked_with_one_call_at_a_time() {
        let start = Instant::now();
        let (quiet, hanging, failing) = (Load::new(), Load::new(), Load::new());
        quiet.took(start, MS);
        hanging.gave_no_answer(start, MS);
        let later = start + 2 * QUIET;
        failing.failed(later, MS);
        for load in [&quiet, &hanging, &failing] {
            assert!(load.now(later) < 0.011, "it gets a call");
            load.begin(later);
            assert!(load.now(later) >= 2.0 * QUIET_COSTS_SECONDS, "and no other");
        }
        quiet.took(later, MS);
        assert!(quiet.now(later) < 0.003, "until it answers");
        hanging.gave_no_answer(later, MS);
        assert!(hanging.now(later) >= QUIET_COSTS_SECONDS, "the twin: that was none");
    }

    #[test]
    fn instances_that_nobody_has_measured_are_alike_however_old() {
        let load = Load::new();
        let start = Instant::now();
        assert_eq!(load.now(start).to_bits(), load.now(start + Duration::from_secs(60)).to_bits());
    }

    #[test]
    fn calls_in_flight_multiply_it() {
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
    fn without_news_the_past_is_forgotten_and_calls_in_flight_still_count() {
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
    fn a_failure_is_no_quick_answer_and_healing_forgets_it() {
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
