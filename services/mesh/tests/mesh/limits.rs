//! Admission: what is admitted, in which order, and when it is released.

use std::time::Duration;

use futures_util::StreamExt;
use mesh::{Credentials, Quota};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use crate::deadlines::raw;
use crate::echo::{CUSTOMER, SAY, STREAM};
use crate::observed::observed;
use crate::world::{World, WorldOptions, call, channel, reason, say, with_metadata};

/// Two calls a day.
const TWO: Quota = Quota { calls: 2, per: Duration::from_secs(86_400) };

fn refusals(service: &str, cause: &str) -> u64 {
    observed().value("mesh.server.refusals", &[&format!("mesh.service={service}"), &format!("cause={cause}")])
}

async fn stream(world: &World, text: &str) -> Result<tonic::Streaming<String>, tonic::Status> {
    let mut grpc = tonic::client::Grpc::new(world.anonymous());
    grpc.ready().await?;
    let codec = ProstCodec::<String, String>::default();
    let path = STREAM.parse().expect("a path");
    grpc.server_streaming(Request::new(text.to_owned()), path, codec).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_call_beyond_the_permits_is_rejected_immediately_and_counted() {
    observed();
    let world = World::altered(WorldOptions::default(), |config| {
        (config.service, config.max_concurrency, config.max_streams) = ("one-permit", 1, 1);
    })
    .await;
    let permits = |kind: &str| {
        observed().value("mesh.server.permits.used", &["mesh.service=one-permit", &format!("kind={kind}")])
    };
    let first = world.anonymous();
    let held = tokio::spawn(async move { say(&first, SAY, "hold").await });
    world.echo.holding.notified().await;
    let status = say(&world.anonymous(), SAY, "hello").await.expect_err("no permit");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "OVERLOADED"));
    assert!(status.get_details_retry_info().is_some());
    assert_eq!((refusals("one-permit", "concurrency") > 0, permits("call"), permits("stream")), (true, 1, 0));
    // Streams and health have limits of their own.
    let mut texts = stream(&world, "forever").await.expect("its own limit");
    assert_eq!(texts.next().await.expect("one").expect("well-formed"), "one");
    let status = stream(&world, "forever").await.expect_err("no stream left");
    assert_eq!(reason(&status), "OVERLOADED");
    assert_eq!(permits("stream"), 1);
    let mut health = tonic_health::pb::health_client::HealthClient::new(world.anonymous());
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("exempt");
    world.echo.release.add_permits(1);
    held.await.expect("no panic").expect("answered");
    for _ in 0..20 {
        say(&world.anonymous(), SAY, "hello").await.expect("the permit is free again");
    }
    assert!(
        world
            .events
            .take()
            .iter()
            .all(|ended| { ended.event.error.as_ref().is_none_or(|error| error.reason != "OVERLOADED") }),
        "no event for a rejected call"
    );
}

#[tokio::test]
async fn a_panic_returns_its_permit() {
    let world = World::altered(WorldOptions::default(), |config| config.max_concurrency = 1).await;
    assert_eq!(say(&world.anonymous(), SAY, "panic").await.expect_err("a panic").code(), Code::Internal);
    assert_eq!(say(&world.anonymous(), SAY, "hello").await.expect("served"), "hello");
}

#[tokio::test]
async fn a_denied_call_takes_no_quota_no_permit_and_no_memory_and_starts_no_handler() {
    // All resources behind the identity layer are set to zero.
    let none = WorldOptions { memory_budget_bytes: Some(0), ..WorldOptions::default() };
    let world = World::altered(none, |config| {
        config.max_concurrency = 0;
        config.rate_limits = vec![(CUSTOMER, TWO)];
    })
    .await;
    for _ in 0..3 {
        let status = say(&world.anonymous(), CUSTOMER, "hello").await.expect_err("denied");
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "TOKEN_MISSING"));
    }
    // Control: an authorized call reaches the exhausted limit.
    assert_eq!(reason(&say(&world.anonymous(), SAY, "hello").await.expect_err("no memory")), "OUT_OF_MEMORY");
    assert_eq!((world.handlers_started(), world.events.take().len()), (0, 1), "only the control's");
}

#[tokio::test]
async fn a_caller_over_its_quota_takes_no_permit() {
    let world = World::altered(WorldOptions::default(), |config| {
        config.max_concurrency = 0;
        config.rate_limits = vec![(SAY, TWO)];
    })
    .await;
    let mut seen = vec![];
    for _ in 0..3 {
        seen.push(reason(&say(&world.anonymous(), SAY, "hello").await.expect_err("rejected")));
    }
    assert_eq!(seen, ["OVERLOADED", "OVERLOADED", "RATE_LIMITED"]);
}

