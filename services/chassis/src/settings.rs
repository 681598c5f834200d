//! Settings of the services: each is a flag and an environment variable. [`Settings`] is common to all, in groups that
//! other programs can flatten too; a service that calls another one also takes its addresses.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use mesh::{Addresses, ServerConfig};
use storage::{Database, Migration};

mod value;

pub use value::{
    ByteSize, ByteSizeError, DatabaseUrl, Networks, NetworksError, archive_after, count, duration, positive_duration,
    quota,
};
use value::{memory_limit, message_size};

/// Settings common to all services.
#[derive(clap::Args, Clone, Debug)]
pub struct Settings {
    /// The gRPC server and its limits.
    #[command(flatten)]
    pub server: ServerSettings,
    /// Folder of the SQLite file, the signing keys and the mesh secret
    #[arg(long, env = "ORDERMESH_DATA_DIR", default_value = "data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The service's own database.
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// The service's certificate.
    #[command(flatten)]
    pub tls: TlsSettings,
    /// File with the secret that services on one machine share instead of certificates; for loopback listeners only [default: DATA_DIR/mesh.secret]
    #[arg(long, env = "ORDERMESH_MESH_SECRET_FILE", value_name = "FILE", conflicts_with = "tls_cert")]
    pub mesh_secret_file: Option<PathBuf>,
    /// Instances of the Data Service, which stores the trace events of all services. A list, or dns:///NAME:PORT, which is resolved every 3 s
    #[arg(long, env = "ORDERMESH_DATA_ADDRESSES", default_value = "127.0.0.1:7401", value_name = "HOST:PORT,…")]
    pub data_addresses: Addresses,
    /// Number of instances of each other service to connect to, chosen at random: with hundreds of instances, so that their connections do not grow with the product of both; not below 20 [default: all]
    #[arg(long, env = "ORDERMESH_SUBSET_SIZE", value_name = "COUNT")]
    pub subset_size: Option<NonZeroUsize>,
    /// What is changed of calls at run time.
    #[command(flatten)]
    pub traffic: TrafficSettings,
    /// Traces, metrics and logs.
    #[command(flatten)]
    pub telemetry: TelemetrySettings,
}

impl Settings {
    /// The service's own database: see [`DatabaseSettings::open`].
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn open_database(&self, service: &str, migrations: &[Migration]) -> Result<Database, storage::Error> {
        self.database.open(service, self.data_dir.join(format!("{service}.db")), migrations).await
    }
}

/// A gRPC server and its limits.
#[derive(clap::Args, Clone, Debug)]
pub struct ServerSettings {
    /// Address and port for gRPC; port 0 takes a free port
    #[arg(long, env = "ORDERMESH_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Address and port for plain HTTP health (/livez, /readyz); off when not set
    #[arg(long, env = "ORDERMESH_ADMIN_LISTEN", value_name = "ADDR:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// Name of this instance in traces, logs and leases [default: the service's name and the process id]
    #[arg(long, env = "ORDERMESH_INSTANCE", value_name = "NAME")]
    pub instance: Option<String>,
    /// Trusted proxy CIDRs: from these, the client IP is taken from `X-Forwarded-For`
    #[arg(long, env = "ORDERMESH_TRUSTED_PROXIES", value_name = "NETWORK,…")]
    pub trusted_proxies: Option<Networks>,
    /// Maximum bytes for requests in flight, counted at four times their wire size, and unsent responses [default: a quarter of --memory-limit]
    #[arg(long, env = "ORDERMESH_MEMORY_BUDGET", value_name = "BYTES")]
    pub memory_budget: Option<ByteSize>,
    /// Memory limit of this process [default: the control group's limit, or the machine's memory]
    #[arg(long, env = "ORDERMESH_MEMORY_LIMIT", value_parser = memory_limit, value_name = "BYTES")]
    pub memory_limit: Option<ByteSize>,
    /// Maximum concurrent calls, not counting streams; calls over the limit are rejected immediately
    #[arg(long, env = "ORDERMESH_MAX_CONCURRENCY", default_value_t = mesh::DEFAULT_MAX_CONCURRENCY, value_parser = count, value_name = "COUNT")]
    pub max_concurrency: usize,
    /// Maximum concurrent server streams
    #[arg(long, env = "ORDERMESH_MAX_STREAMS", default_value_t = mesh::DEFAULT_MAX_STREAMS, value_parser = count, value_name = "COUNT")]
    pub max_streams: usize,
    /// Maximum concurrent connections
    #[arg(long, env = "ORDERMESH_MAX_CONNECTIONS", default_value_t = mesh::DEFAULT_MAX_CONNECTIONS, value_parser = count, value_name = "COUNT")]
    pub max_connections: usize,
    /// Maximum size of a message, unless the contract says otherwise (AppendTraceEvents: 1 MiB)
    #[arg(long, env = "ORDERMESH_MAX_MESSAGE", default_value = "64KiB", value_parser = message_size, value_name = "BYTES")]
    pub max_message: ByteSize,
    /// Pre-drain delay: keep serving after SIGTERM while readiness reports NOT_SERVING. Together with --drain-timeout and 8 s it should fit in the termination grace period (Kubernetes and the supervisor: 30 s)
    #[arg(long, alias = "drain-notice", env = "ORDERMESH_PRE_DRAIN_DELAY", default_value = "0s", value_parser = duration, value_name = "DURATION")]
    pub pre_drain_delay: Duration,
    /// Maximum time after the pre-drain delay for calls in flight and background tasks to end
    #[arg(long, env = "ORDERMESH_DRAIN_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub drain_timeout: Duration,
    /// Serve gRPC reflection, without authentication
    #[arg(long, env = "ORDERMESH_REFLECTION", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    pub reflection: bool,
}

