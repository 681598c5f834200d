//! A mock of an external payment gateway with a durable ledger and fault injection.
//!
//! Reliable where the platform has to trust it: one row per charge key (a charge or a tombstone, whichever commits
//! first), idempotent replay of stored answers, only definite answers stored. Knows nothing of the platform: no orders,
//! no users, no access tokens; its merchants authenticate with an API key. Start reading at [`charge`].
//!
//! # Layout
//! - [`charge`]: the effect of a token, and of a call on the ledger
//! - [`fault`]: fault injection, by token and by settings (with the table of tokens)
//! - `service.rs`: decode → domain → encode; `convert.rs`: every field check
//! - `store.rs`, `entity.rs`, `migration.rs`: the ledger
//! - [`error`]: every reason of a rejected call
//! - `main.rs`: binds, installs telemetry, handles signals

pub mod charge;
mod convert;
mod entity;
pub mod error;
pub mod fault;
mod migration;
mod service;
mod store;

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use contracts::gateway::v1::payment_gateway_service_server::{PaymentGatewayServiceServer, SERVICE_NAME};
use kernel::{SystemClock, SystemIds};
use mesh::SharedSecret;
use mesh::tls::{Files, Identity};
use storage::Database;
use storage::ownership::check_secret;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::charge::Gateway;
pub use crate::error::Error;
use crate::fault::{FaultSettings, Faults};
use crate::service::Service;
use crate::store::Store;

/// Maximum size of a request: keys, an amount, a token and an e-mail address are far smaller.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// The interval at which a renewed certificate is looked for.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(10);

/// The gateway's settings, each a flag and an environment variable.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// Address of the merchants' gRPC API, as address:port.
    #[arg(long, env = "GATEWAY_LISTEN", default_value = "127.0.0.1:7501")]
    pub listen: SocketAddr,
    /// Address of the plain HTTP health endpoints (/livez, /readyz), as address:port.
    #[arg(long, env = "GATEWAY_ADMIN_LISTEN", default_value = "127.0.0.1:8501")]
    pub admin_listen: SocketAddr,
    /// The instance's name in logs and traces.
    #[arg(long, env = "GATEWAY_INSTANCE", default_value = "gateway-1")]
    pub instance: String,
    /// The ledger: sqlite://path or postgres://user@host/name (in the schema `gateway` there); may hold a password.
    #[arg(long, env = "GATEWAY_DATABASE_URL", default_value = "sqlite://data/gateway.db", hide_env_values = true)]
    pub database_url: Hidden,
    /// The merchant's API key, 1 to 255 characters. Better set by environment or file: flags are visible to all local
    /// users.
    #[arg(long, env = "GATEWAY_API_KEY", hide_env_values = true)]
    pub api_key: Option<Hidden>,
    /// File with the merchant's API key; read if `api-key` is not set. No default: one of the two is required.
    #[arg(long, env = "GATEWAY_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// OTLP endpoint for traces, metrics and logs, for example http://localhost:4317. Default:
    /// OTEL_EXPORTER_OTLP_ENDPOINT, or none.
    #[arg(long, env = "GATEWAY_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Log filter: tracing EnvFilter directives.
    #[arg(long, env = "GATEWAY_LOG", default_value = "info")]
    pub log: String,
    /// Continue the trace of the caller's traceparent: for local runs, to see both sides in one trace.
    #[arg(long, env = "GATEWAY_TRUST_CLIENT_TRACE_CONTEXT", action = clap::ArgAction::Set, default_value_t = false)]
    pub trust_client_trace_context: bool,
    /// PEM file of the gateway's certificate; enables TLS.
    #[arg(long, env = "GATEWAY_TLS_CERT", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key.
    #[arg(long, env = "GATEWAY_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// PEM file of the root certificates for merchants' client certificates, which are optional.
    #[arg(long, env = "GATEWAY_TLS_CA", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// Trust domain of SPIFFE IDs in certificates.
    #[arg(long, env = "GATEWAY_TRUST_DOMAIN", default_value = "ordermesh.local")]
    pub trust_domain: String,
    /// Pre-drain delay, in milliseconds: keep serving after SIGTERM while readiness reports NOT_SERVING.
    #[arg(long, env = "GATEWAY_DRAIN_NOTICE_MS", default_value_t = 0)]
    pub drain_notice_ms: u64,
    /// Maximum time for calls in flight to finish after that, in milliseconds.
    #[arg(long, env = "GATEWAY_DRAIN_TIMEOUT_MS", default_value_t = 5_000)]
    pub drain_timeout_ms: u64,
    /// Migrate the ledger's schema, and exit.
    #[arg(long, env = "GATEWAY_MIGRATE_ONLY", value_parser = clap::builder::FalseyValueParser::new())]
    pub migrate_only: bool,
    /// Fault injection.
    #[command(flatten)]
    pub faults: FaultSettings,
}

