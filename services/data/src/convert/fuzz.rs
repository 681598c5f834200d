//! Every decoder, with input from a misbehaving client: it always returns.

use std::collections::HashMap;

use contracts::common::v1 as common;
use mesh::Caller;
use proptest::prelude::*;
use testkit::{mutations, text};

use super::*;
use crate::convert_event::received;
use crate::cursor::Cursor;
use crate::feed::Position;
use crate::trace_event::{ListTraceEvents, SummarizeTraceEvents};
use crate::watch::WatchTraceEvents;

const ID: &str = "0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e";

fn product() -> proto::UpsertProductRequest {
    let price = common::Money { currency_code: "EUR".into(), minor_units: 1_250 };
    let product = proto::Product {
        sku: "MUG-BLUE".into(),
        name: "Blue mug".into(),
        description: "Stoneware".into(),
        price: Some(price),
        ..Default::default()
    };
    proto::UpsertProductRequest { product: Some(product) }
}

fn event() -> proto::AppendTraceEventsRequest {
    let event = proto::TraceEvent {
        event_id: ID.into(),
        r#type: 2,
        status: 1,
        service: "order".into(),
        instance: "order-1".into(),
        operation: "order.v1.OrderService/CreateOrder".into(),
        trace_id: "0123456789abcdef0123456789abcdef".into(),
        span_id: "0123456789abcdef".into(),
        start_time: Some(prost_types::Timestamp { seconds: 1_772_445_600, nanos: 5_000 }),
        duration: Some(prost_types::Duration { seconds: 0, nanos: 1_000 }),
        order_id: ID.into(),
        attributes: HashMap::from([("operation".into(), "charge".into())]),
        ..Default::default()
    };
    proto::AppendTraceEventsRequest { events: vec![event] }
}

fn list() -> proto::ListTraceEventsRequest {
    proto::ListTraceEventsRequest { order_id: ID.into(), page_size: 5, ..Default::default() }
}

fn watch() -> proto::WatchTraceEventsRequest {
    let request = proto::WatchTraceEventsRequest { order_id: ID.into(), ..Default::default() };
    let cursors = WatchTraceEvents::try_from(request.clone()).expect("valid").cursors;
    let cursor = Cursor { made: kernel::Timestamp::default(), position: Position::START };
    proto::WatchTraceEventsRequest { after_cursor: cursors.encode(cursor), ..request }
}

#[test]
fn valid_messages_are_accepted() {
    let order = Caller::Service { name: "order".into() };
    let sent = received(&order, event()).expect("valid");
    assert!(sent.iter().all(|sent| sent.event.is_ok()));
    assert!(Upsert::try_from(product()).is_ok());
    assert!(ListTraceEvents::try_from(list()).is_ok());
    assert!(WatchTraceEvents::try_from(watch()).is_ok_and(|watch| watch.after.is_some()));
}

proptest! {
    #[test]
    fn events_are_rejected_individually_or_are_the_callers(request in mutations(event())) {
        let order = Caller::Service { name: "order".into() };
        let count = request.events.len();
        match received(&order, request) {
            Ok(sent) => {
                prop_assert_eq!(sent.len(), count, "each has an outcome");
                for event in sent.iter().filter_map(|sent| sent.event.as_ref().ok()) {
                    prop_assert_eq!(&event.service, "order");
                    prop_assert!(event.duration_micros >= 0);
                }
            }
            Err(invalid) => prop_assert!(!invalid.0.is_empty(), "a rejection names a field"),
        }
    }

    #[test]
    fn the_other_decoders_return_on_any_input(
        product in mutations(product()), list in mutations(list()), watch in mutations(watch()),
        summary in mutations(proto::SummarizeTraceEventsRequest::default()),
        products in mutations(proto::ListProductsRequest { page_size: 5, text: "mug".into(), ..Default::default() }),
        skus in prop::collection::vec(text("MUG"), 0..5), country in text("DE"), postal_code in text("10115"),
    ) {
        let _ = Upsert::try_from(product);
        let _ = ListTraceEvents::try_from(list);
        let _ = WatchTraceEvents::try_from(watch);
        let _ = SummarizeTraceEvents::try_from(summary);
        let _ = ListProducts::try_from(products);
        let _ = Skus::try_from(proto::BatchGetProductsRequest { skus });
        let _ = Destination::try_from(proto::GetDeliveryEstimateRequest {
            country_code: country, postal_code, dispatch_time: None,
        });
    }
}