impl ServerSettings {
    /// The instance's name: as set, or from the service and the process id.
    pub fn instance_of(&self, service: &str) -> String {
        self.instance.clone().unwrap_or_else(|| format!("{service}-{}", std::process::id()))
    }

    /// The server's configuration with these limits.
    pub fn configure(&self, config: ServerConfig) -> ServerConfig {
        let of_limit = || self.memory_limit.map(|limit| mesh::budget_of(limit.0.try_into().unwrap_or(u64::MAX)));
        ServerConfig {
            reflection: self.reflection,
            trusted_proxies: self.trusted_proxies.clone().unwrap_or_default().0,
            max_concurrency: self.max_concurrency,
            max_streams: self.max_streams,
            max_connections: self.max_connections,
            memory_budget_bytes: self.memory_budget.map(|size| size.0).or_else(of_limit),
            max_message_bytes: self.max_message.0,
            pre_drain_delay: self.pre_drain_delay,
            drain_timeout: self.drain_timeout,
            ..config
        }
    }
}

/// The traffic policy.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TrafficSettings {
    /// YAML file of a traffic policy: shorter timeouts, faults on purpose, weights of a canary, calls mirrored to a shadow, audited callers (calls of others are counted, not denied). Read every second; an invalid file is rejected, and the previous policy stays in force
    #[arg(long, env = "ORDERMESH_TRAFFIC_POLICY", value_name = "FILE")]
    pub traffic_policy: Option<PathBuf>,
    /// Accept a traffic policy that injects faults
    #[arg(long, env = "ORDERMESH_ALLOW_FAULTS", value_parser = clap::builder::FalseyValueParser::new())]
    pub allow_faults: bool,
}

/// Traces, metrics and logs.
#[derive(clap::Args, Clone, Debug)]
pub struct TelemetrySettings {
    /// OTLP endpoint for traces, metrics and logs, for example http://localhost:4317; off when not set
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Log filter directives, for example info or info,order=debug
    #[arg(long, env = "ORDERMESH_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// Continue the trace of a client's `traceparent` instead of only linking to it
    #[arg(long, env = "ORDERMESH_TRUST_CLIENT_TRACE_CONTEXT")]
    pub trust_client_trace_context: bool,
}

/// Mutual TLS: it encrypts every connection of the service, and services are authenticated by their certificates.
#[derive(clap::Args, Clone, Debug)]
pub struct TlsSettings {
    /// PEM file of this service's certificate: the DNS name SERVICE and the URI spiffe://TRUST-DOMAIN/service/SERVICE. Checked every 10 s, and reloaded with key and roots
    #[arg(long, env = "ORDERMESH_TLS_CERT", requires_all = ["tls_key", "tls_ca"], value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key
    #[arg(long, env = "ORDERMESH_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// PEM file of the root certificates that peers are verified against
    #[arg(long, env = "ORDERMESH_TLS_CA", requires = "tls_cert", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// SPIFFE trust domain of the platform
    #[arg(long, env = "ORDERMESH_TRUST_DOMAIN", default_value = "ordermesh.local", value_name = "NAME")]
    pub trust_domain: String,
}

impl TlsSettings {
    /// The three files; `None` without TLS.
    pub fn files(&self) -> Option<mesh::tls::Files> {
        let (certificate, key, roots) = (self.tls_cert.clone()?, self.tls_key.clone()?, self.tls_ca.clone()?);
        Some(mesh::tls::Files { certificate, key, roots })
    }
}

