//! `ordermesh` without a subcommand: starts a system, prints how to use it, stops it.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use kernel::{IdSource, SystemIds};
use storage::Database;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::banner::Banner;
use crate::data_dir;
use crate::error::Error;
use crate::forwarded_args::ForwardedArgs;
use crate::out::say;
use crate::service::{MAX_INSTANCES, MAX_PORT_BASE};
use crate::supervisor::{Supervisor, SystemConfig};
use crate::trace::Trace;

/// The supervisor's settings.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Port base: user is at base + 101, order 201, payment 301, data 401, gateway 501; HTTP health checks 1000 above each
    #[arg(long, env = "ORDERMESH_PORT_BASE", default_value_t = 7000, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_PORT_BASE)))]
    pub(crate) port_base: u16,
    /// Number of instances of each service; the gateway has one
    #[arg(long, env = "ORDERMESH_INSTANCES", default_value_t = 2, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_INSTANCES)))]
    pub(crate) instances: u16,
    /// Folder of databases, keys and secrets; created if missing
    #[arg(long, env = "ORDERMESH_DATA_DIR", default_value = "data", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// PostgreSQL for all services, each in a schema of its own name: postgres://… [default: SQLite files in DATA_DIR]
    #[arg(long, env = "ORDERMESH_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) database_url: Option<chassis::DatabaseUrl>,
    /// Mutual TLS everywhere, with certificates generated in DATA_DIR/certs
    #[arg(long, env = "ORDERMESH_TLS", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) tls: bool,
    #[command(flatten)]
    pub(crate) traffic: chassis::TrafficSettings,
    /// Log filter of the services, for example info or warn,ordermesh=debug
    #[arg(long, env = "ORDERMESH_LOG", default_value = "warn", value_name = "FILTER")]
    pub(crate) log: String,
}

/// Runs a system until Ctrl-C or SIGTERM.
///
/// # Errors
/// A port is taken, or the data folder cannot be used.
pub(crate) async fn run(options: Options, forwarded: ForwardedArgs) -> Result<(), Error> {
    let began = Instant::now();
    // First of all, so that a signal during the start is handled too.
    let mut signals = Signals::new()?;
    if let Some(url) = &options.database_url {
        // Every child would reject it, and be restarted again and again.
        storage::check_url(url.as_str()).map_err(|error| Error::Usage(error.to_string()))?;
        tokio::select! {
            reached = reach(url.as_str()) => reached?,
            () = signals.next() => return Ok(()),
        }
    }
    let config = SystemConfig {
        port_base: options.port_base,
        instances: options.instances,
        data_dir: options.data_dir,
        database_url: options.database_url,
        tls: options.tls,
        log: options.log,
        traffic: options.traffic,
        forwarded,
        quiet: false,
        restarts_at_once: false,
    };
    let supervisor = Supervisor::start(&config)?;
    let until_ended = async {
        supervisor.ready().await;
        say(banner(&config, &supervisor, began)?.text());
        std::future::pending::<Result<(), Error>>().await
    };
    let result = tokio::select! {
        // The child has reported the reason on stderr, and is not restarted.
        service = supervisor.misconfigured() => Err(Error::Misconfigured(service)),
        result = until_ended => result,
        () = signals.next() => Ok(()),
    };
    end(supervisor, signals).await;
    result
}

/// Waits for the database: a user reads one reason, and not that of each child.
///
/// # Errors
/// It cannot be used, or was not reachable within a minute.
async fn reach(url: &str) -> Result<(), Error> {
    let options = storage::Options::default();
    let mut last = String::new();
    let waits = |why: &storage::Error| {
        let why = telemetry::Masked(why).to_string();
        if why != last {
            say(format_args!("ordermesh: waiting up to a minute for the database: {why}"));
            last = why;
        }
    };
    let opened = storage::retry_until_reachable(|| Database::connect(url, &options), waits).await;
    opened.map(drop).map_err(Error::Database)
}

/// Stops a system in order, or immediately on another signal.
async fn end(supervisor: Supervisor, mut signals: Signals) {
    say("\nordermesh: stopping; calls and orders in flight may finish (repeat to stop immediately)");
    tokio::select! {
        () = supervisor.stop() => say("ordermesh: stopped"),
        // Dropped children are killed; every acknowledged order continues at the next start.
        () = signals.next() => say("ordermesh: stopped immediately"),
    }
}

fn banner(config: &SystemConfig, supervisor: &Supervisor, began: Instant) -> Result<Banner, Error> {
    let data_dir = supervisor.data_dir.path().to_owned();
    let new_operator = if supervisor.data_dir.is_first_start() && std::io::stdout().is_terminal() {
        Some(data_dir::read_operator(&data_dir::operator_file(&data_dir))?)
    } else {
        None
    };
    Ok(Banner {
        port_base: config.port_base,
        instances: config.instances,
        roots: config.tls.then(|| supervisor.data_dir.roots()),
        processes: supervisor.processes(),
        took: began.elapsed(),
        data_dir,
        new_operator,
        has_grpcurl: is_on_path("grpcurl"),
        trace: Trace::random(),
        ids: [SystemIds.uuid(), SystemIds.uuid()],
    })
}

fn is_on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|folders| std::env::split_paths(&folders).any(|folder| folder.join(program).is_file()))
}

const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    last: Option<Instant>,
}

impl Signals {
    /// Installs handlers: from now on the signals do not kill the process.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(Error::Signal)?,
            interrupt: signal(SignalKind::interrupt()).map_err(Error::Signal)?,
            last: None,
        })
    }

    /// Completes at the next signal. A signal shortly after another is ignored: Ctrl-C is sent by the terminal, and
    /// again by a parent that forwards it.
    pub(crate) async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            let last = self.last.replace(Instant::now());
            if last.is_none_or(|last| last.elapsed() >= SAME_SIGNAL) {
                return;
            }
        }
    }
}
