//! Lookups as events: those for orders are all there, the others are summed; and products' changes are audited.

use std::time::{Duration, Instant};

use contracts::common::v1::EventType;
use contracts::data::v1::catalog_service_client::CatalogServiceClient;
use contracts::data::v1::{
    BatchGetProductsRequest, EventStatus, ListProductsRequest, ListTraceEventsRequest, Product, TraceEvent,
};
use mesh::About;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request};

use crate::world::{World, as_person, product, uuid};

const PATIENCE: Duration = Duration::from_secs(20);

fn of_type(event_type: EventType) -> ListTraceEventsRequest {
    ListTraceEventsRequest { r#type: event_type.into(), page_size: 500, ..ListTraceEventsRequest::default() }
}

/// The stored events of a request, as soon as there are as many as that.
async fn stored(world: &World, request: ListTraceEventsRequest, count: usize) -> Vec<TraceEvent> {
    let asked = async {
        loop {
            let events = world.list(request.clone()).await.expect("a page").events;
            if events.len() >= count {
                return events;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("the events in time")
}

fn lookup(sku: &str) -> BatchGetProductsRequest {
    BatchGetProductsRequest { skus: vec![sku.into()] }
}

#[tokio::test]
async fn a_lookup_for_an_order_carries_the_order_and_its_user() {
    let world = World::new().await;
    let (order, user) = (uuid(), uuid());
    let id = |text: &str| text.parse().expect("a UUID");
    let about = About { order_id: Some(id(&order)), user_id: Some(id(&user)), attempt: None };
    let as_order = world.catalog_as("order");
    for _ in 0..5 {
        as_order.clone().batch_get_products(about.request(lookup("MUG-BLUE"))).await.expect("an answer");
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
async fn a_strangers_claim_of_an_order_is_not_believed() {
    let world = World::new().await;
    let order = uuid();
    let mut request = Request::new(lookup("MUG-BLUE"));
    request.metadata_mut().insert("x-ordermesh-order", order.parse().expect("ASCII"));
    world.catalog().batch_get_products(request).await.expect("an answer");
    let events = stored(&world, of_type(EventType::DataLookup), 1).await;
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].order_id.as_str(), events[0].user_id.as_str()), ("", ""));
}

/// How many of the calls were answered.
async fn flood(catalog: CatalogServiceClient<mesh::Channel>, calls: usize, credentials: MetadataMap) -> i32 {
    let mut answered = 0;
    for _ in 0..calls {
        let mut request = Request::new(lookup("MUG-BLUE"));
        *request.metadata_mut() = credentials.clone();
        request.set_timeout(Duration::from_millis(1));
        answered += i32::from(catalog.clone().batch_get_products(request).await.is_ok());
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_lookups_strangers_make_a_few_rows_a_second_count_them_all() {
    let world = World::new().await;
    let began = Instant::now();
    let with_account = as_person((), "customer").metadata().clone();
    let credentials = |n| if n % 2 == 0 { with_account.clone() } else { MetadataMap::new() };
    let strangers = (0..8).map(|n| tokio::spawn(flood(world.catalog(), 500, credentials(n))));
    let order = uuid();
    let about = About { order_id: order.parse().ok(), user_id: None, attempt: None };
    let meanwhile = world.catalog_as("order").batch_get_products(about.request(lookup("MUG-BLUE"))).await;
    meanwhile.expect("an answer");
    let mut answered = 0;
    for flooded in strangers.collect::<Vec<_>>() {
        answered += flooded.await.expect("no panic");
    }
    // One that is not summed, and comes last, is stored: so is what was flooded before it, within a second.
    let of_order = ListTraceEventsRequest { order_id: order, ..of_type(EventType::DataLookup) };
    assert_eq!(stored(&world, of_order, 1).await.len(), 1, "it did not wait behind the others");
    let flooded = async {
        loop {
            let mut events = stored(&world, of_type(EventType::DataLookup), 1).await;
            events.retain(|event| event.order_id.is_empty());
            let successes = events.iter().filter(|event| event.status() == EventStatus::Success);
            let counted: i32 = successes.map(|event| event.suppressed_count + 1).sum();
            // Of the others some were never served: their deadline was over on their way.
            if counted >= answered {
                return events;
            }
        }
    };
    let events = tokio::time::timeout(PATIENCE, flooded).await.expect("they are counted");
    let seconds = began.elapsed().as_secs() + 2;
    // Answered, timed out, given up: three kinds.
    assert!(events.len() as u64 <= 3 * seconds, "{} rows in {seconds} s", events.len());
}

#[tokio::test]
async fn a_list_of_products_is_a_lookup() {
    let world = World::new().await;
    let request = ListProductsRequest { text: "mug".into(), ..ListProductsRequest::default() };
    world.catalog().list_products(request).await.expect("a page");
    let events = stored(&world, of_type(EventType::DataLookup), 1).await;
    let lists = events.iter().filter(|event| event.operation == "data.v1.CatalogService/ListProducts");
    assert!(lists.clone().count() >= 1 && lists.clone().all(|event| event.attributes.contains_key("products")));
}

#[tokio::test]
async fn a_changed_price_is_audited_with_its_actor_before_and_after() {
    let world = World::new().await;
    let made = world.upsert(product("POSTER")).await.expect("made");
    let price = made.price.clone().map(|price| contracts::common::v1::Money { minor_units: 250, ..price });
    world.upsert(Product { price, ..made.clone() }).await.expect("changed");
    let stale = world.upsert(made).await.expect_err("its etag is old");
    assert_eq!(stale.code(), Code::Aborted);
    let events = stored(&world, of_type(EventType::Audit), 3).await;
    let [refused, changed, made] = &events[..] else { panic!("three, newest first: {events:?}") };
    let of = |event: &TraceEvent, name: &str| event.attributes.get(name).cloned().unwrap_or_default();
    assert_eq!((of(changed, "price.before"), of(changed, "price.after")), ("EUR 100".into(), "EUR 250".into()));
    assert_eq!((of(made, "price.before"), of(made, "price.after")), (String::new(), "EUR 100".into()));
    for event in [changed, made] {
        assert_eq!((of(event, "actor.role"), of(event, "sku")), ("operator".into(), "POSTER".into()));
        assert_eq!((event.status(), of(event, "actor.id")), (EventStatus::Success, event.user_id.clone()));
    }
    let error = refused.error.clone().expect("it failed");
    assert_eq!((error.r#type.as_str(), error.reason.as_str()), ("ABORTED", "ETAG_MISMATCH"));
    assert_eq!(of(refused, "actor.role"), "operator");
}
