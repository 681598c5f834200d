//! `https://`: a private CA, the system's roots, and mutual TLS.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use certs::{CertificateAuthority, Names, Validity};
use kernel::{Clock, SystemClock};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use crate::collector::{Collector, attribute, emit_telemetry, flush, providers};

/// A CA, a server's certificate and a client's, as files.
struct World {
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let validity = Validity::from(SystemClock.now(), Duration::from_secs(86_400));
        for ca in ["ours", "other"] {
            let root_ca = CertificateAuthority::new("test.local", validity).expect("a CA");
            let write = |name: &str, text: &str| {
                std::fs::write(folder.path().join(format!("{ca}-{name}")), text).expect("writable");
            };
            write("ca.pem", root_ca.certificate_pem());
            for service in ["collector", "order"] {
                let issued = root_ca.issue(&Names::of_service("test.local", service), validity).expect("issued");
                write(&format!("{service}.pem"), &issued.certificate_pem);
                write(&format!("{service}.key"), &issued.key_pem);
            }
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    async fn collector(&self, wants_certificates: bool) -> Collector {
        let pem = |name: &str| std::fs::read(self.path(name)).expect("readable");
        let certificates = |name: &str| CertificateDer::pem_slice_iter(&pem(name)).collect::<Result<Vec<_>, _>>();
        let key = PrivateKeyDer::from_pem_slice(&pem("ours-collector.key")).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.expect("versions");
        let builder = if wants_certificates {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates("ours-ca.pem").expect("roots"));
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        } else {
            builder.with_no_client_auth()
        };
        let chain = certificates("ours-collector.pem").expect("a certificate");
        let mut config = builder.with_single_cert(chain, key).expect("a server");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Collector::start(Some(TlsAcceptor::from(Arc::new(config)))).await
    }
}

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
const CLIENT_CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE";
const CLIENT_KEY: &str = "OTEL_EXPORTER_OTLP_CLIENT_KEY";

fn variables(collector: &Collector, protocol: &str, more: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    let endpoint = (ENDPOINT, format!("https://localhost:{}", collector.address.port()));
    let of_all = [
        endpoint,
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "3000".to_owned()),
    ];
    of_all.into_iter().chain(more.iter().cloned()).collect()
}

