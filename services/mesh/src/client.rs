//! The client's stack, on one page.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use telemetry::{EventSink, Propagation};
use tonic::Status;
use tower::{Service, ServiceBuilder};

use crate::balance::Balance;
use crate::budget::Budget;
use crate::chance::{Chance, SystemChance};
use crate::client_deadline::{ClientDeadline, client_deadline};
use crate::client_metrics::ClientMetrics;
use crate::client_telemetry::{ClientTelemetry, client_telemetry};
use crate::connect::Tcp;
use crate::credentials::{Credentials, WithCredentials, with_credentials};
use crate::discovery::{Addresses, SystemResolver};
use crate::endpoint::EndpointConfig;
use crate::fleet::Fleet;
use crate::keeper::Keeping;
use crate::policy::PolicyTable;
use crate::retry::{Retry, RetryConfig, retry};
use crate::tls::ClientTls;
use crate::wire::{Request, Response};

/// What a client is made of. [`ClientConfig::new`] has the defaults.
pub struct ClientConfig {
    /// Whom it calls, for example `data`.
    pub target: &'static str,
    /// Where its instances are.
    pub addresses: Addresses,
    /// What the mesh does for each method.
    pub policies: PolicyTable,
    /// What it shows of itself.
    pub credentials: Credentials,
    /// What becomes of calls that nobody answered.
    pub events: Option<Arc<dyn EventSink>>,
    /// Is the target a service of this platform? Then it learns which order and user a call is about ([`crate::About`]).
    pub is_platform: bool,
    /// Connections to each instance.
    pub connections: usize,
    /// TLS; without it, connections are plain.
    pub tls: Option<ClientTls>,
    /// Are calls that failed tried again where the contract allows it? Not for who wants to see each refusal.
    pub retries: bool,
    /// The headers of the trace context that are sent.
    pub propagation: Propagation,
}

impl ClientConfig {
    /// With retries, one connection to each instance, and the process's propagation; without credentials, events or TLS.
    pub fn new(target: &'static str, addresses: impl Into<Addresses>, policies: PolicyTable) -> Self {
        Self {
            target,
            addresses: addresses.into(),
            policies,
            credentials: Credentials::None,
            events: None,
            is_platform: false,
            connections: 1,
            tls: None,
            retries: true,
            propagation: Propagation::installed(),
        }
    }
}

/// The way to one target: what a generated client is made with (`XClient::new(channel)`). Clones share connections, which
/// end when the last clone is gone.
#[derive(Clone)]
pub struct Channel {
    target: &'static str,
    stack: ClientTelemetry<ClientDeadline<Retry<WithCredentials<Balance>>>>,
}

/// Makes the way to a target. Connects when it is first used.
pub fn client(config: ClientConfig) -> Channel {
    let (metrics, budget) = (Arc::new(ClientMetrics::new(config.target)), Arc::new(Budget::new()));
    let chance: Arc<dyn Chance> = Arc::new(SystemChance);
    let fleet = fleet(&config, chance.clone(), metrics.clone());
    metrics.observe(Arc::downgrade(&budget), Arc::downgrade(&fleet));
    let retrying = RetryConfig { policies: config.policies, is_on: config.retries, budget, chance, metrics };

    #[rustfmt::skip]
    let stack = ServiceBuilder::new()
        // Outermost: one CLIENT span over all attempts. Further in, retrying would look like several calls.
        .layer(client_telemetry(config.policies, config.events, config.is_platform, config.propagation))
        // Outside of retry: all attempts together have the time of one call.
        .layer(client_deadline(config.policies))
        // Outside of all that is chosen anew for each attempt: credentials and instance.
        .layer(retry(retrying))
        // Inside of retry: each attempt shows the newest credentials.
        .layer(with_credentials(&config.credentials))
        // Innermost: it alone knows instances. Picks one by load, past open breakers; fails fast when none can be reached.
        .service(Balance::new(fleet));
    Channel { target: config.target, stack }
}

fn fleet(config: &ClientConfig, chance: Arc<dyn Chance>, metrics: Arc<ClientMetrics>) -> Arc<Fleet> {
    let keeping = Keeping {
        connect: Arc::new(Tcp { tls: config.tls.clone() }),
        chance: chance.clone(),
        changed: Arc::default(),
        failures: Arc::default(),
    };
    let endpoints = EndpointConfig {
        connections: config.connections,
        has_tls: config.tls.is_some(),
        is_bounded: matches!(config.addresses, Addresses::Fixed(_)),
        chance,
        metrics,
    };
    Arc::new(Fleet::new(config.target, config.addresses.clone(), Arc::new(SystemResolver), endpoints, keeping))
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
        f.debug_struct("Channel").field("target", &self.target).finish_non_exhaustive()
    }
}
