//! Listening sockets. `[::]` stands for every address of both families, whatever the kernel's `bindv6only` says; where the
//! kernel has no IPv6 it stands for `0.0.0.0`. So one setting is right on IPv4, dual-stack and IPv6-only clusters.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// The same as in tokio's listeners.
const BACKLOG: i32 = 1_024;

/// Listens on an address.
///
/// # Errors
/// The address is in use, does not belong to this machine, or may not be bound.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        return listen_on_all(address.port(), both_families).await;
    }
    TcpListener::bind(address).await
}

async fn listen_on_all(port: u16, open: impl Fn(u16) -> io::Result<Option<TcpListener>>) -> io::Result<TcpListener> {
    if let Some(listener) = open(port)? {
        return Ok(listener);
    }
    tracing::warn!(target: "ordermesh", port, "this machine has no IPv6: listening on 0.0.0.0 instead of [::]");
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
}

/// `None` where the kernel has no IPv6 (EAFNOSUPPORT, or EADDRNOTAVAIL where it is switched off).
fn both_families(port: u16) -> io::Result<Option<TcpListener>> {
    let Ok(socket) = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)) else { return Ok(None) };
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    match socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => return Ok(None),
        bound => bound?,
    }
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into()).map(Some)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn the_ipv6_wildcard_serves_both_families() {
        let listener = listen("[::]:0".parse().expect("an address")).await.expect("it listens");
        let address = listener.local_addr().expect("it has one");
        TcpStream::connect(("127.0.0.1", address.port())).await.expect("by IPv4");
        let (_, peer) = listener.accept().await.expect("accepted");
        assert_eq!(peer.ip().to_canonical(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        if address.is_ipv6() {
            TcpStream::connect(("::1", address.port())).await.expect("by IPv6");
            listener.accept().await.expect("accepted");
        }
    }

    #[tokio::test]
    async fn without_ipv6_it_listens_on_ipv4_and_a_port_in_use_is_an_error() {
        let listener = listen_on_all(0, |_| Ok(None)).await.expect("it listens");
        assert_eq!(listener.local_addr().expect("it has one").ip(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let taken = listener.local_addr().expect("it has one").port();
        let error = listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, taken))).await.expect_err("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn any_other_address_is_bound_unchanged() {
        let listener = listen("127.0.0.1:0".parse().expect("an address")).await.expect("it listens");
        assert_eq!(listener.local_addr().expect("it has one").ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
}
