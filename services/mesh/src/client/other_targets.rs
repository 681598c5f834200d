//! Other targets of the traffic policy: each is made when a call first needs it, and dropped when the policy does not name
//! it any more. When one is dropped, its connections are closed after their last calls.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::client::discovery::Addresses;
use crate::traffic::TrafficPolicy;

/// How often targets that the policy does not name any more are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(1);

/// Makes another target.
pub(crate) type MakeTarget<T> = Box<dyn Fn(&str, &Addresses) -> T + Send + Sync>;

/// Whether a policy names this target.
pub(crate) type IsNamed = fn(&TrafficPolicy, &str, &Addresses) -> bool;

/// Another target.
pub(crate) struct OtherTarget<T> {
    pub(crate) name: String,
    addresses: Addresses,
    target: T,
}

impl<T> Deref for OtherTarget<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.target
    }
}

/// The other targets of one service.
pub(crate) struct OtherTargets<T> {
    traffic: TrafficPolicy,
    is_named: IsNamed,
    make: MakeTarget<T>,
    targets: Mutex<Vec<Arc<OtherTarget<T>>>>,
    /// Whether there are any: read by each call.
    has_any: AtomicBool,
    pruned: Mutex<Option<Instant>>,
}

impl<T> OtherTargets<T> {
    /// None yet.
    pub(crate) fn new(traffic: TrafficPolicy, is_named: IsNamed, make: MakeTarget<T>) -> Self {
        Self {
            traffic,
            is_named,
            make,
            targets: Mutex::default(),
            has_any: AtomicBool::new(false),
            pruned: Mutex::default(),
        }
    }

    /// The target with this name and these addresses.
    pub(crate) fn get(&self, name: &str, addresses: &Addresses) -> Arc<OtherTarget<T>> {
        let mut targets = self.targets.lock();
        let known = targets.iter().find(|target| target.name == name && target.addresses == *addresses);
        if let Some(known) = known {
            return known.clone();
        }
        let made = (self.make)(name, addresses);
        let target = Arc::new(OtherTarget { name: name.to_owned(), addresses: addresses.clone(), target: made });
        targets.push(target.clone());
        self.has_any.store(true, Ordering::Relaxed);
        target
    }

    /// Drops the targets that the policy does not name any more.
    pub(crate) fn prune(&self) {
        if !self.has_any.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        let mut pruned = self.pruned.lock();
        if pruned.is_some_and(|last| now.saturating_duration_since(last) < PRUNE_INTERVAL) {
            return;
        }
        *pruned = Some(now);
        let mut targets = self.targets.lock();
        targets.retain(|target| (self.is_named)(&self.traffic, &target.name, &target.addresses));
        self.has_any.store(!targets.is_empty(), Ordering::Relaxed);
    }
}
