//! The Data Service: the catalogue, delivery estimates, and the store of trace events.
//!
//! It knows nothing of orders, payments or stock. Start reading at [`run`].
//!
//! # Layout
//! - `service`: the handlers, which decode, call the domain and encode
//! - `catalog`, `delivery`: the domain of products, prices and delivery dates
//! - `search`: the limit of concurrent searches of the catalogue
//! - `trace_event`, `retention`: the domain of stored events, and how long they are kept
//! - `watch`, `feed`, `cursor`: streams of events to followers, as they are stored
//! - `convert`, `convert_event`: from messages to values and back, with all checks of fields
//! - `store`, `trace_event_store`, `feed_store`, `entity`, `migration`: the database
//! - [`audit`]: the stored events, for `ordermesh verify`
//! - [`fault`]: fault injection
//! - `error`: why calls are rejected

pub mod audit;
mod catalog;
mod convert;
mod convert_event;
mod cursor;
mod delivery;
mod entity;
mod error;
pub mod fault;
mod feed;
mod feed_store;
mod migration;
mod retention;
#[cfg(test)]
mod sample;
mod search;
mod service;
mod store;
mod trace_event;
mod trace_event_store;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use chassis::{Chassis, Error, Served};
use contracts::data::v1::catalog_service_server::CatalogServiceServer;
use contracts::data::v1::trace_event_service_server::TraceEventServiceServer;
use mesh::Quota;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::catalog::{Catalog, Draft};
pub use crate::fault::FaultLookup;
use crate::feed::Feed;
use crate::feed_store::FeedStore;
pub use crate::migration::MIGRATIONS;
use crate::search::Searches;
use crate::service::{CatalogHandlers, TraceEventHandlers};
use crate::store::CatalogStore;
use crate::trace_event::TraceEvents;
use crate::trace_event_store::TraceEventStore;
use crate::watch::{Pace, Watch};

/// The Data Service's settings.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// The settings common to all services.
    #[command(flatten)]
    pub common: chassis::Settings,
    /// The User Service, whose keys verify access tokens.
    #[command(flatten)]
    pub user: chassis::UserPeer,
    /// How long trace events are kept: ms, s, m, h or d
    #[arg(long, env = "ORDERMESH_DATA_EVENT_RETENTION", default_value = "7d", value_parser = chassis::settings::duration, value_name = "DURATION")]
    pub event_retention: Duration,
    /// Maximum WatchTraceEvents streams of this instance
    #[arg(long, env = "ORDERMESH_DATA_MAX_FOLLOWERS", default_value_t = 64, value_parser = chassis::settings::count, value_name = "COUNT")]
    pub max_followers: usize,
    /// Rate limit per address and instance for listing and searching the catalogue, for example 20/s, 100/m [default: unlimited]
    #[arg(long, env = "ORDERMESH_DATA_SEARCH_QUOTA", value_parser = chassis::settings::quota, value_name = "COUNT/UNIT")]
    pub search_quota: Option<Quota>,
    /// Fault injected into lookups: none, slow:DURATION (callers see a TIMEOUT), refuse (callers see a CONNECTION_ERROR)
    #[arg(long, env = "ORDERMESH_DATA_FAULT_LOOKUP", default_value = "none", value_name = "FAULT")]
    pub fault_lookup: FaultLookup,
    /// Products for an empty catalogue: the samples of the first local start.
    #[arg(skip)]
    pub seed_products: Vec<SeedProduct>,
}

/// A product for an empty catalogue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeedProduct {
    /// 1 to 64 of A-Z, 0-9 and "-".
    pub sku: String,
    /// 1 to 200 characters.
    pub name: String,
    /// Up to 2000 characters.
    pub description: String,
    /// ISO 4217.
    pub currency: String,
    /// The price in the currency's minor unit.
    pub minor_units: i64,
}

/// Serves until `shutdown`, then drains.
///
/// # Errors
/// The database, a secret or a seed product cannot be used, or the listener failed.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin: Option<TcpListener>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let chassis = Chassis::start("data", &config.common, migration::MIGRATIONS, shutdown).await?;
    let (store, searches) = (CatalogStore::new(chassis.db.clone()), Searches::new(config.common.database.connections));
    let catalog = Catalog::new(store, searches, chassis.clock.clone(), config.fault_lookup);
    seed(&catalog, &config.seed_products).await?;
    let events = TraceEvents::new(TraceEventStore::new(chassis.db.clone()), chassis.clock.clone());
    chassis.tasks.spawn(retention::run(
        events.clone(),
        config.event_retention,
        retention::INTERVAL,
        chassis.shutdown.clone(),
    ));
    let watch = watch(&chassis, &config, &events);
    chassis.tasks.spawn(watch.feed.clone().poll(chassis.shutdown.clone()));
    // Lists stay below this size; a larger answer is rejected here, since a client would reject it anyway.
    let most = mesh::MAX_RESPONSE_BYTES;
    let catalog = CatalogServiceServer::new(CatalogHandlers(catalog)).max_encoding_message_size(most);
    let events = TraceEventServiceServer::new(TraceEventHandlers { events, watch }).max_encoding_message_size(most);
    let routes = Routes::new(catalog).add_service(events);
    let keys = chassis.remote_keys(&config.user)?;
    let rate_limits =
        config.search_quota.map(|quota| ("/data.v1.CatalogService/ListProducts", quota)).into_iter().collect();
    let health_services = &["data.v1.CatalogService", "data.v1.TraceEventService"];
    chassis.serve(Served { routes, health_services, keys, rate_limits }, listener, admin).await
}

fn watch(chassis: &Chassis, config: &Config, events: &TraceEvents) -> Watch {
    let store = FeedStore::new(chassis.db.clone());
    Watch {
        feed: Feed::new(store.clone(), events.stored.clone()),
        store,
        clock: chassis.clock.clone(),
        retention: config.event_retention,
        permits: Arc::new(Semaphore::new(config.max_followers)),
        pace: Pace::default(),
        tasks: chassis.tasks.clone(),
        shutdown: chassis.shutdown.clone(),
    }
}

async fn seed(catalog: &Catalog, products: &[SeedProduct]) -> Result<(), Error> {
    let of = |error: &dyn std::error::Error| Error::Service(format!("the catalogue cannot be filled: {error}"));
    let drafts: Result<Vec<_>, _> = products.iter().map(Draft::try_from).collect();
    let drafts = drafts.map_err(|error| of(&error))?;
    if drafts.is_empty() { Ok(()) } else { catalog.seed(drafts).await.map_err(|error| of(&error)) }
}
