//! The server's stack, on one page.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use telemetry::EventSink;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;
use tower_http::catch_panic::CatchPanicLayer;

use crate::gatekeeper::Gatekeeper;
use crate::health::Health;
use crate::identity::identity;
use crate::memory::memory;
use crate::policy::PolicyTable;
use crate::rescue::rescue;
use crate::serve::Server;
use crate::server_deadline::server_deadline;
use crate::server_telemetry::{ServerTelemetryConfig, server_telemetry};
use crate::{panic, reflection};

/// What a server is made of.
pub struct ServerConfig {
    /// The service's name, for example `order`.
    pub service: &'static str,
    /// What the mesh does for each method.
    pub policies: PolicyTable,
    /// Who may pass.
    pub gatekeeper: Gatekeeper,
    /// What becomes of operations that nobody made an event of.
    pub events: Option<Arc<dyn EventSink>>,
    /// Encoded `FileDescriptorSet`s for reflection; google.rpc and grpc.health are added.
    pub descriptors: &'static [&'static [u8]],
    /// Names that grpc.health.v1 reports besides "".
    pub health_services: &'static [&'static str],
    /// What all requests together may hold in memory, at four times their bytes on the wire; `None`: no budget.
    pub memory_budget_bytes: Option<usize>,
    /// The longest message; a longer one is RESOURCE_EXHAUSTED, unread. tonic's services decode at most 4 MiB of their own accord.
    pub max_message_bytes: usize,
    /// Are clients' traces continued, instead of linked? For local runs.
    pub trust_client_trace_context: bool,
    /// How long open calls may go on after the GOAWAY.
    pub drain_timeout: Duration,
}

/// 4 MiB: tonic's own limit.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 4 * 1_024 * 1_024;

/// Puts the mesh around a service's routes, and adds health and reflection (which the routes must not have).
pub fn server(config: ServerConfig, routes: Routes) -> Server {
    let health = Health::new(config.health_services);
    let routes = reflection::add(routes.add_service(health.service()), config.descriptors).prepare();
    let telemetry = ServerTelemetryConfig {
        policies: config.policies,
        gatekeeper: config.gatekeeper.clone(),
        events: config.events,
        trust_client_trace_context: config.trust_client_trace_context,
    };

    #[rustfmt::skip]
    let stack = ServiceBuilder::new()
        // Outermost, or refusals would not be counted; and a span must outlive all that happens in it.
        .layer(server_telemetry(telemetry))
        // Outside of all that refuse, or their errors would leave without ErrorInfo; inside telemetry, which reads the status.
        .layer(rescue())
        // The time runs from arrival: further in, waiting for keys or permits would cost nothing.
        .layer(server_deadline(config.policies))
        // Outside of all code that may panic; inside the deadline, which drops it.
        .map_response(|response: Response<_>| response.map(Body::new))
        .layer(CatchPanicLayer::custom(panic::answer))
        // Before anything is given out: strangers take no permits and reserve no memory.
        .layer(identity(config.gatekeeper.clone()))
        // [rate limit per caller: next issue. Here it knows the caller, and what it refuses takes no permit.]
        // [concurrency: next issue. Permits before memory: what waits for nothing holds nothing.]
        // Innermost, or requests that are refused further in would hold memory while they are.
        .layer(memory(config.memory_budget_bytes, config.max_message_bytes))
        .service(routes);

    tracing::debug!(target: "ordermesh", service = config.service, methods = config.policies.0.len(), "the stack is built");
    Server {
        stack: BoxCloneSyncService::new(stack),
        health,
        tokens: config.gatekeeper.tokens(),
        drain_timeout: config.drain_timeout,
    }
}
