//! The service mesh as tower layers: one server stack, one client stack. Knows nothing of orders.
//!
//! Start reading at [`server()`] and [`client()`]: each is one page, outermost layer first, and the only place where servers and channels are made.
//!
//! # Layout
//! - [`policy`]: what the mesh does for each method, a table that the contract's build makes
//! - `server`, `serve`: the server's stack; the accept loop and the drain
//! - `client`: the client's stack
//! - `retry`, `budget`, `replay`, `attempts`: another attempt; when it may be; its bytes; its span
//! - `balance`, `fleet`, `load`, `breaker`: an attempt on one instance; the choice among all; what it goes by
//! - `discovery`, `endpoint`, `keeper`, `connect`, `client_tls`: where instances are; one instance; its connections
//! - `chance`, `client_metrics`: randomness as an argument; what a client measures besides its calls
//! - `record`, `metrics`, `server_telemetry`, `client_telemetry`: a span, an event slot and metrics per call
//! - `rescue`, `panic`: every error leaves as a status with ErrorInfo
//! - `deadline`, `server_deadline`, `client_deadline`: deadlines that travel
//! - `identity`, `gatekeeper`, `token`, `secret`, `credentials`, `caller`: who calls, and may he
//! - `memory`: admission by bytes
//! - `health`, `reflection`, `admin`: for those who look after servers
//! - `status`: a service's refusal as a gRPC status
//! - `wire`: the shape of a call in the stacks

mod admin;
mod attempts;
mod balance;
mod breaker;
mod budget;
mod caller;
mod chance;
mod client;
mod client_deadline;
mod client_metrics;
mod client_telemetry;
mod client_tls;
mod connect;
mod credentials;
mod deadline;
mod discovery;
mod endpoint;
mod fleet;
mod gatekeeper;
mod health;
mod identity;
mod keeper;
mod load;
mod memory;
mod metrics;
mod panic;
pub mod policy;
mod record;
mod reflection;
mod replay;
mod rescue;
mod retry;
mod secret;
mod serve;
mod server;
mod server_deadline;
mod server_telemetry;
mod status;
mod token;
mod wire;

pub use admin::serve_admin;
pub use caller::{About, Caller, Role, Untraced, caller, operation, peer, untraced};
pub use client::{Channel, ClientConfig, client};
pub use client_tls::ClientTls;
pub use credentials::Credentials;
pub use deadline::time_left;
pub use discovery::Addresses;
pub use gatekeeper::Gatekeeper;
pub use policy::{Access, Idempotency, MethodPolicy, PolicyTable};
pub use secret::Secret;
pub use serve::Server;
pub use server::{DEFAULT_MAX_MESSAGE_BYTES, ServerConfig, server};
pub use status::{Kind, Refusal, Violation, error_class, status};
pub use token::{KeySource, VerifyingKey};
