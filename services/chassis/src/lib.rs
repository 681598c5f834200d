//! The chassis that every service is mounted on: settings, start-up, the event sink and its relay, signing keys,
//! and what decoding needs. It knows the contracts and no service's domain.
//!
//! # Layout
//! - [`settings`]: what every service can be told
//! - [`start`]: from settings to a running server, and the drain back
//! - `health`: when it is ready
//! - [`audit`]: who changed what on request
//! - [`events`]: which ended operations become events (the table of the README), and the way into the outbox
//! - [`relay`]: from the outbox to the Data Service
//! - [`keys`]: the public keys that verify access tokens
//! - [`decode`]: from messages to values, all violations at once; `postal`: the form of a country's postal codes
//! - [`encode`]: from values to messages
//! - [`opaque`]: texts that a client keeps for the server; [`page`]: page tokens (AIP-158)
//! - [`fingerprint`]: is a repeated request the same command?

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

/// The kind of refusal that a database error is for the caller.
pub fn storage_kind(error: &storage::Error) -> mesh::Kind {
    if error.is_unavailable() { mesh::Kind::Unavailable } else { mesh::Kind::Internal }
}