#[tokio::test]
async fn a_caller_over_its_quota_gets_a_retry_delay_and_others_are_not_affected() {
    observed();
    let world = World::altered(WorldOptions::default(), |config| {
        config.service = "quota";
        config.rate_limits = vec![(SAY, TWO)];
    })
    .await;
    for _ in 0..2 {
        say(&world.anonymous(), SAY, "hello").await.expect("within the quota");
    }
    let status = say(&world.anonymous(), SAY, "hello").await.expect_err("over it");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
    let wait = status.get_details_retry_info().and_then(|retry| retry.retry_delay).expect("a retry delay");
    assert!((Duration::from_secs(43_000)..=Duration::from_secs(43_200)).contains(&wait), "{wait:?}");
    assert_eq!(status.get_details_quota_failure().expect("a quota failure").violations.len(), 1);
    assert_eq!((refusals("quota", "rate_limit"), world.events.take().len()), (1, 2));
    // A service is counted separately from its address, and another method has no quota.
    say(&world.service("order", crate::world::MESH_SECRET), SAY, "hello").await.expect("another caller");
    let denied = say(&world.anonymous(), CUSTOMER, "hello").await.expect_err("another method");
    assert_eq!(denied.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn callers_behind_a_trusted_proxy_are_distinguished_and_behind_an_untrusted_one_they_are_not() {
    for (trusted, third) in [("127.0.0.0/8", Code::Ok), ("10.0.0.0/8", Code::ResourceExhausted)] {
        let world = World::altered(WorldOptions::default(), |config| {
            config.rate_limits = vec![(SAY, TWO)];
            config.trusted_proxies = vec![trusted.parse().expect("a network")];
        })
        .await;
        let channel = world.anonymous();
        let ask = async |address: &str| {
            let response = call(&channel, SAY, with_metadata("hello", &[("x-forwarded-for", address)])).await;
            response.map_or_else(|status| status.code(), |_| Code::Ok)
        };
        assert_eq!([ask("192.0.2.1").await, ask("192.0.2.1").await], [Code::Ok; 2], "{trusted}");
        assert_eq!(ask("192.0.2.2").await, third, "{trusted}");
        assert_eq!(ask("192.0.2.1").await, Code::ResourceExhausted, "{trusted}");
    }
}

#[tokio::test]
async fn too_much_metadata_is_rejected_with_a_status() {
    observed();
    let world = World::altered(WorldOptions::default(), |config| config.service = "metadata").await;
    for (bytes, code) in [(17_000, Code::ResourceExhausted), (60_000, Code::ResourceExhausted), (15_000, Code::Ok)] {
        let response = raw::send(world.address, raw::unary(SAY, "hello", &[("x-long", &"y".repeat(bytes))])).await;
        assert_eq!(response.code(), code, "{bytes} bytes");
        if code != Code::Ok {
            assert_eq!(reason(&response), "METADATA_TOO_LARGE");
        }
    }
    assert_eq!((refusals("metadata", "metadata"), world.handlers_started()), (2, 1));
}

#[tokio::test]
async fn a_message_over_the_limit_is_rejected_before_it_is_read() {
    let world = World::with(WorldOptions { max_message_bytes: 100, ..WorldOptions::default() }).await;
    let status = say(&world.anonymous(), SAY, &"x".repeat(101)).await.expect_err("rejected");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    assert_eq!(world.handlers_started(), 0);
    assert_eq!(say(&world.anonymous(), SAY, &"x".repeat(90)).await.expect("fits").len(), 90);
    // The prefix is sufficient: it announces 4 GiB that are never sent.
    let only_prefix = bytes::Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
    let response = raw::send(world.address, raw::with_body(SAY, only_prefix, &[])).await;
    assert_eq!(reason(&response), "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn a_call_over_the_memory_budget_is_an_out_of_memory_error() {
    let world = World::with(WorldOptions { memory_budget_bytes: Some(4_096), ..WorldOptions::default() }).await;
    let status = say(&world.anonymous(), SAY, &"x".repeat(2_000)).await.expect_err("rejected");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OUT_OF_MEMORY"));
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(mesh::event_error(&status).error_type, "OutOfMemoryError");
    assert_eq!(world.handlers_started(), 0);
    let events = world.events.take();
    assert_eq!(events.len(), 1, "a rejection for memory is an event");
    assert_eq!(events[0].event.error.as_ref().expect("failed").error_type, "OutOfMemoryError");
    assert_eq!(say(&world.anonymous(), SAY, "small").await.expect("fits"), "small");
}

#[tokio::test]
async fn a_calls_memory_is_released_when_its_response_is_sent() {
    // "hold" is 11 bytes framed: 44 of the budget.
    let world = World::with(WorldOptions { memory_budget_bytes: Some(60), ..WorldOptions::default() }).await;
    let first = channel(vec![world.address.to_string()], Credentials::None);
    let held = tokio::spawn(async move { say(&first, SAY, "hold").await });
    world.echo.holding.notified().await;
    let status = say(&world.anonymous(), SAY, "hello").await.expect_err("none left");
    assert_eq!(reason(&status), "OUT_OF_MEMORY");
    world.echo.release.add_permits(1);
    assert_eq!(held.await.expect("no panic").expect("answered"), "released");
    for _ in 0..20 {
        assert_eq!(say(&world.anonymous(), SAY, "hello").await.expect("fits again"), "hello");
    }
}

#[tokio::test]
async fn health_is_exempt_from_the_budget() {
    let world = World::with(WorldOptions { memory_budget_bytes: Some(0), ..WorldOptions::default() }).await;
    say(&world.anonymous(), SAY, "hello").await.expect_err("nothing fits");
    let mut health = tonic_health::pb::health_client::HealthClient::new(world.anonymous());
    let request = tonic_health::pb::HealthCheckRequest { service: "test.v1.Echo".into() };
    assert_eq!(health.check(request).await.expect("answers").into_inner().status, 1);
}
