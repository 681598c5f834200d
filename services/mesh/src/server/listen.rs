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
mod tests;
