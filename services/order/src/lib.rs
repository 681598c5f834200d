//! Order Service: an order's lifecycle from creation to fulfilment, and the stock reserved for it.
//!
//! Start reading at [`lifecycle`], the state table. [`driver`] performs a state's pending effect, [`store`] commits the
//! result. The service never talks to the payment gateway and never reads another service's tables.
//!
//! # Layout
//! - [`lifecycle`]: the state table
//! - [`order`]: the order's types; [`orders`]: creating, reading, cancelling and retrying orders
//! - [`driver`]: performs the pending effect of a state and records its result; the crate `driver` decides when
//! - [`inventory`]: stock per SKU
//! - [`subscriptions`]: to an order's next transition; `watch`: the stream of WatchOrder
//! - [`explain`]: one timeline from all sources
//! - [`invariants`]: the invariants of orders and stock
//! - [`ports`]: the interfaces to the Data and Payment Services, and their gRPC clients
//! - [`store`], `entity`, `migration`: the tables; `service`, `convert`: the gRPC contract; `settings`: flags and
//!   environment

#![expect(missing_docs, reason = "not published: an item whose name and type say all has no comment")]

use std::sync::Arc;

use chassis::{Chassis, Served};
use contracts::order::v1::inventory_service_server::InventoryServiceServer;
use contracts::order::v1::order_service_server::OrderServiceServer;
use contracts::order::v1::payment_confirmation_service_server::PaymentConfirmationServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub mod driver;
pub mod error;
pub mod explain;
pub mod invariants;
pub mod inventory;
pub mod lifecycle;
pub mod order;
pub mod orders;
pub mod ports;
pub mod store;
pub mod subscriptions;

mod convert;
mod entity;
mod gauges;
mod migration;
mod service;
mod settings;
mod watch;

pub use error::Error;
pub use migration::MIGRATIONS;
pub use settings::{Config, SeedStock};

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
    let store = store::Store::new(chassis.db.clone(), chassis.clock.clone());
    let store = store.with_unpaid_limits(config.unpaid_limits());
    store.seed(&config.seed_stock).await.map_err(|source| chassis::Error::Database { service: "order", source })?;
    let (notifier, notifications) = chassis.db.notifications("transitions");
    let subscriptions = subscriptions::Subscriptions::new(config.max_watchers, notifier);
    let payments = ports::GrpcPayments::new(chassis.channel("payment", &config.payment.payment_addresses));
    let effects = driver::Effects {
        table: lifecycle::next,
        store: store.clone(),
        payments: Arc::new(payments.clone()),
        clock: chassis.clock.clone(),
        events: chassis.events.clone(),
        subscriptions: subscriptions.clone(),
    };
    let context = driver::Context {
        options: config.driver_options(&chassis.instance),
        ids: chassis.ids.clone(),
        faults: Arc::new(kernel::NoFaults),
        tasks: chassis.tasks.clone(),
        shutdown: chassis.shutdown.clone(),
    };
    let driver = driver::Driver::new(effects, context);
    // Orders leased by an earlier process of this name are due immediately.
    driver.recover().await.map_err(|source| chassis::Error::Database { service: "order", source })?;
    chassis.tasks.spawn(driver.clone().poll());
    chassis.tasks.spawn(subscriptions.clone().follow(store.clone(), notifications, chassis.shutdown.clone()));
    chassis.tasks.spawn(gauges::record(store.clone(), driver.clone(), chassis.clone()));
    if let Some(after) = config.archive_after {
        let store = store.clone();
        let archive = move |before, after| store.clone().archive_before(before, after);
        chassis.tasks.spawn(chassis::archive::run(chassis.clone(), "orders", after, archive));
    }
    let orders = orders::Orders {
        store: store.clone(),
        catalog: Arc::new(ports::GrpcCatalog::new(chassis.data_channel())),
        driver: driver.clone(),
        amount_limits: config.amount_limit.unwrap_or_default(),
        clock: chassis.clock.clone(),
        ids: chassis.ids.clone(),
        cell: config.cell,
    };
    let explainer = explain::Explainer {
        store: store.clone(),
        payments: Arc::new(payments),
        events: ports::GrpcEvents::new(chassis.data_channel()),
    };
    let inventory = inventory::Inventory { store: store.clone() };
    let handlers = service::OrderHandlers { orders, explainer, subscriptions, shutdown: chassis.shutdown.clone() };
    // Lists are cut below this limit; a larger response is rejected here, as a client would reject it.
    let max = mesh::MAX_RESPONSE_BYTES;
    let routes = Routes::new(OrderServiceServer::new(handlers).max_encoding_message_size(max))
        .add_service(PaymentConfirmationServiceServer::new(service::ConfirmationHandlers { driver: driver.clone() }))
        .add_service(
            InventoryServiceServer::new(service::InventoryHandlers { inventory }).max_encoding_message_size(max),
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
        driver: Some(Arc::new(move || read_driver(&driver))),
    };
    chassis.serve(served, listener, admin).await
}

fn read_driver(driver: &driver::Driver) -> chassis::DriverState {
    let max_in_flight = driver.context().options.max_in_flight;
    chassis::DriverState { items: "orders", in_flight: driver.in_flight(), max_in_flight }
}
