//! Payment Service: a payment's lifecycle against an external gateway.
//!
//! Start reading at [`lifecycle`], the state table. [`process`] starts or joins a payment and waits for its result,
//! [`driver`] calls the gateway and records the result. Of an order the service has the id, the customer,
//! the amount and the address for the receipt. Card numbers never reach it: a payment method is a token.
//!
//! # Layout
//! - [`lifecycle`]: the state table
//! - [`payment`]: the stored payment, its keys at the gateway, the events of its states
//! - [`process`]: starting, joining, cancelling; waiting for the result
//! - [`driver`]: performs the pending effect of a payment and records its result
//! - [`reconcile`]: compares the payments with the gateway's ledger
//! - [`subscriptions`]: the calls that wait for a payment's result
//! - [`ports`]: the interfaces to the gateway and to the Order Service, and their gRPC clients
//! - [`store`], `sql`, `entity`, `migration`: the tables; `service`, `convert`, [`error`]: the gRPC contract
//! - `settings`: flags and environment; `gauges`: the metrics

#![expect(missing_docs, reason = "not published: an item whose name and type say all has no comment")]

pub mod driver;
pub mod error;
pub mod lifecycle;
pub mod payment;
pub mod ports;
pub mod process;
pub mod reconcile;
pub mod store;
pub mod subscriptions;

mod convert;
mod entity;
mod gauges;
mod migration;
mod service;
mod settings;

use std::sync::Arc;

use chassis::{Chassis, Served};
use contracts::payment::v1::payment_service_server::{PaymentServiceServer, SERVICE_NAME};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use error::Error;
pub use migration::MIGRATIONS;
pub use settings::{ApiKey, Config, api_key};

/// Serves on a listener until `shutdown`, then drains.
///
/// # Errors
/// The API key, the database or a listener cannot be used.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: CancellationToken,
) -> Result<(), chassis::Error> {
    let api_key = config.read_api_key()?;
    let chassis = Chassis::start("payment", &config.common, migration::MIGRATIONS, shutdown).await?;
    let store = store::Store::new(chassis.db.clone(), chassis.clock.clone());
    let channel = chassis.external_channel("gateway", &config.gateway_addresses);
    let gateway = Arc::new(ports::GrpcGateway::new(channel, api_key, config.gateway_timeout));
    let order = chassis.channel("order", &config.order.order_addresses);
    let subscriptions = subscriptions::Subscriptions::default();
    let payments = driver::Payments {
        store: store.clone(),
        gateway: gateway.clone(),
        confirmations: Arc::new(ports::GrpcConfirmations::new(order)),
        clock: chassis.clock.clone(),
        events: chassis.events.clone(),
        subscriptions: subscriptions.clone(),
        doubt_limit: config.doubt_limit,
    };
    let context = driver::Context {
        options: config.driver_options(&chassis.instance),
        ids: chassis.ids.clone(),
        faults: Arc::new(kernel::NoFaults),
        tasks: chassis.tasks.clone(),
        shutdown: chassis.shutdown.clone(),
    };
    let driver = driver::Driver::new(payments, context);
    driver.recover().await.map_err(|source| chassis::Error::Database { service: "payment", source })?;
    chassis.tasks.spawn(driver.clone().poll());
    chassis.tasks.spawn(gauges::record(store.clone(), driver.clone(), chassis.clone()));
    if let Some(after) = config.archive_after {
        let store = store.clone();
        let grace = config.archive_grace();
        let archive = move |before, after| store.clone().archive_before(before, after, grace);
        chassis.tasks.spawn(chassis::archive::run(chassis.clone(), "payments", after, archive));
    }
    let read_driver = {
        let driver = driver.clone();
        Arc::new(move || chassis::DriverState {
            items: "payments",
            in_flight: driver.in_flight(),
            max_in_flight: driver.context().options.max_in_flight,
        })
    };
    let processor = process::Processor {
        store: store.clone(),
        driver,
        subscriptions,
        events: chassis.events.clone(),
        limits: process::Limits { amount: config.amount_limit.unwrap_or_default(), max_wait: config.wait_timeout },
    };
    let handlers = service::PaymentHandlers { processor, reconciler: reconcile::Reconciler { store, gateway } };
    let routes = Routes::new(PaymentServiceServer::new(handlers).max_encoding_message_size(mesh::MAX_RESPONSE_BYTES));
    let keys = chassis.remote_keys(&config.user)?;
    let driver = Some(read_driver as chassis::admin::ReadDriver);
    let served = Served { routes, health_services: &[SERVICE_NAME], keys, rate_limits: vec![], driver };
    chassis.serve(served, listener, admin).await
}
