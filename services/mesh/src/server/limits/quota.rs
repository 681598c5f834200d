//! Quotas per caller: `kernel::limiter`, with the callers that do not fit sharing one quota.

use std::time::Duration;

use kernel::limiter::{Limiter, Rate};
use tokio::time::Instant;

use crate::server::limits::caller_key::CallerKey;

/// Tracked callers, per method.
pub(crate) const MAX_CALLERS: usize = 10_000;

/// How often one caller may call one method of one instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// The number of calls, which may come as a burst; zero means one.
    pub calls: u32,
    /// The time in which the quota is refilled completely.
    pub per: Duration,
}

impl Quota {
    pub(crate) fn rate(self) -> Rate {
        Rate::per(self.calls, self.per)
    }
}

/// Callers that have the same quota. Their number is bounded: when all are active, new ones share a quota.
#[derive(Debug)]
pub(crate) struct Callers(Limiter<CallerKey, std::time::Instant>);

impl Callers {
    pub(crate) fn new(quota: Quota, max_callers: usize) -> Self {
        Self(Limiter::new(quota.rate(), max_callers))
    }

    /// Counts a call, or returns the time that the caller has to wait.
    pub(crate) fn count(&mut self, key: CallerKey, now: Instant) -> Result<(), Duration> {
        let now = now.into_std();
        let key = if self.0.has_room(&key, now) { key } else { CallerKey::Others };
        self.0.take(key, now)
    }

    /// The time that a caller has to wait, when its next call would exceed its quota.
    pub(crate) fn over(&self, key: &CallerKey, now: Instant) -> Option<Duration> {
        self.0.wait(key, now.into_std())
    }
}

#[cfg(test)]
mod tests;
