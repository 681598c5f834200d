//! The program: a supervisor that runs a whole system on this machine, each service by itself, and the commands for a
//! running system.
//!
//! # Layout
//! - `up`: no subcommand; `supervisor`, `child`, `probe`, `banner`: its parts
//! - `run_service`: one service in this process
//! - `demo`, `explain`, `events`, `load`, `verify`, `chaos`, `operator`: one file per command; `system`: finds and
//!   calls a running system
//! - `top`, `tap`, `topology`, `routes`: the mesh, live; `instances`: finds and calls each instance
//! - [`promises`]: the invariants of a whole system, as queries over its stores: for `verify` and the crash suite
//! - `completions`, `man`: generated from the command line's definition
//! - `policies`: the mesh's policy table, printed; [`ports`]: free ports for one more system
//! - `certificates`: `ordermesh certs`, and the certificates of a system with `--tls`
//! - `service`: names and ports; `forwarded_args`: forwarded settings like `--order.memory-budget 4KiB`; `data_dir`: the folder
//!   and its secrets
//! - `catalog`: the demo products of a first local start
//! - `trace`, `text`: trace ids of the client; formatting of values
//! - `config`: the settings file, and `ordermesh config check`
//! - `argv`: passwords in arguments; `earlier_variables`: variables of earlier releases
//! - `json`: the format of machine-readable reports; `plot`: pictures of a run
//! - `out`: the only access to stdout and stderr

#![deny(clippy::print_stdout, clippy::print_stderr)]
#![expect(missing_docs, reason = "no other project depends on this crate: names say what there is to say")]

mod argv;
mod banner;
mod catalog;
mod certificates;
mod chaos;
mod child;
mod completions;
mod config;
mod data_dir;
mod demo;
mod earlier_variables;
mod error;
mod events;
mod explain;
mod forwarded_args;
mod instances;
mod json;
mod load;
mod man;
mod operator;
mod operator_session;
mod out;
mod plot;
mod policies;
pub mod ports;
mod probe;
pub mod promises;
mod routes;
mod run_service;
mod service;
mod supervisor;
mod system;
mod table;
mod tap;
mod text;
mod top;
mod topology;
mod trace;
mod up;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::CommandLine;
use crate::error::Error;
use crate::forwarded_args::ForwardedArgs;
use crate::service::Service;

/// Order processing for e-commerce: four services, a mock of a payment gateway, one program.
///
/// Without a subcommand it starts all of them on this machine, and stops them when it exits.
#[derive(Parser, Debug)]
#[command(name = "ordermesh", version = VERSION, args_conflicts_with_subcommands = true, after_help = FORWARDED_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    up: up::Options,
    /// YAML file of settings by the names of their flags: those at its top apply to each command that has them, those below a service's name to that service. A flag or a variable comes before it
    #[arg(long, global = true, env = "ORDERMESH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// More than the connections that a service accepts; macOS permits no more.
const OPEN_FILES: u64 = 10_240;

/// Settings that a system's services must have in common, or that make them exit immediately.
const SYSTEMS: [&str; 6] =
    ["--tls-cert", "--tls-key", "--tls-ca", "--trust-domain", "--mesh-secret-file", "--migrate-only"];

/// Version, commit and date of the build.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("ORDERMESH_COMMIT"),
    ", built ",
    env!("ORDERMESH_BUILD_DATE"),
    ")"
);

const FORWARDED_HELP: &str = "Settings of a single service are forwarded by prefix, for example
  ordermesh --order.memory-budget 4KiB --data.event-retention 30d
See `ordermesh user|order|payment|data|gateway --help` for them.
With OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 every service exports its traces, metrics and logs there.

Exit status: 0 success; 1 the command failed, or what it verifies does not hold; 2 a flag, a setting or an environment
variable is invalid, and nothing was done; 141 the reader of the output has closed it.";

