//! Limits calls that are reset before they are answered. Any caller may cancel (a closed page, a hedged call, a short
//! deadline), and many callers may share a connection. But a reset immediately makes room for the next stream, so the
//! limit on open streams does not bound the work that the server begins in vain: rapid reset (CVE-2023-44487). So the
//! rate is limited. A known caller has a quota of its own: beyond it, its new calls are rejected. A connection whose
//! callers together far exceed that gets a GOAWAY, and is closed if it continues.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::server::call_state;
use crate::server::limits::caller_key::CallerKey;
use crate::server::limits::quota::{Callers, MAX_CALLERS, Quota};

/// More than well-behaved clients cancel: a burst, and a hundred a second. Each costs at most what a call costs.
const PER_CALLER: Quota = Quota { calls: 2_000, per: Duration::from_secs(20) };
/// Of all callers of a connection: a burst of some five times the limit on open streams, and 250 a second.
const PER_CONNECTION: Quota = Quota { calls: 5_000, per: Duration::from_secs(20) };
/// Resets after the GOAWAY, before the connection is closed: as many as there may be open streams.
const MAX_RESETS_AFTER_GOAWAY: u64 = 1_024;

/// A server's resets, by caller.
pub(crate) struct Resets {
    callers: Mutex<(Callers, Instant)>,
    /// Usually no caller is over its quota: then a call takes no lock.
    is_any_over: AtomicBool,
}

impl Resets {
    pub(crate) fn new() -> Self {
        let callers = Mutex::new((Callers::new(PER_CALLER, MAX_CALLERS), Instant::now()));
        Self { callers, is_any_over: AtomicBool::new(false) }
    }

    fn count(&self, caller: CallerKey, now: Instant) {
        let (callers, over_until) = &mut *self.callers.lock();
        // Counted even when over the quota.
        let _ = callers.count(caller.clone(), now);
        if let Some(wait) = callers.over(&caller, now) {
            *over_until = (*over_until).max(now + wait);
            self.is_any_over.store(true, Ordering::Release);
        }
    }

    /// How long the current call's caller must wait, when it is over its quota.
    pub(crate) fn over(&self) -> Option<Duration> {
        if !self.is_any_over.load(Ordering::Acquire) {
            return None;
        }
        let now = Instant::now();
        let (callers, over_until) = &mut *self.callers.lock();
        if *over_until <= now {
            self.is_any_over.store(false, Ordering::Release);
            return None;
        }
        callers.over(&call_state::caller()?, now)
    }
}

/// A connection's resets.
pub(crate) struct ConnectionResets {
    of_server: Arc<Resets>,
    /// When the quota is full again.
    full_at: Mutex<std::time::Instant>,
    excess: AtomicU64,
    changed: Notify,
}

/// How far a connection exceeds its quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Excess {
    /// It gets a GOAWAY.
    Quota,
    /// It continued after the GOAWAY, and is closed.
    Limit,
}

impl ConnectionResets {
    pub(crate) fn new(of_server: Arc<Resets>) -> Self {
        let full_at = Mutex::new(Instant::now().into_std());
        Self { of_server, full_at, excess: AtomicU64::new(0), changed: Notify::new() }
    }

    /// Counts a call that was reset before it was answered.
    pub(crate) fn count(&self, caller: Option<CallerKey>) {
        let now = Instant::now();
        if let Some(caller) = caller {
            self.of_server.count(caller, now);
        }
        let (mut full_at, now, rate) = (self.full_at.lock(), now.into_std(), PER_CONNECTION.rate());
        if rate.wait(*full_at, now).is_zero() {
            *full_at = rate.take(*full_at, now);
        } else {
            self.excess.fetch_add(1, Ordering::AcqRel);
            self.changed.notify_one();
        }
    }

    /// Returns when the connection exceeds its quota, and again for each further reset.
    pub(crate) async fn exceeded(&self) -> Excess {
        self.changed.notified().await;
        if self.excess.load(Ordering::Acquire) > MAX_RESETS_AFTER_GOAWAY { Excess::Limit } else { Excess::Quota }
    }
}

#[cfg(test)]
mod tests;
