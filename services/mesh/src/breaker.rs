//! The circuit breaker of one instance: consecutive failures open it, a single probe at a time may close it.
//!
//! It only advises: that the last instance is used whatever its breaker says is the fleet's rule. Outcomes of calls that
//! began before the last transition are ignored.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kernel::backoff::backoff;
use tokio::time::Instant;

use crate::chance::Chance;

/// Consecutive failures that open the breaker.
pub(crate) const THRESHOLD: u32 = 5;
/// It stays open for about `OPEN`, twice as long after each failed probe, and never longer than `OPEN_AT_MOST`.
const OPEN: Duration = Duration::from_secs(1);
const OPEN_AT_MOST: Duration = Duration::from_secs(30);

/// What a breaker admits to its instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gate {
    /// All calls.
    Closed,
    /// One call: the probe.
    HalfOpen,
    /// No calls.
    Open,
}

/// Ties a call's outcome to the breaker's state in which the call began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Permit {
    epoch: u64,
    is_probe: bool,
}

/// The transition that an outcome has caused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    None,
    Opened,
    Closed,
}

#[derive(Clone, Copy)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, openings: u32 },
    HalfOpen { openings: u32 },
}

struct Inner {
    /// Incremented on each transition.
    epoch: u64,
    state: State,
}

/// The circuit breaker of one instance.
pub(crate) struct Breaker {
    inner: Mutex<Inner>,
    chance: Arc<dyn Chance>,
}

impl Breaker {
    pub(crate) fn new(chance: Arc<dyn Chance>) -> Self {
        Self { inner: Mutex::new(Inner { epoch: 0, state: State::Closed { failures: 0 } }), chance }
    }

    pub(crate) fn gate(&self, now: Instant) -> Gate {
        match self.inner().state {
            State::Closed { .. } => Gate::Closed,
            State::Open { until, .. } if until <= now => Gate::HalfOpen,
            State::Open { .. } | State::HalfOpen { .. } => Gate::Open,
        }
    }

    /// For a call that is sent whatever the breaker says (its instance may be the last one).
    pub(crate) fn permit(&self) -> Permit {
        Permit { epoch: self.inner().epoch, is_probe: false }
    }

    /// For the only probe; `None` when another call took it, or none is due.
    pub(crate) fn probe(&self, now: Instant) -> Option<Permit> {
        let mut inner = self.inner();
        match inner.state {
            State::Open { until, openings } if until <= now => {
                inner.state = State::HalfOpen { openings };
                Some(Permit { epoch: inner.epoch, is_probe: true })
            }
            State::Closed { .. } | State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    pub(crate) fn succeeded(&self, permit: Permit) -> Change {
        let mut inner = self.inner();
        if permit.epoch != inner.epoch {
            return Change::None;
        }
        let was_shut = !matches!(inner.state, State::Closed { .. });
        inner.state = State::Closed { failures: 0 };
        if !was_shut {
            return Change::None;
        }
        inner.epoch += 1;
        Change::Closed
    }

    pub(crate) fn failed(&self, permit: Permit, now: Instant) -> Change {
        let mut inner = self.inner();
        if permit.epoch != inner.epoch {
            return Change::None;
        }
        match inner.state {
            State::Closed { failures } if failures + 1 < THRESHOLD => {
                inner.state = State::Closed { failures: failures + 1 };
                Change::None
            }
            State::Closed { .. } => {
                inner.state = State::Open { until: now + self.wait(1), openings: 1 };
                inner.epoch += 1;
                Change::Opened
            }
            State::HalfOpen { openings } if permit.is_probe => {
                let openings = openings.saturating_add(1);
                inner.state = State::Open { until: now + self.wait(openings), openings };
                Change::None
            }
            State::Open { .. } | State::HalfOpen { .. } => Change::None,
        }
    }

    /// The call has no verdict: it was cancelled, or not sent. After a probe, another one is due later.
    pub(crate) fn undecided(&self, permit: Permit, now: Instant) {
        if !permit.is_probe {
            return;
        }
        let mut inner = self.inner();
        if let State::HalfOpen { openings } = inner.state
            && permit.epoch == inner.epoch
        {
            inner.state = State::Open { until: now + self.wait(openings), openings };
        }
    }

    pub(crate) fn is_shut(&self) -> bool {
        !matches!(self.inner().state, State::Closed { .. })
    }

    fn wait(&self, openings: u32) -> Duration {
        backoff(openings, OPEN, OPEN_AT_MOST, self.chance.fraction())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Always;

    /// Waits without jitter.
    fn breaker() -> Breaker {
        Breaker::new(Arc::new(Always(1.0)))
    }

    fn shut(now: Instant) -> Breaker {
        let breaker = breaker();
        for _ in 1..THRESHOLD {
            assert_eq!(breaker.failed(breaker.permit(), now), Change::None);
        }
        assert_eq!(breaker.failed(breaker.permit(), now), Change::Opened);
        breaker
    }

    #[test]
    fn consecutive_failures_open_it_but_not_with_a_success_between_them() {
        let now = Instant::now();
        assert_eq!(shut(now).gate(now), Gate::Open);
        let breaker = breaker();
        for _ in 0..THRESHOLD {
            for _ in 1..THRESHOLD {
                breaker.failed(breaker.permit(), now);
            }
            breaker.succeeded(breaker.permit());
        }
        assert_eq!(breaker.gate(now), Gate::Closed);
    }

    #[test]
    fn one_probe_at_a_time_and_its_success_closes_it() {
        let now = Instant::now();
        let breaker = shut(now);
        assert_eq!(breaker.probe(now + OPEN - Duration::from_millis(1)), None, "not yet");
        assert_eq!(breaker.gate(now + OPEN), Gate::HalfOpen);
        let probe = breaker.probe(now + OPEN).expect("due");
        assert_eq!(breaker.probe(now + OPEN), None, "one at a time");
        assert_eq!(breaker.gate(now + OPEN_AT_MOST), Gate::Open, "while the probe is in flight");
        assert_eq!(breaker.succeeded(probe), Change::Closed);
        assert_eq!(breaker.gate(now + OPEN), Gate::Closed);
    }

    #[test]
    fn each_failed_probe_doubles_the_wait_up_to_a_limit() {
        let mut now = Instant::now();
        let breaker = shut(now);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(breaker.probe(now + Duration::from_secs(seconds) - Duration::from_millis(1)), None);
            now += Duration::from_secs(seconds);
            let probe = breaker.probe(now).expect("due");
            assert_eq!(breaker.failed(probe, now), Change::None);
        }
    }

    #[test]
    fn a_cancelled_probe_allows_another_one_after_a_wait() {
        let now = Instant::now();
        let breaker = shut(now);
        let probe = breaker.probe(now + OPEN).expect("due");
        breaker.undecided(probe, now + OPEN);
        assert_eq!(breaker.probe(now + OPEN), None, "otherwise each call in turn would hang there");
        assert!(breaker.probe(now + 2 * OPEN).is_some(), "the wait has not grown");
    }

    #[test]
    fn calls_that_began_before_it_opened_do_not_close_it() {
        let now = Instant::now();
        let breaker = breaker();
        let early = breaker.permit();
        for _ in 0..THRESHOLD {
            breaker.failed(breaker.permit(), now);
        }
        assert_eq!(breaker.succeeded(early), Change::None);
        assert_eq!(breaker.gate(now), Gate::Open);
        // Control: a call sent despite the open breaker does.
        assert_eq!(breaker.succeeded(breaker.permit()), Change::Closed);
    }
}
