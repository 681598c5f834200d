//! The instances that were picked for a call's attempts, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::uri::Authority;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use crate::client::endpoint::Endpoint;
use crate::monitor::observed::Attempts;

/// The instances that were picked for a call's attempts, in order: for retries, attempt spans and taps.
#[derive(Clone, Default)]
pub(crate) struct AttemptedEndpoints(Arc<Attempted>);

#[derive(Default)]
struct Attempted {
    endpoints: Mutex<SmallVec<[Arc<Endpoint>; 2]>>,
    /// Those that the request was not sent to after all.
    not_sent: AtomicUsize,
}

impl AttemptedEndpoints {
    /// The last instance picked, even if the request was not sent to it.
    pub(crate) fn last(&self) -> Option<Authority> {
        self.get().last().and_then(|endpoint| endpoint.authority().cloned())
    }

    /// The request was not sent to the last one: its connection had closed.
    pub(crate) fn mark_last_unsent(&self) {
        self.0.not_sent.fetch_add(1, Ordering::Relaxed);
    }

    /// For taps.
    pub(crate) fn attempts(&self) -> Arc<dyn Attempts> {
        self.0.clone()
    }

    pub(crate) fn get(&self) -> MutexGuard<'_, SmallVec<[Arc<Endpoint>; 2]>> {
        self.0.endpoints.lock()
    }
}

impl Attempts for Attempted {
    fn count_and_last(&self) -> (usize, String) {
        let endpoints = self.endpoints.lock();
        let sent = endpoints.len().saturating_sub(self.not_sent.load(Ordering::Relaxed));
        let last = endpoints.last().filter(|_| sent > 0);
        (sent, last.map(|endpoint| endpoint.address().to_owned()).unwrap_or_default())
    }
}
