//! Order Service: an order's lifecycle from creation to fulfilment, and the stock reserved for it.
//!
//! Start reading at [`lifecycle`], the state table. [`effects`] performs a state's pending effect, [`store`] commits the
//! result. The service never talks to the payment gateway and never reads another service's tables.
//!
//! # Layout
//! - [`lifecycle`]: the state table
//! - [`order`]: the order's types; [`orders`]: creating, reading, cancelling and retrying orders
//! - [`effects`]: performs the pending effect of a state and records its result; the crate `driver` decides when
//! - [`inventory`]: stock per SKU
//! - [`watch`]: subscriptions to an order's next transition
//! - [`explain`]: one timeline from all sources
//! - [`audit`]: the invariants of orders and stock
//! - [`ports`]: the interfaces to the Data and Payment Services, and their gRPC clients
//! - `store`, `entity`, `migration`: the tables; `service`, `convert`: the gRPC contract

use std::time::Duration;

use chassis::settings::{count, positive_duration, quota};
use chassis::{Chassis, PaymentPeer, Served, Settings, UserPeer};
use contracts::order::v1::inventory_service_server::InventoryServiceServer;
use contracts::order::v1::order_service_server::OrderServiceServer;
use contracts::order::v1::payment_confirmation_service_server::PaymentConfirmationServiceServer;
use kernel::AmountLimits;
use mesh::Quota;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub mod audit;
pub mod effects;
pub mod error;
pub mod explain;
pub mod inventory;
pub mod lifecycle;
pub mod order;
pub mod orders;
pub mod ports;
pub mod watch;

mod convert;
mod entity;
mod gauges;
mod migration;
mod service;
pub mod store;

pub use error::Error;
pub use migration::MIGRATIONS;

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
    #[arg(long, env = "ORDERMESH_ORDER_MAX_DRIVES", default_value_t = 256, value_parser = count, value_name = "COUNT")]
    pub max_drives: usize,
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

/// Serves on a listener until `shutdown`, then drains.
///
/// # Errors
/// The database or a listener cannot be used.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: CancellationToken,
) -> Result<(), chassis::Error> {
    let chassis = Chassis::start("order", &config.common, migration::MIGRATIONS, shutdown).await?;
    let unpaid = store::UnpaidLimits { orders: Some(config.max_unpaid_orders), units: config.max_unpaid_units };
    let store = store::Store::new(chassis.db.clone(), chassis.clock.clone()).with_unpaid_limits(unpaid);
    store.seed(&config.seed_stock).await.map_err(|source| chassis::Error::Database { service: "order", source })?;
    let watchers = watch::Watchers::new(config.max_watchers);
    let payments = ports::GrpcPayments::new(chassis.channel("payment", &config.payment.payment_addresses));
    let driver = effects::Driver::new(effects::Parts {
        table: lifecycle::next,
        store: store.clone(),
        payments: std::sync::Arc::new(payments.clone()),
        clock: chassis.clock.clone(),
        ids: chassis.ids.clone(),
        events: chassis.events.clone(),
        watchers: watchers.clone(),
        faults: std::sync::Arc::new(kernel::NoFaults),
        tasks: chassis.tasks.clone(),
        shutdown: chassis.shutdown.clone(),
        options: effects::Options {
            instance: chassis.instance.clone(),
            lease: config.lease,
            poll_interval: config.poll_interval,
            backoff: config.backoff,
            backoff_cap: config.backoff_cap,
            max_drives: config.max_drives,
        },
    });
    // Orders leased by an earlier process of this name are due immediately.
    driver.recover().await.map_err(|source| chassis::Error::Database { service: "order", source })?;
    chassis.tasks.spawn(driver.clone().poll());
    chassis.tasks.spawn(watchers.clone().poll(store.clone(), chassis.shutdown.clone()));
    chassis.tasks.spawn(gauges::record(store.clone(), driver.clone(), chassis.clone()));
    let orders = orders::Orders {
        store: store.clone(),
        catalog: std::sync::Arc::new(ports::GrpcCatalog::new(chassis.data_channel())),
        driver: driver.clone(),
        amount_limits: config.amount_limit.unwrap_or_default(),
        clock: chassis.clock.clone(),
        ids: chassis.ids.clone(),
    };
    let explainer = explain::Explainer {
        store: store.clone(),
        payments: std::sync::Arc::new(payments),
        events: ports::GrpcEvents::new(chassis.data_channel()),
    };
    let inventory = inventory::Inventory { store: store.clone() };
    let handlers = service::OrderHandlers { orders, explainer, watchers, shutdown: chassis.shutdown.clone() };
    // Lists are cut below this limit; a larger answer is rejected here, as a client would reject it.
    let most = mesh::MAX_RESPONSE_BYTES;
    let routes = Routes::new(OrderServiceServer::new(handlers).max_encoding_message_size(most))
        .add_service(PaymentConfirmationServiceServer::new(service::ConfirmationHandlers { driver }))
        .add_service(
            InventoryServiceServer::new(service::InventoryHandlers { inventory }).max_encoding_message_size(most),
        );
    let served = Served {
        routes,
        health_services: &["order.v1.OrderService", "order.v1.PaymentConfirmationService", "order.v1.InventoryService"],
        keys: chassis.remote_keys(&config.user)?,
        rate_limits: config
            .create_order_quota
            .map(|quota| ("/order.v1.OrderService/CreateOrder", quota))
            .into_iter()
            .collect(),
    };
    chassis.serve(served, listener, admin).await
}