/// A service's own database.
#[derive(clap::Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// Database: sqlite://FILE or postgres://USER@HOST/NAME; of several hosts (HOST:PORT,HOST:PORT) the one that accepts writes is used, as target_session_attrs says (read-write, primary or any); TLS by sslmode and sslrootcert [default: sqlite://DATA_DIR/SERVICE.db]
    #[arg(long = "database-url", env = "ORDERMESH_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub url: Option<DatabaseUrl>,
    /// Maximum connections to the database
    #[arg(
        long = "database-connections",
        env = "ORDERMESH_DATABASE_CONNECTIONS",
        default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(1..=10_000),
        value_name = "COUNT"
    )]
    pub connections: u32,
    /// How long a call waits for a database connection before it is rejected with UNAVAILABLE
    #[arg(long = "database-acquire-timeout", env = "ORDERMESH_DATABASE_ACQUIRE_TIMEOUT", default_value = "2s", value_parser = positive_duration, value_name = "DURATION")]
    pub acquire_timeout: Duration,
    /// Statement timeout: on PostgreSQL for every statement, on SQLite for searches of the catalogue
    #[arg(long = "database-statement-timeout", env = "ORDERMESH_DATABASE_STATEMENT_TIMEOUT", default_value = "10s", value_parser = positive_duration, value_name = "DURATION")]
    pub statement_timeout: Duration,
    /// Migrate the database's schema and exit
    #[arg(long, env = "ORDERMESH_MIGRATE_ONLY", value_parser = clap::builder::FalseyValueParser::new())]
    pub migrate_only: bool,
}

impl DatabaseSettings {
    /// The database, with its schema migrated; waits until it is reachable. On a database server the tables are in a
    /// schema with the service's name.
    ///
    /// # Errors
    /// The database cannot be used.
    pub fn open<'a>(
        &'a self,
        service: &'a str,
        default_file: PathBuf,
        migrations: &'a [Migration],
    ) -> BoxFuture<'a, Result<Database, storage::Error>> {
        // Boxed, so that it is compiled here and not by each service.
        Box::pin(self.try_open(service, default_file, migrations))
    }

    async fn try_open(
        &self,
        service: &str,
        default_file: PathBuf,
        migrations: &[Migration],
    ) -> Result<Database, storage::Error> {
        let url = self.url.as_ref();
        let options = storage::Options {
            max_connections: self.connections,
            acquire_timeout: self.acquire_timeout,
            statement_timeout: self.statement_timeout,
            schema: url.is_some_and(DatabaseUrl::is_server).then(|| service.to_owned()),
        };
        let url = url.map_or_else(|| storage::sqlite_url(&default_file), |url| url.as_str().to_owned());
        let open = || async {
            let db = Database::connect(&url, &options).await?;
            db.migrate(migrations).await?;
            Ok(db)
        };
        storage::retry_until_reachable(open, |why| {
            let why = telemetry::Masked(why).to_string();
            tracing::warn!(target: "ordermesh", "the database does not answer yet, retrying: {why}");
        })
        .await
    }
}

/// Address of the User Service, for services that verify access tokens with its keys.
#[derive(clap::Args, Clone, Debug)]
pub struct UserPeer {
    /// Instances of the User Service
    #[arg(long, env = "ORDERMESH_USER_ADDRESSES", default_value = "127.0.0.1:7101", value_name = "HOST:PORT,…")]
    pub user_addresses: Addresses,
    /// File with the public keys (a JWK set, as returned by ListSigningKeys) that verify access tokens until they have been fetched from the User Service once; read at startup [default: DATA_DIR/token-keys.json, kept by the service]
    #[arg(long, env = "ORDERMESH_TOKEN_KEYS", value_name = "FILE")]
    pub token_keys: Option<PathBuf>,
}

/// Address of the Order Service.
#[derive(clap::Args, Clone, Debug)]
pub struct OrderPeer {
    /// Instances of the Order Service
    #[arg(long, env = "ORDERMESH_ORDER_ADDRESSES", default_value = "127.0.0.1:7201", value_name = "HOST:PORT,…")]
    pub order_addresses: Addresses,
}

/// Address of the Payment Service.
#[derive(clap::Args, Clone, Debug)]
pub struct PaymentPeer {
    /// Instances of the Payment Service
    #[arg(long, env = "ORDERMESH_PAYMENT_ADDRESSES", default_value = "127.0.0.1:7301", value_name = "HOST:PORT,…")]
    pub payment_addresses: Addresses,
}

#[cfg(test)]
mod tests;
