//! What services can be told: each setting is a flag and an environment variable. [`Settings`] is what all have; a service
//! that calls another takes that one's addresses too.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The URL of a database. It may carry a password: Debug shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is it a database server, which several machines may share?
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

/// A number of bytes: `4096`, `4KiB`, `64MiB`, `1GiB`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteSize(pub usize);

/// What is wrong with a number of bytes.
#[derive(Debug, Clone, thiserror::Error)]
#[error("not a number of bytes; examples are 4096, 4KiB, 64MiB, 1GiB")]
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
        number.checked_mul(scale).map(Self).ok_or(ByteSizeError)
    }
}

/// A duration: `250ms`, `10s`, `5m`, `2h`, `7d`.
///
/// # Errors
/// A text of another form, said so.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "not a duration; examples are 250ms, 10s, 5m, 2h, 7d".to_owned())?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3_600))),
        "d" => Ok(Duration::from_secs(number.saturating_mul(86_400))),
        _ => Err("a duration needs a unit: ms, s, m, h or d, as in 250ms".to_owned()),
    }
}

/// Settings that every service has.
#[derive(clap::Args, Clone, Debug)]
pub struct Settings {
    /// Address and port for gRPC; port 0 takes a free one
    #[arg(long, env = "ORDERMESH_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Address and port for plain HTTP health (/livez, /readyz); none when not set
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
    /// File with the secret that services on one machine share; for loopback listeners only [default: DATA_DIR/mesh.secret]
    #[arg(long, env = "ORDERMESH_MESH_SECRET_FILE", value_name = "FILE")]
    pub mesh_secret_file: Option<PathBuf>,
    /// Instances of the Data Service: it keeps the trace events of all
    #[arg(
        long,
        env = "ORDERMESH_DATA_ADDRESSES",
        value_delimiter = ',',
        default_value = "127.0.0.1:7401",
        value_name = "HOST:PORT,…"
    )]
    pub data_addresses: Vec<String>,
    /// Where traces and metrics go by OTLP/gRPC, for example http://localhost:4317; nowhere when not set
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// What is logged, as filter directives, for example info or info,order=debug
    #[arg(long, env = "ORDERMESH_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// Continue the trace of a client's `traceparent` instead of only linking to it
    #[arg(long, env = "ORDERMESH_TRUST_CLIENT_TRACE_CONTEXT")]
    pub trust_client_trace_context: bool,
    /// Most bytes that requests in flight may take, four times their size on the wire [default: a quarter of the control group's limit, or of the machine's memory]
    #[arg(long, env = "ORDERMESH_MEMORY_BUDGET", value_name = "BYTES")]
    pub memory_budget: Option<ByteSize>,
    /// Most bytes of one message
    #[arg(long, env = "ORDERMESH_MAX_MESSAGE", default_value = "1MiB", value_name = "BYTES")]
    pub max_message: ByteSize,
    /// How long calls in flight may take to end when the service is told to stop
    #[arg(long, env = "ORDERMESH_DRAIN_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub drain_timeout: Duration,
}

/// A service's own database.
#[derive(clap::Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// Database: sqlite://FILE or postgres://…; TLS by the URL's sslmode and sslrootcert [default: sqlite://DATA_DIR/SERVICE.db]
    #[arg(long = "database-url", env = "ORDERMESH_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub url: Option<DatabaseUrl>,
    /// Most connections to the database
    #[arg(
        long = "database-connections",
        env = "ORDERMESH_DATABASE_CONNECTIONS",
        default_value_t = 8,
        value_name = "COUNT"
    )]
    pub connections: u32,
    /// How long a call waits for a connection before it is refused as UNAVAILABLE
    #[arg(long = "database-acquire-timeout", env = "ORDERMESH_DATABASE_ACQUIRE_TIMEOUT", default_value = "2s", value_parser = duration, value_name = "DURATION")]
    pub acquire_timeout: Duration,
    /// PostgreSQL: how long a statement may take before the server ends it
    #[arg(long = "database-statement-timeout", env = "ORDERMESH_DATABASE_STATEMENT_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub statement_timeout: Duration,
}

/// Where the User Service is: for those who verify access tokens with its keys.
#[derive(clap::Args, Clone, Debug)]
pub struct UserPeer {
    /// Instances of the User Service
    #[arg(
        long,
        env = "ORDERMESH_USER_ADDRESSES",
        value_delimiter = ',',
        default_value = "127.0.0.1:7101",
        value_name = "HOST:PORT,…"
    )]
    pub user_addresses: Vec<String>,
}

/// Where the Order Service is.
#[derive(clap::Args, Clone, Debug)]
pub struct OrderPeer {
    /// Instances of the Order Service
    #[arg(
        long,
        env = "ORDERMESH_ORDER_ADDRESSES",
        value_delimiter = ',',
        default_value = "127.0.0.1:7201",
        value_name = "HOST:PORT,…"
    )]
    pub order_addresses: Vec<String>,
}

/// Where the Payment Service is.
#[derive(clap::Args, Clone, Debug)]
pub struct PaymentPeer {
    /// Instances of the Payment Service
    #[arg(
        long,
        env = "ORDERMESH_PAYMENT_ADDRESSES",
        value_delimiter = ',',
        default_value = "127.0.0.1:7301",
        value_name = "HOST:PORT,…"
    )]
    pub payment_addresses: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_need_their_units() {
        assert_eq!("4KiB".parse::<ByteSize>().expect("a size"), ByteSize(4096));
        assert_eq!("4096".parse::<ByteSize>().expect("a size"), ByteSize(4096));
        assert!("4kb".parse::<ByteSize>().is_err());
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert!(duration("10").is_err());
        assert!(duration("fast").is_err());
    }
}
