//! The service mesh as tower layers: one server stack, one client stack. Knows nothing of orders.
//!
//! Start reading at [`server()`] and [`client()`]: each is one page, outermost layer first, and the only place where servers and channels are made.
//!
//! # Layout
//! - [`policy`]: what the mesh does for each method, a table that the contract's build makes
//! - `server`, `server_config`, `serve`, `connections`: the server's stack; what it is made of; the accept loop and the drain; one connection
//! - `portions`, `calls`, `edge`, `not_grpc`, `resets`: what a connection reads; its calls; what it keeps of each; what is not gRPC; what was cancelled
//! - `client`: the client's stack
//! - `retry`, `budget`, `replay`, `attempts`: another attempt; when it may be; its bytes; its span
//! - `balance`, `fleet`, `load`, `breaker`: an attempt on one instance; the choice among all; what it goes by
//! - `discovery`, `endpoint`, `keeper`, `connect`: where instances are; one instance; its connections
//! - `chance`, `client_metrics`: randomness as an argument; what a client measures besides its calls
//! - `record`, `metrics`, `server_telemetry`, `client_telemetry`: a span, an event slot and metrics per call
//! - `rescue`, `panic`: every error leaves as a status with ErrorInfo
//! - `deadline`, `server_deadline`, `client_deadline`: deadlines that travel
//! - `identity`, `gatekeeper`, `token`, `secret`, `credentials`, `caller`: who calls, and may he
//! - [`tls`], `tls_verify`, `spiffe`: who is at the other end of a connection
//! - `rate_limit`, `message`, `concurrency`, `memory`, `memory_limit`, `metadata`: what is admitted; `holding`: and for how long
//! - `shares`, `places`: what each caller may have of it; who gives way when there is no more
//! - `stalled`, `stream_end`: answers that nobody takes, and answers that never end
//! - `refusals`, `gauges`: what was turned away, and what is held
//! - `health`, `reflection`, `admin`: for those who look after servers
//! - `status`: a service's refusal as a gRPC status
//! - `wire`: the shape of a call in the stacks

mod admin;
mod admitted;
mod attempts;
mod balance;
mod breaker;
mod budget;
mod caller;
mod calls;
mod chance;
mod client;
mod client_deadline;
mod client_metrics;
mod client_telemetry;
mod concurrency;
mod connect;
mod connections;
mod credentials;
mod deadline;
mod discovery;
mod edge;
mod endpoint;
mod field_limits;
mod fleet;
mod gatekeeper;
mod gauges;
mod health;
mod holding;
mod identity;
mod incoming;
mod keeper;
mod lingering;
mod listen;
mod load;
mod memory;
mod memory_budget;
mod memory_limit;
mod message;
mod metadata;
mod metrics;
mod not_grpc;
mod panic;
mod places;
pub mod policy;
mod portions;
mod proxies;
mod rate_limit;
mod record;
mod reflection;
mod refusals;
mod replay;
mod rescue;
mod resets;
mod retry;
mod secret;
mod serve;
mod server;
mod server_config;
mod server_deadline;
mod server_telemetry;
mod shares;
mod spiffe;
mod stalled;
mod status;
mod stream_end;
pub mod tls;
mod tls_client;
mod tls_verify;
mod token;
mod wire;

pub use admin::serve_admin;
pub use caller::{ATTEMPT, About, Caller, Role, Untraced, caller, operation, peer, untraced};
pub use client::{Channel, ClientConfig, client};
pub use credentials::Credentials;
pub use deadline::time_left;
pub use discovery::{Addresses, AddressesError};
pub use gatekeeper::Gatekeeper;
pub use listen::listen;
pub use memory_limit::budget_of;
pub use policy::{Access, FieldLimit, Idempotency, MethodPolicy, PolicyTable};
pub use rate_limit::{Quota, network};
pub use refusals::Seldom;
pub use secret::Secret;
pub use serve::Server;
pub use server::server;
pub use server_config::{
    DEFAULT_MAX_CONCURRENCY, DEFAULT_MAX_CONNECTIONS, DEFAULT_MAX_MESSAGE_BYTES, DEFAULT_MAX_STREAMS, MAX_ANSWER_BYTES,
    ServerConfig,
};
pub use status::{Kind, Refusal, Violation, error_class, status};
pub use token::{KeySource, VerifyingKey};
