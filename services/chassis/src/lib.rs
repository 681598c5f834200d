//! The chassis that every service is built on: settings, start-up, the event sink and its relay, signing keys, and
//! helpers for decoding. It depends on the contracts and on no service's domain.
//!
//! # Layout
//! - [`settings`]: the settings common to all services
//! - [`start`]: start-up, from settings to a running server, and the drain
//! - [`archive`]: the task that moves what is final into an archive
//! - `health`: readiness and liveness
//! - [`admin`]: the handlers of mesh.v1.MeshAdminService
//! - [`audit`]: the actor of an audited change
//! - [`events`]: which completed operations become events (the table of the README), and their way into the outbox
//! - [`relay`]: from the outbox to the Data Service
//! - [`keys`]: the public keys that verify access tokens
//! - [`decode`]: from messages to values, with all violations; `postal`: the form of a country's postal codes
//! - [`to_proto`]: instants, durations and amounts as messages
//! - [`opaque`]: tokens that a client keeps for the server; [`page`]: page tokens (AIP-158)
//! - [`fingerprint`]: whether a repeated request is the same command

#![expect(missing_docs, reason = "no other project depends on this crate: names say what there is to say")]

use std::sync::OnceLock;
use std::time::Duration;

use kernel::error::chain;
use mesh::ErrorStatus;
use telemetry::LogLimit;
use tokio::time::Instant;
use tonic::Code;

pub mod admin;
pub mod archive;
pub mod audit;
pub mod decode;
pub mod events;
pub mod fingerprint;
mod health;
pub mod keys;
pub mod opaque;
pub mod page;
mod postal;
pub mod relay;
pub mod settings;
pub mod start;
pub mod to_proto;

pub use admin::DriverState;
pub use decode::{Decoded, Fields, Invalid};
pub use fingerprint::Fingerprint;
pub use opaque::{Opaque, OpaqueError};
pub use page::PageToken;
pub use settings::{
    ByteSize, DatabaseSettings, DatabaseUrl, Networks, OrderPeer, PaymentPeer, ServerSettings, Settings,
    TelemetrySettings, TlsSettings, TrafficSettings, UserPeer,
};
pub use start::{Chassis, Error, Served};

static VERSION: OnceLock<&'static str> = OnceLock::new();

/// Sets the version of the program, for snapshots: its commit, for example. The first one stays.
pub fn set_version(version: &'static str) {
    let _ = VERSION.set(version);
}

/// The program's version; this crate's if it has set none.
pub(crate) fn version() -> &'static str {
    VERSION.get().copied().unwrap_or(env!("CARGO_PKG_VERSION"))
}

/// When a caller may retry if the store is unavailable.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// A store's error as its service's caller sees it: `STORE_FAILED`, UNAVAILABLE if waiting may cure it and INTERNAL if
/// not. The cause of an unavailable store is logged here, at most once a second: the caller gets only its type. (The
/// mesh logs internal errors.)
pub fn store_failed(error: &storage::Error) -> ErrorStatus<'static> {
    if !error.is_unavailable() {
        return ErrorStatus::new(Code::Internal, "STORE_FAILED").caused_by(error.error_type());
    }
    static LOG_LIMIT: LogLimit = LogLimit::new();
    if let Some(occurrences) = LOG_LIMIT.count(Instant::now()) {
        tracing::warn!(target: "ordermesh", occurrences, chain = %chain(error), "the store is unavailable");
    }
    ErrorStatus::new(Code::Unavailable, "STORE_FAILED").caused_by(error.error_type()).retry_after(STORE_RETRY_AFTER)
}