/// A setting that is, or may contain, a secret. Debug omits it.
#[derive(Clone)]
pub struct Hidden(String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}

impl FromStr for Hidden {
    /// Validated where it is used: clap prints the value of a rejected flag.
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl Config {
    fn api_key(&self) -> Result<SharedSecret, Error> {
        let key = match (&self.api_key, &self.api_key_file) {
            (Some(Hidden(key)), _) => key.clone(),
            (None, Some(path)) => {
                check_secret(path)?;
                std::fs::read_to_string(path)
                    .map_err(|source| Error::ApiKeyFile { path: path.display().to_string(), source })?
            }
            (None, None) => return Err(Error::ApiKeyMissing),
        };
        let key = key.trim();
        if !(1..=255).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::ApiKeyMalformed);
        }
        Ok(SharedSecret::new(key))
    }

    fn identity(&self) -> Result<Option<Identity>, Error> {
        let (Some(certificate), Some(key), Some(roots)) = (&self.tls_cert, &self.tls_key, &self.tls_ca) else {
            return Ok(None);
        };
        check_secret(key)?;
        let files = Files { certificate: certificate.clone(), key: key.clone(), roots: roots.clone() };
        Ok(Some(Identity::load(files, &self.trust_domain, Arc::new(SystemClock))?))
    }
}

/// Opens the ledger and migrates its schema: a schema of its own, for databases that are shared.
///
/// # Errors
/// It cannot be opened or migrated.
pub async fn open_ledger(config: &Config) -> Result<Database, Error> {
    let schema = (!config.database_url.0.starts_with("sqlite:")).then(|| error::SERVICE.to_owned());
    let options = storage::Options { schema, ..storage::Options::default() };
    let opened = storage::patiently(|| async {
        let database = Database::connect(&config.database_url.0, &options).await?;
        database.migrate(migration::MIGRATIONS).await?;
        Ok(database)
    });
    Ok(opened.await?)
}

/// Serves until `shutdown`, then drains. Ready once the ledger's schema is up to date.
///
/// # Errors
/// No API key, a ledger that cannot be opened or migrated, a listener that fails.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin_listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let api_key = config.api_key()?;
    let identity = config.identity()?;
    if let Some(identity) = identity.clone() {
        tokio::spawn(identity.follow(CERTIFICATE_INTERVAL, shutdown.clone()));
    }
    // Dropped on every return: the admin listener stops with the server, not before its drain is complete.
    let stop_admin = CancellationToken::new();
    let _stop_admin = stop_admin.clone().drop_guard();
    let (ready, readiness) = watch::channel(false);
    tokio::spawn(mesh::serve_admin(admin_listener, readiness.clone(), watch::channel(true).1, stop_admin));

    let Some(database) = shutdown.run_until_cancelled(open_ledger(&config)).await else { return Ok(()) };
    let database = database?;
    let gateway =
        Gateway::new(Store::new(database), Faults::new(config.faults), Arc::new(SystemClock), Arc::new(SystemIds));
    let routes = Routes::new(
        PaymentGatewayServiceServer::new(Service::new(gateway, api_key)).max_decoding_message_size(MAX_MESSAGE_BYTES),
    );
    let authorizer = mesh::Authorizer::new(contracts::POLICIES);
    let server = mesh::server(
        mesh::ServerConfig {
            tls: identity.as_ref().map(Identity::server),
            descriptors: &[contracts::DESCRIPTORS],
            services: &[SERVICE_NAME],
            max_message_bytes: MAX_MESSAGE_BYTES,
            trust_client_trace_context: config.trust_client_trace_context,
            drain_notice: Duration::from_millis(config.drain_notice_ms),
            drain_timeout: Duration::from_millis(config.drain_timeout_ms),
            ..mesh::ServerConfig::new(error::SERVICE, contracts::POLICIES, authorizer)
        },
        routes,
    );
    ready.send_replace(true);
    server.serve(listener, readiness, shutdown).await.map_err(Error::Serve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn config(flags: &[&str]) -> Config {
        Cli::try_parse_from([&["gateway"], flags].concat()).expect("flags").config
    }

    #[test]
    fn settings_do_not_show_their_secrets() {
        let config = config(&["--api-key=hunter2", "--database-url=postgres://gateway:hunter2@db/gateway"]);
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("127.0.0.1:7501"), "{shown}");
    }

    #[test]
    fn an_api_key_is_required_and_validated() {
        assert!(matches!(config(&[]).api_key(), Err(Error::ApiKeyMissing)));
        for key in ["", " ", "two words", "schl\u{fc}ssel"] {
            assert!(matches!(config(&["--api-key", key]).api_key(), Err(Error::ApiKeyMalformed)), "{key}");
        }
        assert!(config(&["--api-key=test-key"]).api_key().is_ok());
        let missing = config(&["--api-key-file=no/such/file"]).api_key();
        assert!(matches!(missing, Err(Error::ApiKeyFile { .. })));
    }
}
