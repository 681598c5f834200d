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
