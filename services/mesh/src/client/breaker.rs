//! The circuit breaker of one instance: consecutive failures open it, a single probe at a time may close it.
//!
//! It is advisory: `endpoints` uses the last instance even if its breaker is open. Outcomes of calls that began before
//! the last transition are ignored.

use std::sync::Arc;
use std::time::Duration;

use kernel::backoff::backoff;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::client::rng::Rng;
use crate::monitor::snapshot::BreakerState;

/// Consecutive failures that open the breaker.
pub(crate) const THRESHOLD: u32 = 5;
/// It stays open for about `OPEN`, twice as long after each failed probe, and never longer than `MAX_OPEN`.
const OPEN: Duration = Duration::from_secs(1);
const MAX_OPEN: Duration = Duration::from_secs(30);

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
pub(crate) struct BreakerPermit {
    epoch: u64,
    is_probe: bool,
}

/// The transition that an outcome has caused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BreakerTransition {
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
    rng: Arc<dyn Rng>,
}

impl Breaker {
    pub(crate) fn new(rng: Arc<dyn Rng>) -> Self {
        Self { inner: Mutex::new(Inner { epoch: 0, state: State::Closed { failures: 0 } }), rng }
    }

    pub(crate) fn gate(&self, now: Instant) -> Gate {
        match self.inner().state {
            State::Closed { .. } => Gate::Closed,
            State::Open { until, .. } if until <= now => Gate::HalfOpen,
            State::Open { .. } | State::HalfOpen { .. } => Gate::Open,
        }
    }

    /// For a call that is sent even if the breaker is open (its instance may be the last one).
    pub(crate) fn permit(&self) -> BreakerPermit {
        BreakerPermit { epoch: self.inner().epoch, is_probe: false }
    }

    /// For the only probe; `None` when another call took it, or none is due.
    pub(crate) fn probe(&self, now: Instant) -> Option<BreakerPermit> {
        let mut inner = self.inner();
        match inner.state {
            State::Open { until, openings } if until <= now => {
                inner.state = State::HalfOpen { openings };
                Some(BreakerPermit { epoch: inner.epoch, is_probe: true })
            }
            State::Closed { .. } | State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    pub(crate) fn succeeded(&self, permit: BreakerPermit) -> BreakerTransition {
        let mut inner = self.inner();
        if permit.epoch != inner.epoch {
            return BreakerTransition::None;
        }
        let was_open = !matches!(inner.state, State::Closed { .. });
        inner.state = State::Closed { failures: 0 };
        if !was_open {
            return BreakerTransition::None;
        }
        inner.epoch += 1;
        BreakerTransition::Closed
    }

    pub(crate) fn failed(&self, permit: BreakerPermit, now: Instant) -> BreakerTransition {
        let mut inner = self.inner();
        if permit.epoch != inner.epoch {
            return BreakerTransition::None;
        }
        match inner.state {
            State::Closed { failures } if failures + 1 < THRESHOLD => {
                inner.state = State::Closed { failures: failures + 1 };
                BreakerTransition::None
            }
            State::Closed { .. } => {
                inner.state = State::Open { until: now + self.wait(1), openings: 1 };
                inner.epoch += 1;
                BreakerTransition::Opened
            }
            State::HalfOpen { openings } if permit.is_probe => {
                let openings = openings.saturating_add(1);
                inner.state = State::Open { until: now + self.wait(openings), openings };
                BreakerTransition::None
            }
            State::Open { .. } | State::HalfOpen { .. } => BreakerTransition::None,
        }
    }

    /// The call has no verdict: it was cancelled, or not sent. After a probe, another one is due later.
    pub(crate) fn undecided(&self, permit: BreakerPermit, now: Instant) {
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

    /// For snapshots.
    pub(crate) fn state(&self) -> BreakerState {
        match self.inner().state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.inner().state, State::Closed { .. })
    }

    fn wait(&self, openings: u32) -> Duration {
        backoff(openings, OPEN, MAX_OPEN, self.rng.fraction())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

#[cfg(test)]
mod tests;
