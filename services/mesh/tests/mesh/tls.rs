//! Mutual TLS: the peer's identity, and invalid certificates.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use certs::{CertificateAuthority, Issued, Names, Validity};
use http_body_util::Full;
use kernel::{Clock, SystemClock, Timestamp};
use mesh::tls::{ClientTls, Files, Identity, Trust};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::deadlines::raw;
use crate::echo::{SAY, SERVICE};
use crate::observed::observed;
use crate::world::{MESH_SECRET, World, WorldOptions, reason};

/// The connection lives as long as its sender.
type Connection =
    (h2::client::SendRequest<Bytes>, h2::client::Connection<tokio_rustls::client::TlsStream<TcpStream>, Bytes>);

const DOMAIN: &str = "test.local";
const DAY: Duration = Duration::from_secs(86_400);

fn today() -> Validity {
    Validity::from(SystemClock.now(), DAY)
}

/// A directory with the files of identities, and the CA that signs them.
struct Platform {
    directory: TempDir,
    ca: CertificateAuthority,
}

impl Platform {
    fn new() -> Self {
        let ca = CertificateAuthority::new(DOMAIN, today()).expect("a CA");
        Self { directory: tempfile::tempdir().expect("a directory"), ca }
    }

    fn files(&self, name: &str) -> Files {
        let path = |kind: &str| -> PathBuf { self.directory.path().join(format!("{name}.{kind}")) };
        Files { certificate: path("crt"), key: path("key"), roots: path("roots") }
    }

    fn write(&self, name: &str, issued: &Issued, roots: &str) -> Files {
        let files = self.files(name);
        std::fs::write(&files.certificate, &issued.certificate_pem).expect("written");
        std::fs::write(&files.key, &issued.key_pem).expect("written");
        std::fs::write(&files.roots, roots).expect("written");
        files
    }

    fn issue(&self, names: &Names, validity: Validity) -> Issued {
        self.ca.issue(names, validity).expect("issued")
    }

    fn roots(&self) -> rustls::RootCertStore {
        let mut roots = rustls::RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.ca.certificate_pem().as_bytes()).expect("a root");
        roots.add(root).expect("added");
        roots
    }

    /// A service's identity, as the platform issues it.
    fn identity(&self, service: &str) -> Identity {
        self.named(service, &Names::of_service(DOMAIN, service))
    }

    fn named(&self, file: &str, names: &Names) -> Identity {
        let issued = self.issue(names, today());
        load(self.write(file, &issued, self.ca.certificate_pem())).expect("loaded")
    }

    async fn server(&self, service: &str) -> World {
        let tls = self.identity(service).server();
        World::altered(WorldOptions::default(), |config| config.tls = Some(tls)).await
    }
}

fn pair(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).expect("a certificate");
    (vec![certificate], PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("a key"))
}

fn load(files: Files) -> Result<Identity, mesh::tls::Error> {
    Identity::load(files, DOMAIN, Arc::new(SystemClock))
}

fn request(path: &str, text: &str) -> http::Request<Full<Bytes>> {
    raw::unary(path, text, &[])
}

async fn tcp(world: &World) -> TcpStream {
    TcpStream::connect(world.address).await.expect("connects")
}

async fn send(world: &World, tls: &ClientTls, request: http::Request<Full<Bytes>>) -> Result<Status, io::Error> {
    Ok(raw::send_over(tls.connect(tcp(world).await).await?, request).await)
}

async fn connect_with(world: &World, platform: &Platform, issued: &Issued) -> io::Result<Connection> {
    let (chain, key) = pair(issued);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_root_certificates(platform.roots())
        .with_client_auth_cert(chain, key)
        .expect("a pair");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = "order".try_into().expect("a name");
    let stream = connector.connect(name, tcp(world).await).await?;
    h2::client::handshake(stream).await.map_err(io::Error::other)
}

/// The handshake from the client's side, with a certificate that our own [`Identity`] would not load: the first read
/// reveals whether the server accepted it.
async fn shown(world: &World, platform: &Platform, issued: &Issued) -> io::Result<()> {
    let (_sender, mut connection) = connect_with(world, platform, issued).await?;
    let mut pings = connection.ping_pong().expect("the first");
    let connection = tokio::spawn(connection);
    let answered = pings.ping(h2::Ping::opaque()).await.map(drop).map_err(io::Error::other);
    connection.abort();
    answered
}

