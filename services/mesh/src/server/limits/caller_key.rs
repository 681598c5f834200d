//! The key that callers are counted by, for every limit.

use std::net::IpAddr;

use uuid::Uuid;

/// The key that calls are counted by.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Key {
    User(Uuid),
    Service(String),
    Peer(IpAddr),
    /// All callers without an entry of their own.
    Others,
}

impl Key {
    pub(crate) fn of_address(address: IpAddr) -> Self {
        Self::Peer(network(address))
    }
}

/// The address's rate-limit key: itself, or its /64 for IPv6, which belongs to one subscriber.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests;
