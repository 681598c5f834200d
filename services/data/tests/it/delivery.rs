//! Delivery estimates, and the events of lookups.

use std::time::Duration;

use contracts::common::v1::{Date, EventType};
use contracts::data::v1::{
    EventStatus, GetDeliveryEstimateRequest, GetDeliveryEstimateResponse, ListTraceEventsRequest, TraceEvent,
};
use tonic::{Code, Status};

use crate::world::{World, rejection, violations};

/// 2026-11-20, a Friday, 09:00 UTC.
const FRIDAY: prost_types::Timestamp = prost_types::Timestamp { seconds: 1_795_165_200, nanos: 0 };

async fn estimate(world: &World, country: &str, postal_code: &str) -> Result<GetDeliveryEstimateResponse, Status> {
    let request = GetDeliveryEstimateRequest {
        country_code: country.into(),
        postal_code: postal_code.into(),
        dispatch_time: Some(FRIDAY),
    };
    Ok(world.catalog().get_delivery_estimate(request).await?.into_inner())
}

/// Polls until the service has stored the event of a lookup: events are sent in the background.
async fn failed_lookup(world: &World) -> TraceEvent {
    let request = ListTraceEventsRequest { r#type: EventType::DataLookup.into(), ..ListTraceEventsRequest::default() };
    let found = async {
        loop {
            if let Some(event) = world.list(request.clone()).await.expect("a page").events.pop() {
                return event;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.expect("an event in time")
}

#[tokio::test]
async fn an_estimate_has_the_date_and_its_rule() {
    let world = World::new().await;
    let response = estimate(&world, "DE", "10115").await.expect("an estimate");
    let monday = Some(Date { year: 2026, month: 11, day: 23 });
    let expected = GetDeliveryEstimateResponse {
        zone: "DE".into(),
        transit_business_days: 1,
        cutoff_hour_utc: 15,
        delivery_date: monday,
    };
    assert_eq!(response, expected);
}

#[tokio::test]
async fn the_longest_prefix_of_the_postal_code_decides() {
    let world = World::new().await;
    let cases = [
        ("DE", "27498", "DE-ISLANDS"),
        ("DE", "27499", "DE"),
        ("GB", "kw15 1aa", "GB-ISLANDS"),
        ("GB", "KW1 4XX", "GB"),
        ("US", "96701", "US-HAWAII"),
        ("US", "", "US"),
        ("JP", "900-0001", "JP-OKINAWA"),
        ("CA", "X0A 0H0", "CA-NORTH"),
    ];
    for (country, postal_code, zone) in cases {
        assert_eq!(
            estimate(&world, country, postal_code).await.expect("an estimate").zone,
            zone,
            "{country} {postal_code}"
        );
    }
}

#[tokio::test]
async fn every_country_of_the_rules_has_a_default() {
    let world = World::new().await;
    for country in
        "AT AU BE BG CA CH CZ DE DK EE ES FI FR GB GR HR HU IE IT JP KR LI LT LU LV NL NO NZ PL PT RO SE SG SI SK US"
            .split(' ')
    {
        assert!(estimate(&world, country, "").await.is_ok(), "{country}");
    }
}

#[tokio::test]
async fn a_country_without_deliveries_has_no_zone() {
    let world = World::new().await;
    let (code, reason, _) = rejection(estimate(&world, "AQ", "").await);
    assert_eq!((code, reason.as_str()), (Code::NotFound, "NO_DELIVERY_ZONE"));
    let event = failed_lookup(&world).await;
    assert_eq!(event.status(), EventStatus::Success, "NO_DELIVERY_ZONE is a result");
}

#[tokio::test]
async fn all_violations_of_an_address_are_reported_together() {
    let world = World::new().await;
    let request = GetDeliveryEstimateRequest {
        country_code: "de".into(),
        postal_code: "1".repeat(21),
        dispatch_time: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }),
    };
    let (code, _, found) = rejection(world.catalog().get_delivery_estimate(request).await);
    assert_eq!(code, Code::InvalidArgument);
    let expected = [
        ("country_code", "INVALID_COUNTRY_CODE"),
        ("postal_code", "INVALID_LENGTH"),
        ("dispatch_time", "INVALID_TIME"),
    ];
    assert_eq!(found, violations(&expected));
    let last_second = prost_types::Timestamp { seconds: 253_402_300_799, nanos: 0 };
    let request = GetDeliveryEstimateRequest {
        country_code: "DE".into(),
        dispatch_time: Some(last_second),
        ..Default::default()
    };
    let (_, _, found) = rejection(world.catalog().get_delivery_estimate(request).await);
    assert_eq!(found, violations(&[("dispatch_time", "INVALID_TIME")]));
}

#[tokio::test]
async fn a_lookup_with_a_result_is_an_event_with_its_counts() {
    let world = World::new().await;
    world.lookup(&["MUG-BLUE", "MUG-BLUE", "NONE"]).await.expect("a response");
    let event = failed_lookup(&world).await;
    assert_eq!((event.status(), event.service.as_str()), (EventStatus::Success, "data"));
    assert_eq!(event.attributes.get("skus").map(String::as_str), Some("3"));
    assert_eq!(event.attributes.get("missing").map(String::as_str), Some("1"));
}
