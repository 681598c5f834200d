//! The client's stack, on one page.

mod attempted;
pub(crate) mod attributes;
mod balance;
mod breaker;
mod call;
mod connect;
mod deadline;
pub(crate) mod discovery;
mod endpoint;
mod endpoints;
mod evidence;
mod fault;
mod load;
mod metrics;
mod mirror;
mod observed_target;
mod other_targets;
mod reconnect;
mod retry;
mod rng;
mod same_store;
mod split;
mod subset;
mod telemetry;

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::telemetry::{EventSink, Propagation};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;
use tower::{Service, ServiceBuilder};

use crate::call::wire::{Request, Response, Side};
use crate::client::balance::Balance;
use crate::client::connect::{Connect, Tcp};
use crate::client::deadline::{ClientDeadline, client_deadline};
use crate::client::discovery::{Addresses, SystemResolver};
use crate::client::endpoint::EndpointConfig;
use crate::client::endpoints::Endpoints;
use crate::client::fault::{InjectFaults, inject_faults};
use crate::client::metrics::ClientMetrics;
use crate::client::mirror::{Mirror, Shadow, mirror};
use crate::client::observed_target::ObservedTarget;
use crate::client::other_targets::MakeTarget;
use crate::client::reconnect::Reconnect;
use crate::client::retry::budget::RetryBudget;
use crate::client::retry::{Retry, RetryConfig, retry};
use crate::client::rng::{Rng, SystemRng};
use crate::client::same_store::SameStore;
use crate::client::split::{Canary, Split};
use crate::client::subset::Subset;
use crate::client::telemetry::{ClientTelemetry, ClientTelemetryConfig, client_telemetry};
use crate::identity::credentials::{Credentials, WithCredentials, with_credentials};
use crate::monitor::Monitor;
use crate::monitor::observed::Observer;
use crate::monitor::statistics::CallTable;
use crate::policy::PolicyTable;
use crate::tls::ClientTls;
use crate::traffic::TrafficPolicy;

/// A client's configuration. [`ClientConfig::new`] has the defaults.
pub struct ClientConfig {
    /// The target service, for example `data`.
    pub target: &'static str,
    /// The addresses of its instances.
    pub addresses: Addresses,
    /// The policy of each method.
    pub policies: PolicyTable,
    /// The client's credentials.
    pub credentials: Credentials,
    /// Where events of calls go that got no response.
    pub events: Option<Arc<dyn EventSink>>,
    /// Observes the calls.
    pub monitor: Monitor,
    /// What the traffic policy changes of the calls.
    pub traffic: TrafficPolicy,
    /// Whether the target is a mesh service: only these get a call's order id and user id ([`crate::CallAttributes`]).
    pub is_mesh_service: bool,
    /// Connections to each instance.
    pub connections: usize,
    /// The number of instances to connect to, chosen at random (gRFC A68); all without.
    pub subset_size: Option<NonZeroUsize>,
    /// TLS; plaintext without.
    pub tls: Option<ClientTls>,
    /// Whether failed calls are retried where the policy allows it. Off for callers that need each error.
    pub retries: bool,
    /// The trace context headers that are sent.
    pub propagation: Propagation,
}

impl ClientConfig {
    /// With retries, one connection to each instance of the target, and the process's propagation; without credentials, events or TLS.
    pub fn new(target: &'static str, addresses: impl Into<Addresses>, policies: PolicyTable) -> Self {
        Self {
            target,
            addresses: addresses.into(),
            policies,
            credentials: Credentials::None,
            events: None,
            monitor: Monitor::new("client"),
            traffic: TrafficPolicy::none(),
            is_mesh_service: false,
            connections: 1,
            subset_size: None,
            tls: None,
            retries: true,
            propagation: Propagation::installed(),
        }
    }
}

/// A channel to one target, for generated clients (`XClient::new(channel)`). Clones share connections, which are closed
/// when the last clone is dropped.
#[derive(Clone)]
pub struct Channel {
    /// In snapshots while the channel exists.
    target: Arc<ObservedTarget>,
    stack: ClientTelemetry<ClientDeadline<InjectFaults<TrafficStack>>>,
}

/// Creates a channel. It connects when it is first used.
pub fn client(config: ClientConfig) -> Channel {
    let rng: Arc<dyn Rng> = Arc::new(SystemRng);
    let observer = Observer::new(config.monitor.clone(), Side::Client, config.target, CallTable::new(config.policies));
    let instances = Instances {
        credentials: config.credentials,
        connections: config.connections,
        subset_size: config.subset_size,
        tls: config.tls,
        retries: config.retries,
        monitor: config.monitor,
        rng: rng.clone(),
    };
    let connect = Arc::new(Tcp { tls: instances.tls.clone() });
    let (own, target) = instances.target(config.target, config.addresses.clone(), observer.clone(), connect);
    let telemetry = ClientTelemetryConfig {
        policies: config.policies,
        events: config.events,
        is_mesh_service: config.is_mesh_service,
        propagation: config.propagation,
        traffic: config.traffic.clone(),
        observer,
    };
    let shadows = instances.clone().make_shadows(config.policies);
    let canaries = instances.make_canaries(config.target, config.addresses);

    #[rustfmt::skip]
    let stack = ServiceBuilder::new()
        // Outermost: one CLIENT span over all attempts. Further in, retrying would look like several calls.
        .layer(client_telemetry(telemetry))
        // Outside of retry: all attempts together have the time of one call.
        .layer(client_deadline())
        // Inside the deadline, which a delay uses up; outside of retry: a fault is the call's result, and no instance's.
        .layer(inject_faults(config.target, rng.clone()))
        // Inside the faults: a call that is not sent is not mirrored; outside of retry: it is mirrored once.
        .layer(mirror(config.target, config.is_mesh_service, config.policies, config.traffic.clone(), rng.clone(), shadows))
        // Outside of retry: each target has its own instances, breakers and retry budget.
        .service(Split::new(config.target, own, config.traffic, rng, canaries));
    Channel { stack, target }
}

