//! Mutual TLS: this process's identity, and the two ends of a connection, which verify each other.
//!
//! [`Identity`] holds a certificate, its key and the trusted roots, read from files, replaced together when the files
//! change, and kept when the new files are invalid. [`ServerTls`] requests a client certificate but does not require one
//! (users authenticate by token), and rejects an invalid one. [`ClientTls`] requires the target's DNS name *and* its
//! SPIFFE name; it is made from an identity, or from [`Trust`] by clients without one.
//! TLS 1.3 only, HTTP/2 only, no resumption: a resumed session would outlive the roots that it was verified with.

mod client;
mod files;
mod spiffe;
mod time;
mod verify;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kernel::{Clock, Timestamp};
use opentelemetry::{KeyValue, global};
use parking_lot::{Mutex, RwLock};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, server};
use tokio_util::sync::CancellationToken;

use crate::tls::client::{ALPN_HTTP2, TargetConfigs, Trusted};
pub use crate::tls::client::{ClientTls, Trust};
pub(crate) use crate::tls::files::advice;
pub use crate::tls::files::{Error, Files};
use crate::tls::files::{FileContents, read, roots_of};
use crate::tls::spiffe::{NameError, name_error, not_after, service_of};
use crate::tls::time::Time;
use crate::tls::verify::PlatformClients;

/// From this time on, a warning is logged at `WARN_INTERVAL` that the certificate expires.
const EXPIRES_SOON: Duration = Duration::from_secs(24 * 3_600);
const WARN_INTERVAL: Duration = Duration::from_secs(3_600);

/// This process's identity. Clones share it.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    files: Files,
    trust_domain: String,
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn Clock>,
    current: RwLock<Arc<Material>>,
}

/// The files' content, and what is derived from it: replaced as a whole.
struct Material {
    contents: FileContents,
    service: String,
    ends: Timestamp,
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    server: Arc<rustls::ServerConfig>,
    /// Per target, created when it is first called.
    clients: Mutex<HashMap<String, Arc<rustls::ClientConfig>>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("service", &self.service())
            .field("files", &self.0.files)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the files. `trust_domain` is the trust domain of the platform's SPIFFE names, for example
    /// `ordermesh.local`.
    ///
    /// # Errors
    /// A file cannot be read, or the certificate would be invalid by peers.
    pub fn load(files: Files, trust_domain: impl Into<String>, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trust_domain = trust_domain.into();
        let material = make(read(&files)?, &files, &trust_domain, &provider, &clock)?;
        let current = RwLock::new(Arc::new(material));
        let identity = Self(Arc::new(Inner { files, trust_domain, provider, clock, current }));
        identity.show_expiry();
        Ok(identity)
    }

    /// The name in this process's own certificate, for example `order`.
    pub fn service(&self) -> String {
        self.current().service.clone()
    }

    /// The remaining lifetime of this process's own certificate: zero when it has expired.
    pub fn expires_in(&self) -> Duration {
        self.current().ends.since(self.0.clock.now())
    }

    /// Exports the remaining lifetime as a metric, while a clone of the identity exists.
    fn show_expiry(&self) {
        let weak = Arc::downgrade(&self.0);
        let meter = global::meter("mesh");
        let gauge = meter.u64_observable_gauge("mesh.tls.certificate.remaining").with_unit("s");
        let gauge = gauge.with_description("Remaining lifetime of this process's certificate");
        let gauge = gauge.with_callback(move |observer| {
            let Some(identity) = weak.upgrade().map(Self) else { return };
            observer.observe(identity.expires_in().as_secs(), &[KeyValue::new("mesh.service", identity.service())]);
        });
        gauge.build();
    }

    /// Checks the files periodically, and loads them when they are new and valid, until the shutdown. Open connections
    /// are not affected; new ones use the new files.
    pub async fn follow(self, every: Duration, shutdown: CancellationToken) {
        let mut invalid: Option<FileContents> = None;
        let mut warned: Option<Instant> = None;
        while shutdown.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            let identity = self.clone();
            let last = invalid.take();
            // Files may be on a slow disk, and verifying signatures takes time.
            let reloaded = tokio::task::spawn_blocking(move || identity.reload(last)).await;
            invalid = reloaded.unwrap_or_default();
            let left = self.expires_in();
            if left < EXPIRES_SOON && warned.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
                warned = Some(Instant::now());
                tracing::warn!(target: "ordermesh", minutes_left = left.as_secs() / 60, "this process's certificate expires soon: replace it, the new one is loaded automatically");
            }
        }
    }

    /// Loads the files when they are new. Returns invalid content, so that it is logged only once.
    fn reload(&self, invalid: Option<FileContents>) -> Option<FileContents> {
        let Inner { files, trust_domain, provider, clock, .. } = &*self.0;
        let warn = |error: &Error| {
            let because = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            tracing::warn!(target: "ordermesh", "the certificate was not renewed, the old one is kept: {error}: {because}");
        };
        let now = match read(files) {
            Ok(now) => now,
            Err(error) => {
                warn(&error);
                return invalid;
            }
        };
        if now == self.current().contents || invalid.as_ref() == Some(&now) {
            return invalid;
        }
        let kept = now.clone();
        let service = self.service();
        let made = make(now, files, trust_domain, provider, clock).and_then(|material| {
            let (path, named) = (files.certificate.clone(), material.service.clone());
            if named == service { Ok(material) } else { Err(Error::OtherService { path, named, service }) }
        });
        match made {
            Ok(material) => {
                tracing::info!(target: "ordermesh", service = material.service, "the certificate, its key and the roots were renewed");
                *self.0.current.write() = Arc::new(material);
                None
            }
            Err(error) => {
                warn(&error);
                Some(kept)
            }
        }
    }

    /// TLS of a server.
    pub fn server(&self) -> ServerTls {
        ServerTls { identity: self.clone() }
    }

    /// TLS of connections to a service, for example `data`: its certificate must have this DNS name, and
    /// this service's SPIFFE name.
    pub fn client(&self, target: impl Into<String>) -> ClientTls {
        ClientTls::new(Arc::new(self.clone()), target.into())
    }

    fn current(&self) -> Arc<Material> {
        self.0.current.read().clone()
    }
}

