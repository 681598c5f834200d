//! `ordermesh load`: customers against a running system, through the public API. It reports how fast orders were
//! acknowledged and finished, their final states, and rejected calls with reasons; then it verifies the promises.
//!
//! # Layout
//! - here: the settings; the report
//! - `mix`: the customers' behaviour, by weight; `customer`: one customer's order; `statistics`: what the customers observed
//! - `load_model`: closed and open loop; `progress`: live rates

mod customer;
mod load_model;
mod mix;
mod progress;
mod statistics;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::settings::duration;
use clap::Args;
use kernel::OrderId;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::json::{self, Format};
use crate::load::customer::{Account, MAX_ATTEMPTS, OrderPlacer};
use crate::load::load_model::{LoadModel, StopCondition};
pub(crate) use crate::load::mix::Mix;
pub(crate) use crate::load::statistics::Statistics;
use crate::out;
use crate::promises::{Report, Sources};
use crate::system::{Location, Retries, System};
use crate::up::Signals;
use crate::verify;

/// The amount and kind of load.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    location: Location,
    #[command(flatten)]
    stores: verify::Stores,
    /// Closed loop: concurrent customers, each with one order at a time
    #[arg(long, default_value_t = 32, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    customers: u32,
    /// Open loop: orders per second, independent of earlier ones; latencies count from each order's scheduled start
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "customers", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// How long new orders are placed [default: until --orders]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    duration: Option<Duration>,
    /// Orders in all [default: 5000, or no limit with --duration]
    #[arg(long, value_name = "COUNT")]
    orders: Option<u64>,
    /// Behaviour of the customers, by weight: happy, declined, cancel, silent, lost, flaky, slow, refund
    #[arg(long, default_value = "happy=100", value_name = "NAME=WEIGHT,…")]
    mix: Mix,
    /// Additional log-ins per second, each one bcrypt hash
    #[arg(long, default_value_t = 0, value_name = "PER_SECOND")]
    logins: u32,
    /// Accounts shared by the customers: each costs two bcrypt hashes at the start
    #[arg(long, default_value_t = 2, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    accounts: u32,
    /// Customers compete for a SKU with little stock, instead of buying SKUs with plenty
    #[arg(long)]
    scarce: bool,
    /// Every order has the same SKU in it, of which there is plenty
    #[arg(long, conflicts_with = "scarce")]
    hot: bool,
    /// Seed of all random choices [default: random, printed]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Output format
    #[arg(long, short, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    /// Write the figures to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw throughput and latency over time into an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Disable retries of the mesh's client: every rejection is counted
    #[arg(long)]
    no_retries: bool,
    /// Maximum attempts at a call: more to load a system through an outage of its database
    #[arg(long, default_value_t = MAX_ATTEMPTS, value_parser = clap::value_parser!(u32).range(1..), value_name = "COUNT")]
    max_attempts: u32,
    /// Skip the verification of the promises at the end
    #[arg(long)]
    no_verify: bool,
}

/// Runs the load, prints the results, and verifies the promises.
///
/// # Errors
/// There is no system, or no account can be created; an order's final state is not the expected one; a promise is
/// broken.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let seed = options.seed.unwrap_or_else(rand::random);
    let retries = if options.no_retries { Retries::Off } else { Retries::On };
    let system = System::find(&options.location, retries).await?;
    let model = match options.rate {
        Some(rate) => LoadModel::Open { rate },
        None => LoadModel::Closed { customers: options.customers },
    };
    // Before any load: missing stores are reported now rather than at the end.
    let check = verify::Options::of(options.location.clone(), options.stores.clone());
    let sources = if options.no_verify { None } else { Some(verify::sources(&check).await?) };
    let is_text = options.output == Format::Text;
    if is_text {
        out::line(format_args!("{model}, mix {}, seed {seed}", options.mix))?;
    }
    let mut load = Load::prepare(system, options.mix.clone(), seed, options.accounts, options.scarce).await?;
    load.placer.max_attempts = options.max_attempts;
    load.placer.hot = options.hot;
    let orders = options.orders.or_else(|| options.duration.is_none().then_some(5_000));
    let until = StopCondition { orders, duration: options.duration };
    let stop = CancellationToken::new();
    tokio::spawn(end_early(Signals::new()?, stop.clone()));
    let start = Instant::now();
    if options.plot.is_some() {
        load.statistics.keep_samples();
    }
    let watching = tokio::spawn(progress::watch(load.statistics.clone(), until, is_text, stop.clone()));
    let logins = tokio::spawn(load.clone().log_in(options.logins, stop.clone()));
    load.place_orders(model, until, stop.clone()).await;
    let took = start.elapsed();
    stop.cancel();
    // Both end with the token.
    let (watched, _) = tokio::join!(watching, logins);
    // Unless it was cancelled, it returns whether its output could be written.
    watched.unwrap_or(Ok(()))?;
    let report = match sources {
        Some(sources) => Some(verified(&sources, &load).await?),
        None => None,
    };
    let summary = load.statistics.summary(took);
    let figures = summary.json(seed, &options.mix, report.as_ref());
    if is_text {
        out::line(&summary)?;
        report.as_ref().map_or(Ok(()), out::text)?;
    } else {
        json::print(&figures)?;
    }
    if let Some(path) = &options.json {
        // Texts and numbers always have a JSON encoding.
        let text = serde_json::to_string_pretty(&figures).unwrap_or_default();
        std::fs::write(path, text).map_err(|source| Error::File { path: path.clone(), action: "written", source })?;
    }
    if let Some(path) = &options.plot {
        load.statistics.plot(format!("ordermesh load: {model}"), start + took, &[]).write(path)?;
    }
    load.verdict()?;
    report.as_ref().map_or(Ok(()), verify::verdict)
}

