//! The five services of a system, and their addresses.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::LazyLock;

/// The difference between a service's port and its admin port.
const ADMIN_OFFSET: u16 = 1_000;
/// Maximum number of instances of one service: their ports are consecutive.
pub(crate) const MAX_INSTANCES: u16 = 32;
/// Maximum port base, so that the last admin port is valid.
pub(crate) const MAX_PORT_BASE: u16 = 63_000;

/// Where the systems of this machine listen.
static LOOPBACK: LazyLock<IpAddr> = LazyLock::new(|| loopback(|ip| TcpListener::bind((ip, 0)).map(drop)));

/// 127.0.0.1, or ::1 on a machine without IPv4.
fn loopback(bind: impl Fn(IpAddr) -> io::Result<()>) -> IpAddr {
    let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    if bind(v4).is_err() && bind(v6).is_ok() { v6 } else { v4 }
}

/// A service that the program runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Service {
    User,
    Order,
    Payment,
    /// Catalogue and trace events.
    Data,
    /// The mock of the external payment gateway; one instance.
    Gateway,
}

impl Service {
    pub(crate) const ALL: [Self; 5] = [Self::User, Self::Order, Self::Payment, Self::Data, Self::Gateway];

    /// Its subcommand, and its name in traces.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Order => "order",
            Self::Payment => "payment",
            Self::Data => "data",
            Self::Gateway => "gateway",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.name() == name)
    }

    /// The number of instances in a system with `instances_per_service` instances of each service.
    pub(crate) const fn instances(self, instances_per_service: u16) -> u16 {
        match self {
            Self::User | Self::Order | Self::Payment | Self::Data => instances_per_service,
            Self::Gateway => 1,
        }
    }

    /// The port of an instance, from 1.
    pub(crate) const fn port(self, port_base: u16, instance: u16) -> u16 {
        let offset = match self {
            Self::User => 100,
            Self::Order => 200,
            Self::Payment => 300,
            Self::Data => 400,
            Self::Gateway => 500,
        };
        port_base.saturating_add(offset).saturating_add(instance)
    }

    /// The address of an instance.
    pub(crate) fn address(self, port_base: u16, instance: u16) -> SocketAddr {
        (*LOOPBACK, self.port(port_base, instance)).into()
    }

    /// The address of an instance's plain HTTP health endpoints.
    pub(crate) fn admin_address(self, port_base: u16, instance: u16) -> SocketAddr {
        (*LOOPBACK, self.port(port_base, instance).saturating_add(ADMIN_OFFSET)).into()
    }

    /// The addresses of all instances.
    pub(crate) fn addresses(self, port_base: u16, instances_per_service: u16) -> Vec<String> {
        (1..=self.instances(instances_per_service))
            .map(|instance| self.address(port_base, instance).to_string())
            .collect()
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_consecutive_from_each_services_offset() {
        let ports = |service: Service| service.addresses(7000, 2);
        assert_eq!(ports(Service::User), ["127.0.0.1:7101", "127.0.0.1:7102"]);
        assert_eq!(ports(Service::Order), ["127.0.0.1:7201", "127.0.0.1:7202"]);
        assert_eq!(ports(Service::Payment), ["127.0.0.1:7301", "127.0.0.1:7302"]);
        assert_eq!(ports(Service::Data), ["127.0.0.1:7401", "127.0.0.1:7402"]);
        assert_eq!(ports(Service::Gateway), ["127.0.0.1:7501"]);
        assert_eq!(Service::Order.admin_address(7000, 2).port(), 8202);
    }

    #[test]
    fn a_machine_without_ipv4_uses_the_loopback_address_of_ipv6() {
        let unavailable = || Err(io::ErrorKind::AddrNotAvailable.into());
        let of =
            |v4, v6| loopback(|ip| if (ip.is_ipv4() && v4) || (ip.is_ipv6() && v6) { Ok(()) } else { unavailable() });
        let (v4, v6): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        assert_eq!(of(false, true), v6);
        assert_eq!([of(true, true), of(true, false), of(false, false)], [v4, v4, v4]);
    }

    #[test]
    fn no_two_instances_share_a_port() {
        let mut ports = Vec::new();
        for service in Service::ALL {
            for instance in 1..=service.instances(MAX_INSTANCES) {
                ports.push(service.address(MAX_PORT_BASE, instance).port());
                ports.push(service.admin_address(MAX_PORT_BASE, instance).port());
            }
        }
        let count = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), count);
    }
}
