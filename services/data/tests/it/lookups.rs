//! Lookups as events: those for orders are all stored, the others are summed. Changes of products are audited.

use std::time::{Duration, Instant};

use contracts::common::v1::EventType;
use contracts::data::v1::catalog_service_client::CatalogServiceClient;
use contracts::data::v1::{
    BatchGetProductsRequest, EventStatus, ListProductsRequest, ListTraceEventsRequest, Product, TraceEvent,
};
use mesh::CallAttributes;
use telemetry::{ORDER_ID, USER_ID};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request};

use crate::world::{World, as_user, product, uuid};

const TIMEOUT: Duration = Duration::from_secs(20);

fn of_type(event_type: EventType) -> ListTraceEventsRequest {
    ListTraceEventsRequest { r#type: event_type.into(), page_size: 500, ..ListTraceEventsRequest::default() }
}

/// The stored events of a request, once there are at least `count`.
async fn stored(world: &World, request: ListTraceEventsRequest, count: usize) -> Vec<TraceEvent> {
    let found = async {
        loop {
            let events = world.list(request.clone()).await.expect("a page").events;
            if events.len() >= count {
                return events;
            }
        }
    };
    tokio::time::timeout(TIMEOUT, found).await.expect("the events in time")
}

fn lookup(sku: &str) -> BatchGetProductsRequest {
    BatchGetProductsRequest { skus: vec![sku.into()] }
}

#[tokio::test]
async fn a_lookup_for_an_order_carries_the_order_and_its_user() {
    let world = World::new().await;
    let (order, user) = (uuid(), uuid());
    let attributes = CallAttributes::new().with(ORDER_ID, &order).with(USER_ID, &user);
    let as_order = world.catalog_as("order");
    for _ in 0..5 {
        as_order.clone().batch_get_products(attributes.clone().request(lookup("MUG-BLUE"))).await.expect("a response");
    }
    let of_order = ListTraceEventsRequest { order_id: order.clone(), ..of_type(EventType::DataLookup) };
    let events = stored(&world, of_order, 5).await;
    assert_eq!(events.len(), 5, "lookups for orders are not summed");
    for event in &events {
        assert_eq!((&event.order_id, &event.user_id, event.suppressed_count), (&order, &user, 0));
        assert_eq!(event.operation, "data.v1.CatalogService/BatchGetProducts");
    }
}

#[tokio::test]
async fn an_order_id_of_an_untrusted_client_is_ignored() {
    let world = World::new().await;
    let order = uuid();
    let mut request = Request::new(lookup("MUG-BLUE"));
    request.metadata_mut().insert("x-ordermesh-order", order.parse().expect("ASCII"));
    world.catalog().batch_get_products(request).await.expect("a response");
    let events = stored(&world, of_type(EventType::DataLookup), 1).await;
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].order_id.as_str(), events[0].user_id.as_str()), ("", ""));
}

/// The number of served calls.
async fn flood(catalog: CatalogServiceClient<mesh::Channel>, calls: usize, credentials: MetadataMap) -> i32 {
    let mut served = 0;
    for _ in 0..calls {
        let mut request = Request::new(lookup("MUG-BLUE"));
        *request.metadata_mut() = credentials.clone();
        request.set_timeout(Duration::from_millis(1));
        served += i32::from(catalog.clone().batch_get_products(request).await.is_ok());
    }
    served
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_of_untrusted_clients_are_all_counted_in_a_few_rows_per_second() {
    let world = World::new().await;
    let began = Instant::now();
    let with_account = as_user((), "customer").metadata().clone();
    let credentials = |n| if n % 2 == 0 { with_account.clone() } else { MetadataMap::new() };
    let others = (0..8).map(|n| tokio::spawn(flood(world.catalog(), 500, credentials(n))));
    let order = uuid();
    let attributes = CallAttributes::new().with(ORDER_ID, &order);
    let meanwhile = world.catalog_as("order").batch_get_products(attributes.request(lookup("MUG-BLUE"))).await;
    meanwhile.expect("a response");
    let mut served = 0;
    for flooded in others.collect::<Vec<_>>() {
        served += flooded.await.expect("no panic");
    }
    // An event that is not summed, sent last: once it is stored, those of the flood follow within a second.
    let of_order = ListTraceEventsRequest { order_id: order, ..of_type(EventType::DataLookup) };
    assert_eq!(stored(&world, of_order, 1).await.len(), 1, "not delayed by the flood");
    let flooded = async {
        loop {
            let mut events = stored(&world, of_type(EventType::DataLookup), 1).await;
            events.retain(|event| event.order_id.is_empty());
            let successes = events.iter().filter(|event| event.status() == EventStatus::Success);
            let counted: i32 = successes.map(|event| event.suppressed_count + 1).sum();
            // Some of the other calls were never served: their deadline expired on the way.
            if counted >= served {
                return events;
            }
        }
    };
    let events = tokio::time::timeout(TIMEOUT, flooded).await.expect("all lookups counted");
    let seconds = began.elapsed().as_secs() + 2;
    // Three kinds: served, timed out, cancelled.
    assert!(events.len() as u64 <= 3 * seconds, "{} rows in {seconds} s", events.len());
}

#[tokio::test]
async fn a_list_of_products_is_a_lookup_event() {
    let world = World::new().await;
    let request = ListProductsRequest { text: "mug".into(), ..ListProductsRequest::default() };
    world.catalog().list_products(request).await.expect("a page");
    let events = stored(&world, of_type(EventType::DataLookup), 1).await;
    let lists = events.iter().filter(|event| event.operation == "data.v1.CatalogService/ListProducts");
    assert!(lists.clone().count() >= 1 && lists.clone().all(|event| event.attributes.contains_key("products")));
}

#[tokio::test]
async fn a_price_change_is_audited_with_actor_and_old_and_new_price() {
    let world = World::new().await;
    let made = world.upsert(product("POSTER")).await.expect("made");
    let price = made.price.clone().map(|price| contracts::common::v1::Money { minor_units: 250, ..price });
    world.upsert(Product { price, ..made.clone() }).await.expect("changed");
    let stale = world.upsert(made).await.expect_err("an outdated etag");
    assert_eq!(stale.code(), Code::Aborted);
    let events = stored(&world, of_type(EventType::Audit), 3).await;
    let [rejected, changed, made] = &events[..] else { panic!("expected three events, newest first: {events:?}") };
    let of = |event: &TraceEvent, name: &str| event.attributes.get(name).cloned().unwrap_or_default();
    assert_eq!((of(changed, "price.before"), of(changed, "price.after")), ("EUR 100".into(), "EUR 250".into()));
    assert_eq!((of(made, "price.before"), of(made, "price.after")), (String::new(), "EUR 100".into()));
    for event in [changed, made] {
        assert_eq!((of(event, "actor.role"), of(event, "sku")), ("operator".into(), "POSTER".into()));
        assert_eq!((event.status(), of(event, "actor.id")), (EventStatus::Success, event.user_id.clone()));
    }
    let error = rejected.error.clone().expect("a failure");
    assert_eq!((error.r#type.as_str(), error.reason.as_str()), ("ABORTED", "ETAG_MISMATCH"));
    assert_eq!(of(rejected, "actor.role"), "operator");
}