/// With this process's certificate, from the current files.
impl TargetConfigs for Identity {
    fn client_config(&self, target: &str) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
        let material = self.current();
        let mut clients = material.clients.lock();
        if let Some(config) = clients.get(target) {
            return Ok(config.clone());
        }
        let Inner { trust_domain, provider, clock, .. } = &*self.0;
        let trusted = Trusted { roots: &material.roots, trust_domain, provider, clock };
        let config = Arc::new(trusted.client_config(target, Some(material.certified.clone()))?);
        clients.insert(target.to_owned(), config.clone());
        Ok(config)
    }
}

/// TLS of a server. Clones share it.
#[derive(Clone, Debug)]
pub struct ServerTls {
    identity: Identity,
}

impl ServerTls {
    /// Performs the handshake; returns the client's service and its certificate's remaining lifetime, if it presented
    /// one.
    pub(crate) async fn accept<S>(&self, stream: S) -> io::Result<(server::TlsStream<S>, Option<(String, Duration)>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.identity.current().server.clone();
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let presented = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let Inner { trust_domain, clock, .. } = &*self.identity.0;
        let read = |certificate| {
            let left = not_after(certificate)?.since(clock.now());
            Ok((service_of(certificate, trust_domain)?, left))
        };
        // The verifier has parsed the name before: this cannot fail.
        let peer = presented.map(read).transpose();
        let peer = peer.map_err(|error: NameError| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((stream, peer))
    }
}

/// The cause of a failed handshake, as a metric label.
pub(crate) fn failure(error: &io::Error) -> &'static str {
    use rustls::CertificateError as Bad;
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => "expired",
        Some(rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. })) => "not_yet_valid",
        // Or an issuer with the name of a trusted one, but another key.
        Some(rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => "unknown_issuer",
        Some(rustls::Error::InvalidCertificate(Bad::Other(_))) => "spiffe_name",
        Some(rustls::Error::InvalidCertificate(_)) => "certificate",
        Some(rustls::Error::AlertReceived(_)) => "refused_by_peer",
        Some(_) => "protocol",
        None if error.kind() == io::ErrorKind::TimedOut => "too_slow",
        None => "connection",
    }
}

/// Verifies that all parts match, and that peers would accept them.
fn make(
    contents: FileContents,
    files: &Files,
    trust_domain: &str,
    provider: &Arc<CryptoProvider>,
    clock: &Arc<dyn Clock>,
) -> Result<Material, Error> {
    let bad = |source| Error::Certificate { path: files.certificate.clone(), source };
    let empty = |path: &PathBuf, what| Error::Empty { path: path.clone(), what };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&contents.certificate).filter_map(Result::ok).collect();
    let [own, intermediates @ ..] = chain.as_slice() else { return Err(empty(&files.certificate, "certificate")) };
    let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|_| empty(&files.key, "private key"))?;
    let roots = roots_of(&contents.roots, &files.roots)?;
    let webpki = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| bad(rustls::Error::General(error.to_string())))?;
    let verifier = PlatformClients { webpki, trust_domain: trust_domain.to_owned() };
    // A certificate that peers would reject is not presented: better keep the old one, or do not start.
    verifier.verify_client_cert(own, intermediates, Time(clock.clone()).now()).map_err(bad)?;
    let service = service_of(own, trust_domain).map_err(|error| bad(name_error(error)))?;
    // As clients will verify it: by the service's name.
    let name = ServerName::try_from(service.clone()).map_err(|error| bad(rustls::Error::General(error.to_string())))?;
    let servers = Trusted { roots: &roots, trust_domain, provider, clock }.verifier(&service).map_err(bad)?;
    servers.verify_server_cert(own, intermediates, &name, &[], Time(clock.clone()).now()).map_err(bad)?;
    let ends = not_after(own).map_err(|error| bad(name_error(error)))?;
    let certified = CertifiedKey::from_der(chain.clone(), key, provider).map_err(bad)?;
    certified.keys_match().map_err(bad)?;
    let certified = Arc::new(certified);
    let mut server = rustls::ServerConfig::builder_with_details(provider.clone(), Arc::new(Time(clock.clone())))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(bad)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
    server.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Material { contents, service, ends, certified, roots, server: Arc::new(server), clients: Mutex::default() })
}

#[cfg(test)]
mod tests;
