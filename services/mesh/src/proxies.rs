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
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_last_untrusted_address_that_a_trusted_proxy_forwards() {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("a network"));
        let proxies = Proxies::new(networks.to_vec());
        let proxy: SocketAddr = "10.1.2.3:4000".parse().expect("an address");
        assert!(proxies.trusts(proxy.ip()) && proxies.trusts("::ffff:10.1.2.3".parse().expect("an address")));
        assert!(!proxies.trusts("192.0.2.1".parse().expect("an address")));
        #[rustfmt::skip]
        let table: [(&[&str], &str); 10] = [
            (&["192.0.2.1"],                           "192.0.2.1"),
            (&["192.0.2.1:555"],                       "192.0.2.1"),
            (&["::ffff:192.0.2.1"],                    "192.0.2.1"),
            (&["[2001:db8::1]:555"],                   "2001:db8::1"),
            (&["192.0.2.1, 10.9.9.9, fd00::7"],        "192.0.2.1"),
            // The part that the client itself has sent is ignored.
            (&["198.51.100.9, 192.0.2.1"],             "192.0.2.1"),
            (&["198.51.100.9", "192.0.2.1, 10.9.9.9"], "192.0.2.1"),
            (&["192.0.2.1, unknown, 10.9.9.9"],        "10.9.9.9"),
            (&["unknown"],                             "10.1.2.3"),
            (&[],                                      "10.1.2.3"),
        ];
        for (values, expected) in table {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(FORWARDED_FOR, value.parse().expect("a value"));
            }
            let caller = proxies.caller_behind(proxy, &headers);
            assert_eq!(caller.ip(), expected.parse::<IpAddr>().expect("an address"), "{values:?}");
        }
    }
}