#[tokio::test]
async fn a_service_is_identified_by_its_certificate_and_the_policy_table_decides() {
    let platform = Platform::new();
    let world = platform.server("order").await;
    let order = platform.identity("order").client("order");
    let response = send(&world, &order, request(SERVICE, "hello")).await.expect("connected");
    assert_eq!(response.code(), Code::Ok, "order is in the method's callers");
    let payment = platform.identity("payment").client("order");
    let response = send(&world, &payment, request(SERVICE, "hello")).await.expect("connected");
    assert_eq!((response.code(), reason(&response).as_str()), (Code::PermissionDenied, "CALLER_NOT_ALLOWED"));
    // A certificate takes precedence over headers.
    let posing = raw::unary(SERVICE, "hello", &[("x-ordermesh-secret", MESH_SECRET), ("x-ordermesh-service", "order")]);
    let response = send(&world, &payment, posing).await.expect("connected");
    assert_eq!(reason(&response), "CALLER_NOT_ALLOWED");
}

#[tokio::test]
async fn a_user_needs_no_certificate() {
    let platform = Platform::new();
    let world = platform.server("order").await;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(platform.roots())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = "localhost".try_into().expect("a name");
    let connect = async || connector.connect(rustls::pki_types::ServerName::clone(&name), tcp(&world).await).await;
    let response = raw::send_over(connect().await.expect("shaken"), request(SAY, "hello")).await;
    assert_eq!(response.code(), Code::Ok);
    let response = raw::send_over(connect().await.expect("shaken"), request(SERVICE, "hello")).await;
    assert_eq!(response.code(), Code::Unauthenticated, "not a service");
}

#[tokio::test]
async fn an_invalid_client_certificate_is_rejected_and_the_next_client_is_served() {
    observed();
    let platform = Platform::new();
    let tls = platform.identity("order").server();
    let world = World::altered(WorldOptions::default(), |config| {
        (config.service, config.tls) = ("bad-certificates", Some(tls));
    })
    .await;
    let ours = Names::of_service(DOMAIN, "order");
    let long_ago = Validity::from(Timestamp::from_micros(1_500_000_000_000_000), DAY);
    let to_come = Validity { begins: SystemClock.now().plus(DAY), ends: SystemClock.now().plus(2 * DAY) };
    let uris = |uris: &[&str]| Names { uris: uris.iter().map(|uri| (*uri).to_owned()).collect(), ..ours.clone() };
    let other = CertificateAuthority::new(DOMAIN, today()).expect("another CA of the same name");
    #[rustfmt::skip]
    let table = [
        ("a good one",          platform.issue(&ours, today()), true),
        ("expired",             platform.issue(&ours, long_ago), false),
        ("not valid yet",       platform.issue(&ours, to_come), false),
        ("another CA's",        other.issue(&ours, today()).expect("issued"), false),
        ("no SPIFFE URI",       platform.issue(&uris(&[]), today()), false),
        ("two of them",         platform.issue(&uris(&["spiffe://test.local/service/order", "spiffe://test.local/service/data"]), today()), false),
        ("another domain's",    platform.issue(&uris(&["spiffe://else.local/service/order"]), today()), false),
        ("no service's",        platform.issue(&uris(&["spiffe://test.local/person/order"]), today()), false),
    ];
    for (what, issued, is_taken) in table {
        let response = shown(&world, &platform, &issued).await;
        assert_eq!(response.is_ok(), is_taken, "{what}: {response:?}");
    }
    let failed = |cause: &str| {
        let facts = ["mesh.service=bad-certificates", &format!("cause={cause}")];
        observed().value("mesh.server.tls.handshakes.failed", &facts)
    };
    let causes = ["expired", "not_yet_valid", "unknown_issuer", "spiffe_name"].map(failed);
    assert_eq!(causes, [1, 1, 1, 4]);
    let refusals = ["mesh.service=bad-certificates", "cause=tls"];
    assert_eq!(observed().value("mesh.server.refusals", &refusals), 7);
    let good = platform.identity("order").client("order");
    assert_eq!(send(&world, &good, request(SAY, "hello")).await.expect("connected").code(), Code::Ok);
}

