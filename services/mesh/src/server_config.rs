//! What a server is made of, and its limits' defaults.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use telemetry::{EventSink, Propagation};

use crate::gatekeeper::Gatekeeper;
use crate::policy::PolicyTable;
use crate::rate_limit::Quota;
use crate::tls::ServerTls;

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
    /// Encoded `FileDescriptorSet`s for reflection, of the services and what they depend on; google.rpc and grpc.health are
    /// added.
    pub descriptors: &'static [&'static [u8]],
    /// Is reflection served?
    pub reflection: bool,
    /// The services that the routes serve: what health reports besides "", reflection lists, and calls are let in for. None:
    /// all that the policies name.
    pub services: &'static [&'static str],
    /// Calls that are served at once, streams apart: one more is UNAVAILABLE at once.
    pub max_concurrency: usize,
    /// Answers that stream at once.
    pub max_streams: usize,
    /// Connections at once: one more is hung up on.
    pub max_connections: usize,
    /// Proxies that say in `x-forwarded-for` for whom they ask: what counts by address counts by that.
    pub trusted_proxies: Vec<IpNet>,
    /// How often one caller may call a method, by path (`/order.v1.OrderService/CreateOrder`); others have no quota.
    pub rate_limits: Vec<(&'static str, Quota)>,
    /// What all requests, at four times their bytes on the wire, and unsent answers together may hold in memory; `None`: a quarter of what the
    /// control group (or the machine) gives this process.
    pub memory_budget_bytes: Option<usize>,
    /// The longest message of a method whose policy does not say otherwise; a longer one is RESOURCE_EXHAUSTED, unread. tonic's services decode at most 4 MiB of their own accord.
    pub max_message_bytes: usize,
    /// Are clients' traces continued, instead of linked? For local runs.
    pub trust_client_trace_context: bool,
    /// The headers of the trace context that are read.
    pub propagation: Propagation,
    /// How long all is served as before after health says NOT_SERVING: until those who send calls here have noticed.
    pub drain_notice: Duration,
    /// How long open calls may go on after the GOAWAY.
    pub drain_timeout: Duration,
}

/// What callers send are commands and questions.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 64 * 1_024;
/// The longest answer: gRPC clients of every language refuse a longer one unless they are told otherwise.
pub const MAX_ANSWER_BYTES: usize = 4 * 1_024 * 1_024;
/// More than one core can work on, and what handlers that wait for a database take in.
pub const DEFAULT_MAX_CONCURRENCY: usize = 512;
/// Streams wait most of the time.
pub const DEFAULT_MAX_STREAMS: usize = 1_024;
/// Under the 1,024 files that a process commonly may open, with room for databases.
pub const DEFAULT_MAX_CONNECTIONS: usize = 900;

impl ServerConfig {
    /// A server with every limit at its default and the process's propagation, plain, and without events, reflection,
    /// quotas or notice.
    pub fn new(service: &'static str, policies: PolicyTable, gatekeeper: Gatekeeper) -> Self {
        Self {
            service,
            policies,
            gatekeeper,
            tls: None,
            events: None,
            descriptors: &[],
            reflection: true,
            services: &[],
            max_concurrency: DEFAULT_MAX_CONCURRENCY,
            max_streams: DEFAULT_MAX_STREAMS,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            trusted_proxies: vec![],
            rate_limits: vec![],
            memory_budget_bytes: None,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            trust_client_trace_context: false,
            propagation: Propagation::installed(),
            drain_notice: Duration::ZERO,
            drain_timeout: Duration::from_secs(10),
        }
    }
}
