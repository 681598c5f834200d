//! The retry budget of one target: each call pays in a fifth of a retry, each retry takes out a whole one. So all
//! attempts together are at most 1.2 times the calls, and a small minimum. It knows no time: nothing trickles in while
//! nobody calls, and an outage cannot be made worse by waiting.

use std::sync::atomic::{AtomicI64, Ordering};

/// What a retry costs; a call pays in [`DEPOSIT`].
const RETRY: i64 = 10;
const DEPOSIT: i64 = 2;
/// What is there before the first call: retries.
pub(crate) const MINIMUM_RETRIES: i64 = 10;
/// What can be saved for bad times: enough for all calls in flight to one instance that dies.
const MOST_RETRIES: i64 = 500;

/// The retry budget of one target.
pub(crate) struct Budget(AtomicI64);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(AtomicI64::new(MINIMUM_RETRIES * RETRY))
    }

    /// A call was made.
    pub(crate) fn deposit(&self) {
        if self.0.load(Ordering::Relaxed) < MOST_RETRIES * RETRY {
            // Two at once may go over the limit by one deposit.
            self.0.fetch_add(DEPOSIT, Ordering::Relaxed);
        }
    }

    /// May a call be retried?
    pub(crate) fn withdraw(&self) -> bool {
        let taken =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left >= RETRY).then(|| left - RETRY));
        taken.is_ok()
    }

    /// Retries that are left.
    pub(crate) fn left(&self) -> i64 {
        self.0.load(Ordering::Relaxed) / RETRY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_calls_may_be_retried_and_a_small_minimum() {
        let budget = Budget::new();
        let mut retries = 0;
        for _ in 0..1_000 {
            budget.deposit();
            retries += i64::from(budget.withdraw());
            retries += i64::from(budget.withdraw());
        }
        assert_eq!(retries, 1_000 / 5 + MINIMUM_RETRIES);
        assert_eq!(budget.left(), 0);
    }

    #[test]
    fn good_times_are_saved_up_to_a_limit() {
        let budget = Budget::new();
        for _ in 0..1_000_000 {
            budget.deposit();
        }
        assert_eq!(budget.left(), MOST_RETRIES);
        assert!((0..MOST_RETRIES).all(|_| budget.withdraw()));
        assert!(!budget.withdraw());
    }
}
