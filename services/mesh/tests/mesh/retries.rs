//! Retries over real sockets: stream resets, attempt spans, and metrics.

use std::net::SocketAddr;

use h2::Reason;
use mesh::Credentials;
use opentelemetry::trace::{SpanKind, Status as SpanStatus};
use tokio::net::TcpListener;
use tonic::{Code, Request};

use crate::echo::{READ, SAY};
use crate::observed::{attribute, observed};
use crate::world::{World, WorldOptions, call, channel, reason, say};

/// Reads every request, and resets its stream.
async fn resetting(reset: Reason) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((_request, mut respond))) = connection.accept().await {
                    respond.send_reset(reset);
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_refused_stream_is_retried_on_another_instance_for_any_method() {
    let (refusing, world) = (resetting(Reason::REFUSED_STREAM).await, World::new().await);
    for _ in 0..20 {
        let channel = channel(vec![refusing.to_string(), world.address.to_string()], Credentials::None);
        assert_eq!(say(&channel, SAY, "hello").await.expect("answered by the other"), "hello");
    }
    let alone = channel(vec![refusing.to_string()], Credentials::None);
    let status = say(&alone, SAY, "hello").await.expect_err("and not forever");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "CONNECTION_LOST"));
}

#[tokio::test]
async fn a_stream_with_another_error_may_have_been_served_and_is_not_retried() {
    let (breaking, world) = (resetting(Reason::INTERNAL_ERROR).await, World::new().await);
    let mut broken = 0;
    for _ in 0..20 {
        let channel = channel(vec![breaking.to_string(), world.address.to_string()], Credentials::None);
        broken += usize::from(say(&channel, SAY, "hello").await.is_err());
    }
    assert_eq!(broken + world.handlers_started(), 20, "each was sent once");
    assert!(broken > 0, "control: some calls went to the failing instance");
}

#[tokio::test]
async fn a_retried_call_has_a_span_for_each_attempt_and_other_calls_have_none() {
    observed();
    let options = || WorldOptions { trust_client_trace_context: true, ..WorldOptions::default() };
    let (first, second) = (World::with(options()).await, World::with(options()).await);
    first.answer_with(Code::Unavailable);
    let to = channel(vec![first.address.to_string(), second.address.to_string()], Credentials::None);
    // Until a call begins on the failing instance.
    let traceparent = loop {
        let traceparent = say(&to, READ, "span").await.expect("answered by the second");
        if first.handlers_started() > 0 {
            break traceparent;
        }
        assert_eq!(observed().spans_of(&traceparent[3..35]).len(), 2, "client and server");
    };
    let spans = observed().spans_of(&traceparent[3..35]);
    assert_eq!(spans.len(), 5, "the call, two attempts, two served");
    let named = |name: &str, kind: SpanKind| {
        let mut named: Vec<_> = spans.iter().filter(|span| span.name == name && span.span_kind == kind).collect();
        named.sort_by_key(|span| span.start_time);
        named
    };
    let (call, attempts) =
        (named("test.v1.Echo/Read", SpanKind::Client)[0], named("Attempt.test.v1.Echo/Read", SpanKind::Client));
    let port = |world: &World| Some(world.address.port().to_string());
    assert_eq!(attempts.len(), 2);
    for (attempt, world, code, previous) in
        [(attempts[0], &first, "UNAVAILABLE", "0"), (attempts[1], &second, "OK", "1")]
    {
        assert_eq!(attempt.parent_span_id, call.span_context.span_id());
        assert_eq!(attribute(attempt, "server.port"), port(world));
        assert_eq!(attribute(attempt, "rpc.response.status_code").as_deref(), Some(code));
        assert_eq!(attribute(attempt, "previous-rpc-attempts").as_deref(), Some(previous));
        assert!(call.start_time <= attempt.start_time && attempt.end_time <= call.end_time, "within the call");
    }
    assert!(matches!(attempts[0].status, SpanStatus::Error { .. }));
    assert_eq!((attribute(call, "server.port"), &call.status), (port(&second), &SpanStatus::Unset));
    let served = named("test.v1.Echo/Read", SpanKind::Server);
    let parents: Vec<_> = served.iter().map(|span| span.parent_span_id).collect();
    // The first attempt was sent before a second one was known to follow.
    assert_eq!(parents, [call.span_context.span_id(), attempts[1].span_context.span_id()]);
}

#[tokio::test]
async fn a_call_that_is_itself_a_retry_is_not_retried_further_on() {
    let last = World::new().await;
    last.answer_with(Code::Unavailable);
    let next = channel(vec![last.address.to_string()], Credentials::None);
    let first = World::with(WorldOptions { next: Some(next), ..WorldOptions::default() }).await;
    let mut before = 0;
    for (is_retry, expected) in [(true, 1), (false, 3)] {
        let mut request = Request::new("forward read hello".to_owned());
        if is_retry {
            request.metadata_mut().insert("grpc-previous-rpc-attempts", "1".parse().expect("a value"));
        }
        call(&first.anonymous(), SAY, request).await.expect_err("no instance serves it");
        assert_eq!(last.handlers_started() - before, expected, "is a retry: {is_retry}");
        before = last.handlers_started();
    }
}

#[tokio::test]
async fn attempts_retries_and_instances_are_counted() {
    observed();
    // Of no other test: a free port of 127.0.0.1 may be one to which another test's client still connects.
    let address = SocketAddr::from(([127, 0, 0, 3], 0));
    let world = World::with(WorldOptions { address, ..WorldOptions::default() }).await;
    let port = format!("server.port={}", world.address.port());
    let here = ["mesh.target=test", "server.address=127.0.0.3", port.as_str()];
    let channel = world.anonymous();
    say(&channel, READ, "hello").await.expect("answered");
    let retries = ["mesh.target=test", "mesh.cause=UNAVAILABLE"];
    let before = observed().value("mesh.client.retries", &retries);
    assert_eq!(observed().value("mesh.client.attempts", &here), 1);
    assert_eq!(observed().value("mesh.client.endpoints.ready", &here), 1);
    assert_eq!(observed().value("mesh.client.breakers.open", &here), 0);
    world.answer_with(Code::Unavailable);
    say(&channel, READ, "hello").await.expect_err("as configured");
    assert_eq!(observed().value("mesh.client.attempts", &here), 1 + 3);
    assert!(observed().value("mesh.client.retries", &retries) >= before + 2);
    say(&channel, READ, "hello").await.expect_err("as configured");
    assert_eq!(observed().value("mesh.client.breakers.open", &here), 1);
    drop(channel);
    // Its maintained updates the gauge.
    while observed().value("mesh.client.endpoints.ready", &here) != 0 {
        tokio::task::yield_now().await;
    }
    let unreachable = crate::world::channel(vec![], Credentials::None);
    let rejected = ["mesh.target=test", "mesh.cause=unreachable"];
    let before = observed().value("mesh.client.refusals", &rejected);
    say(&unreachable, SAY, "hello").await.expect_err("no instance");
    assert!(observed().value("mesh.client.refusals", &rejected) > before);
}
