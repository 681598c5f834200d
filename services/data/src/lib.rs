//! The Data Service: the catalogue, delivery estimates, and the store of trace events.
//!
//! Of orders it stores only the ids in trace events; it has no data of payments or stock. Start reading at [`run`].
//!
//! # Layout
//! - [`run`]: start-up; `settings`: flags and environment
//! - `service`: the handlers, which decode, call the domain and encode
//! - `catalog`, `delivery`: the domain of products, prices and delivery dates
//! - `search`: the limit of concurrent searches of the catalogue
//! - `trace_event`, `retention`: the domain of stored events, and how long they are kept; `own_events`: this service's
//! - `watch`, `feed`, `cursor`: WatchTraceEvents: streams of events, as they are stored
//! - `event_sink`, `event_sink_store`, `nats`: events published to NATS, as they are stored
//! - `convert`, `convert_event`: from messages to values and back, with all checks of fields
//! - `store`, `trace_event_store`, `feed_store`, `entity`, `migration`: the database
//! - [`invariants`]: what `ordermesh verify` reads
//! - `error`: why calls are rejected

mod catalog;
mod convert;
mod convert_event;
mod cursor;
mod delivery;
mod entity;
mod error;
mod event_sink;
mod event_sink_store;
mod feed;
mod feed_store;
pub mod invariants;
mod migration;
mod nats;
mod own_events;
mod retention;
#[cfg(test)]
mod sample;
mod search;
mod service;
mod settings;
mod store;
mod trace_event;
mod trace_event_store;
mod watch;

use std::sync::Arc;

use chassis::{Chassis, Error, Served};
use contracts::data::v1::catalog_service_server::CatalogServiceServer;
use contracts::data::v1::trace_event_service_server::TraceEventServiceServer;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::catalog::{Catalog, Draft};
use crate::event_sink::EventSink;
use crate::feed::Feed;
use crate::feed_store::FeedStore;
pub use crate::migration::MIGRATIONS;
use crate::nats::Nats;
use crate::search::Searches;
use crate::service::{CatalogHandlers, TraceEventHandlers};
pub use crate::settings::{Config, SeedProduct};
use crate::store::CatalogStore;
use crate::trace_event::TraceEvents;
use crate::trace_event_store::TraceEventStore;
use crate::watch::{Pace, Watch};

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
    let url = config.event_sink.as_ref().map(|url| Nats::parse(url.expose()));
    let nats = url.transpose().map_err(|expected| Error::Setting(expected.to_owned()))?;
    let chassis = Chassis::start("data", &config.common, migration::MIGRATIONS, shutdown).await?;
    let (store, searches) = (CatalogStore::new(chassis.db.clone()), Searches::new(config.common.database.connections));
    let catalog = Catalog::new(store, searches, chassis.clock.clone());
    seed(&catalog, &config.seed_products).await?;
    let events = TraceEvents::new(TraceEventStore::new(chassis.db.clone()), chassis.clock.clone());
    chassis.store_events(own_events::store(&events, chassis.db.outbox()));
    retention::prepare(&events, &mut None).await;
    let watch = watch(&chassis, &config, &events);
    chassis.tasks.spawn(watch.feed.clone().poll(chassis.shutdown.clone()));
    let sink = nats
        .map(|nats| EventSink::new(nats, &chassis, watch.store.clone(), watch.feed.clone(), config.event_retention));
    if let Some(sink) = &sink {
        chassis.tasks.spawn(sink.clone().run(chassis.shutdown.clone()));
        chassis.tasks.spawn(sink.clone().record(chassis.shutdown.clone()));
    }
    chassis.tasks.spawn(retention::run(
        events.clone(),
        sink,
        config.event_retention,
        retention::INTERVAL,
        chassis.shutdown.clone(),
    ));
    // Lists stay below this size; a larger response is rejected here, since a client would reject it anyway.
    let max_bytes = mesh::MAX_RESPONSE_BYTES;
    let catalog = CatalogServiceServer::new(CatalogHandlers(catalog)).max_encoding_message_size(max_bytes);
    let events =
        TraceEventServiceServer::new(TraceEventHandlers { events, watch }).max_encoding_message_size(max_bytes);
    let routes = Routes::new(catalog).add_service(events);
    let keys = chassis.remote_keys(&config.user)?;
    let rate_limits =
        config.search_quota.map(|quota| ("/data.v1.CatalogService/ListProducts", quota)).into_iter().collect();
    let health_services = &["data.v1.CatalogService", "data.v1.TraceEventService"];
    chassis.serve(Served { routes, health_services, keys, rate_limits, driver: None }, listener, admin).await
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