#[derive(Subcommand, Debug)]
enum Command {
    /// Run one instance of the User Service
    User(Box<user::Config>),
    /// Run one instance of the Order Service
    Order(Box<run_service::OrderArgs>),
    /// Run one instance of the Payment Service
    Payment(Box<payment::Config>),
    /// Run one instance of the Data Service
    Data(Box<run_service::DataArgs>),
    /// Run the mock of the external payment gateway
    Gateway(Box<gateway_mock::Config>),
    /// Run every path, good and bad, through the public API of a running system
    Demo(demo::Options),
    /// Print an order's timeline from all sources
    Explain(explain::Options),
    /// Print the stored trace events of a running system, and follow them
    Events(events::Options),
    /// Put a running system under load, and report throughput and latencies
    Load(load::Options),
    /// Verify the promises on a running system: by queries over its stores and the gateway's ledger
    Verify(verify::Options),
    /// Show the services and their calls live, full screen on a terminal
    Top(top::Options),
    /// Print calls as they end, of all instances
    Tap(tap::Options),
    /// Print which services call each other, how often, how fast, with how many failures
    Topology(topology::Options),
    /// Print the policies in force at a running system: access, deadline, retries, event, quota
    Routes(routes::Options),
    /// Print each rpc's policy: access, deadline, idempotency, event, limits
    Policies(policies::Options),
    /// Create a certificate authority and certificates for mutual TLS
    Certs(certificates::Options),
    /// Inject faults into a dedicated system under load, end them, and verify the promises
    Chaos(chaos::Options),
    /// Manage operators' accounts
    Operator(operator::Options),
    /// Print the completion script of a shell
    Completions(completions::Options),
    /// Write manual pages to a folder
    Man(man::Options),
    /// Check settings, and print where they come from
    Config(config::Options),
}

/// The allocator asks for huge pages, of which a process with a few MiB on its heap would fill a dozen with nothing. Children
/// inherit this.
fn use_small_pages() {
    #[cfg(target_os = "linux")]
    // A kernel without huge pages has nothing to turn off.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Raises the limit of open files to what this user may have, as Go's runtime does: macOS begins with 256, and a connection is
/// one. Children inherit this.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        // A limit that cannot be raised stays as it is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit });
    }
}

/// Runs the program; returns its exit code.
pub fn program() -> ExitCode {
    // Files are private to this user: databases contain password hashes and payment tokens. Children inherit the mask.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    use_small_pages();
    allow_open_files();
    if let Err(error) = argv::hide_passwords(std::env::args_os()) {
        out::complain(error.report());
        return ExitCode::from(error.exit_code());
    }
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, Error::OutputClosed) {
                out::complain(error.report());
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn start() -> Result<(), Error> {
    let line = CommandLine::new(std::env::args_os().collect(), &Cli::command())?;
    let cli = parse(&line)?;
    check(&cli, &line)?;
    run(cli, line.forwarded)
}

/// Parses a command line; exits after `--help` and `--version`.
fn parse(line: &CommandLine) -> Result<Cli, Error> {
    Cli::try_parse_from(&line.args).map_err(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        let place = flag_of(&error).and_then(|flag| line.place(None, &flag));
        let place = place.map(|place| format!(" (in {place})")).unwrap_or_default();
        let output = message_of(&error);
        let (first, rest) = output.trim_end().split_once('\n').unwrap_or((output.trim_end(), ""));
        Error::Arguments(format!("{first}{place}\n{rest}").trim_end().to_owned())
    })
}

#[tokio::main]
async fn run(cli: Cli, forwarded: ForwardedArgs) -> Result<(), Error> {
    match cli.command {
        None => up::run(cli.up, forwarded).await,
        Some(Command::User(config)) => run_service::user(*config).await,
        Some(Command::Order(args)) => run_service::order(*args).await,
        Some(Command::Payment(config)) => run_service::payment(*config).await,
        Some(Command::Data(args)) => run_service::data(*args).await,
        Some(Command::Gateway(config)) => run_service::gateway(*config).await,
        Some(Command::Demo(options)) => demo::run(options).await,
        Some(Command::Explain(options)) => explain::run(options).await,
        Some(Command::Events(options)) => events::run(options).await,
        Some(Command::Load(options)) => load::run(options).await,
        Some(Command::Verify(options)) => verify::run(options).await,
        Some(Command::Top(options)) => top::run(options).await,
        Some(Command::Tap(options)) => tap::run(options).await,
        Some(Command::Topology(options)) => topology::run(options).await,
        Some(Command::Routes(options)) => routes::run(options).await,
        Some(Command::Policies(options)) => policies::run(&options),
        Some(Command::Certs(options)) => certificates::run(&options),
        Some(Command::Chaos(options)) => chaos::run(options).await,
        Some(Command::Operator(options)) => operator::run(options).await,
        Some(Command::Completions(options)) => completions::run(&options, Cli::command()),
        Some(Command::Man(options)) => man::run(&options, Cli::command()),
        Some(Command::Config(options)) => config::run(&options, cli.config, &Cli::command()),
    }
}