#[tokio::test]
async fn a_client_rejects_a_server_that_is_not_its_target() {
    let platform = Platform::new();
    let world = platform.server("order").await;
    let us = platform.identity("payment");
    send(&world, &us.client("order"), request(SAY, "hello")).await.expect("control: it is order");
    let rejected =
        async |tls: ClientTls| send(&world, &tls, request(SAY, "hello")).await.expect_err("rejected").to_string();
    // `localhost` is in the certificate: only the SPIFFE name is wrong.
    let wrong_service = rejected(us.client("data").with_dns_name("localhost")).await;
    assert!(wrong_service.contains("OtherService"), "{wrong_service}");
    let wrong_name = rejected(us.client("order").with_dns_name("data")).await;
    assert!(wrong_name.contains("not valid for name"), "{wrong_name}");
    let anonymous = Platform::new().identity("payment");
    let wrong_root = rejected(anonymous.client("order")).await;
    // A CA of the same name with another key.
    assert!(wrong_root.contains("BadSignature"), "{wrong_root}");
}

#[tokio::test]
async fn a_client_without_a_certificate_still_verifies_the_target() {
    let platform = Platform::new();
    let world = platform.server("order").await;
    let trusting = |platform: &Platform| {
        let roots = platform.files("order").roots;
        platform.identity("order");
        Trust::load(roots, DOMAIN, Arc::new(SystemClock)).expect("roots")
    };
    let person = trusting(&platform);
    send(&world, &person.client("order"), request(SAY, "hello")).await.expect("a public method");
    let rejected =
        async |tls: ClientTls| send(&world, &tls, request(SAY, "hello")).await.expect_err("rejected").to_string();
    let wrong_service = rejected(person.client("data").with_dns_name("localhost")).await;
    assert!(wrong_service.contains("OtherService"), "{wrong_service}");
    let wrong_root = rejected(trusting(&Platform::new()).client("order")).await;
    assert!(wrong_root.contains("BadSignature"), "{wrong_root}");
}

/// A server that our own [`Identity`] would not make: with this certificate, whatever it contains.
async fn served_with(issued: &Issued) -> std::net::SocketAddr {
    let (chain, key) = pair(issued);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _refused_by_the_client = acceptor.accept(stream).await;
        }
    });
    address
}

#[tokio::test]
async fn a_client_rejects_a_server_without_a_platform_name() {
    let platform = Platform::new();
    let us = platform.identity("payment").client("order");
    let ours = Names::of_service(DOMAIN, "order");
    let two = [ours.uris.clone(), vec!["spiffe://test.local/service/data".to_owned()]].concat();
    let connect = async |names: &Names, validity: Validity| {
        let address = served_with(&platform.issue(names, validity)).await;
        let stream = TcpStream::connect(address).await.expect("connects");
        us.connect(stream).await.map(drop).map_err(|error| error.to_string())
    };
    connect(&ours, today()).await.expect("control: a valid one");
    let long_ago = Validity::from(Timestamp::from_micros(1_500_000_000_000_000), DAY);
    #[rustfmt::skip]
    let table = [
        (Names { uris: vec![], ..ours.clone() }, today(),  "Missing"),
        (Names { uris: two, ..ours.clone() },    today(),  "Several"),
        (ours.clone(),                           long_ago, "expired"),
    ];
    for (names, validity, why) in table {
        let error = connect(&names, validity).await.expect_err("rejected");
        assert!(error.contains(why), "expected {why}: {error}");
    }
    // Plaintext is not TLS.
    let plain = World::new().await;
    us.connect(tcp(&plain).await).await.expect_err("no TLS");
}

#[test]
fn an_identity_that_peers_would_reject_is_not_loaded() {
    let platform = Platform::new();
    let root = platform.ca.certificate_pem();
    let ours = Names::of_service(DOMAIN, "order");
    let good = platform.issue(&ours, today());
    let error = |files: Files| format!("{:?}", load(files).expect_err("rejected"));
    assert!(error(platform.files("nowhere")).contains("NotFound"));
    let expired = Validity::from(Timestamp::from_micros(1_500_000_000_000_000), DAY);
    let files = platform.write("expired", &platform.issue(&ours, expired), root);
    assert!(load(files.clone()).expect_err("rejected").to_string().contains("compare the clocks"));
    assert!(error(files).contains("Expired"));
    let other = CertificateAuthority::new(DOMAIN, today()).expect("another");
    assert!(error(platform.write("other", &good, other.certificate_pem())).contains("BadSignature"));
    let mixed = Issued { key_pem: platform.issue(&ours, today()).key_pem, ..good.clone() };
    assert!(error(platform.write("mixed", &mixed, root)).contains("InconsistentKeys"));
    assert!(error(platform.write("rootless", &good, "")).contains("Empty"));
    let keyless = Issued { key_pem: "no key".into(), ..good };
    assert!(error(platform.write("keyless", &keyless, root)).contains("Empty"));
}

