//! The server's stack, on one page.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use telemetry::EventSink;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;
use tower_http::catch_panic::CatchPanicLayer;

use crate::concurrency::{Admission, concurrency};
use crate::connections::Connections;
use crate::gatekeeper::Gatekeeper;
use crate::gauges::{self, Holdings};
use crate::health::Health;
use crate::identity::identity;
use crate::memory::{Budget, memory};
use crate::memory_limit::default_budget_bytes;
use crate::metadata::metadata;
use crate::policy::PolicyTable;
use crate::rate_limit::{Quota, rate_limit};
use crate::refusals::Refusals;
use crate::rescue::rescue;
use crate::serve::Server;
use crate::server_deadline::server_deadline;
use crate::server_telemetry::{ServerTelemetryConfig, server_telemetry};
use crate::stream_end::stream_end;
use crate::tls::ServerTls;
use crate::{panic, reflection};

/// What a server is made of. Begin with [`ServerConfig::new`], and change what is different.
pub struct ServerConfig {
    /// The service's name, for example `order`.
    pub service: &'static str,
    /// What the mesh does for each method.
    pub policies: PolicyTable,
    /// Who may pass.
    pub gatekeeper: Gatekeeper,
    /// TLS; plain without.
    pub tls: Option<ServerTls>,
    /// What becomes of operations that nobody made an event of.
    pub events: Option<Arc<dyn EventSink>>,
    /// Encoded `FileDescriptorSet`s for reflection; google.rpc and grpc.health are added.
    pub descriptors: &'static [&'static [u8]],
    /// Names that grpc.health.v1 reports besides "".
    pub health_services: &'static [&'static str],
    /// Calls that are served at once, streams apart: one more is UNAVAILABLE at once.
    pub max_concurrency: usize,
    /// Answers that stream at once.
    pub max_streams: usize,
    /// Connections at once: one more is hung up on.
    pub max_connections: usize,
    /// How often one caller may call a method, by path (`/order.v1.OrderService/CreateOrder`); others have no quota.
    pub rate_limits: Vec<(&'static str, Quota)>,
    /// What all requests together may hold in memory, at four times their bytes on the wire; `None`: a quarter of what the
    /// control group (or the machine) gives this process.
    pub memory_budget_bytes: Option<usize>,
    /// The longest message; a longer one is RESOURCE_EXHAUSTED, unread. tonic's services decode at most 4 MiB of their own accord.
    pub max_message_bytes: usize,
    /// Are clients' traces continued, instead of linked? For local runs.
    pub trust_client_trace_context: bool,
    /// How long all is served as before after health says NOT_SERVING: until those who send calls here have noticed.
    pub drain_notice: Duration,
    /// How long open calls may go on after the GOAWAY.
    pub drain_timeout: Duration,
}

/// 4 MiB: tonic's own limit.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 4 * 1_024 * 1_024;
/// More than one core can work on, and what handlers that wait for a database take in.
pub const DEFAULT_MAX_CONCURRENCY: usize = 512;
/// Streams wait most of the time.
pub const DEFAULT_MAX_STREAMS: usize = 1_024;
/// Under the 1,024 files that a process commonly may open, with room for databases.
pub const DEFAULT_MAX_CONNECTIONS: usize = 900;

impl ServerConfig {
    /// A server with every limit at its default, plain, and without events, reflection, quotas or notice.
    pub fn new(service: &'static str, policies: PolicyTable, gatekeeper: Gatekeeper) -> Self {
        Self {
            service,
            policies,
            gatekeeper,
            tls: None,
            events: None,
            descriptors: &[],
            health_services: &[],
            max_concurrency: DEFAULT_MAX_CONCURRENCY,
            max_streams: DEFAULT_MAX_STREAMS,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            rate_limits: vec![],
            memory_budget_bytes: None,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            trust_client_trace_context: false,
            drain_notice: Duration::ZERO,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Streams that their service does not end are ended so long after the GOAWAY (at most a quarter of the drain's timeout).
const STREAM_GRACE: Duration = Duration::from_secs(1);

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
    let (policies, goaway) = (config.policies, CancellationToken::new());
    let refusals = Arc::new(Refusals::new(config.service));
    let holdings = Arc::new(Holdings {
        service: config.service,
        admission: Admission::new(config.max_concurrency, config.max_streams),
        budget: Arc::new(Budget::new(config.memory_budget_bytes.unwrap_or_else(default_budget_bytes))),
        connections: Arc::new(Connections::new(config.max_connections, config.tls, refusals.clone())),
    });
    gauges::show(&holdings);

    #[rustfmt::skip]
    let stack = ServiceBuilder::new()
        // Outermost, or refusals would not be counted; and a span must outlive all that happens in it.
        .layer(server_telemetry(telemetry))
        // Outside of all that refuse, or their errors would leave without ErrorInfo; inside telemetry, which reads the status.
        .layer(rescue())
        // Before anything reads the metadata with care: what is too much is refused at the cost of adding it up.
        .layer(metadata(refusals.clone()))
        // The time runs from arrival: further in, waiting for keys or permits would cost nothing.
        .layer(server_deadline(policies, refusals.clone()))
        // Outside of all code that may panic; inside the deadline, which drops it.
        .map_response(|response: Response<_>| response.map(Body::new))
        .layer(CatchPanicLayer::custom(panic::answer))
        // Before anything is given out: strangers take no permits and reserve no memory.
        .layer(identity(config.gatekeeper.clone(), refusals.clone()))
        // Inside identity, for it counts per caller; outside of the permits: who is over his quota takes none.
        .layer(rate_limit(&config.rate_limits, refusals.clone()))
        // Permits before memory: what waits for nothing holds nothing. The permit is held to the end of the body.
        .layer(concurrency(policies, holdings.admission.clone(), refusals.clone()))
        // Inside the permits, which it sets free: a stream without an end must not hold up the server's.
        .layer(stream_end(policies, goaway.clone(), STREAM_GRACE.min(config.drain_timeout / 4)))
        // Innermost, or requests that are refused further in would hold memory while they are.
        .layer(memory(holdings.budget.clone(), config.max_message_bytes, refusals))
        .service(routes);

    tracing::debug!(target: "ordermesh", service = config.service, methods = policies.0.len(), "the stack is built");
    Server {
        stack: BoxCloneSyncService::new(stack),
        health,
        tokens: config.gatekeeper.tokens(),
        takes_secret: config.gatekeeper.takes_secret(),
        holdings,
        goaway,
        drain_notice: config.drain_notice,
        drain_timeout: config.drain_timeout,
    }
}
