//! The key that callers are counted by, for every limit.

use std::net::IpAddr;

use kernel::client_network;
use uuid::Uuid;

/// The key that calls are counted by.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum CallerKey {
    User(Uuid),
    Service(String),
    Address(IpAddr),
    /// All callers without an entry of their own.
    Others,
}

impl CallerKey {
    pub(crate) fn of_address(address: IpAddr) -> Self {
        Self::Address(client_network(address))
    }
}
