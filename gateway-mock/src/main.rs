//! The gateway's program: binds, installs telemetry, handles signals. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use gateway_mock::{Config, Error};
use telemetry::{Environment, SetupError, Telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A mock of an external payment gateway with a durable ledger and fault injection.
#[derive(Parser, Debug)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Files are private to this user: the ledger contains payment tokens.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    match serve(Cli::parse().config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", telemetry::masked(&error.to_string()));
            for cause in kernel::error::causes(&error).skip(1) {
                eprintln!("  because {}", telemetry::masked(&cause.to_string()));
            }
            // The same exit code as for invalid arguments.
            ExitCode::from(if error.is_configuration() { 2 } else { 1 })
        }
    }
}

async fn serve(config: Config) -> Result<(), Error> {
    if config.migrate_only {
        return gateway_mock::open_ledger(&config).await.map(|_| ());
    }
    let endpoint = config.otlp_endpoint.as_deref().map(|endpoint| ("GATEWAY_OTLP_ENDPOINT", endpoint));
    let telemetry = Telemetry::install(&telemetry::Settings {
        service: "gateway".to_owned(),
        instance: config.instance.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        environment: Environment::of_process(endpoint).map_err(SetupError::from)?,
        log: config.log.clone(),
        log_form: None,
    })?;
    let bind = async |address| mesh::listen(address).await.map_err(|source| Error::Bind { address, source });
    let (listener, admin_listener) = (bind(config.listen).await?, bind(config.admin_listen).await?);
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    let shutdown = CancellationToken::new();
    let asked = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        asked.cancel();
    });
    let served = gateway_mock::run(config, listener, admin_listener, shutdown).await;
    telemetry.shutdown().await;
    served
}
