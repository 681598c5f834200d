//! Payment Service: a payment's lifecycle against an external gateway.
//!
//! Start reading at [`lifecycle`], the state table. [`process`] starts or joins a payment and waits for its result,
//! [`driver`] calls the gateway and records the result. The service knows nothing of orders but their ids, and card
//! numbers never reach it: a payment method is a token.
//!
//! # Layout
//! - [`lifecycle`]: the state table
//! - [`payment`]: the stored payment, its keys at the gateway, the events of its states
//! - [`process`]: starting, joining, cancelling; waiting for the result
//! - [`driver`]: performs the pending effect of a payment and records its result
//! - [`reconcile`]: compares the payments with the gateway's ledger
//! - [`waiters`]: the calls that wait for a payment's result
//! - [`ports`]: the interfaces to the gateway and to the Order Service, and their gRPC clients
//! - [`store`], `sql`, `entity`, `migration`: the tables; `service`, `convert`, [`error`]: the gRPC contract; `gauges`:
//!   the metrics

pub mod driver;
pub mod error;
pub mod lifecycle;
pub mod payment;
pub mod ports;
pub mod process;
pub mod reconcile;
pub mod store;
pub mod waiters;

mod convert;
mod entity;
mod gauges;
mod migration;
mod service;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chassis::settings::{count, duration, positive_duration};
use chassis::{Chassis, OrderPeer, Served, Settings, UserPeer};
use contracts::payment::v1::payment_service_server::{PaymentServiceServer, SERVICE_NAME};
use kernel::AmountLimits;
use mesh::Addresses;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Routes;

pub use error::Error;
pub use migration::MIGRATIONS;

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
    #[arg(long, env = "ORDERMESH_PAYMENT_GATEWAY_API_KEY", hide_env_values = true, value_name = "KEY")]
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
    /// Maximum time that a call waits for its payment before it answers "pending"
    #[arg(long, env = "ORDERMESH_PAYMENT_ANSWER_WITHIN", default_value = "3s", value_parser = duration, value_name = "DURATION")]
    pub answer_within: Duration,
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
    #[arg(long, env = "ORDERMESH_PAYMENT_MAX_DRIVES", default_value_t = 256, value_name = "COUNT", value_parser = count)]
    pub max_drives: usize,
}

/// An API key. Debug omits it.
#[derive(Clone)]
pub struct ApiKey(pub(crate) MetadataValue<Ascii>);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

impl FromStr for ApiKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() || text.len() > 255 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("an API key is 1 to 255 visible ASCII characters".to_owned());
        }
        text.parse().map(Self).map_err(|_| "an API key is 1 to 255 visible ASCII characters".to_owned())
    }
}

impl Config {
    fn api_key(&self) -> Result<ApiKey, chassis::Error> {
        if let Some(key) = &self.gateway_api_key {
            return Ok(key.clone());
        }
        let path = self.gateway_api_key_file.clone().unwrap_or_else(|| self.common.data_dir.join("gateway.key"));
        let refused = |why: String| {
            let hint = "set ORDERMESH_PAYMENT_GATEWAY_API_KEY or ORDERMESH_PAYMENT_GATEWAY_API_KEY_FILE";
            chassis::Error::Setting(format!("the gateway's API key {} cannot be used: {why}; {hint}", path.display()))
        };
        storage::ownership::check_secret(&path)?;
        let text = std::fs::read_to_string(&path).map_err(|error| refused(error.to_string()))?;
        text.parse().map_err(refused)
    }

    fn driver_options(&self, instance: &str) -> driver::Options {
        driver::Options {
            instance: instance.to_owned(),
            lease: self.lease,
            poll_interval: self.poll_interval,
            backoff: self.backoff,
            backoff_cap: self.backoff_cap,
            doubt_limit: self.doubt_limit,
            max_drives: self.max_drives,
        }
    }
}

/// Serves on a listener until `shutdown`, then drains.
///
/// # Errors
/// The API key, the database or a listener cannot be used.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: CancellationToken,
) -> Result<(), chassis::Error> {
    let api_key = config.api_key()?;
    let chassis = Chassis::start("payment", &config.common, migration::MIGRATIONS, shutdown).await?;
    let store = store::Store::new(chassis.db.clone(), chassis.clock.clone());
    let channel = chassis.external_channel("gateway", &config.gateway_addresses);
    let gateway = Arc::new(ports::GrpcGateway::new(channel, api_key.0, config.gateway_timeout));
    let order = chassis.channel("order", &config.order.order_addresses);
    let waiters = waiters::Waiters::default();
    let driver = driver::Driver::new(driver::Parts {
        store: store.clone(),
        gateway: gateway.clone(),
        confirmations: Arc::new(ports::GrpcConfirmations::new(order)),
        clock: chassis.clock.clone(),
        ids: chassis.ids.clone(),
        events: chassis.events.clone(),
        waiters: waiters.clone(),
        faults: Arc::new(kernel::NoFaults),
        tasks: chassis.tasks.clone(),
        shutdown: chassis.shutdown.clone(),
        options: config.driver_options(&chassis.instance),
    });
    driver.recover().await.map_err(|source| chassis::Error::Database { service: "payment", source })?;
    chassis.tasks.spawn(driver.clone().poll());
    chassis.tasks.spawn(gauges::record(store.clone(), driver.clone(), chassis.clone()));
    let processor = process::Processor {
        store: store.clone(),
        driver,
        waiters,
        events: chassis.events.clone(),
        tasks: chassis.tasks.clone(),
        limits: process::Limits {
            amount: config.amount_limit.unwrap_or_default(),
            answer_within: config.answer_within,
        },
    };
    let handlers = service::Handlers { processor, reconciler: reconcile::Reconciler { store, gateway } };
    let routes = Routes::new(PaymentServiceServer::new(handlers).max_encoding_message_size(mesh::MAX_RESPONSE_BYTES));
    let keys = chassis.remote_keys(&config.user)?;
    chassis.serve(Served { routes, health_services: &[SERVICE_NAME], keys, rate_limits: vec![] }, listener, admin).await
}
