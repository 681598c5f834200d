//! `ordermesh chaos`: a system of its own, under load, while its processes are killed, stopped for longer than a lease, its gateway
//! lies in every way that it can, and its PostgreSQL is killed too. Then everything is healed and comes to rest, and the promises
//! are checked.
//!
//! # Layout
//! - here: the run; `blows`: what is done to which process, by the seed

mod blows;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chassis::DatabaseUrl;
use chassis::settings::duration;
use clap::Args;
use contracts::order::v1 as order_v1;
use contracts::order::v1::order_service_client::OrderServiceClient;
use tokio_util::sync::CancellationToken;

use crate::chaos::blows::{Blows, Tally};
use crate::error::Error;
use crate::load::{self, Load, Mix};
use crate::out;
use crate::passed;
use crate::promises::Report;
use crate::supervisor::{Plan, Supervisor, free_port_base};
use crate::system::{Place, System, request};
use crate::verify;

/// How long a start may take.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a customer waits for the end of an order before the next.
const MOST_WAIT: Duration = Duration::from_secs(3);
/// How long everything may take to come to rest once it is healed.
const REST_LIMIT: Duration = Duration::from_secs(180);

/// Settings that make a crash matter soon: short leases, short waits, cheap passwords.
const QUICK: [(&str, &str); 9] = [
    ("--order.lease", "2s"),
    ("--order.backoff-cap", "2s"),
    ("--payment.lease", "2s"),
    ("--payment.backoff-cap", "2s"),
    ("--payment.doubt-limit", "4s"),
    ("--payment.gateway-timeout", "500ms"),
    ("--payment.answer-within", "1s"),
    ("--user.bcrypt-cost", "4"),
    ("--user.access-token-lifetime", "1h"),
];
/// A gateway that lies in every way that it can, of 1000 calls.
const LIES: [(&str, &str); 6] = [
    ("--gateway.fault-no-answer-per-mille", "20"),
    ("--gateway.fault-answer-lost-per-mille", "20"),
    ("--gateway.fault-unavailable-per-mille", "20"),
    ("--gateway.fault-slow-per-mille", "20"),
    ("--gateway.fault-slow-ms", "800"),
    ("--gateway.fault-refund-refused-per-mille", "200"),
];

/// What to break, and for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How long things are broken while orders are placed
    #[arg(long, default_value = "2m", value_parser = duration, value_name = "DURATION")]
    duration: Duration,
    /// Go on until so many orders were acknowledged, however long that takes
    #[arg(long, value_name = "COUNT")]
    orders: Option<u64>,
    /// Customers in a closed loop
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    customers: u32,
    /// Instances of each service
    #[arg(long, default_value_t = 2, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=8))]
    instances: u16,
    /// What customers do, by weight
    #[arg(
        long,
        default_value = "happy=70,declined=8,cancel=12,silent=2,lost=3,flaky=2,refund=3",
        value_name = "NAME=WEIGHT,…"
    )]
    mix: Mix,
    /// On a PostgreSQL server of its own, which is killed too; from the programs on this machine
    #[arg(long)]
    postgres: bool,
    /// Between two blows, on average
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "DURATION")]
    every: Duration,
    /// The schedule of the blows, and what customers do [default: drawn and printed]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Keep the system's folder: databases, and what its processes said
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Breaks a system, heals it, and says what became of its promises.
///
/// # Errors
/// A system that cannot be started or does not come to rest; a broken promise.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let seed = options.seed.unwrap_or_else(rand::random);
    let store = if options.postgres { "PostgreSQL" } else { "SQLite" };
    out::line(format_args!(
        "chaos on {store}: {} customers, {} instances of each service, mix {}, seed {seed}",
        options.customers, options.instances, options.mix
    ))?;
    let ground = Ground::prepare(&options)?;
    let began = Instant::now();
    let (load, tally) = ground.break_it(&options, seed).await?;
    let broken_for = began.elapsed();
    out::line(load.seen.summary(broken_for))?;
    out::line(&tally)?;
    out::line("healing: a new start of everything, a gateway that tells the truth")?;
    let healing = Instant::now();
    let report = ground.heal(&load).await?;
    out::text(&report)?;
    let (acknowledged, _) = load.seen.so_far();
    out::line(format_args!(
        "{acknowledged} orders acknowledged in {:.0} s of chaos, {} blows, at rest {:.0} s after healing, {} violations (seed {seed})",
        broken_for.as_secs_f64(),
        tally.blows(),
        healing.elapsed().as_secs_f64(),
        report.violations.len(),
    ))?;
    verify::verdict(&report)
}

/// Where a system is broken: its folder, its ports, its database.
struct Ground {
    place: Place,
    instances: u16,
    postgres: Option<testdb::Server>,
    /// Deleted with it, unless it is kept.
    _folder: Option<tempfile::TempDir>,
}

