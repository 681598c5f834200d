//! The retry budget of one target: each call deposits a fifth of a retry, each retry withdraws one. So all attempts
//! together are at most 1.2 times the calls, plus a small minimum. It is not refilled over time: otherwise an outage
//! could be made worse after an idle period.

use std::sync::atomic::{AtomicI64, Ordering};

/// The cost of a retry; a call deposits [`DEPOSIT`].
const RETRY: i64 = 10;
const DEPOSIT: i64 = 2;
/// The initial balance, in retries.
pub(crate) const MINIMUM_RETRIES: i64 = 10;
/// The highest balance, in retries: enough for all calls in flight to one instance that crashes.
const MAX_RETRIES: i64 = 500;

/// The retry budget of one target.
pub(crate) struct RetryBudget(AtomicI64);

impl RetryBudget {
    pub(crate) fn new() -> Self {
        Self(AtomicI64::new(MINIMUM_RETRIES * RETRY))
    }

    /// Records a call.
    pub(crate) fn deposit(&self) {
        if self.0.load(Ordering::Relaxed) < MAX_RETRIES * RETRY {
            // Concurrent deposits may exceed the limit slightly.
            self.0.fetch_add(DEPOSIT, Ordering::Relaxed);
        }
    }

    /// Whether a call may be retried; withdraws the retry.
    pub(crate) fn withdraw(&self) -> bool {
        let taken =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left >= RETRY).then(|| left - RETRY));
        taken.is_ok()
    }

    /// The balance, in retries.
    pub(crate) fn left(&self) -> i64 {
        self.0.load(Ordering::Relaxed) / RETRY
    }
}

#[cfg(test)]
mod tests;
