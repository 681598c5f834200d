//! Settings of the services: each is a flag and an environment variable. [`Settings`] is common to all; a service that
//! calls another one also takes its addresses.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use mesh::{Addresses, Quota};

/// The URL of a database. It may carry a password, so `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The URL, with its password.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a database server, which several machines can share.
    pub fn is_server(&self) -> bool {
        !self.0.starts_with("sqlite:")
    }
}

impl FromStr for DatabaseUrl {
    type Err = std::convert::Infallible;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        Ok(Self(url.to_owned()))
    }
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DatabaseUrl(..)")
    }
}

/// A number of bytes, at least one: `4096`, `4KiB`, `64MiB`, `1GiB`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteSize(pub usize);

/// The text is not a number of bytes.
#[derive(Debug, Clone, thiserror::Error)]
#[error("not a number of bytes above 0; examples are 4096, 4KiB, 64MiB, 1GiB")]
pub struct ByteSizeError;

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let scale = match &text[digits.len()..] {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(ByteSizeError),
        };
        let number: usize = digits.parse().map_err(|_| ByteSizeError)?;
        number.checked_mul(scale).filter(|bytes| *bytes > 0).map(Self).ok_or(ByteSizeError)
    }
}

/// Networks in CIDR notation, separated by commas: `10.0.0.0/8,fd00::/8`. Empty when the text is empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Networks(pub Vec<IpNet>);

/// An entry of the list is not a network.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0:?} is not a network; examples are 10.0.0.0/8, fd00::/8, 192.0.2.7/32")]
pub struct NetworksError(String);

impl FromStr for Networks {
    type Err = NetworksError;

    fn from_str(text: &str) -> Result<Self, NetworksError> {
        let each = text.split(',').map(str::trim).filter(|each| !each.is_empty());
        each.map(|each| each.parse().map_err(|_| NetworksError(each.to_owned()))).collect::<Result<_, _>>().map(Self)
    }
}

/// A hundred years: longer than any timeout, and small enough that adding a few of them to now does not overflow.
const LONGEST: Duration = Duration::from_secs(36_525 * 86_400);

/// A duration: `250ms`, `10s`, `5m`, `2h`, `7d`.
///
/// # Errors
/// The text is not a duration.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "not a duration; examples are 250ms, 10s, 5m, 2h, 7d".to_owned())?;
    let duration = match &text[digits.len()..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        "h" => Duration::from_secs(number.saturating_mul(3_600)),
        "d" => Duration::from_secs(number.saturating_mul(86_400)),
        _ => return Err("a duration needs a unit: ms, s, m, h or d, as in 250ms".to_owned()),
    };
    if duration <= LONGEST { Ok(duration) } else { Err("a duration is at most 36525d".to_owned()) }
}

/// A duration above zero, for an interval, a timeout or a lease.
///
/// # Errors
/// The text is not a duration, or is zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("a duration above 0 is needed here".to_owned()),
        duration => Ok(duration),
    }
}

/// A rate limit per caller: `20/s`, `100/m`, `1000/h`.
///
/// # Errors
/// The text is not a quota.
pub fn quota(text: &str) -> Result<Quota, String> {
    let wrong = || "not a quota; examples are 20/s, 100/m, 1000/h".to_owned();
    let (calls, per) = text.split_once('/').ok_or_else(wrong)?;
    let calls = calls.parse().ok().filter(|calls| *calls > 0).ok_or_else(wrong)?;
    let seconds = match per {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err(wrong()),
    };
    Ok(Quota { calls, per: Duration::from_secs(seconds) })
}

/// A limit on concurrent things: calls, streams, orders being driven.
///
/// # Errors
/// The number is outside 1 to 1,000,000.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1_000_000) => Ok(count),
        Ok(_) | Err(_) => Err("1 to 1000000".to_owned()),
    }
}

/// Below 1 MiB nothing is left for requests.
fn memory_limit(text: &str) -> Result<ByteSize, String> {
    bytes_within(text, 1024 * 1024..=usize::MAX, "at least 1MiB")
}

/// The generated servers decode at most 4 MiB.
fn message_size(text: &str) -> Result<ByteSize, String> {
    bytes_within(text, 1..=4 * 1024 * 1024, "at most 4MiB")
}

fn bytes_within(text: &str, range: RangeInclusive<usize>, wanted: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error: ByteSizeError| error.to_string())?;
    if range.contains(&size.0) { Ok(size) } else { Err(wanted.to_owned()) }
}

