//! `ordermesh chaos`: a dedicated system under load, while its processes are killed or stopped for longer than a lease,
//! its gateway injects every fault, and its PostgreSQL is killed too. Then the faults end, all orders complete, and the
//! promises are verified.
//!
//! # Layout
//! - here: the run; `faults`: the faults and their schedule, by the seed

mod faults;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chassis::DatabaseUrl;
use chassis::settings::duration;
use clap::Args;
use contracts::order::v1 as order_v1;
use contracts::order::v1::order_service_client::OrderServiceClient;
use tokio_util::sync::CancellationToken;

use crate::chaos::faults::{FaultInjector, Tally};
use crate::error::Error;
use crate::forwarded_args;
use crate::json::{self, Format};
use crate::load::{self, Load, Mix};
use crate::out;
use crate::ports::free_port_base;
use crate::promises::Report;
use crate::supervisor::{Supervisor, SystemConfig};
use crate::system::{Location, System, request};
use crate::verify;

/// Timeout of a start.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time that a customer waits for an order's completion before placing the next one.
const MAX_WAIT: Duration = Duration::from_secs(3);
/// Timeout of the completion of all orders after the faults have ended.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(180);

/// Settings with which the effects of a crash show soon: short leases, short backoff, cheap password hashes.
const SHORT_TIMEOUTS: [(&str, &str); 9] = [
    ("--order.lease", "2s"),
    ("--order.backoff-cap", "2s"),
    ("--payment.lease", "2s"),
    ("--payment.backoff-cap", "2s"),
    ("--payment.doubt-limit", "4s"),
    ("--payment.gateway-timeout", "500ms"),
    ("--payment.wait-timeout", "1s"),
    ("--user.bcrypt-cost", "4"),
    ("--user.access-token-lifetime", "1h"),
];
/// The gateway's injected faults, per 1000 calls.
const GATEWAY_FAULTS: [(&str, &str); 6] = [
    ("--gateway.fault-no-response-per-mille", "20"),
    ("--gateway.fault-response-lost-per-mille", "20"),
    ("--gateway.fault-unavailable-per-mille", "20"),
    ("--gateway.fault-slow-per-mille", "20"),
    ("--gateway.fault-slow-ms", "800"),
    ("--gateway.fault-refund-refused-per-mille", "200"),
];

/// What to break, and for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How long faults are injected while orders are placed
    #[arg(long, default_value = "2m", value_parser = duration, value_name = "DURATION")]
    duration: Duration,
    /// Continue until this many orders are acknowledged, however long that takes
    #[arg(long, value_name = "COUNT")]
    orders: Option<u64>,
    /// Concurrent customers, each with one order at a time
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    customers: u32,
    /// Instances of each service
    #[arg(long, default_value_t = 2, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=8))]
    instances: u16,
    /// Behaviour of the customers, by weight
    #[arg(
        long,
        default_value = "happy=70,declined=8,cancel=12,silent=2,lost=3,flaky=2,refund=3",
        value_name = "NAME=WEIGHT,…"
    )]
    mix: Mix,
    /// Use a dedicated PostgreSQL server, which is killed too; needs its programs on this machine
    #[arg(long)]
    postgres: bool,
    /// Average interval between two faults
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "DURATION")]
    every: Duration,
    /// Seed of the faults' schedule and of the customers' behaviour [default: random, printed]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Output format
    #[arg(long, short, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    /// Draw throughput and latency over time into an SVG file, with each fault marked
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Keep the system's folder: databases and logs
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Injects faults into a system, ends them, and verifies the promises.
///
/// # Errors
/// A system that cannot be started, or whose orders do not complete; a broken promise.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let seed = options.seed.unwrap_or_else(rand::random);
    let store = if options.postgres { "PostgreSQL" } else { "SQLite" };
    let is_text = options.output == Format::Text;
    let say = |line: fmt::Arguments<'_>| if is_text { out::line(line) } else { Ok(()) };
    say(format_args!(
        "chaos on {store}: {} customers, {} instances of each service, mix {}, seed {seed}",
        options.customers, options.instances, options.mix
    ))?;
    let system = TestSystem::prepare(&options)?;
    let began = Instant::now();
    let (load, tally) = system.inject_faults(&options, seed).await?;
    let broken_for = began.elapsed();
    let summary = load.statistics.summary(broken_for);
    if let Some(path) = &options.plot {
        let title = format!("ordermesh chaos on {store}: {} customers", options.customers);
        load.statistics.plot(title, began + broken_for, &tally.marks).write(path)?;
    }
    say(format_args!("{summary}\n{tally}\nhealing: restarting everything, without gateway faults"))?;
    let healing = Instant::now();
    let report = system.heal(&load).await?;
    let (acknowledged, _) = load.statistics.so_far();
    if !is_text {
        json::print(&serde_json::json!({
            "store": store,
            "customers": options.customers,
            "instances": options.instances,
            "load": summary.json(seed, &options.mix, Some(&report)),
            "faults": tally.json(),
            "acknowledged": acknowledged,
            "healing_seconds": healing.elapsed().as_secs_f64(),
        }))?;
        return verify::verdict(&report);
    }
    out::text(&report)?;
    out::line(format_args!(
        "{acknowledged} orders acknowledged in {:.0} s of chaos, {} faults, all orders completed {:.0} s after healing, {} violations (seed {seed})",
        broken_for.as_secs_f64(),
        tally.faults(),
        healing.elapsed().as_secs_f64(),
        report.violations.len(),
    ))?;
    verify::verdict(&report)
}

