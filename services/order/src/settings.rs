//! The settings of the Order Service.

use std::time::Duration;

use chassis::settings::{archive_after, count, positive_duration, quota};
use chassis::{PaymentPeer, Settings, UserPeer};
use kernel::AmountLimits;
use mesh::Quota;

use crate::driver;
use crate::store::UnpaidLimits;

/// Settings of the Order Service.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// Settings common to all services.
    #[command(flatten)]
    pub common: Settings,
    /// The User Service, whose keys verify access tokens.
    #[command(flatten)]
    pub user: UserPeer,
    /// The Payment Service.
    #[command(flatten)]
    pub payment: PaymentPeer,
    /// How long an order's lease lasts, before another instance takes the order over
    #[arg(long, env = "ORDERMESH_ORDER_LEASE", default_value = "15s", value_parser = positive_duration, value_name = "DURATION")]
    pub lease: Duration,
    /// Average interval between polls for due orders
    #[arg(long, env = "ORDERMESH_ORDER_POLL_INTERVAL", default_value = "250ms", value_parser = positive_duration, value_name = "DURATION")]
    pub poll_interval: Duration,
    /// Backoff after the first failed attempt; doubles with each attempt, up to the cap
    #[arg(long, env = "ORDERMESH_ORDER_BACKOFF", default_value = "200ms", value_parser = positive_duration, value_name = "DURATION")]
    pub backoff: Duration,
    /// Maximum backoff between two attempts
    #[arg(long, env = "ORDERMESH_ORDER_BACKOFF_CAP", default_value = "60s", value_parser = positive_duration, value_name = "DURATION")]
    pub backoff_cap: Duration,
    /// Maximum number of orders that this instance drives concurrently
    #[arg(long, alias = "max-drives", env = "ORDERMESH_ORDER_MAX_IN_FLIGHT", default_value_t = 256, value_parser = count, value_name = "COUNT")]
    pub max_in_flight: usize,
    /// Maximum number of WatchOrder streams of one customer, per instance
    #[arg(long, env = "ORDERMESH_ORDER_MAX_WATCHERS", default_value_t = 64, value_parser = count, value_name = "COUNT")]
    pub max_watchers: usize,
    /// Maximum number of one customer's orders with undecided payments, which reserve stock that is not paid for
    #[arg(long, env = "ORDERMESH_ORDER_MAX_UNPAID_ORDERS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..), value_name = "COUNT")]
    pub max_unpaid_orders: u64,
    /// Maximum number of units reserved by these orders together [default: unlimited]
    #[arg(long, env = "ORDERMESH_ORDER_MAX_UNPAID_UNITS", value_parser = clap::value_parser!(u64).range(1..), value_name = "COUNT")]
    pub max_unpaid_units: Option<u64>,
    /// Rate limit of CreateOrder per customer and instance, for example 20/s, 100/m [default: unlimited]
    #[arg(long, env = "ORDERMESH_ORDER_CREATE_ORDER_QUOTA", value_parser = quota, value_name = "COUNT/UNIT")]
    pub create_order_quota: Option<Quota>,
    /// Maximum total of an order, by currency in whole units, for example EUR=50000,JPY=9000000; a currency that is not
    /// named keeps its default [default: about 100000 euros in each currency]
    #[arg(long, env = "ORDERMESH_ORDER_AMOUNT_LIMIT", value_name = "CURRENCY=AMOUNT,…")]
    pub amount_limit: Option<AmountLimits>,
    /// Archive orders this long after they became final: the archive is a table in the same database, and everything still reads it.
    /// The request id of an archived order can be used again, so choose days. Only when every instance runs 0.2.0 or later [default: never]
    #[arg(long, env = "ORDERMESH_ORDER_ARCHIVE_AFTER", value_parser = archive_after, value_name = "DURATION")]
    pub archive_after: Option<Duration>,
    /// Number of the cell that this system is, 0 to 255: the last byte of the ids of its orders (services/SCALE.md)
    #[arg(long, env = "ORDERMESH_ORDER_CELL", default_value_t = 0, value_name = "NUMBER")]
    pub cell: u8,
    /// Stock inserted into an empty inventory at start.
    #[arg(skip)]
    pub seed_stock: Vec<SeedStock>,
}

/// Stock inserted into an empty inventory at start.
#[derive(Clone, Debug)]
pub struct SeedStock {
    /// Stock keeping unit.
    pub sku: String,
    /// Units in stock.
    pub on_hand: i64,
}

impl Config {
    pub(crate) fn driver_options(&self, instance: &str) -> driver::Options {
        driver::Options {
            instance: instance.to_owned(),
            lease: self.lease,
            poll_interval: self.poll_interval,
            backoff: self.backoff,
            backoff_cap: self.backoff_cap,
            max_in_flight: self.max_in_flight,
        }
    }

    pub(crate) fn unpaid_limits(&self) -> UnpaidLimits {
        UnpaidLimits { orders: Some(self.max_unpaid_orders), units: self.max_unpaid_units }
    }
}
