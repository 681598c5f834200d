//! Memory: refused before it is read, and given back.

use mesh::Credentials;
use tonic::Code;
use tonic_types::StatusExt;

use crate::deadlines::raw;
use crate::echo::SAY;
use crate::world::{Plan, World, channel, reason, say};

#[tokio::test]
async fn a_message_over_the_limit_is_refused_before_it_is_read() {
    let world = World::with(Plan { max_message_bytes: 100, ..Plan::default() }).await;
    let status = say(&world.stranger(), SAY, &"x".repeat(101)).await.expect_err("refused");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    assert_eq!(world.begun(), 0);
    assert_eq!(say(&world.stranger(), SAY, &"x".repeat(90)).await.expect("fits").len(), 90);
    // The prefix alone is enough: it tells of 4 GiB that never come.
    let only_prefix = bytes::Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
    let answer = raw::send(world.address, raw::with_body(SAY, only_prefix, &[])).await;
    assert_eq!(reason(&answer), "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn a_call_that_does_not_fit_the_memory_budget_is_an_out_of_memory_error() {
    let world = World::with(Plan { memory_budget_bytes: Some(4_096), ..Plan::default() }).await;
    let status = say(&world.stranger(), SAY, &"x".repeat(2_000)).await.expect_err("refused");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OUT_OF_MEMORY"));
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(mesh::error_class(&status).kind, "OutOfMemoryError");
    assert_eq!(world.begun(), 0);
    let events = world.events.take();
    assert_eq!(events.len(), 1, "refused for memory is an event");
    assert_eq!(events[0].event.error.as_ref().expect("failed").kind, "OutOfMemoryError");
    assert_eq!(say(&world.stranger(), SAY, "small").await.expect("fits"), "small");
}

#[tokio::test]
async fn what_a_call_holds_is_free_again_when_its_answer_is_sent() {
    // "hold" is 11 bytes framed: 44 of the budget.
    let world = World::with(Plan { memory_budget_bytes: Some(60), ..Plan::default() }).await;
    let first = channel(vec![world.address.to_string()], Credentials::None);
    let held = tokio::spawn(async move { say(&first, SAY, "hold").await });
    world.echo.holding.notified().await;
    let status = say(&world.stranger(), SAY, "hello").await.expect_err("none left");
    assert_eq!(reason(&status), "OUT_OF_MEMORY");
    world.echo.release.add_permits(1);
    assert_eq!(held.await.expect("no panic").expect("answered"), "released");
    for _ in 0..20 {
        assert_eq!(say(&world.stranger(), SAY, "hello").await.expect("fits again"), "hello");
    }
}

#[tokio::test]
async fn health_is_exempt_from_the_budget() {
    let world = World::with(Plan { memory_budget_bytes: Some(0), ..Plan::default() }).await;
    say(&world.stranger(), SAY, "hello").await.expect_err("nothing fits");
    let mut health = tonic_health::pb::health_client::HealthClient::new(world.stranger());
    let request = tonic_health::pb::HealthCheckRequest { service: "test.v1.Echo".into() };
    assert_eq!(health.check(request).await.expect("answers").into_inner().status, 1);
}
