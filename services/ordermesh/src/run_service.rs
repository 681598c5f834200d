//! `ordermesh user` and so on: one service in this process. This file binds, handles signals and installs telemetry;
//! the rest is in the service.

use std::io::Read;
use std::net::SocketAddr;

use chassis::{ServerSettings, Settings, TelemetrySettings};
use storage::Database;
use telemetry::{Environment, SetupError, Telemetry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::catalog;
use crate::child::SUPERVISED;
use crate::error::Error;
use crate::out;
use crate::service::Service;
use crate::up::Signals;

/// Settings of the Data Service's program.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DataArgs {
    #[command(flatten)]
    config: data::Config,
    /// Insert the demo products into an empty catalogue
    #[arg(long, env = "ORDERMESH_DEMO_CATALOG")]
    demo_catalog: bool,
}

/// Settings of the Order Service's program.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct OrderArgs {
    #[command(flatten)]
    config: order::Config,
    /// Insert the demo products' stock into an empty inventory
    #[arg(long, env = "ORDERMESH_DEMO_CATALOG")]
    demo_catalog: bool,
}

/// What all services have in common.
struct ServiceProcess {
    service: Service,
    instance: String,
    listen: SocketAddr,
    admin: Option<SocketAddr>,
    log: String,
    otlp_endpoint: Option<String>,
}

impl ServiceProcess {
    fn of(service: Service, server: &ServerSettings, telemetry: &TelemetrySettings) -> Self {
        Self {
            service,
            instance: server.instance_of(service.name()),
            listen: server.listen,
            admin: server.admin_listen,
            log: telemetry.log.clone(),
            otlp_endpoint: telemetry.otlp_endpoint.clone(),
        }
    }

    /// Of one of the four services.
    fn of_service(service: Service, settings: &Settings) -> Self {
        Self::of(service, &settings.server, &settings.telemetry)
    }

    /// Only brings the schema up to date.
    async fn migrate(self, opening: impl Future<Output = Result<Database, storage::Error>>) -> Result<(), Error> {
        let service = self.service.name();
        opening.await.map_err(|source| Error::Store { service, source })?;
        out::line(format_args!("the schema of the {service} service is up to date"))
    }

    /// Installs telemetry, binds, serves until a signal, flushes telemetry.
    async fn serve(
        self,
        run: impl AsyncFnOnce(TcpListener, Option<TcpListener>, CancellationToken) -> Result<(), chassis::Error>,
    ) -> Result<(), Error> {
        let endpoint = self.otlp_endpoint.as_deref().map(|endpoint| ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint));
        let telemetry = Telemetry::install(&telemetry::Settings {
            service: self.service.name().to_owned(),
            instance: self.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            environment: Environment::of_process(endpoint).map_err(SetupError::from)?,
            log: self.log.clone(),
            log_format: None,
        })?;
        chassis::set_version(crate::VERSION);
        let shutdown = shutdown()?;
        let listener = self.bind(self.listen, "choose another with --listen").await?;
        let admin = match self.admin {
            Some(address) => Some(self.bind(address, "choose another with --admin-listen").await?),
            None => None,
        };
        let served = run(listener, admin, shutdown).await;
        telemetry.shutdown().await;
        match served {
            Err(chassis::Error::Stopped) => Ok(()),
            served => served.map_err(Error::from),
        }
    }

    async fn bind(&self, address: SocketAddr, hint: &'static str) -> Result<TcpListener, Error> {
        let who = self.instance.clone();
        mesh::listen(address).await.map_err(|source| Error::Listen { who, address, hint, source })
    }
}

/// Cancelled by SIGTERM, by SIGINT, and by the end of the supervisor. A second signal exits immediately: acknowledged
/// work is stored, and continues at the next start.
fn shutdown() -> Result<CancellationToken, Error> {
    let shutdown = CancellationToken::new();
    let mut signals = Signals::new()?;
    let requested = shutdown.clone();
    tokio::spawn(async move {
        signals.next().await;
        requested.cancel();
        signals.next().await;
        out::complain("ordermesh: second signal: exiting immediately");
        std::process::exit(1);
    });
    if std::env::var_os(SUPERVISED).is_some() {
        let gone = shutdown.clone();
        // A dedicated thread: tokio's stdin would keep the runtime from shutting down.
        std::thread::spawn(move || {
            let mut nothing = [0; 64];
            while matches!(std::io::stdin().read(&mut nothing), Ok(count) if count > 0) {}
            gone.cancel();
        });
    }
    Ok(shutdown)
}

/// Runs the User Service.
///
/// # Errors
/// A port is taken; a dependency of the service cannot be used.
pub(crate) async fn user(config: user::Config) -> Result<(), Error> {
    let process = ServiceProcess::of_service(Service::User, &config.common);
    if config.common.database.migrate_only {
        return process.migrate(config.common.open_database("user", user::MIGRATIONS)).await;
    }
    process.serve(async |listener, admin, shutdown| user::run(config, listener, admin, shutdown).await).await
}

/// Runs the Order Service.
///
/// # Errors
/// As [`user()`].
pub(crate) async fn order(args: OrderArgs) -> Result<(), Error> {
    let mut config = args.config;
    if args.demo_catalog {
        config.seed_stock = catalog::stock();
    }
    let process = ServiceProcess::of_service(Service::Order, &config.common);
    if config.common.database.migrate_only {
        return process.migrate(config.common.open_database("order", order::MIGRATIONS)).await;
    }
    process.serve(async |listener, admin, shutdown| order::run(config, listener, admin, shutdown).await).await
}

/// Runs the Payment Service.
///
/// # Errors
/// As [`user()`].
pub(crate) async fn payment(config: payment::Config) -> Result<(), Error> {
    let process = ServiceProcess::of_service(Service::Payment, &config.common);
    if config.common.database.migrate_only {
        return process.migrate(config.common.open_database("payment", payment::MIGRATIONS)).await;
    }
    process.serve(async |listener, admin, shutdown| payment::run(config, listener, admin, shutdown).await).await
}

/// Runs the Data Service.
///
/// # Errors
/// As [`user()`].
pub(crate) async fn data(args: DataArgs) -> Result<(), Error> {
    let mut config = args.config;
    if args.demo_catalog {
        config.seed_products = catalog::products();
    }
    let process = ServiceProcess::of_service(Service::Data, &config.common);
    if config.common.database.migrate_only {
        return process.migrate(config.common.open_database("data", data::MIGRATIONS)).await;
    }
    process.serve(async |listener, admin, shutdown| data::run(config, listener, admin, shutdown).await).await
}

/// Runs the gateway: a separate package, linked into this program so that one executable is enough.
///
/// # Errors
/// As [`user()`].
pub(crate) async fn gateway(config: gateway_mock::Config) -> Result<(), Error> {
    let process = ServiceProcess::of(Service::Gateway, &config.server, &config.telemetry);
    if config.database.migrate_only {
        return process.migrate(config.open_ledger()).await;
    }
    process.serve(async |listener, admin, shutdown| gateway_mock::run(config, listener, admin, shutdown).await).await
}
