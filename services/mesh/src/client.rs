//! The client's stack, on one page.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use telemetry::EventSink;
use tonic::Status;
use tower::{Service, ServiceBuilder};

use crate::client_deadline::{ClientDeadline, client_deadline};
use crate::client_telemetry::{ClientTelemetry, client_telemetry};
use crate::credentials::{Credentials, WithCredentials, with_credentials};
use crate::failover::Failover;
use crate::policy::PolicyTable;
use crate::wire::{Request, Response};

/// What a client is made of.
pub struct ClientConfig {
    /// Whom it calls, for example `data`.
    pub target: &'static str,
    /// Where: `host:port` of each instance.
    pub addresses: Vec<String>,
    /// What the mesh does for each method.
    pub policies: PolicyTable,
    /// What it shows of itself.
    pub credentials: Credentials,
    /// What becomes of calls that nobody answered.
    pub events: Option<Arc<dyn EventSink>>,
}

/// The way to one target: what a generated client is made with (`XClient::new(channel)`). Clones share connections.
#[derive(Clone)]
pub struct Channel {
    target: &'static str,
    stack: ClientTelemetry<ClientDeadline<WithCredentials<Failover>>>,
}

/// Makes the way to a target. Connects when it is first used.
pub fn client(config: ClientConfig) -> Channel {
    #[rustfmt::skip]
    let stack = ServiceBuilder::new()
        // Outermost: one CLIENT span over all attempts. Further in, failing over would look like several calls.
        .layer(client_telemetry(config.policies, config.events))
        // Outside of retry and failover: all attempts together have the time of one call.
        .layer(client_deadline(config.policies))
        // [retry with a budget: next issue. Per attempt: a span, a traceparent, a re-stamped grpc-timeout.]
        // Inside of retry: each attempt shows the newest credentials.
        .layer(with_credentials(&config.credentials))
        // [fail fast, load balance, breaker: next issue; they replace the failover.]
        // Innermost: it alone knows addresses.
        .service(Failover::new(config.target, config.addresses));
    Channel { target: config.target, stack }
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
