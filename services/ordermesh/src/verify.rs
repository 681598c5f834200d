//! `ordermesh verify`: the promises 1 to 4, as queries over the stores of a running system and the gateway's ledger.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chassis::DatabaseUrl;
use chassis::settings::duration;
use clap::Args;
use data::invariants::TraceEventStore;
use kernel::{Clock, SystemClock};
use payment::ports::GrpcGateway;
use serde::Serialize;
use storage::Database;
use user::invariants::Store as UserStore;

use crate::error::Error;
use crate::json::{self, Format};
use crate::out;
use crate::promises::{Gauges, Promise, Report, Sources};
use crate::service::Service;
use crate::system::Location;

/// The defaults of `--patience` and `--event-retention`.
const PATIENCE: Duration = Duration::from_secs(60);
const RETENTION: Duration = Duration::from_secs(7 * 86_400);
/// Changes this close to the end of the retention are not checked: their events may just be being deleted.
const RETENTION_MARGIN: Duration = Duration::from_secs(3_600);
/// Timeout of opening a store. Longer than a service's own: a NetworkPolicy may not yet admit a pod that has just
/// started.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of reading a page of the ledger.
const LEDGER_TIMEOUT: Duration = Duration::from_secs(10);

/// What to verify.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    location: Location,
    #[command(flatten)]
    stores: Stores,
    /// How long a due order may stay unleased before it counts as lost
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "DURATION")]
    patience: Duration,
    /// The system's retention of events: older changes need no event
    #[arg(long, default_value = "7d", value_parser = duration, value_name = "DURATION")]
    event_retention: Duration,
    /// Output format
    #[arg(long, short, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
}

impl Options {
    /// The defaults, for a system.
    pub(crate) fn of(location: Location, stores: Stores) -> Self {
        Self { location, stores, patience: PATIENCE, event_retention: RETENTION, output: Format::Text }
    }
}

/// The databases of the stores, if they are not SQLite files in the system's folder.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Stores {
    /// PostgreSQL of all services, each in the schema of its name [default: SQLite files in DATA_DIR]
    #[arg(long, env = "ORDERMESH_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) database_url: Option<DatabaseUrl>,
    /// Database of the User Service, if different
    #[arg(long, env = "ORDERMESH_USER_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    user_database_url: Option<DatabaseUrl>,
    /// Database of the Order Service, if different
    #[arg(long, env = "ORDERMESH_ORDER_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    order_database_url: Option<DatabaseUrl>,
    /// Database of the Payment Service, if different
    #[arg(long, env = "ORDERMESH_PAYMENT_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    payment_database_url: Option<DatabaseUrl>,
    /// Database of the Data Service, if different
    #[arg(long, env = "ORDERMESH_DATA_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    data_database_url: Option<DatabaseUrl>,
}

impl Stores {
    /// All in one database, each in a schema of its own; SQLite files if `None`.
    pub(crate) fn on(database_url: Option<DatabaseUrl>) -> Self {
        Self { database_url, ..Self::default() }
    }

    fn url_of(&self, service: Service) -> Option<&DatabaseUrl> {
        let own = match service {
            Service::User => self.user_database_url.as_ref(),
            Service::Order => self.order_database_url.as_ref(),
            Service::Payment => self.payment_database_url.as_ref(),
            Service::Data => self.data_database_url.as_ref(),
            Service::Gateway => None,
        };
        own.or(self.database_url.as_ref())
    }

    async fn open(&self, location: &Location, service: Service) -> Result<Database, Error> {
        let url = self.url_of(service);
        let schema = url.is_some_and(DatabaseUrl::is_server).then(|| service.name().to_owned());
        let acquire_timeout = STORE_TIMEOUT;
        let options = storage::Options { max_connections: 2, acquire_timeout, schema, ..storage::Options::default() };
        let url = match url {
            Some(url) => url.as_str().to_owned(),
            None => storage::sqlite_url(&file(location, service)?),
        };
        Database::connect(&url, &options).await.map_err(|source| Error::Store { service: service.name(), source })
    }
}

