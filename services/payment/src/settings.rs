//! The settings of the Payment Service.

use std::path::PathBuf;
use std::time::Duration;

use chassis::settings::{archive_after, count, duration, positive_duration};
use chassis::{OrderPeer, Settings, UserPeer};
use kernel::{AmountLimits, Secret};
use mesh::Addresses;
use tonic::metadata::{Ascii, MetadataValue};

use crate::driver;

/// Settings of the Payment Service.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// Settings common to all services.
    #[command(flatten)]
    pub common: Settings,
    /// The User Service, whose keys verify access tokens.
    #[command(flatten)]
    pub user: UserPeer,
    /// The Order Service, which late results are confirmed to.
    #[command(flatten)]
    pub order: OrderPeer,
    /// Instances of the payment gateway
    #[arg(
        long,
        env = "ORDERMESH_PAYMENT_GATEWAY_ADDRESSES",
        default_value = "127.0.0.1:7501",
        value_name = "HOST:PORT,…"
    )]
    pub gateway_addresses: Addresses,
    /// API key at the gateway. Better set by environment or file: flags are visible to all local users
    #[arg(long, env = "ORDERMESH_PAYMENT_GATEWAY_API_KEY", hide_env_values = true, value_parser = api_key, value_name = "KEY")]
    pub gateway_api_key: Option<ApiKey>,
    /// File with the API key at the gateway [default: DATA_DIR/gateway.key]
    #[arg(long, env = "ORDERMESH_PAYMENT_GATEWAY_API_KEY_FILE", value_name = "FILE")]
    pub gateway_api_key_file: Option<PathBuf>,
    /// Timeout of a call to the gateway
    #[arg(long, env = "ORDERMESH_PAYMENT_GATEWAY_TIMEOUT", default_value = "2s", value_parser = positive_duration, value_name = "DURATION")]
    pub gateway_timeout: Duration,
    /// Maximum time in doubt; then the payment fails, once it is certain that nothing is charged
    #[arg(long, env = "ORDERMESH_PAYMENT_DOUBT_LIMIT", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub doubt_limit: Duration,
    /// Maximum charge for an order, by currency in whole units, for example EUR=50000,JPY=9000000; a currency that is
    /// not named keeps its default. The Order Service has a limit of its own, which should not be higher [default:
    /// about 100000 euros in each currency]
    #[arg(long, env = "ORDERMESH_PAYMENT_AMOUNT_LIMIT", value_name = "CURRENCY=AMOUNT,…")]
    pub amount_limit: Option<AmountLimits>,
    /// Maximum time that ProcessPayment and CancelPayment wait for the payment's result before they return its present state
    #[arg(long, alias = "answer-within", env = "ORDERMESH_PAYMENT_WAIT_TIMEOUT", default_value = "3s", value_parser = duration, value_name = "DURATION")]
    pub wait_timeout: Duration,
    /// How long a payment's lease lasts, before another instance takes the payment over
    #[arg(long, env = "ORDERMESH_PAYMENT_LEASE", default_value = "10s", value_parser = positive_duration, value_name = "DURATION")]
    pub lease: Duration,
    /// Average interval between polls for due payments
    #[arg(long, env = "ORDERMESH_PAYMENT_POLL_INTERVAL", default_value = "500ms", value_parser = positive_duration, value_name = "DURATION")]
    pub poll_interval: Duration,
    /// Backoff after the first failed attempt; doubles with each attempt, up to the cap
    #[arg(long, env = "ORDERMESH_PAYMENT_BACKOFF", default_value = "200ms", value_parser = positive_duration, value_name = "DURATION")]
    pub backoff: Duration,
    /// Maximum backoff between two attempts
    #[arg(long, env = "ORDERMESH_PAYMENT_BACKOFF_CAP", default_value = "60s", value_parser = positive_duration, value_name = "DURATION")]
    pub backoff_cap: Duration,
    /// Maximum number of payments that this instance drives concurrently
    #[arg(long, alias = "max-drives", env = "ORDERMESH_PAYMENT_MAX_IN_FLIGHT", default_value_t = 256, value_name = "COUNT", value_parser = count)]
    pub max_in_flight: usize,
    /// Archive payments this long after their last change: the archive is a table in the same database, and everything still reads it.
    /// Only when every instance runs 0.2.0 or later [default: never]
    #[arg(long, env = "ORDERMESH_PAYMENT_ARCHIVE_AFTER", value_parser = archive_after, value_name = "DURATION")]
    pub archive_after: Option<Duration>,
}

/// The merchant's API key at the gateway.
pub type ApiKey = Secret<MetadataValue<Ascii>>;

/// Parses an API key.
///
/// # Errors
/// It is not 1 to 255 visible ASCII characters; the error is a sentence.
pub fn api_key(text: &str) -> Result<ApiKey, String> {
    let text = text.trim();
    let is_valid = (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    let key = text.parse().ok().filter(|_| is_valid).map(Secret::new);
    key.ok_or_else(|| "an API key is 1 to 255 visible ASCII characters".to_owned())
}

impl Config {
    /// The API key of the flag, of the environment, or of a file.
    pub(crate) fn read_api_key(&self) -> Result<ApiKey, chassis::Error> {
        if let Some(key) = &self.gateway_api_key {
            return Ok(key.clone());
        }
        let path = self.gateway_api_key_file.clone().unwrap_or_else(|| self.common.data_dir.join("gateway.key"));
        let unusable = |why: String| {
            let hint = "set ORDERMESH_PAYMENT_GATEWAY_API_KEY or ORDERMESH_PAYMENT_GATEWAY_API_KEY_FILE";
            chassis::Error::Setting(format!("the gateway's API key {} cannot be used: {why}; {hint}", path.display()))
        };
        storage::ownership::check_secret(&path)?;
        let text = std::fs::read_to_string(&path).map_err(|error| unusable(error.to_string()))?;
        api_key(&text).map_err(unusable)
    }

    /// How long a copied payment stays beside its copy: longer than a transaction that began before the copy may last.
    pub(crate) fn archive_grace(&self) -> Duration {
        Duration::from_secs(60).max(self.common.database.statement_timeout * 2 + Duration::from_secs(10))
    }

    pub(crate) fn driver_options(&self, instance: &str) -> driver::Options {
        driver::Options {
            instance: instance.to_owned(),
            lease: self.lease,
            poll_interval: self.poll_interval,
            backoff: self.backoff,
            backoff_cap: self.backoff_cap,
            max_in_flight: self.max_in_flight,
        }
    }
}