#[tokio::test]
async fn certificate_key_and_roots_are_renewed_together_and_the_old_ones_are_kept_on_error() {
    let mut platform = Platform::new();
    let server = platform.identity("order");
    let world = World::altered(WorldOptions::default(), |config| config.tls = Some(server.server())).await;
    let shutdown = tokio_util::sync::CancellationToken::new();
    tokio::spawn(server.clone().follow(Duration::from_millis(1), shutdown.clone()));
    let old = platform.identity("payment").client("order");
    send(&world, &old, request(SAY, "hello")).await.expect("the old root");

    // A new CA, and only some of its files: the key does not match.
    platform.ca = CertificateAuthority::new(DOMAIN, today()).expect("a new CA");
    let renewed = platform.issue(&Names::of_service(DOMAIN, "order"), today());
    let files = platform.files("order");
    std::fs::write(&files.certificate, &renewed.certificate_pem).expect("written");
    for _ in 0..5 {
        send(&world, &old, request(SAY, "hello")).await.expect("the old ones are kept");
    }
    // And now the rest.
    platform.write("order", &renewed, platform.ca.certificate_pem());
    let new = platform.identity("payment").client("order");
    // Waits for the reload, however long it takes.
    let taken = async { while send(&world, &new, request(SAY, "hello")).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), taken).await.expect("the new ones are loaded");
    assert!(DAY - server.expires_in() < Duration::from_secs(60), "{:?}", server.expires_in());
    let error = send(&world, &old, request(SAY, "hello")).await.expect_err("the old root is replaced").to_string();
    assert!(error.contains("BadSignature"), "{error}");
    shutdown.cancel();
}

#[tokio::test]
async fn the_mesh_secret_is_accepted_on_loopback_only() {
    use mesh::{Authorizer, ServerConfig, SharedSecret, server};
    let policies = crate::echo::POLICIES;
    let serve = async |authorizer: Authorizer| {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.expect("a port");
        let config = ServerConfig::new("test", policies, authorizer);
        let server = server(config, tonic::service::Routes::new(crate::echo::Echo::new(None)));
        let shutdown = tokio_util::sync::CancellationToken::new();
        shutdown.cancel();
        server.serve(listener, tokio::sync::watch::channel(true).1, shutdown).await
    };
    let secret = Authorizer::new(policies).with_mesh_secret(SharedSecret::new(MESH_SECRET));
    assert_eq!(serve(secret).await.expect_err("rejected").kind(), io::ErrorKind::InvalidInput);
    serve(Authorizer::new(policies)).await.expect("control: without a secret");
}

#[tokio::test]
async fn a_connection_ends_when_its_peers_certificate_expires() {
    observed();
    let platform = Platform::new();
    let tls = platform.identity("order").server();
    let world =
        World::altered(WorldOptions::default(), |config| (config.service, config.tls) = ("expiring", Some(tls))).await;
    let names = Names::of_service(DOMAIN, "data");
    let soon = platform.issue(&names, Validity::from(SystemClock.now(), Duration::from_secs(2)));
    let (_sender, connection) = connect_with(&world, &platform, &soon).await.expect("still valid");
    let (_other, later) = connect_with(&world, &platform, &platform.issue(&names, today())).await.expect("valid");
    let later = tokio::spawn(later);
    let ended = tokio::time::timeout(Duration::from_secs(60), connection).await.expect("closed");
    assert!(ended.is_ok() || ended.is_err_and(|error| error.is_go_away() || error.is_io()), "GOAWAY");
    assert!(!later.is_finished(), "the other's certificate is valid");
    assert_eq!(crate::misbehaving::refusals("expiring", "expired"), 1);
}