/// Settings common to all services.
#[derive(clap::Args, Clone, Debug)]
pub struct Settings {
    /// Address and port for gRPC; port 0 takes a free port
    #[arg(long, env = "ORDERMESH_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Address and port for plain HTTP health (/livez, /readyz); off when not set
    #[arg(long, env = "ORDERMESH_ADMIN_LISTEN", value_name = "ADDR:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// Name of this instance in traces, logs and leases [default: the service's name and the process id]
    #[arg(long, env = "ORDERMESH_INSTANCE", value_name = "NAME")]
    pub instance: Option<String>,
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
    /// OTLP endpoint for traces, metrics and logs, for example http://localhost:4317; off when not set
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Log filter directives, for example info or info,order=debug
    #[arg(long, env = "ORDERMESH_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// Continue the trace of a client's `traceparent` instead of only linking to it
    #[arg(long, env = "ORDERMESH_TRUST_CLIENT_TRACE_CONTEXT")]
    pub trust_client_trace_context: bool,
    /// Trusted proxy CIDRs: from these, the client IP is taken from `X-Forwarded-For`
    #[arg(long, env = "ORDERMESH_TRUSTED_PROXIES", value_name = "NETWORK,…")]
    pub trusted_proxies: Option<Networks>,
    /// Maximum bytes for requests in flight, counted at four times their wire size, and unsent answers [default: a quarter of --memory-limit]
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
    /// Pre-drain delay: keep serving after SIGTERM while readiness reports NOT_SERVING. This, --drain-timeout and 8 s should fit in the termination grace period (Kubernetes and the supervisor: 30 s)
    #[arg(long, env = "ORDERMESH_DRAIN_NOTICE", default_value = "0s", value_parser = duration, value_name = "DURATION")]
    pub drain_notice: Duration,
    /// Maximum time after the pre-drain delay for calls in flight and background tasks to end
    #[arg(long, env = "ORDERMESH_DRAIN_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub drain_timeout: Duration,
    /// Serve gRPC reflection, without authentication
    #[arg(long, env = "ORDERMESH_REFLECTION", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    pub reflection: bool,
    /// Migrate the database's schema and exit
    #[arg(long, env = "ORDERMESH_MIGRATE_ONLY", value_parser = clap::builder::FalseyValueParser::new())]
    pub migrate_only: bool,
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
    /// Database: sqlite://FILE or postgres://…; TLS by the URL's sslmode and sslrootcert [default: sqlite://DATA_DIR/SERVICE.db]
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
}

/// Address of the User Service, for services that verify access tokens with its keys.
#[derive(clap::Args, Clone, Debug)]
pub struct UserPeer {
    /// Instances of the User Service
    #[arg(long, env = "ORDERMESH_USER_ADDRESSES", default_value = "127.0.0.1:7101", value_name = "HOST:PORT,…")]
    pub user_addresses: Addresses,
    /// File with the public keys (a JWK set, as returned by ListSigningKeys) that verify access tokens until the User Service has answered once; read at startup [default: DATA_DIR/token-keys.json, kept by the service]
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
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_need_their_units() {
        assert_eq!("4KiB".parse::<ByteSize>().expect("a size"), ByteSize(4096));
        assert_eq!("4096".parse::<ByteSize>().expect("a size"), ByteSize(4096));
        assert!("4kb".parse::<ByteSize>().is_err());
        assert!("0".parse::<ByteSize>().is_err());
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert!(duration("10").is_err());
        assert!(duration("fast").is_err());
        assert!(duration("18446744073709551615s").is_err());
        assert!(positive_duration("0s").is_err() && positive_duration("1ms").is_ok());
    }

    #[test]
    fn a_quota_is_a_number_of_calls_per_unit_of_time() {
        assert_eq!(quota("100/m"), Ok(Quota { calls: 100, per: Duration::from_secs(60) }));
        for wrong in ["100", "0/s", "/s", "10/d", "ten/s", "-1/s"] {
            assert!(quota(wrong).is_err(), "{wrong}");
        }
    }

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn settings(flags: &[&str]) -> Result<Settings, clap::Error> {
        use clap::Parser;
        Cli::try_parse_from([&["service"], flags].concat()).map(|cli| cli.settings)
    }

    #[test]
    fn settings_that_allow_no_requests_are_rejected() {
        for (flag, wrong, right) in [
            ("--max-concurrency", "0", "1"),
            ("--memory-limit", "99", "64MiB"),
            ("--max-message", "5MiB", "4MiB"),
            ("--trusted-proxies", "10.0.0.1", "10.0.0.0/8, fd00::/8"),
            ("--trusted-proxies", "10.0.0.0/8,10.0.0.0/33", ""),
            ("--database-connections", "0", "1"),
            ("--database-acquire-timeout", "0s", "1s"),
            ("--database-statement-timeout", "0s", "1s"),
        ] {
            assert!(settings(&[flag, wrong]).is_err(), "{flag} {wrong}");
            assert!(settings(&[flag, right]).is_ok(), "{flag} {right}");
        }
    }

    #[test]
    fn tls_takes_three_files_or_none_and_excludes_the_mesh_secret() {
        assert!(settings(&[]).is_ok_and(|settings| settings.tls.files().is_none()));
        let three = ["--tls-cert", "a.pem", "--tls-key", "a.key", "--tls-ca", "ca.pem"];
        assert!(settings(&three).is_ok_and(|settings| settings.tls.files().is_some()));
        for missing in 0..3 {
            let two: Vec<_> =
                three.chunks(2).enumerate().filter(|(n, _)| *n != missing).flat_map(|(_, f)| f).copied().collect();
            assert!(settings(&two).is_err(), "{two:?}");
        }
        assert!(settings(&[&three[..], &["--mesh-secret-file", "x"]].concat()).is_err());
    }
}