/// The system under test: its folder, its ports, its database.
struct TestSystem {
    location: Location,
    instances: u16,
    postgres: Option<postgres_server::Server>,
    /// Deleted on drop, unless it is kept.
    _folder: Option<tempfile::TempDir>,
}

impl TestSystem {
    fn prepare(options: &Options) -> Result<Self, Error> {
        let (folder, data_dir) = match &options.keep {
            Some(folder) => (None, folder.clone()),
            None => {
                let temporary = tempfile::Builder::new().prefix("ordermesh-chaos-").tempdir();
                let folder = temporary.map_err(|source| Error::File {
                    path: std::env::temp_dir(),
                    action: "used for temporary files; set TMPDIR to another folder",
                    source,
                })?;
                let data_dir = folder.path().join("data");
                (Some(folder), data_dir)
            }
        };
        // Synchronous commits: a commit that was acknowledged survives a killed server.
        let postgres = if options.postgres {
            let server = postgres_server::Server::start(&[("synchronous_commit", "on"), ("fsync", "on")]);
            Some(
                server
                    .ok_or_else(|| Error::Usage("PostgreSQL's server programs are not on this machine".to_owned()))?,
            )
        } else {
            None
        };
        let location = Location::local(free_port_base(options.instances).ok_or(Error::NoFreePorts)?, data_dir);
        Ok(Self { location, instances: options.instances, postgres, _folder: folder })
    }

    fn url(&self) -> Option<DatabaseUrl> {
        let url = self.postgres.as_ref()?.url();
        url.parse().ok()
    }

    async fn start(&self, has_gateway_faults: bool) -> Result<Supervisor, Error> {
        let faults = if has_gateway_faults { &GATEWAY_FAULTS[..] } else { &[] };
        let flags = SHORT_TIMEOUTS.iter().chain(faults).flat_map(|(flag, value)| [(*flag).into(), (*value).into()]);
        let (_, forwarded) = forwarded_args::split(flags);
        let config = SystemConfig {
            port_base: self.location.port_base,
            instances: self.instances,
            data_dir: self.location.data_dir.clone(),
            database_url: self.url(),
            tls: false,
            log: "off".to_owned(),
            traffic: chassis::TrafficSettings::default(),
            forwarded,
            quiet: true,
            restarts_at_once: true,
        };
        let supervisor = Supervisor::start(&config)?;
        if tokio::time::timeout(START_TIMEOUT, supervisor.ready()).await.is_err() {
            return Err(Error::NotReady(START_TIMEOUT.as_secs()));
        }
        Ok(supervisor)
    }