/// A signal ends the run as its duration does: orders in flight are watched to their final states, and the results are
/// printed. A second one exits immediately.
async fn end_early(mut signals: Signals, stop: CancellationToken) {
    signals.next().await;
    stop.cancel();
    out::complain("no more orders; those in flight are watched until they finish (repeat to exit immediately)");
    signals.next().await;
    std::process::exit(1);
}

/// Verifies the promises, once pending effects are done.
async fn verified(sources: &Sources, load: &Load) -> Result<Report, Error> {
    let mut report = sources.settled(Duration::from_secs(30)).await?;
    sources.check_acknowledged(&load.acknowledged(), &mut report).await?;
    Ok(report)
}

/// The customers, and what they observed. Clones share it.
#[derive(Clone)]
pub(crate) struct Load {
    placer: OrderPlacer,
    accounts: Arc<Vec<Account>>,
    mix: Mix,
    seed: u64,
    pub(crate) statistics: Statistics,
}

impl Load {
    /// Registers the customers' accounts.
    ///
    /// # Errors
    /// An account cannot be created.
    pub(crate) async fn prepare(
        system: System,
        mix: Mix,
        seed: u64,
        accounts: u32,
        scarce: bool,
    ) -> Result<Self, Error> {
        let statistics = Statistics::default();
        let placer = OrderPlacer::new(system, statistics.clone(), scarce);
        let mut registered = Vec::new();
        for _ in 0..accounts {
            registered.push(Account::register(&placer.system).await?);
        }
        if scarce {
            placer.add_scarce_stock().await?;
        }
        Ok(Self { placer, accounts: Arc::new(registered), mix, seed, statistics })
    }

    /// The same, with customers that retry without limit, and that do not wait longer than this for their orders to
    /// finish.
    pub(crate) fn patient(mut self, max_wait: Duration) -> Self {
        self.placer.max_attempts = u32::MAX;
        self.placer.max_wait = Some(max_wait);
        self
    }

    /// Places orders until `until`, or `stop`.
    pub(crate) async fn place_orders(&self, model: LoadModel, until: StopCondition, stop: CancellationToken) {
        load_model::place(self, model, until, stop).await;
    }

    /// Logs in at this rate, in addition to the orders.
    async fn log_in(self, rate: u32, stop: CancellationToken) {
        if rate == 0 {
            return;
        }
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let load = self.clone();
            tokio::spawn(async move {
                let Some(account) = load.accounts.first() else { return };
                let began = Instant::now();
                match load.placer.system.login(&account.login).await {
                    Ok(_) => load.statistics.logged_in(began.elapsed()),
                    Err(error) => load.statistics.rejected(format!("Login: {error}")),
                }
            });
        }
    }

    /// # Errors
    /// Orders whose final state is not the expected one.
    fn verdict(&self) -> Result<(), Error> {
        match self.statistics.unexpected() {
            0 => Ok(()),
            count => Err(Error::Usage(format!("{count} orders ended in an unexpected state: see above"))),
        }
    }

    /// The orders that were acknowledged.
    pub(crate) fn acknowledged(&self) -> Vec<OrderId> {
        self.statistics.acknowledged()
    }
}

/// Customers in a closed loop, until `stop`.
pub(crate) async fn closed_loop(load: &Load, customers: u32, stop: CancellationToken) {
    load.place_orders(LoadModel::Closed { customers }, StopCondition { orders: None, duration: None }, stop).await;
}
