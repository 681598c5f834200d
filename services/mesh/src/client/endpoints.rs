//! The instances of one target, and the choice among them: power of two choices by load, skipping open breakers.
//!
//! Not tower's `balance`: it needs `&mut`, so a `Buffer` and a hop for each call, and its cache evicts failed services.
//! Here choosing only reads shared state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::call::wire::{AttemptError, Reach};
use crate::client::breaker::{BreakerPermit, Gate};
use crate::client::discovery::{AddressSink, Addresses, Resolve, follow};
use crate::client::endpoint::{Endpoint, EndpointConfig};
use crate::client::metrics::export_endpoint_load;
use crate::client::reconnect::{Reconnect, maintain};
use crate::client::rng::{Rng, random_index};
use crate::status::{UNREACHABLE, mesh_status_retry};

const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(crate) type EndpointList = Arc<[Arc<Endpoint>]>;

/// The instances of one target.
pub(crate) struct Endpoints {
    target: &'static str,
    addresses: Addresses,
    resolve: Arc<dyn Resolve>,
    config: EndpointConfig,
    reconnect: Reconnect,
    list: RwLock<EndpointList>,
    started: AtomicBool,
    /// Whether the addresses are known. Until the first result, calls wait.
    known: AtomicBool,
    /// The last look-up's error.
    lookup_failure: Mutex<Option<String>>,
    closed: CancellationToken,
}

impl Endpoints {
    pub(crate) fn new(
        target: &'static str,
        addresses: Addresses,
        resolve: Arc<dyn Resolve>,
        config: EndpointConfig,
        reconnect: Reconnect,
    ) -> Self {
        Self {
            target,
            addresses,
            resolve,
            config,
            reconnect,
            list: RwLock::new(Arc::new([])),
            started: AtomicBool::new(false),
            known: AtomicBool::new(false),
            lookup_failure: Mutex::new(None),
            closed: CancellationToken::new(),
        }
    }

    /// Cancelled when the last channel is dropped: ends the tasks.
    pub(crate) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    pub(crate) fn list(&self) -> EndpointList {
        self.list.read().clone()
    }

    /// The addresses, as they are configured.
    pub(crate) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Exports the load of each instance, while they exist.
    pub(crate) fn export_load(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        export_endpoint_load(move |observe| {
            let Some(endpoints) = weak.upgrade() else { return };
            let now = Instant::now();
            // Unnamed instances share one label set: the last one would stand for all.
            for endpoint in endpoints.list().iter().filter(|endpoint| endpoint.attributes.len() > 1) {
                observe(endpoint.load.now(now), &endpoint.attributes);
            }
        });
    }

    /// Starts connecting, with the first call: its runtime is the one that the connections run in.
    pub(crate) fn start(self: &Arc<Self>) {
        if self.started.load(Ordering::Relaxed) || self.started.swap(true, Ordering::AcqRel) {
            return;
        }
        match &self.addresses {
            Addresses::Fixed(addresses) => self.replace(addresses.clone()),
            Addresses::Dns { host, port } => {
                tokio::spawn(follow(Arc::downgrade(self), self.closed(), self.resolve.clone(), host.clone(), *port));
            }
        }
    }

    fn set_lookup_failure(&self, failure: Option<String>) {
        *self.lookup_failure.lock() = failure;
    }

    fn open(&self, address: String) -> Arc<Endpoint> {
        let endpoint = Arc::new(Endpoint::new(address, &self.config, self.closed.child_token()));
        for index in 0..endpoint.connections().len() {
            tokio::spawn(maintain(endpoint.clone(), index, self.reconnect.clone()));
        }
        endpoint
    }

    /// Picks an instance for a call; one that it has not attempted, if there is one. Waits while a connection is being
    /// made; fails when every instance has failed to connect since the call began.
    pub(crate) async fn pick(
        self: &Arc<Self>,
        attempted: &[Arc<Endpoint>],
    ) -> Result<(Arc<Endpoint>, BreakerPermit), AttemptError> {
        if let Some(picked) = self.pick_now(attempted) {
            return Ok(picked);
        }
        let failures_before = self.reconnect.failures.load(Ordering::Acquire);
        loop {
            let mut changed = std::pin::pin!(self.reconnect.changed.notified());
            // From here on no notification is missed.
            changed.as_mut().enable();
            let endpoints = self.list();
            if let Some(picked) = choose(&endpoints, attempted, &*self.reconnect.rng) {
                return Ok(picked);
            }
            if self.known.load(Ordering::Acquire) {
                let failures: Option<Vec<String>> = endpoints
                    .iter()
                    .map(|endpoint| {
                        Some(format!("{}: {}", endpoint.address(), endpoint.failure_since(failures_before)?))
                    })
                    .collect();
                if let Some(failures) = failures {
                    return Err(self.unreachable(failures));
                }
            }
            endpoints.iter().for_each(|endpoint| endpoint.request_connection());
            changed.await;
        }
    }