/// Whether all signals are exported to the collector with these variables.
async fn is_exported(collector: &Collector, protocol: &str, more: &[(&'static str, String)]) -> bool {
    let providers = providers(&variables(collector, protocol, more)).expect("providers");
    emit_telemetry(&providers);
    let before = collector.received().traces.len();
    let is_exported = flush(&providers).await.is_ok();
    let received = collector.received();
    assert_eq!(received.traces.len() > before, is_exported, "an export that succeeded was received, and no other");
    if is_exported {
        assert!(received.has_all());
        assert_eq!(attribute(&received.resources()[2], "service.name").as_deref(), Some("order"));
    }
    is_exported
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_certificate_of_the_private_ca_is_trusted() {
    let world = World::new();
    let collector = world.collector(false).await;
    for protocol in ["grpc", "http/protobuf"] {
        assert!(is_exported(&collector, protocol, &[(CERTIFICATE, world.file("ours-ca.pem"))]).await, "{protocol}");
        let other = [(CERTIFICATE, world.file("other-ca.pem"))];
        assert!(!is_exported(&collector, protocol, &other).await, "{protocol}: another CA");
        let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", world.file("other-ca.pem"));
        let mixed = [(CERTIFICATE, world.file("ours-ca.pem")), of_traces];
        assert!(
            !is_exported(&collector, protocol, &mixed).await,
            "{protocol}: expected a signal's own to take precedence"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_requires_a_client_certificate_gets_it() {
    let world = World::new();
    let collector = world.collector(true).await;
    for protocol in ["grpc", "http/protobuf"] {
        let roots = (CERTIFICATE, world.file("ours-ca.pem"));
        let client = |ca: &str| {
            let certificate = (CLIENT_CERTIFICATE, world.file(&format!("{ca}-order.pem")));
            [roots.clone(), certificate, (CLIENT_KEY, world.file(&format!("{ca}-order.key")))]
        };
        assert!(is_exported(&collector, protocol, &client("ours")).await, "{protocol}");
        assert!(!is_exported(&collector, protocol, &client("other")).await, "{protocol}: another CA's");
        assert!(!is_exported(&collector, protocol, &[roots]).await, "{protocol}: none");
    }
}

/// The system's roots depend on the environment (`SSL_CERT_FILE`), so the test runs itself again as another process.
const COLLECTOR: &str = "TEST_COLLECTOR";

#[tokio::test(flavor = "multi_thread")]
async fn without_a_private_ca_the_systems_roots_are_trusted() {
    let endpoint = |collector: &str| (ENDPOINT, collector.to_owned());
    if let Ok(collector) = std::env::var(COLLECTOR) {
        let providers = providers(&[endpoint(&collector)]).expect("providers");
        emit_telemetry(&providers);
        return flush(&providers).await.expect("exported");
    }
    let world = World::new();
    let collector = world.collector(false).await;
    let url = format!("https://localhost:{}", collector.address.port());
    let with_roots = async |roots: String| {
        let mut again = tokio::process::Command::new(std::env::current_exe().expect("this program"));
        again.args(["--exact", "tls::without_a_private_ca_the_systems_roots_are_trusted"]);
        let again = again
            .env(COLLECTOR, &url)
            .env("SSL_CERT_FILE", roots)
            .env_remove("SSL_CERT_DIR")
            .output()
            .await
            .expect("it ends");
        (again.status.success(), String::from_utf8(again.stdout).expect("text"))
    };
    let (passed, output) = with_roots(world.file("ours-ca.pem")).await;
    assert!(passed && collector.received().has_all(), "{output}");
    let (passed, output) = with_roots(world.file("other-ca.pem")).await;
    assert!(!passed && output.contains("exported"), "{output}");
    std::fs::write(world.path("none.pem"), "").expect("writable");
    let (passed, output) = with_roots(world.file("none.pem")).await;
    assert!(!passed && output.contains(ENDPOINT) && output.contains(CERTIFICATE), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_rejected_by_their_variable() {
    let world = World::new();
    let collector = world.collector(false).await;
    std::fs::write(world.path("empty.pem"), "nothing here").expect("writable");
    let roots = (CERTIFICATE, world.file("ours-ca.pem"));
    let certificate = (CLIENT_CERTIFICATE, world.file("ours-order.pem"));
    let key = (CLIENT_KEY, world.file("ours-order.key"));
    let missing = || world.file("missing.pem");
    let empty = || world.file("empty.pem");
    for (name, more) in [
        (CERTIFICATE, vec![(CERTIFICATE, missing())]),
        (CERTIFICATE, vec![(CERTIFICATE, empty())]),
        (
            "OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE",
            vec![roots.clone(), ("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", missing())],
        ),
        (CLIENT_CERTIFICATE, vec![roots.clone(), (CLIENT_CERTIFICATE, empty()), key.clone()]),
        (CLIENT_KEY, vec![roots.clone(), certificate.clone(), (CLIENT_KEY, empty())]),
        (CLIENT_KEY, vec![roots.clone(), certificate.clone(), (CLIENT_KEY, world.file("other-order.key"))]),
    ] {
        let error = providers(&variables(&collector, "grpc", &more)).expect_err(name);
        assert!(error.is_setting(), "{error}");
        let text = error.to_string();
        assert!(text.starts_with(name) && text.contains("; allowed: "), "{text}");
    }
    providers(&variables(&collector, "grpc", &[roots, certificate, key])).expect("control");
    // They have no effect on plaintext endpoints.
    let plain = [(ENDPOINT, "http://localhost:1".to_owned()), (CERTIFICATE, missing())];
    providers(&plain).expect("not read");
}