/// clap's error message. clap quotes an invalid value: this is suppressed for settings that are secrets.
fn message_of(error: &clap::Error) -> String {
    let setting = flag_of(error).filter(|_| error.get(ContextKind::InvalidValue).is_some()).unwrap_or_default();
    if !config::is_secret(&setting) {
        return error.to_string();
    }
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("error: invalid value for '{setting}'{cause}\n\nFor more information, try '--help'.\n")
}

/// The flag that an error is about, without its value.
fn flag_of(error: &clap::Error) -> Option<String> {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(setting)) => setting.split([' ', '=']).next().map(str::to_owned),
        Some(_) | None => None,
    }
}

/// Validates forwarded settings here: a child that rejects them would only be restarted again and again.
fn check(cli: &Cli, line: &CommandLine) -> Result<(), Error> {
    let forwarded = &line.forwarded;
    if forwarded.is_empty() {
        return Ok(());
    }
    if cli.command.is_some() {
        return Err(Error::Usage(
            "--<service>.<setting> is for a whole system: omit the prefix for one service".to_owned(),
        ));
    }
    for service in Service::ALL {
        let is_the_systems =
            |flag: &str| SYSTEMS.iter().any(|name| flag == *name || flag.starts_with(&format!("{name}=")));
        if let Some(flag) =
            forwarded.of(service).iter().filter_map(|flag| flag.to_str()).find(|flag| is_the_systems(flag))
        {
            return Err(Error::Usage(format!(
                "{flag} applies to the whole system: see --tls, or run {service} by itself"
            )));
        }
        let args = ["ordermesh".into(), service.name().into()].into_iter().chain(forwarded.all(service));
        if let Err(error) = Cli::try_parse_from(args) {
            let output = message_of(&error);
            let lines = output.lines().take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>().join(" ");
            let first = lines.trim_start_matches("error: ");
            let place = flag_of(&error).and_then(|flag| line.place(Some(service), &flag));
            let place = place.map(|place| format!(" (in {place})")).unwrap_or_default();
            return Err(Error::Usage(format!("{service}: {first}{place}; see `ordermesh {service} --help`")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(line: &str) -> Result<(), Error> {
        let line = CommandLine::new(line.split(' ').map(Into::into).collect(), &Cli::command())?;
        check(&parse(&line)?, &line)
    }

    #[test]
    fn the_command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_has_a_help_text() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments().filter(|argument| argument.get_id() != "help") {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn an_invalid_value_is_quoted_unless_it_is_a_secret() {
        let output = |args: &[&str]| message_of(&Cli::try_parse_from(args).expect_err("an invalid value"));
        let key = output(&["ordermesh", "payment", "--gateway-api-key", "s3cr3t s3cr3t"]);
        assert!(key.contains("--gateway-api-key") && !key.contains("s3cr3t"), "{key}");
        assert!(output(&["ordermesh", "data", "--memory-limit", "much"]).contains("much"));
        let error = checked("ordermesh --payment.gateway-api-key=s3cr3t\u{7f}").expect_err("no key").to_string();
        assert!(error.contains("--gateway-api-key") && !error.contains("s3cr3t"), "{error}");
    }

    #[test]
    fn an_invalid_forwarded_setting_is_rejected_before_anything_starts() {
        assert!(checked("ordermesh --order.memory-budget 4KiB").is_ok());
        let error = checked("ordermesh --order.memory-budget much").expect_err("not a size").to_string();
        assert!(error.starts_with("order: ") && error.contains("memory-budget"), "{error}");
        assert!(checked("ordermesh --gateway.lease 1s").is_err());
        assert!(checked("ordermesh --order.migrate-only").is_err(), "it would be restarted for ever");
        assert!(checked("ordermesh --order.tls-cert=a.pem").is_err());
        assert!(checked("ordermesh explain 7 --order.memory-budget 4KiB").is_err());
    }
}
