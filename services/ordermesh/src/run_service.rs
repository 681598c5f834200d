//! `ordermesh user` and so on: one service in this process. This file binds, handles signals and installs telemetry;
//! the rest is in the service.

use std::io::Read;
use std::net::SocketAddr;

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
struct Frame {
    service: Service,
    instance: String,
    listen: SocketAddr,
    admin: Option<SocketAddr>,
    log: String,
    /// The general OTLP endpoint, with the name of its setting.
    otlp_endpoint: (&'static str, Option<String>),
}

impl Frame {
    fn of(service: Service, settings: &chassis::Settings) -> Self {
        Self {
            service,
            instance: settings.server.instance_of(service.name()),
            listen: settings.server.listen,
            admin: settings.server.admin_listen,
            log: settings.telemetry.log.clone(),
            otlp_endpoint: ("OTEL_EXPORTER_OTLP_ENDPOINT", settings.telemetry.otlp_endpoint.clone()),
        }
    }

    /// Only brings the schema up to date.
    async fn migrate(self, settings: &chassis::Settings, migrations: &[storage::Migration]) -> Result<(), Error> {
        let service = self.service.name();
        let database = |source| Error::Store { service, source };
        settings.open_database(service, migrations).await.map_err(database)?;
        out::line(format_args!("the schema of the {service} service is up to date"))
    }

    /// Installs telemetry, binds, serves until a signal, flushes telemetry.
    async fn serve<E: Into<Error>>(
        self,
        run: impl AsyncFnOnce(TcpListener, Option<TcpListener>, CancellationToken) -> Result<(), E>,
    ) -> Result<(), Error> {
        let (name, endpoint) = &self.otlp_endpoint;
        let endpoint = endpoint.as_deref().map(|endpoint| (*name, endpoint));
        let telemetry = Telemetry::install(&telemetry::Settings {
            service: self.service.name().to_owned(),
            instance: self.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            environment: Environment::of_process(endpoint).map_err(SetupError::from)?,
            log: self.log.clone(),
            log_form: None,
        })?;
        let shutdown = shutdown()?;
        let listener = self.bind(self.listen, "choose another with --listen").await?;
        let admin = match self.admin {
            Some(address) => Some(self.bind(address, "choose another with --admin-listen").await?),
            None => None,
        };
        let served = run(listener, admin, shutdown).await.map_err(Into::into);
        telemetry.shutdown().await;
        match served {
            Err(Error::Service(chassis::Error::Stopped)) => Ok(()),
            served => served,
        }
    }

    async fn bind(&self, address: SocketAddr, hint: &'static str) -> Result<TcpListener, Error> {
        let who = self.instance.clone();
        mesh::listen(address).await.map_err(|source| Error::PortTaken { who, address, hint, source })
    }
}

/// Cancelled by SIGTERM, by SIGINT, and by the end of the supervisor. A second signal exits immediately: acknowledged
/// work is stored, and continues at the next start.
fn shutdown() -> Result<CancellationToken, Error> {
    let shutdown = CancellationToken::new();
    let mut signals = Signals::new()?;
    let asked = shutdown.clone();
    tokio::spawn(async move {
        signals.next().await;
        asked.cancel();
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
    let frame = Frame::of(Service::User, &config.common);
    if config.common.database.migrate_only {
        return frame.migrate(&config.common, user::MIGRATIONS).await;
    }
    frame.serve(async |listener, admin, shutdown| user::run(config, listener, admin, shutdown).await).await
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
    let frame = Frame::of(Service::Order, &config.common);
    if config.common.database.migrate_only {
        return frame.migrate(&config.common, order::MIGRATIONS).await;
    }
    frame.serve(async |listener, admin, shutdown| order::run(config, listener, admin, shutdown).await).await
}

/// Runs the Payment Service.
///
/// # Errors
/// As [`user()`].
pub(crate) async fn payment(config: payment::Config) -> Result<(), Error> {
    let frame = Frame::of(Service::Payment, &config.common);
    if config.common.database.migrate_only {
        return frame.migrate(&config.common, payment::MIGRATIONS).await;
    }
    frame.serve(async |listener, admin, shutdown| payment::run(config, listener, admin, shutdown).await).await
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
    let frame = Frame::of(Service::Data, &config.common);
    if config.common.database.migrate_only {
        return frame.migrate(&config.common, data::MIGRATIONS).await;
    }
    frame.serve(async |listener, admin, shutdown| data::run(config, listener, admin, shutdown).await).await
}

/// Runs the gateway: a separate package, linked into this program so that one executable is enough.
///
/// # Errors
/// As [`user()`].
pub(crate) async fn gateway(config: gateway_mock::Config) -> Result<(), Error> {
    if config.migrate_only {
        gateway_mock::open_ledger(&config).await?;
        return out::line("the schema of the gateway is up to date");
    }
    let admin_address = config.admin_listen;
    let frame = Frame {
        service: Service::Gateway,
        instance: config.instance.clone(),
        listen: config.listen,
        admin: Some(admin_address),
        log: config.log.clone(),
        otlp_endpoint: ("GATEWAY_OTLP_ENDPOINT", config.otlp_endpoint.clone()),
    };
    frame
        .serve(async |listener, admin, shutdown| {
            let Some(admin) = admin else { return Err(Error::Usage("the gateway requires an admin port".to_owned())) };
            Ok(gateway_mock::run(config, listener, admin, shutdown).await?)
        })
        .await
}