/// Opening a missing file would create it.
fn file(location: &Location, service: Service) -> Result<PathBuf, Error> {
    let path = location.data_dir.join(format!("{service}.db"));
    if path.exists() {
        return Ok(path);
    }
    let path = path.display();
    Err(Error::Usage(format!("{path} does not exist: set the system's stores with --data-dir or --database-url")))
}

/// Opens the stores of a running system, and a channel to its gateway.
///
/// # Errors
/// A store or the gateway's key does not exist.
pub(crate) async fn sources(options: &Options) -> Result<Sources, Error> {
    let Options { location, stores, patience, event_retention, output: _ } = options;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let user = stores.open(location, Service::User).await?;
    let order = stores.open(location, Service::Order).await?;
    let payment = stores.open(location, Service::Payment).await?;
    let data = stores.open(location, Service::Data).await?;
    let path = location.gateway_key();
    let key =
        std::fs::read_to_string(&path).map_err(|source| Error::File { path: path.clone(), action: "read", source })?;
    let key = payment::api_key(&key).map_err(Error::Usage)?;
    let gateway = GrpcGateway::new(location.gateway()?, key, LEDGER_TIMEOUT);
    Ok(Sources {
        outboxes: [&user, &order, &payment, &data].into_iter().map(Database::outbox).collect(),
        orders: order::store::Store::new(order, clock.clone()),
        payments: payment::store::Store::new(payment, clock.clone()),
        gateway: Arc::new(gateway),
        events: Some(TraceEventStore::new(data)),
        sessions: Some(UserStore::new(user)),
        patience: *patience,
        events_since: clock.now().minus(event_retention.saturating_sub(RETENTION_MARGIN)),
    })
}

/// The report, as JSON.
#[derive(Serialize)]
struct Json<'a> {
    promises: Vec<JsonPromise>,
    /// The number of orders, by state.
    orders: &'a BTreeMap<&'static str, u64>,
    unfinished: u64,
    changing: u64,
    refused_events: u64,
    gauges: Gauges,
    violations: Vec<JsonViolation<'a>>,
}

#[derive(Serialize)]
struct JsonPromise {
    number: u8,
    promise: &'static str,
    kept: bool,
    /// The number of rows checked, by kind.
    checked: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct JsonViolation<'a> {
    promise: u8,
    subject: &'a str,
    what: &'a str,
}

impl<'a> Json<'a> {
    fn new(report: &'a Report, gauges: Gauges) -> Self {
        let promise = |promise: Promise| JsonPromise {
            number: promise.number(),
            promise: promise.words(),
            kept: report.violations.iter().all(|violation| violation.promise != promise),
            checked: report.looked_at.get(&promise).cloned().unwrap_or_default(),
        };
        let violations = report.violations.iter().map(|violation| JsonViolation {
            promise: violation.promise.number(),
            subject: &violation.subject,
            what: &violation.what,
        });
        Self {
            promises: Promise::ALL.map(promise).into(),
            orders: &report.states,
            unfinished: report.unfinished,
            changing: report.changing,
            refused_events: report.refused_events,
            gauges,
            violations: violations.collect(),
        }
    }
}

/// Verifies the promises, and prints the report.
///
/// # Errors
/// A store cannot be read, or a promise is broken.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let sources = sources(&options).await?;
    let report = sources.check().await?;
    let gauges = sources.gauges().await?;
    match options.output {
        Format::Text => out::text(&report).and_then(|()| out::line(gauges))?,
        Format::Json => json::print(&Json::new(&report, gauges))?,
    }
    verdict(&report)
}

/// # Errors
/// A promise is broken.
pub(crate) fn verdict(report: &Report) -> Result<(), Error> {
    match report.violations.len() {
        0 => Ok(()),
        count => Err(Error::Broken { count }),
    }
}
