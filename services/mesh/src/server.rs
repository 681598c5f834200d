//! The server's stack, on one page.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceBuilder;

use crate::concurrency::{Admission, concurrency};
use crate::connections::Connections;
use crate::gauges::{self, Holdings};
use crate::health::Health;
use crate::identity::identity;
use crate::memory::memory;
use crate::memory_limit::default_budget_bytes;
use crate::metadata::metadata;
use crate::panic::catch_panic;
use crate::proxies::Proxies;
use crate::rate_limit::rate_limit;
use crate::reflection;
use crate::refusals::Refusals;
use crate::rescue::rescue;
use crate::resets::Resets;
use crate::serve::{Server, Stack};
use crate::server_config::ServerConfig;
use crate::server_deadline::server_deadline;
use crate::server_telemetry::{ServerTelemetryConfig, server_telemetry};
use crate::shares::Shares;
use crate::stream_end::stream_end;

/// Streams that their service does not end are ended this long after the GOAWAY (at most a quarter of the drain
/// timeout).
const STREAM_GRACE: Duration = Duration::from_secs(1);

/// Wraps a service's routes in the mesh, and adds health and reflection (which the routes must not contain).
pub fn server(config: ServerConfig, routes: Routes) -> Server {
    let services = if config.services.is_empty() { config.policies.services() } else { config.services.to_vec() };
    let policies = config.policies.of(&services);
    let gatekeeper = config.gatekeeper.serving(policies);
    let routes = if config.reflection { reflection::add(routes, config.descriptors, &services) } else { routes };
    let health = Health::new(services);
    let routes = routes.add_service(health.service()).prepare();
    let refusals = Arc::new(Refusals::new(config.service));
    let telemetry = ServerTelemetryConfig {
        policies,
        gatekeeper: gatekeeper.clone(),
        events: config.events,
        trust_client_trace_context: config.trust_client_trace_context,
        propagation: config.propagation,
        refusals: refusals.clone(),
    };
    let (goaway, resets) = (CancellationToken::new(), Arc::new(Resets::new()));
    let holdings = Arc::new(Holdings {
        service: config.service,
        admission: Admission::new(config.max_concurrency, config.max_streams),
        budget: Shares::new(config.memory_budget_bytes.unwrap_or_else(default_budget_bytes), 0),
        connections: Arc::new(Connections::new(
            config.max_connections,
            config.tls,
            Proxies::new(config.trusted_proxies),
            resets.clone(),
            refusals.clone(),
        )),
    });
    gauges::show(&holdings);

    #[rustfmt::skip]
    let stack = ServiceBuilder::new()
        // Outermost, so that rejections are counted; and a span must outlive all that happens in it.
        .layer(server_telemetry(telemetry))
        // Outside of all layers that reject, or their errors would lack ErrorInfo; inside telemetry, which reads the
        // status.
        .layer(rescue())
        // Before any layer reads the metadata: too much is rejected at the cost of adding up its size.
        .layer(metadata(refusals.clone()))
        // The timeout runs from arrival: further in, waiting for keys or permits would not count.
        .layer(server_deadline(policies, refusals.clone()))
        // Outside of all code that may panic; inside the deadline, which drops it.
        .layer(catch_panic())
        // Before any resource is taken: anonymous clients take no permits and no memory.
        .layer(identity(gatekeeper.clone(), refusals.clone()))
        // Inside identity, because it counts per caller; outside of the permits: a caller over its quota takes none.
        .layer(rate_limit(policies, &config.rate_limits, resets, refusals.clone()))
        // Outside of the permits: the request is charged as it arrives, and the permit is taken when it is complete. A
        // call that waits for the rest of its request, or for its caller to read its response, holds only memory.
        .layer(memory(policies, holdings.budget.clone(), config.max_message_bytes, refusals.clone()))
        // A permit while the handler works; a slot for as long as a stream lasts.
        .layer(concurrency(policies, holdings.admission.clone(), refusals))
        // Inside the permits, which its end releases: an endless stream must not delay the server's shutdown.
        .layer(stream_end(policies, gatekeeper.tokens(), goaway.clone(), STREAM_GRACE.min(config.drain_timeout / 4)))
        .service(routes);

    tracing::debug!(target: "ordermesh", service = config.service, methods = policies.0.len(), "server stack built");
    Server {
        stack: Stack::new(stack),
        health,
        tokens: gatekeeper.tokens(),
        takes_secret: gatekeeper.takes_secret(),
        holdings,
        goaway,
        drain_notice: config.drain_notice,
        drain_timeout: config.drain_timeout,
    }
}
