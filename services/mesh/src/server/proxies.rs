//! Callers behind a proxy: to the server, all of them have the proxy's address. A trusted proxy names the client's
//! address in `x-forwarded-for`; from any other peer that header is ignored.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The networks of trusted proxies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxies(Arc<[IpNet]>);

impl Proxies {
    pub(crate) fn new(networks: Vec<IpNet>) -> Self {
        Self(networks.into())
    }

    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The client's address for a call that arrives from `proxy`, which is trusted. Each proxy appends the address it
    /// got the call from: so this is the last one that is not a trusted proxy. An invalid entry ends the search, and the
    /// last valid one is used.
    pub(crate) fn caller_behind(&self, proxy: SocketAddr, headers: &HeaderMap) -> SocketAddr {
        let mut caller = proxy;
        for value in headers.get_all(FORWARDED_FOR).into_iter().rev() {
            for hop in value.to_str().unwrap_or_default().rsplit(',') {
                let Some(address) = address_in(hop.trim()) else { return caller };
                caller = SocketAddr::new(address, 0);
                if !self.trusts(address) {
                    return caller;
                }
            }
        }
        caller
    }
}

/// Parses an address with or without a port.
fn address_in(hop: &str) -> Option<IpAddr> {
    let address = hop.parse().ok().or_else(|| hop.parse().ok().map(|with_port: SocketAddr| with_port.ip()))?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests;
