//! A server's configuration, and the defaults of its limits.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use telemetry::{EventSink, Propagation};

use crate::identity::authorizer::Authorizer;
use crate::monitor::Monitor;
use crate::policy::PolicyTable;
use crate::server::limits::quota::Quota;
use crate::tls::ServerTls;
use crate::traffic::TrafficPolicy;

/// A server's configuration. Start with [`ServerConfig::new`], and change what differs.
pub struct ServerConfig {
    /// The service's name, for example `order`.
    pub service: &'static str,
    /// The policy of each method.
    pub policies: PolicyTable,
    /// Authentication and authorization.
    pub authorizer: Authorizer,
    /// TLS; plaintext without.
    pub tls: Option<ServerTls>,
    /// The sink for events of operations whose event slot was not claimed.
    pub events: Option<Arc<dyn EventSink>>,
    /// Observes the calls that are served.
    pub monitor: Monitor,
    /// The traffic policy: calls that its audited callers would not admit are counted here.
    pub traffic: TrafficPolicy,
    /// The id of the store that all instances of the service share: sent to mesh services in the response of a health
    /// check; they split calls only between instances of one store.
    pub store_id: Option<String>,
    /// Encoded `FileDescriptorSet`s for reflection, of the services and what they depend on; those of google.rpc and
    /// grpc.health are added.
    pub descriptors: &'static [&'static [u8]],
    /// Whether reflection is served.
    pub reflection: bool,
    /// The services that the routes serve: health reports them besides "", reflection lists them, and methods of others
    /// are UNIMPLEMENTED. Empty: all that the policies name.
    pub services: Vec<&'static str>,
    /// Concurrent unary calls, one sixteenth of them reserved for mesh services. Without a free permit a call is rejected with
    /// UNAVAILABLE; over its caller's fair share, with RESOURCE_EXHAUSTED.
    pub max_concurrency: usize,
    /// Concurrent streams.
    pub max_streams: usize,
    /// Concurrent connections; beyond this, a new one evicts the idlest connection of the client that has most, and is closed
    /// if none may be evicted.
    pub max_connections: usize,
    /// Trusted proxies: from these, the client address is taken from `x-forwarded-for`.
    pub trusted_proxies: Vec<IpNet>,
    /// Quotas per caller, by method path (`/order.v1.OrderService/CreateOrder`); other methods have none.
    pub rate_limits: Vec<(&'static str, Quota)>,
    /// The memory budget for requests (charged at four times their bytes on the wire) and unsent responses (at twice their
    /// size), in bytes; `None`: a
    /// quarter of what the control group (or the machine) allows this process.
    pub memory_budget_bytes: Option<usize>,
    /// The longest message, in bytes, of a method whose policy does not set a limit; a longer one is rejected unread
    /// with RESOURCE_EXHAUSTED. tonic's services themselves decode at most 4 MiB.
    pub max_message_bytes: usize,
    /// Whether clients' traces are continued instead of linked. For local runs.
    pub trust_client_trace_context: bool,
    /// The propagators of inbound calls (`OTEL_PROPAGATORS`).
    pub propagation: Propagation,
    /// How long serving continues after health reports NOT_SERVING, so that load balancers and clients remove the instance
    /// first.
    pub pre_drain_delay: Duration,
    /// How long unary calls may continue after the GOAWAY; streams are ended after a second at most.
    pub drain_timeout: Duration,
}

/// The default maximum of a request: commands and queries are small.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 64 * 1_024;
/// The longest response: gRPC clients of every language reject a longer one by default.
pub const MAX_RESPONSE_BYTES: usize = 4 * 1_024 * 1_024;
/// More calls than the cores execute at a time, because most handlers await a database.
pub const DEFAULT_MAX_CONCURRENCY: usize = 512;
/// Streams are idle most of the time.
pub const DEFAULT_MAX_STREAMS: usize = 1_024;
/// Below the 1,024 files that a process may commonly open, with room for databases.
pub const DEFAULT_MAX_CONNECTIONS: usize = 900;

impl ServerConfig {
    /// A server with every limit at its default and the process's propagation; plaintext, without events, quotas or
    /// pre-drain delay.
    pub fn new(service: &'static str, policies: PolicyTable, authorizer: Authorizer) -> Self {
        Self {
            service,
            policies,
            authorizer,
            tls: None,
            events: None,
            monitor: Monitor::new(service),
            traffic: TrafficPolicy::none(),
            store_id: None,
            descriptors: &[],
            reflection: true,
            services: vec![],
            max_concurrency: DEFAULT_MAX_CONCURRENCY,
            max_streams: DEFAULT_MAX_STREAMS,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            trusted_proxies: vec![],
            rate_limits: vec![],
            memory_budget_bytes: None,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            trust_client_trace_context: false,
            propagation: Propagation::installed(),
            pre_drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(10),
        }
    }
}
