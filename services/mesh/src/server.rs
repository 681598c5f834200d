//! The server's stack, on one page.

pub(crate) mod call_state;
pub(crate) mod chunked_read;
pub(crate) mod config;
pub(crate) mod connection;
pub(crate) mod connection_service;
pub(crate) mod layer;
pub(crate) mod layers;
pub(crate) mod limits;
pub(crate) mod lingering_close;
pub(crate) mod listen;
pub(crate) mod memory_limit;
pub(crate) mod not_grpc;
pub(crate) mod proxies;
pub(crate) mod rejections;
pub(crate) mod serve;
pub(crate) mod write_timeout;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceBuilder;

use crate::call::wire::Side;
use crate::monitor::observed::Observer;
use crate::monitor::statistics::CallTable;
use crate::ops::health::Health;
use crate::ops::limit_metrics::{self, ServerLimits};
use crate::ops::observed_server::ObservedServer;
use crate::ops::reflection;
use crate::server::config::ServerConfig;
use crate::server::connection::{Connections, MakeStack};
use crate::server::layer::Boxed;
use crate::server::layers::auth::auth;
use crate::server::layers::concurrency::{Admission, concurrency};
use crate::server::layers::deadline::server_deadline;
use crate::server::layers::error_details::error_details;
use crate::server::layers::memory::memory;
use crate::server::layers::metadata::metadata;
use crate::server::layers::panic::catch_panic;
use crate::server::layers::rate_limit::rate_limit;
use crate::server::layers::stream_drain::stream_drain;
use crate::server::layers::telemetry::{ServerTelemetryConfig, server_telemetry};
use crate::server::limits::resets::Resets;
use crate::server::limits::shares::Shares;
use crate::server::limits::usage::Resource;
use crate::server::memory_limit::default_budget_bytes;
use crate::server::proxies::Proxies;
use crate::server::rejections::Rejections;
use crate::server::serve::Server;

/// Streams that their service does not end are ended this long after the GOAWAY (at most a quarter of the drain
/// timeout).
const STREAM_GRACE: Duration = Duration::from_secs(1);

/// Wraps a service's routes in the mesh, and adds health and reflection (which the routes must not contain).
pub fn server(config: ServerConfig, routes: Routes) -> Server {
    let services = if config.services.is_empty() { config.policies.services() } else { config.services };
    let policies = config.policies.of(&services);
    let authorizer = config.authorizer.serving(policies);
    let routes = if config.reflection { reflection::add(routes, config.descriptors, &services) } else { routes };
    let health = Health::new(services);
    let routes = routes.add_service(health.service()).prepare();
    let rejections = Arc::new(Rejections::new(config.service));
    let observer = Observer::new(config.monitor.clone(), Side::Server, config.service, CallTable::new(policies));
    let telemetry = ServerTelemetryConfig {
        authorizer: authorizer.clone(),
        events: config.events,
        trust_client_trace_context: config.trust_client_trace_context,
        propagation: config.propagation,
        rejections: rejections.clone(),
        store_id: config.store_id.and_then(|id| HeaderValue::try_from(id).ok()),
        observer: observer.clone(),
    };
    let (goaway, resets) = (CancellationToken::new(), Arc::new(Resets::new()));
    let limits = Arc::new(ServerLimits {
        service: config.service,
        admission: Admission::new(config.max_concurrency, config.max_streams),
        budget: Shares::new(Resource::Memory, config.memory_budget_bytes.unwrap_or_else(default_budget_bytes), 0),
        connections: Arc::new(Connections::new(
            config.max_connections,
            config.tls,
            Proxies::new(config.trusted_proxies),
            resets.clone(),
            rejections.clone(),
        )),
    });
    limit_metrics::export(&limits);
    let observed = Arc::new(ObservedServer {
        observer,
        health: health.clone(),
        limits: limits.clone(),
        rejections: rejections.clone(),
    });
    config.monitor.register(&observed);

    #[rustfmt::skip]
    let stack = ServiceBuilder::new()
        // Outermost, so that rejections are counted, and the other layers read its classification of the call; and a span
        // must outlive all that happens in it.
        .layer(server_telemetry(telemetry))
        // Outside of all layers that reject, or their errors would lack ErrorInfo; inside telemetry, which reads the
        // status.
        .layer(error_details())
        // Before any layer reads the metadata: too much is rejected at the cost of adding up its size.
        .layer(metadata(rejections.clone()))
        // The timeout runs from arrival: further in, fetching token keys and receiving the body would not count.
        .layer(server_deadline(rejections.clone()))
        // Outside of all code that may panic; inside the deadline, which drops it.
        .layer(catch_panic())
        // Before any resource is taken: an unauthenticated call to a protected method takes no permit and no memory.
        .layer(auth(authorizer.clone(), config.traffic, rejections.clone()))
        // Inside identity, because it counts per caller; outside of the permits: a caller over its quota takes none.
        .layer(rate_limit(policies, &config.rate_limits, resets, rejections.clone()))
        // Outside of the permits: the request's memory is reserved as it arrives, and the permit is taken when it is complete. A
        // call that waits for the rest of its request, or for its caller to read its response, holds only memory.
        .layer(memory(policies, limits.budget.clone(), config.max_message_bytes, rejections.clone()))
        // A permit while the handler works; a slot for as long as a stream lasts.
        .layer(concurrency(limits.admission.clone(), rejections))
        // Inside the permits, which its end releases: an endless stream must not delay the server's shutdown.
        .layer(stream_drain(authorizer.tokens(), goaway.clone(), STREAM_GRACE.min(config.drain_timeout / 4)))
        .service(Boxed(routes));

    tracing::debug!(target: "ordermesh", service = config.service, methods = policies.0.len(), "server stack built");
    Server {
        make_stack: MakeStack::new(stack),
        health,
        tokens: authorizer.tokens(),
        accepts_secret: authorizer.accepts_secret(),
        limits,
        _observed: observed,
        goaway,
        pre_drain_delay: config.pre_drain_delay,
        drain_timeout: config.drain_timeout,
    }
}
