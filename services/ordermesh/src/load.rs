//! `ordermesh load`: customers in a closed loop against a running system, through the public API. Each creates an order,
//! watches it to its end, and begins again. It says how fast orders were acknowledged and finished.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use contracts::common::v1::Address;
use contracts::order::v1 as order_v1;
use contracts::order::v1::order_service_client::OrderServiceClient;
use contracts::user::v1 as user_v1;
use contracts::user::v1::user_service_client::UserServiceClient;
use hdrhistogram::Histogram;
use kernel::{IdSource, SystemIds};
use rand::Rng;
use tokio::task::JoinSet;
use tonic::Status;

use crate::catalog;
use crate::data_dir::Login;
use crate::error::Error;
use crate::system::{Place, System, request};

/// How much load.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// Customers at a time, each with one order at a time
    #[arg(long, default_value_t = 32, value_name = "COUNT")]
    customers: u32,
    /// Accounts that the customers share: each costs two bcrypt hashes at the start
    #[arg(long, default_value_t = 2, value_name = "COUNT")]
    accounts: u32,
    /// Orders in all
    #[arg(long, default_value_t = 5_000, value_name = "COUNT")]
    orders: u64,
}

/// What one customer saw.
struct Seen {
    /// CreateOrder, in microseconds.
    acknowledged: Histogram<u64>,
    /// From CreateOrder to the final state, in microseconds.
    finished: Histogram<u64>,
    /// Final states, and errors by code and message.
    ends: BTreeMap<String, u64>,
}

impl Seen {
    fn new() -> Self {
        let histogram = || Histogram::new(3).unwrap_or_else(|_| unreachable!("three digits are allowed"));
        Self { acknowledged: histogram(), finished: histogram(), ends: BTreeMap::new() }
    }

    fn add(&mut self, other: &Self) {
        // Histograms that resize themselves take any value.
        let _ = self.acknowledged.add(&other.acknowledged);
        let _ = self.finished.add(&other.finished);
        for (end, count) in &other.ends {
            *self.ends.entry(end.clone()).or_default() += count;
        }
    }
}

/// Runs the load and prints what it saw.
///
/// # Errors
/// No system, or no account to be had on it; orders that did not end in FULFILLMENT_STARTED.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let system = System::find(&options.place).await?;
    let mut tokens = Vec::new();
    for _ in 0..options.accounts.max(1) {
        tokens.push(account(&system).await?);
    }
    println!("{} customers, {} orders", options.customers, options.orders);
    let left = Arc::new(AtomicU64::new(options.orders));
    let mut customers = JoinSet::new();
    let start = Instant::now();
    for (_, token) in (0..options.customers).zip(tokens.iter().cycle()) {
        let (system, token, left) = (system.clone(), token.clone(), left.clone());
        customers.spawn(async move { customer(&system, &token, &left).await });
    }
    let mut seen = Seen::new();
    while let Some(one) = customers.join_next().await {
        if let Ok(one) = one {
            seen.add(&one);
        }
    }
    report(&seen, start.elapsed());
    let fulfilled = seen.ends.get("FULFILLMENT_STARTED").copied().unwrap_or(0);
    if fulfilled == options.orders {
        Ok(())
    } else {
        Err(Error::Usage(format!("{} orders were not fulfilled", options.orders - fulfilled)))
    }
}

async fn account(system: &System) -> Result<String, Error> {
    let id = SystemIds.uuid();
    let login = Login { email: format!("load-{id}@example.com"), password: id.to_string() };
    let message = user_v1::RegisterRequest {
        request_id: SystemIds.uuid().to_string(),
        email: login.email.clone(),
        password: login.password.clone(),
        display_name: "Load".into(),
    };
    UserServiceClient::new(system.user.clone())
        .register(mesh::untraced(message))
        .await
        .map_err(Error::refused("the registration"))?;
    system.login(&login).await
}

async fn customer(system: &System, token: &str, left: &AtomicU64) -> Seen {
    let mut seen = Seen::new();
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let end = match one_order(system, token, &mut seen).await {
            Ok(end) => end,
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        *seen.ends.entry(end).or_default() += 1;
    }
    seen
}

async fn one_order(system: &System, token: &str, seen: &mut Seen) -> Result<String, Status> {
    let mut client = OrderServiceClient::new(system.order.clone());
    let start = Instant::now();
    let created = client.create_order(request(new_order(), token, None)).await?.into_inner();
    let _ = seen.acknowledged.record(micros(start));
    let order_id = created.order.unwrap_or_default().order_id;
    let watch = order_v1::WatchOrderRequest { order_id, after_version: 1 };
    let mut steps = client.watch_order(request(watch, token, None)).await?.into_inner();
    let mut state = order_v1::OrderState::Created;
    while let Some(step) = steps.message().await? {
        state = step.entry.unwrap_or_default().state();
    }
    let _ = seen.finished.record(micros(start));
    Ok(state.as_str_name().trim_start_matches("ORDER_STATE_").to_owned())
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn new_order() -> order_v1::CreateOrderRequest {
    let stock: Vec<String> = catalog::stock()
        .into_iter()
        .map(|stock| stock.sku)
        .filter(|sku| sku != catalog::SCARCE && sku != catalog::FOREIGN)
        .collect();
    let mut random = rand::rng();
    let first = random.random_range(0..stock.len());
    let count = random.random_range(1..=3);
    let items = stock.iter().cycle().skip(first).take(count);
    order_v1::CreateOrderRequest {
        request_id: SystemIds.uuid().to_string(),
        items: items.map(|sku| order_v1::OrderItem { sku: sku.clone(), quantity: 1 }).collect(),
        payment_method: "pm_card_visa".into(),
        shipping_address: Some(Address {
            recipient: "Load".into(),
            lines: vec!["Main Street 1".into()],
            city: "Berlin".into(),
            postal_code: "10115".into(),
            country_code: "DE".into(),
        }),
        contact_email: "load@example.com".into(),
        expected_total: None,
    }
}

fn report(seen: &Seen, took: Duration) {
    let seconds = took.as_secs_f64();
    let rate = |histogram: &Histogram<u64>| f64::from(u32::try_from(histogram.len()).unwrap_or(u32::MAX)) / seconds;
    let ms = |histogram: &Histogram<u64>, quantile: f64| {
        Duration::from_micros(histogram.value_at_quantile(quantile)).as_secs_f64() * 1_000.0
    };
    println!("took {seconds:.1} s");
    for (what, histogram) in [("acknowledged", &seen.acknowledged), ("finished", &seen.finished)] {
        println!(
            "{what:<13} {:>7.0}/s   p50 {:>7.1} ms   p90 {:>7.1} ms   p99 {:>7.1} ms   max {:>7.1} ms",
            rate(histogram),
            ms(histogram, 0.5),
            ms(histogram, 0.9),
            ms(histogram, 0.99),
            ms(histogram, 1.0),
        );
    }
    for (end, count) in &seen.ends {
        println!("{count:>8} {end}");
    }
}
