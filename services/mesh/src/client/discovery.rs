//! The addresses of a target's instances: a fixed list, or the result of periodic DNS look-ups (a headless Service).

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Cluster DNS usually lets resolvers cache an answer for five seconds: with this, a new instance is used within ten.
const INTERVAL: Duration = Duration::from_secs(3);
/// A resolver that hangs is treated like one that fails.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// The addresses of a target's instances.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Addresses {
    /// `host:port` of each instance.
    Fixed(Vec<String>),
    /// The addresses of a name, looked up every three seconds. While that fails, or is empty, the old ones are kept.
    Dns {
        /// The name, for example of a headless Service.
        host: String,
        /// The port of all instances.
        port: u16,
    },
}

impl From<Vec<String>> for Addresses {
    fn from(addresses: Vec<String>) -> Self {
        Self::Fixed(addresses)
    }
}

/// The text is not a list of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not addresses; examples are 127.0.0.1:7201,127.0.0.1:7202 and dns:///order.shop.svc.cluster.local:7000")]
pub struct AddressesError;

/// `HOST:PORT,…`, or a name that is looked up periodically: `dns:///HOST:PORT` (gRPC's name syntax).
impl FromStr for Addresses {
    type Err = AddressesError;

    fn from_str(text: &str) -> Result<Self, AddressesError> {
        // An authority between the slashes would name a DNS server: the system's is used.
        if let Some(name) = text.strip_prefix("dns:///") {
            let (host, port) = address(name).ok_or(AddressesError)?;
            // A resolver expects no brackets.
            return Ok(Self::Dns { host: host.trim_matches(['[', ']']).to_owned(), port });
        }
        let addresses: Vec<_> = text.split(',').map(|each| each.trim().to_owned()).collect();
        if addresses.iter().all(|each| address(each).is_some()) {
            Ok(Self::Fixed(addresses))
        } else {
            Err(AddressesError)
        }
    }
}

fn address(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let is_name = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    };
    let is_ipv6 = |host: &str| {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
    };
    let has_digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|port| *port > 0 && has_digits)?;
    (is_name(host) || is_ipv6(host)).then_some((host, port))
}

/// In the syntax that is parsed.
impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(addresses) => f.write_str(&addresses.join(",")),
            Self::Dns { host, port } if host.contains(':') => write!(f, "dns:///[{host}]:{port}"),
            Self::Dns { host, port } => write!(f, "dns:///{host}:{port}"),
        }
    }
}

/// Resolves names.
pub(crate) trait Resolve: Send + Sync + 'static {
    fn lookup(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// The system's resolver.
pub(crate) struct SystemResolver;

impl Resolve for SystemResolver {
    fn lookup(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }
}

/// In a dual-stack cluster a name has two addresses for each pod, which would count as two instances. So only one family
/// is used: the larger one, so that no pod is left out; IPv4, which every listener serves, if they are equal.
fn one_family(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (ipv4, ipv6): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.ip().to_canonical().is_ipv4());
    if ipv6.len() > ipv4.len() { ipv6 } else { ipv4 }
}

/// Takes the results of look-ups.
pub(crate) trait AddressSink: Send + Sync + 'static {
    /// The current addresses, `host:port` each.
    fn replace(&self, addresses: Vec<String>);
    /// Why the last look-up has failed: the old addresses are kept.
    fn lookup_failed(&self, why: String);
}

/// Looks a name up periodically, until the sink is dropped.
pub(crate) async fn follow(
    sink: Weak<impl AddressSink>,
    closed: CancellationToken,
    resolve: Arc<dyn Resolve>,
    host: String,
    port: u16,
) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let looking_up = async {
        loop {
            ticks.tick().await;
            let found = tokio::time::timeout(LOOKUP_TIMEOUT, resolve.lookup(host.clone(), port)).await;
            let Some(sink) = sink.upgrade() else { return };
            let failure = match found {
                Ok(Ok(addresses)) if !addresses.is_empty() => {
                    sink.replace(one_family(addresses).iter().map(SocketAddr::to_string).collect());
                    continue;
                }
                Ok(Ok(_)) => "no addresses".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_elapsed) => "no response".to_owned(),
            };
            tracing::debug!(target: "ordermesh", %host, failure, "look-up failed: the old addresses are kept");
            sink.lookup_failed(format!("looking up {host}: {failure}"));
        }
    };
    closed.run_until_cancelled(looking_up).await;
}

#[cfg(test)]
mod tests;
