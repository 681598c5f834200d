//! What a driver needs, whatever its items are.

use std::sync::Arc;
use std::time::Duration;

use kernel::backoff::{backoff, jitter};
use kernel::{FaultPoint, FaultSite, Faults, IdSource, OrderId};
use storage::Lease;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The driver's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// The instance's name: the owner of its leases.
    pub instance: String,
    /// How long a lease lasts.
    pub lease: Duration,
    /// The average interval between polls for due items.
    pub poll_interval: Duration,
    /// The backoff after the first failed attempt; doubles with each attempt, up to the cap.
    pub backoff: Duration,
    /// The maximum backoff between two attempts.
    pub backoff_cap: Duration,
    /// The maximum number of items driven concurrently.
    pub max_in_flight: usize,
}

/// What a driver needs apart from its items.
pub struct Context {
    /// The settings.
    pub options: Options,
    /// The source of ids and of jitter.
    pub ids: Arc<dyn IdSource>,
    /// The injected faults.
    pub faults: Arc<dyn Faults>,
    /// Tracks the tasks to finish before the service stops.
    pub tasks: TaskTracker,
    /// Shutdown requested: nothing more is claimed.
    pub shutdown: CancellationToken,
}

impl Context {
    /// A lease of this instance.
    pub fn lease(&self) -> Lease {
        Lease { owner: self.options.instance.clone(), length: self.options.lease }
    }

    /// The backoff after this many failed attempts in a row: exponential, with jitter.
    pub fn backoff(&self, failures: u32) -> Duration {
        backoff(failures, self.options.backoff, self.options.backoff_cap, jitter(self.ids.as_ref()))
    }

    /// Whether an injected fault stops the driver of this instance at a point.
    pub async fn crashes(&self, point: FaultPoint, state: &'static str, order: OrderId) -> bool {
        self.faults.at(FaultSite { instance: &self.options.instance, point, state, order }).await.is_break()
    }
}