    /// The same, without waiting.
    pub(crate) fn pick_now(self: &Arc<Self>, attempted: &[Arc<Endpoint>]) -> Option<(Arc<Endpoint>, BreakerPermit)> {
        self.start();
        // Under the lock and not on a clone of the list, whose reference count all calls would contend for.
        choose(&self.list.read(), attempted, &*self.reconnect.rng)
    }

    pub(crate) fn unreachable(&self, mut reasons: Vec<String>) -> AttemptError {
        self.config.metrics.rejection("unreachable");
        reasons.extend(self.lookup_failure.lock().clone());
        let message = format!("no instance of {} can be reached ({})", self.target, reasons.join("; "));
        let status = mesh_status_retry(Code::Unavailable, UNREACHABLE, message, Some(RETRY_AFTER));
        AttemptError { status, reach: Reach::NotSent }
    }
}

impl AddressSink for Endpoints {
    /// Replaces the addresses: retained instances keep their connections and statistics; removed ones get no new calls,
    /// and their open streams continue.
    fn replace(&self, mut addresses: Vec<String>) {
        addresses.sort();
        addresses.dedup();
        let addresses = self.config.subset.of(addresses);
        let old = self.list();
        let kept = |address: &String| old.iter().find(|endpoint| endpoint.address() == address).cloned();
        let new: EndpointList =
            addresses.iter().map(|address| kept(address).unwrap_or_else(|| self.open(address.clone()))).collect();
        *self.list.write() = new;
        for endpoint in old.iter().filter(|endpoint| !addresses.iter().any(|address| address == endpoint.address())) {
            endpoint.removed.cancel();
        }
        self.known.store(true, Ordering::Release);
        self.set_lookup_failure(None);
        self.reconnect.changed.notify_waiters();
    }

    /// Keeps the current addresses.
    fn lookup_failed(&self, why: String) {
        self.known.store(true, Ordering::Release);
        self.set_lookup_failure(Some(why));
        self.reconnect.changed.notify_waiters();
    }
}

/// The instance for the next call. In this order: one whose breaker is due for a probe; the less busy of two with closed
/// breakers; the same among attempted ones; and any connected one, because the last instances are used whatever their
/// breakers say.
fn choose(
    endpoints: &[Arc<Endpoint>],
    attempted: &[Arc<Endpoint>],
    rng: &dyn Rng,
) -> Option<(Arc<Endpoint>, BreakerPermit)> {
    let now = Instant::now();
    let is_new = |endpoint: &Endpoint| !attempted.iter().any(|other| std::ptr::eq(&**other, endpoint));
    let mut has_open = false;
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_ready()) {
        match endpoint.breaker.gate(now) {
            Gate::Closed => {}
            Gate::HalfOpen if is_new(endpoint) => {
                if let Some(permit) = endpoint.breaker.probe(now) {
                    return Some((endpoint.clone(), permit));
                }
                has_open = true;
            }
            Gate::HalfOpen | Gate::Open => has_open = true,
        }
    }
    let is_closed = |endpoint: &Endpoint| !has_open || endpoint.breaker.gate(now) == Gate::Closed;
    let among = |fits: &dyn Fn(&Endpoint) -> bool| less_busy(endpoints, fits, now, rng);
    let chosen = among(&|endpoint| endpoint.is_ready() && is_closed(endpoint) && is_new(endpoint))
        .or_else(|| among(&|endpoint| endpoint.is_ready() && is_closed(endpoint)))
        .or_else(|| among(&|endpoint| endpoint.is_ready() && is_new(endpoint)))
        .or_else(|| among(&|endpoint| endpoint.is_ready()))?;
    Some((chosen.clone(), chosen.breaker.permit()))
}

/// The less busy of two random candidates. Comparing two is nearly as good as comparing all, and many clients do not all
/// choose the same one.
fn less_busy<'a>(
    endpoints: &'a [Arc<Endpoint>],
    fits: &dyn Fn(&Endpoint) -> bool,
    now: Instant,
    rng: &dyn Rng,
) -> Option<&'a Arc<Endpoint>> {
    let fitting = || endpoints.iter().filter(|endpoint| fits(endpoint));
    let count = fitting().count();
    if count < 2 {
        return fitting().next();
    }
    let one = random_index(rng, count);
    let other = random_index(rng, count - 1);
    let other = if other < one { other } else { other + 1 };
    // Readiness may have changed since the count: then there are fewer candidates.
    let (one, other) = (fitting().nth(one), fitting().nth(other));
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.load.now(now) < one.load.now(now) { other } else { one }),
        (one, other) => one.or(other).or_else(|| fitting().next()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