/// The stack of a service and of the traffic policy's other targets.
type TrafficStack = Mirror<Split<TargetStack>, TargetStack>;

/// The stack of one target's instances.
type TargetStack = Retry<WithCredentials<Balance>>;

/// How instances are called: the same for a service's own and for those of other targets.
#[derive(Clone)]
struct Instances {
    credentials: Credentials,
    connections: usize,
    subset_size: Option<NonZeroUsize>,
    tls: Option<ClientTls>,
    retries: bool,
    monitor: Monitor,
    rng: Arc<dyn Rng>,
}

impl Instances {
    /// The stack of a target, from retries to connections.
    fn target(
        &self,
        name: &'static str,
        addresses: Addresses,
        observer: Arc<Observer>,
        connect: Arc<dyn Connect>,
    ) -> (TargetStack, Arc<ObservedTarget>) {
        let (metrics, budget) = (Arc::new(ClientMetrics::new(name)), Arc::new(RetryBudget::new()));
        let endpoints = self.endpoints(name, addresses, metrics.clone(), connect);
        metrics.export_retry_budget(&budget);
        endpoints.export_load();
        let target = Arc::new(ObservedTarget {
            name,
            observer,
            endpoints: endpoints.clone(),
            metrics: metrics.clone(),
            budget: budget.clone(),
        });
        self.monitor.register(&target);
        let retrying = RetryConfig { is_on: self.retries, budget, rng: self.rng.clone(), metrics };

        #[rustfmt::skip]
        let stack = ServiceBuilder::new()
            // Outside of what is chosen for each attempt: credentials and instance.
            .layer(retry(retrying))
            // Inside retry: each attempt has the newest credentials.
            .layer(with_credentials(&self.credentials))
            // Innermost: it alone selects instances. Picks one by load, skipping open breakers; fails fast when none is
            // reachable.
            .service(Balance::new(endpoints));
        (stack, target)
    }

    fn endpoints(
        &self,
        name: &'static str,
        addresses: Addresses,
        metrics: Arc<ClientMetrics>,
        connect: Arc<dyn Connect>,
    ) -> Arc<Endpoints> {
        let reconnect = Reconnect { connect, rng: self.rng.clone(), changed: Arc::default(), failures: Arc::default() };
        let endpoints = EndpointConfig {
            connections: self.connections,
            subset: Subset::new(self.subset_size, &*self.rng),
            has_tls: self.tls.is_some(),
            created: Instant::now(),
            has_address_attributes: matches!(addresses, Addresses::Fixed(_)),
            rng: self.rng.clone(),
            metrics,
        };
        Arc::new(Endpoints::new(name, addresses, Arc::new(SystemResolver), endpoints, reconnect))
    }

    /// Makes the stacks of targets that get mirrored calls, each once.
    fn make_shadows(self, policies: PolicyTable) -> MakeTarget<Shadow<TargetStack>> {
        let instances = Self { retries: false, ..self };
        Box::new(move |name, addresses| {
            let name = interned(name);
            let calls = CallTable::new(policies);
            let observer = Observer::new(instances.monitor.clone(), Side::Client, name, calls);
            let connect = Arc::new(Tcp { tls: instances.tls.clone() });
            let (stack, target) = instances.target(name, addresses.clone(), observer.clone(), connect);
            Shadow::new(stack, observer, target)
        })
    }

    /// Makes the stacks of other targets of a service, whose instances share its store.
    fn make_canaries(self, service: &'static str, own: Addresses) -> MakeTarget<Canary<TargetStack>> {
        Box::new(move |name, addresses| {
            let name = interned(name);
            let observer = Observer::new(self.monitor.clone(), Side::Client, name, CallTable::new(PolicyTable(&[])));
            let connect = Arc::new(SameStore {
                service,
                target: name,
                own: own.clone(),
                resolve: Arc::new(SystemResolver),
                connect: Arc::new(Tcp { tls: self.tls.clone() }),
                credentials: self.credentials.headers(),
                has_tls: self.tls.is_some(),
                logged: Mutex::default(),
            });
            let (stack, target) = self.target(name, addresses.clone(), observer, connect);
            // In snapshots while the stack exists.
            let is_connected = move || {
                target.endpoints.start();
                target.endpoints.list().iter().any(|endpoint| endpoint.is_ready())
            };
            Canary::new(stack, is_connected, self.rng.clone())
        })
    }
}

/// The names of targets are labels, which live as long as the program; a traffic policy has few.
fn interned(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock();
    if let Some(known) = names.get(name) {
        return known;
    }
    let leaked: &'static str = name.to_owned().leak();
    names.insert(leaked);
    leaked
}

impl Service<Request> for Channel {
    type Response = Response;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.stack.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.stack.call(request)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("target", &self.target.name).finish_non_exhaustive()
    }
}
