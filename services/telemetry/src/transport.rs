//! Connections to a collector: gRPC and HTTP over the same connector, plain text or TLS. Errors are the exporters'
//! results; nothing is logged here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kernel::error::chain;
use opentelemetry_http::{HttpClient, HttpError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};

use crate::environment::{File, Target, VariableError};
use crate::reachability::Cause;

/// A host that drops packets must not use up an export's whole timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// TCP keepalive, and the idle time after which an HTTP connection is closed.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Limit of a response's body: it has at most a partial success.
const MAX_RESPONSE_BYTES: usize = 64 * 1_024;

/// A gRPC channel. It connects at the first export, and reconnects by itself.
///
/// # Errors
/// Roots or a certificate that cannot be used.
pub(crate) fn channel(target: &Target) -> Result<Channel, VariableError> {
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls(target)?)
        .https_or_http()
        .enable_http2()
        .wrap_connector(tcp(target));
    let endpoint = Endpoint::from(target.uri.clone()).timeout(target.timeout).connect_timeout(connect_limit(target));
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// Reads the files that connections to a target need.
///
/// # Errors
/// Roots or a certificate that cannot be used.
pub(crate) fn check(target: &Target) -> Result<(), VariableError> {
    tls(target).map(drop)
}

/// A client for OTLP/HTTP. It runs on the runtime in which it is created: the SDK exports from threads without one.
pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    timeout: Duration,
    cause: Cause,
}

impl Http {
    /// # Errors
    /// As [`channel`].
    pub(crate) fn new(target: &Target, cause: Cause) -> Result<Self, VariableError> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(target)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp(target));
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(KEEPALIVE).build(connector);
        Ok(Self { client, runtime: Handle::current(), timeout: target.timeout, cause })
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let exchange = async move {
            let (parts, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(parts, body))
        };
        let timeout = self.timeout;
        // In the task: timers need the runtime.
        let limited = self.runtime.spawn(async move { tokio::time::timeout(timeout, exchange).await });
        let result = match limited.await {
            Ok(Ok(result)) => result,
            Ok(Err(elapsed)) => Err(elapsed.into()),
            Err(ended) => Err(ended.into()),
        };
        // The exporter's own error lacks it.
        result.inspect_err(|error| self.cause.set(chain(error.as_ref())))
    }
}

fn connect_limit(target: &Target) -> Duration {
    target.timeout.min(CONNECT_TIMEOUT)
}

fn tcp(target: &Target) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_connect_timeout(Some(connect_limit(target)));
    tcp
}

/// The client's TLS. Files are read only for `https://`: for other endpoints the variables have no effect.
fn tls(target: &Target) -> Result<ClientConfig, VariableError> {
    let is_secure = target.uri.scheme_str() == Some("https");
    let roots = match &target.roots {
        _ if !is_secure => RootCertStore::empty(),
        Some(file) => roots_of(file)?,
        None => system_roots(target)?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let invalid = |error: &rustls::Error| VariableError::new(&target.variable, error.to_string(), "http:// only");
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(&error))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = target.client.as_ref().filter(|_| is_secure) else {
        return Ok(config.with_no_client_auth());
    };
    let chain = certificates(certificate)?;
    let read = read(key)?;
    let private = PrivateKeyDer::from_pem_slice(&read).map_err(|_| unusable(key, "has no private key", KEY))?;
    let problem = |_| unusable(key, "has a key that is not the certificate's, or of a kind that is not supported", KEY);
    config.with_client_auth_cert(chain, private).map_err(problem)
}

const CERTIFICATES: &str = "a PEM file with one certificate at least";
const KEY: &str = "a PEM file with the private key of the client certificate";

fn unusable(file: &File, problem: &str, allowed: &str) -> VariableError {
    VariableError::new(&file.variable, format!("names {}, which {problem}", file.path.display()), allowed)
}

fn read(file: &File) -> Result<Vec<u8>, VariableError> {
    std::fs::read(&file.path).map_err(|error| unusable(file, &format!("cannot be read ({error})"), "a PEM file"))
}

fn certificates(file: &File) -> Result<Vec<CertificateDer<'static>>, VariableError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| unusable(file, "has no certificate", CERTIFICATES))
}

fn roots_of(file: &File) -> Result<RootCertStore, VariableError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|_| unusable(file, "has a certificate that cannot be used", CERTIFICATES))?;
    }
    Ok(roots)
}

fn system_roots(target: &Target) -> Result<RootCertStore, VariableError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let allowed = "https:// where the system has roots, or with OTEL_EXPORTER_OTLP_CERTIFICATE";
        return Err(VariableError::new(
            &target.variable,
            "is https://, and this system has no root certificates",
            allowed,
        ));
    }
    Ok(roots)
}
