//! TLS of a client: its trust, its own certificate, and the target's names.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kernel::Clock;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client};

use crate::tls::files::{Error, file, roots_of};
use crate::tls::time::Time;
use crate::tls::verify::TargetServer;

/// The protocol that is negotiated.
pub(crate) const ALPN_HTTP2: &[u8] = b"h2";

/// What a client without a certificate needs of a platform: its roots and its trust domain. Clones share it.
#[derive(Clone)]
pub struct Trust(Arc<TrustInner>);

struct TrustInner {
    roots: Arc<RootCertStore>,
    trust_domain: String,
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("trust_domain", &self.0.trust_domain).finish_non_exhaustive()
    }
}

impl Trust {
    /// Reads a PEM file of roots.
    ///
    /// # Errors
    /// The file cannot be read, or has no certificate.
    pub fn load(roots: PathBuf, trust_domain: impl Into<String>, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = roots_of(&file(&roots)?, &roots)?;
        Ok(Self(Arc::new(TrustInner { roots, trust_domain: trust_domain.into(), provider, clock })))
    }

    /// TLS of connections to a service, for example `data`, as made by an identity.
    pub fn client(&self, target: impl Into<String>) -> ClientTls {
        ClientTls::new(Arc::new(self.clone()), target.into())
    }
}

/// Without a certificate.
impl TargetConfigs for Trust {
    fn client_config(&self, target: &str) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
        let TrustInner { roots, trust_domain, provider, clock } = &*self.0;
        Trusted { roots, trust_domain, provider, clock }.client_config(target, None).map(Arc::new)
    }
}

/// Configurations by target, with a certificate or without.
pub(crate) trait TargetConfigs: fmt::Debug + Send + Sync {
    /// The configuration for connections to a target.
    fn client_config(&self, target: &str) -> Result<Arc<rustls::ClientConfig>, rustls::Error>;
}

/// TLS of a client, for one target. Clones share it.
#[derive(Clone, Debug)]
pub struct ClientTls {
    configs: Arc<dyn TargetConfigs>,
    target: String,
    dns_name: String,
}

impl ClientTls {
    pub(crate) fn new(configs: Arc<dyn TargetConfigs>, target: String) -> Self {
        Self { configs, dns_name: target.clone(), target }
    }

    /// Sets the DNS name that the target's certificate must have, when it is not the service's name.
    #[must_use]
    pub fn with_dns_name(mut self, dns_name: impl Into<String>) -> Self {
        self.dns_name = dns_name.into();
        self
    }

    /// Performs the handshake on a connected stream. The server has not verified this client's certificate by then: a
    /// rejection is the first thing that is read (TLS 1.3).
    ///
    /// # Errors
    /// The server is not the target, or the connection failed.
    pub async fn connect<S>(&self, stream: S) -> io::Result<client::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let invalid = |error: &dyn std::error::Error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
        let name = ServerName::try_from(self.dns_name.clone()).map_err(|error| invalid(&error))?;
        let config = self.configs.client_config(&self.target).map_err(|error| invalid(&error))?;
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_HTTP2) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the server does not speak HTTP/2"));
        }
        Ok(stream)
    }
}

/// The trust anchors and the trust domain of a client.
pub(crate) struct Trusted<'a> {
    pub(crate) roots: &'a Arc<RootCertStore>,
    pub(crate) trust_domain: &'a str,
    pub(crate) provider: &'a Arc<CryptoProvider>,
    pub(crate) clock: &'a Arc<dyn Clock>,
}

impl Trusted<'_> {
    /// The verifier for a target's certificate.
    pub(crate) fn verifier(&self, target: &str) -> Result<TargetServer, rustls::Error> {
        let webpki: Arc<dyn ServerCertVerifier> =
            WebPkiServerVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(TargetServer { webpki, trust_domain: self.trust_domain.to_owned(), target: target.to_owned() })
    }

    /// The configuration for connections to a target, with this certificate or none.
    pub(crate) fn client_config(
        self,
        target: &str,
        certified: Option<Arc<CertifiedKey>>,
    ) -> Result<rustls::ClientConfig, rustls::Error> {
        let verifier = self.verifier(target)?;
        let time = Arc::new(Time(self.clock.clone()));
        let builder = rustls::ClientConfig::builder_with_details(self.provider.clone(), time)
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match certified {
            Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }
}
