//! The client's TLS: over a proxy that ends it, before a server that knows none.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh::{ClientConfig, ClientTls, client};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, RootCertStore};

use crate::echo::{POLICIES, SAY};
use crate::world::{World, reason, say};

/// Ends TLS for a server; its certificate is for `echo.test`.
async fn proxy(to: SocketAddr) -> (String, CertificateDer<'static>) {
    let own = rcgen::generate_simple_self_signed(vec!["echo.test".to_owned()]).expect("a certificate");
    let certificate = own.cert.der().clone();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let mut config = config.with_single_cert(vec![certificate.clone()], key).expect("they fit");
    // Who does not ask for HTTP/2 is refused.
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut outside) = acceptor.accept(stream).await else { return };
                assert_eq!(outside.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                let mut inside = TcpStream::connect(to).await.expect("connects");
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    (address, certificate)
}

fn tls(trusted: &CertificateDer<'static>, name: &'static str) -> ClientTls {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    ClientTls::new(Arc::new(config), ServerName::try_from(name).expect("a name"))
}

#[tokio::test]
async fn a_client_with_tls_believes_the_right_certificate_for_the_right_name_and_no_other() {
    let world = World::new().await;
    let (address, certificate) = proxy(world.address).await;
    let stranger = rcgen::generate_simple_self_signed(vec!["echo.test".to_owned()]).expect("a certificate");
    let channel = |tls: ClientTls| {
        let config = ClientConfig::new("test", vec![address.clone()], POLICIES);
        client(ClientConfig { tls: Some(tls), ..config })
    };
    let answer = say(&channel(tls(&certificate, "echo.test")), SAY, "hello").await;
    assert_eq!(answer.expect("answered"), "hello");
    for wrong in [tls(&certificate, "other.test"), tls(stranger.cert.der(), "echo.test")] {
        let status = say(&channel(wrong), SAY, "hello").await.expect_err("not believed");
        assert_eq!(reason(&status), "UNREACHABLE");
        assert!(status.message().contains("TLS: "), "{}", status.message());
    }
    assert_eq!(world.begun(), 1);
}