    fn system(&self) -> Result<System, Error> {
        System::at(&self.location, self.instances)
    }

    /// Places orders while faults are injected.
    async fn inject_faults(&self, options: &Options, seed: u64) -> Result<(Load, Tally), Error> {
        let supervisor = self.start(true).await?;
        let load = Load::prepare(self.system()?, options.mix.clone(), seed, 4, false).await?.patient(MAX_WAIT);
        if options.plot.is_some() {
            load.statistics.keep_samples();
        }
        let stop = CancellationToken::new();
        let placing = tokio::spawn({
            let (load, stop, customers) = (load.clone(), stop.clone(), options.customers);
            async move { load::closed_loop(&load, customers, stop).await }
        });
        let sources = verify::sources(&self.verify_options()).await?;
        let injector = FaultInjector::new(seed, options.every, &supervisor, self.postgres.as_ref(), sources);
        let end = Instant::now() + options.duration;
        let is_over = || match options.orders {
            Some(orders) => load.statistics.so_far().0 >= orders,
            None => Instant::now() >= end,
        };
        let tally = injector.run(is_over).await;
        stop.cancel();
        // Calls in flight finish, or fail when everything is killed.
        let _ = tokio::time::timeout(MAX_WAIT + Duration::from_secs(10), placing).await;
        // Not a drain: the last fault kills everything.
        supervisor.kill().await;
        Ok((load, tally))
    }

    /// Restarts without faults; retries orders in NEEDS_ATTENTION; waits until no effect is pending.
    async fn heal(&self, load: &Load) -> Result<Report, Error> {
        let supervisor = self.start(false).await?;
        let system = self.system()?;
        let options = self.verify_options();
        let sources = verify::sources(&options).await?;
        let end = Instant::now() + COMPLETION_TIMEOUT;
        let mut report = loop {
            retry_all(&system).await?;
            let report = sources.settled(Duration::from_secs(5)).await?;
            let needs_attention = report.in_state(order::lifecycle::State::NeedsAttention);
            let is_settled = report.unfinished == 0 && needs_attention == 0 && report.is_clean();
            if is_settled || Instant::now() >= end {
                break report;
            }
        };
        sources.check_acknowledged(&load.acknowledged(), &mut report).await?;
        report.expect_rest();
        supervisor.stop().await;
        Ok(report)
    }

    fn verify_options(&self) -> verify::Options {
        verify::Options::of(self.location.clone(), verify::Stores::on(self.url()))
    }
}

/// RetryOrder for each order in NEEDS_ATTENTION.
async fn retry_all(system: &System) -> Result<(), Error> {
    let token = system.operator_token().await?;
    let mut orders = OrderServiceClient::new(system.order.clone());
    let mut page_token = String::new();
    loop {
        let message = order_v1::ListOrdersRequest {
            state: order_v1::OrderState::NeedsAttention.into(),
            page_size: 100,
            page_token,
        };
        let page = orders.list_orders(request(message, &token, None)).await.map_err(Error::rejected("ListOrders"))?;
        let page = page.into_inner();
        for order in page.orders {
            let message = order_v1::RetryOrderRequest { order_id: order.order_id };
            // It may have been retried meanwhile.
            let _ = orders.retry_order(request(message, &token, None)).await;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

/// Orders that were in progress when a fault was injected, by state.
type InProgress = BTreeMap<String, i64>;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn the_services_accept_the_settings_of_chaos() {
        for (flag, value) in SHORT_TIMEOUTS.into_iter().chain(GATEWAY_FAULTS) {
            let (service, flag) = flag.trim_start_matches("--").split_once('.').expect("a service's flag");
            let args = ["ordermesh", service, &format!("--{flag}"), value];
            let parsed = crate::Cli::try_parse_from(args);
            assert!(parsed.is_ok(), "{:?}", parsed.err().map(|error| error.to_string()));
        }
    }
}