impl Ground {
    fn prepare(options: &Options) -> Result<Self, Error> {
        let (folder, data_dir) = match &options.keep {
            Some(folder) => (None, folder.clone()),
            None => {
                let temporary = tempfile::Builder::new().prefix("ordermesh-chaos-").tempdir();
                let folder = temporary.map_err(|source| Error::File {
                    path: std::env::temp_dir(),
                    deed: "used for a folder",
                    source,
                })?;
                let data_dir = folder.path().join("data");
                (Some(folder), data_dir)
            }
        };
        // A commit that was answered is on the disk's way: a killed server has it.
        let postgres = if options.postgres {
            let server = testdb::Server::start(&[("synchronous_commit", "on"), ("fsync", "on")]);
            Some(
                server
                    .ok_or_else(|| Error::Usage("PostgreSQL's server programs are not on this machine".to_owned()))?,
            )
        } else {
            None
        };
        let place = Place::local(free_port_base(options.instances)?, data_dir);
        Ok(Self { place, instances: options.instances, postgres, _folder: folder })
    }

    fn url(&self) -> Option<DatabaseUrl> {
        let url = self.postgres.as_ref()?.url();
        url.parse().ok()
    }

    async fn start(&self, lies: bool) -> Result<Supervisor, Error> {
        let lies = if lies { &LIES[..] } else { &[] };
        let flags = QUICK.iter().chain(lies).flat_map(|(flag, value)| [(*flag).into(), (*value).into()]);
        let (_, passed) = passed::split(flags);
        let plan = Plan {
            port_base: self.place.port_base,
            instances: self.instances,
            data_dir: self.place.data_dir.clone(),
            database_url: self.url(),
            tls: false,
            log: "off".to_owned(),
            passed,
            quiet: true,
            restarts_at_once: true,
        };
        let system = Supervisor::start(&plan)?;
        if tokio::time::timeout(START_LIMIT, system.ready()).await.is_err() {
            return Err(Error::NotReady(START_LIMIT.as_secs()));
        }
        Ok(system)
    }

    fn system(&self) -> Result<System, Error> {
        System::at(&self.place, self.instances)
    }

    /// Orders are placed while blows fall.
    async fn break_it(&self, options: &Options, seed: u64) -> Result<(Load, Tally), Error> {
        let supervisor = self.start(true).await?;
        let load = Load::prepare(self.system()?, options.mix.clone(), seed, 4, false).await?.patient(MOST_WAIT);
        let stop = CancellationToken::new();
        let placing = tokio::spawn({
            let (load, stop, customers) = (load.clone(), stop.clone(), options.customers);
            async move { load::closed_loop(&load, customers, stop).await }
        });
        let sources = verify::sources(&self.verify_options()).await?;
        let blows = Blows::new(seed, options.every, &supervisor, self.postgres.as_ref(), sources);
        let end = Instant::now() + options.duration;
        let is_over = || match options.orders {
            Some(orders) => load.seen.so_far().0 >= orders,
            None => Instant::now() >= end,
        };
        let tally = blows.fall(is_over).await;
        stop.cancel();
        // Those who are in the middle of a call end it, or give up when everything ends.
        let _ = tokio::time::timeout(MOST_WAIT + Duration::from_secs(10), placing).await;
        // Not a drain: the last blow takes all of it.
        supervisor.kill().await;
        Ok((load, tally))
    }

    /// A start without lies; what needs attention is retried; and then nothing may be left to do.
    async fn heal(&self, load: &Load) -> Result<Report, Error> {
        let supervisor = self.start(false).await?;
        let system = self.system()?;
        let options = self.verify_options();
        let sources = verify::sources(&options).await?;
        let end = Instant::now() + REST_LIMIT;
        let mut report = loop {
            retry_all(&system).await?;
            let report = sources.settled(Duration::from_secs(5)).await?;
            let needs_attention = report.in_state(order::lifecycle::State::NeedsAttention);
            let is_at_rest = report.unfinished == 0 && needs_attention == 0 && report.is_clean();
            if is_at_rest || Instant::now() >= end {
                break report;
            }
        };
        sources.check_acknowledged(&load.acknowledged(), &mut report).await?;
        report.expect_rest();
        supervisor.stop().await;
        Ok(report)
    }

    fn verify_options(&self) -> verify::Options {
        verify::Options::of(self.place.clone(), verify::Stores::on(self.url()))
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
        let page = orders.list_orders(request(message, &token, None)).await.map_err(Error::refused("ListOrders"))?;
        let page = page.into_inner();
        for order in page.orders {
            let message = order_v1::RetryOrderRequest { order_id: order.order_id };
            // It may have moved on meanwhile.
            let _ = orders.retry_order(request(message, &token, None)).await;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

/// Orders that were under way when something was broken, by state.
type UnderWay = BTreeMap<String, i64>;
