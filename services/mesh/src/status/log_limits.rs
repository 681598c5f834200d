//! Bounds repeated log lines.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use telemetry::LogLimit;
use tokio::time::Instant;

/// A log limit per reason: a frequent reason does not hide another.
#[derive(Debug)]
pub(crate) struct LogLimits(Mutex<BTreeMap<&'static str, LogLimit>>);

impl LogLimits {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    pub(crate) fn count(&self, reason: &'static str, now: Instant) -> Option<u64> {
        self.0.lock().entry(reason).or_default().count(now)
    }
}

#[cfg(test)]
mod tests;
