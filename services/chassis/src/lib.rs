//! The chassis that every service is built on: settings, start-up, the event sink and its relay, signing keys, and
//! helpers for decoding. It depends on the contracts and on no service's domain.
//!
//! # Layout
//! - [`settings`]: the settings common to all services
//! - [`start`]: start-up, from settings to a running server, and the drain
//! - `health`: readiness and liveness
//! - [`audit`]: the actor of an audited change
//! - [`events`]: which completed operations become events (the table of the README), and their way into the outbox
//! - [`relay`]: from the outbox to the Data Service
//! - [`keys`]: the public keys that verify access tokens
//! - [`decode`]: from messages to values, with all violations; `postal`: the form of a country's postal codes
//! - [`encode`]: from values to messages
//! - [`opaque`]: tokens that a client keeps for the server; [`page`]: page tokens (AIP-158)
//! - [`fingerprint`]: whether a repeated request is the same command

pub mod audit;
pub mod decode;
pub mod encode;
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

pub use decode::{Decoded, Fields, Invalid};
pub use fingerprint::Fingerprint;
pub use opaque::{Opaque, OpaqueError};
pub use page::PageToken;
pub use settings::{
    ByteSize, DatabaseSettings, DatabaseUrl, Networks, OrderPeer, PaymentPeer, Settings, TlsSettings, UserPeer,
};
pub use start::{Chassis, Error, Served, open_database};

/// The kind of error that a database error is for the caller.
pub fn storage_kind(error: &storage::Error) -> mesh::Kind {
    if error.is_unavailable() { mesh::Kind::Unavailable } else { mesh::Kind::Internal }
}
