//! The instances that a call was sent to, one attempt after the other.

use std::sync::Arc;

use http::uri::Authority;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use crate::client::endpoint::Endpoint;
use crate::monitor::observed::Attempts;

/// The instances that a call was sent to, for retries, attempt spans and taps.
#[derive(Clone, Default)]
pub(crate) struct Visited(Arc<VisitedEndpoints>);

#[derive(Default)]
struct VisitedEndpoints(Mutex<SmallVec<[Arc<Endpoint>; 2]>>);

impl Visited {
    /// The last attempt's instance.
    pub(crate) fn last(&self) -> Option<Authority> {
        self.get().last().and_then(|endpoint| endpoint.authority().cloned())
    }

    /// For taps.
    pub(crate) fn attempts(&self) -> Arc<dyn Attempts> {
        self.0.clone()
    }

    pub(crate) fn get(&self) -> MutexGuard<'_, SmallVec<[Arc<Endpoint>; 2]>> {
        self.0.0.lock()
    }
}

impl Attempts for VisitedEndpoints {
    fn count_and_last(&self) -> (usize, String) {
        let visited = self.0.lock();
        (visited.len(), visited.last().map(|endpoint| endpoint.address().to_owned()).unwrap_or_default())
    }
}
