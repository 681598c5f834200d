//! Quotas per caller: a generic cell rate algorithm with one instant per caller. The number of callers is bounded; when all
//! entries are active, new callers share one quota.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::server::limits::caller_key::Key;

/// Tracked callers, per method.
pub(crate) const MAX_CALLERS: usize = 10_000;
/// When the table is full, callers with a full quota are removed, at most this often: it scans all entries.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How often one caller may call one method of one instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// The number of calls, which may come as a burst; zero means one.
    pub calls: u32,
    /// The time in which the quota is refilled completely.
    pub per: Duration,
}

impl Quota {
    /// The time between two calls at an even rate.
    fn interval(self) -> Duration {
        self.per / self.calls.max(1)
    }

    /// Takes one call, or returns the time until one is available.
    pub(crate) fn take(self, used_until: &mut Instant, now: Instant) -> Result<(), Duration> {
        let over = self.over(*used_until, now);
        if !over.is_zero() {
            return Err(over);
        }
        *used_until = (*used_until).max(now) + self.interval();
        Ok(())
    }

    /// The time until a call is available.
    fn over(self, used_until: Instant, now: Instant) -> Duration {
        let next = used_until.max(now) + self.interval();
        next.saturating_duration_since(now).saturating_sub(self.per.max(self.interval()))
    }
}

/// Callers that have the same quota.
#[derive(Debug)]
pub(crate) struct Callers {
    quota: Quota,
    max_callers: usize,
    /// Until when each caller's quota is used; instants in the past mean a full quota.
    used_until: HashMap<Key, Instant>,
    swept: Option<Instant>,
}

impl Callers {
    pub(crate) fn new(quota: Quota, max_callers: usize) -> Self {
        Self { quota, max_callers, used_until: HashMap::new(), swept: None }
    }

    /// Counts a call, or returns the time that the caller has to wait.
    pub(crate) fn count(&mut self, key: Key, now: Instant) -> Result<(), Duration> {
        let key = if self.has_room(&key, now) { key } else { Key::Others };
        self.quota.take(self.used_until.entry(key).or_insert(now), now)
    }

    /// The time that a caller has to wait, when its next call would exceed its quota.
    pub(crate) fn over(&self, key: &Key, now: Instant) -> Option<Duration> {
        let over = self.quota.over(*self.used_until.get(key)?, now);
        (!over.is_zero()).then_some(over)
    }

    fn has_room(&mut self, key: &Key, now: Instant) -> bool {
        if self.used_until.len() < self.max_callers || self.used_until.contains_key(key) {
            return true;
        }
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_INTERVAL) {
            self.swept = Some(now);
            self.used_until.retain(|_, until| *until > now);
        }
        self.used_until.len() < self.max_callers
    }
}

#[cfg(test)]
mod tests;
