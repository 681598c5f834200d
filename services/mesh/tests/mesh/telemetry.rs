//! Spans, metrics and events: one of each per call, on either side, whatever its outcome.

use std::sync::Arc;

use futures_util::StreamExt;
use mesh::{ClientConfig, Untraced, client};
use opentelemetry::trace::{SpanKind, Status as SpanStatus};
use opentelemetry_sdk::trace::SpanData;
use telemetry::{EventStatus, Kind, TraceParent};
use tonic::Request;
use tonic_prost::ProstCodec;

use crate::deadlines::raw;
use crate::echo::{CUSTOMER, POLICIES, SAY, SERVICE, STREAM};
use crate::observed::{attribute, observed};
use crate::world::{Events, MESH_SECRET, World, WorldOptions, call, dead_address, say};

/// A trace of the test's own.
fn traceparent(number: u8) -> (String, String) {
    let trace_id = format!("{number:02x}af7651916cd43dd8448eb211c80319");
    (trace_id.clone(), format!("00-{trace_id}-b7ad6b7169203331-01"))
}

async fn trusting() -> World {
    observed();
    World::with(WorldOptions { trust_client_trace_context: true, ..WorldOptions::default() }).await
}

/// The server's span of a call by a client without the mesh. The trace must be unique to the test.
async fn server_span(path: &str, text: &str, number: u8) -> SpanData {
    let world = trusting().await;
    let (trace_id, header) = traceparent(number);
    raw::send(world.address, raw::unary(path, text, &[("traceparent", &header)])).await;
    let mut spans = observed().spans_of(&trace_id);
    assert_eq!(spans.len(), 1, "one call, one span");
    spans.remove(0)
}

#[tokio::test]
async fn a_call_is_a_server_span_named_for_its_method_with_its_status() {
    let span = server_span(SAY, "hello", 1).await;
    assert_eq!((span.name.as_ref(), &span.span_kind), ("test.v1.Echo/Say", &SpanKind::Server));
    assert_eq!(attribute(&span, "rpc.system.name").as_deref(), Some("grpc"));
    assert_eq!(attribute(&span, "rpc.method").as_deref(), Some("test.v1.Echo/Say"));
    assert_eq!(attribute(&span, "rpc.response.status_code").as_deref(), Some("OK"), "from the trailers");
    assert_eq!(span.status, SpanStatus::Unset);
}

#[tokio::test]
async fn callers_mistakes_are_no_errors_of_the_server_span_and_server_errors_are() {
    let rejected = server_span(SAY, "reject", 2).await;
    assert_eq!(attribute(&rejected, "rpc.response.status_code").as_deref(), Some("FAILED_PRECONDITION"));
    assert_eq!((rejected.status.clone(), attribute(&rejected, "error.type")), (SpanStatus::Unset, None));
    let panicked = server_span(SAY, "panic", 3).await;
    assert_eq!(attribute(&panicked, "rpc.response.status_code").as_deref(), Some("INTERNAL"));
    assert!(matches!(panicked.status, SpanStatus::Error { .. }));
    assert_eq!(attribute(&panicked, "error.type").as_deref(), Some("INTERNAL"));
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_stream_is_recorded_from_the_trailers() {
    let span = server_span(STREAM, "break", 4).await;
    assert_eq!(attribute(&span, "rpc.response.status_code").as_deref(), Some("DATA_LOSS"));
}

#[tokio::test]
async fn unknown_methods_share_one_name() {
    let span = server_span("/strange.v1.Names/Flood", "hello", 5).await;
    assert_eq!(span.name.as_ref(), "_OTHER");
    assert_eq!(attribute(&span, "rpc.response.status_code").as_deref(), Some("UNIMPLEMENTED"));
}

#[tokio::test]
async fn an_untrusted_clients_trace_is_linked_and_not_continued() {
    observed();
    let world = World::new().await;
    let (trace_id, header) = traceparent(6);
    raw::send(world.address, raw::unary(SAY, "hello", &[("traceparent", &header)])).await;
    assert!(observed().spans_of(&trace_id).is_empty());
    assert_eq!(observed().spans_linked_to(&trace_id).len(), 1);
}

#[tokio::test]
async fn a_services_trace_is_continued_although_clients_are_not_trusted() {
    observed();
    let world = World::new().await;
    let (trace_id, header) = traceparent(7);
    let secret =
        [("traceparent", header.as_str()), ("x-ordermesh-service", "order"), ("x-ordermesh-secret", MESH_SECRET)];
    raw::send(world.address, raw::unary(SERVICE, "hello", &secret)).await;
    assert_eq!(observed().spans_of(&trace_id).len(), 1);
    // Control: with a wrong secret the client is untrusted.
    let (trace_id, header) = traceparent(8);
    let guess = [("traceparent", header.as_str()), ("x-ordermesh-service", "order"), ("x-ordermesh-secret", "guess")];
    raw::send(world.address, raw::unary(SERVICE, "hello", &guess)).await;
    assert!(observed().spans_of(&trace_id).is_empty());
}

#[tokio::test]
async fn a_malformed_traceparent_starts_a_new_trace() {
    let world = trusting().await;
    let traceparent =
        call(&world.anonymous(), SAY, Request::new("span".to_owned())).await.expect("answered").into_inner();
    traceparent.parse::<TraceParent>().expect("a traceparent");
    let response = raw::send(world.address, raw::unary(SAY, "hello", &[("traceparent", "00-zz-1-01")])).await;
    assert_eq!(response.code(), tonic::Code::Ok);
}

#[tokio::test]
async fn a_clients_span_is_the_servers_parent() {
    let world = trusting().await;
    let traceparent = say(&world.anonymous(), SAY, "span").await.expect("answered");
    let traceparent: TraceParent = traceparent.parse().expect("a traceparent");
    let spans = observed().spans_of(&traceparent.trace_id());
    let of = |kind: SpanKind| spans.iter().find(|span| span.span_kind == kind).expect("a span of each kind");
    let (made, served) = (of(SpanKind::Client), of(SpanKind::Server));
    assert_eq!(served.parent_span_id, made.span_context.span_id());
    assert_eq!(served.span_context.span_id().to_string(), traceparent.span_id());
    assert_eq!(made.name, served.name);
    assert_eq!(attribute(made, "server.address").as_deref(), Some("127.0.0.1"));
    assert_eq!(attribute(made, "server.port"), Some(world.address.port().to_string()));
    assert_eq!(attribute(made, "rpc.response.status_code").as_deref(), Some("OK"));
}

#[tokio::test]
async fn every_error_is_an_error_of_the_client_span() {
    let world = trusting().await;
    // The server's operation is a child of the client's: found by the trace of the forwarded call.
    let first = World::with(WorldOptions {
        next: Some(world.anonymous()),
        trust_client_trace_context: true,
        ..WorldOptions::default()
    })
    .await;
    let (trace_id, header) = traceparent(9);
    raw::send(first.address, raw::unary(SAY, "forward reject", &[("traceparent", &header)])).await;
    let spans = observed().spans_of(&trace_id);
    assert_eq!(spans.len(), 3, "server, client, server");
    let made = spans.iter().find(|span| span.span_kind == SpanKind::Client).expect("a client span");
    assert!(matches!(made.status, SpanStatus::Error { .. }));
}

#[tokio::test]
async fn an_untraced_call_of_a_service_opens_no_span_on_either_side() {
    observed();
    let world = World::new().await;
    let channel = world.service("order", MESH_SECRET);
    let seen = call(&channel, SERVICE, mesh::untraced("metadata".to_owned())).await.expect("answered").into_inner();
    assert!(!seen.contains("traceparent"), "{seen}");
    let traceparent = call(&channel, SERVICE, mesh::untraced("span".to_owned())).await.expect("answered").into_inner();
    let traceparent: TraceParent = traceparent.parse().expect("ids nevertheless");
    assert!(observed().spans_of(&traceparent.trace_id()).is_empty());
    // Control: the same call, traced.
    let traceparent: TraceParent =
        say(&channel, SERVICE, "span").await.expect("answered").parse().expect("a traceparent");
    assert_eq!(observed().spans_of(&traceparent.trace_id()).len(), 2);
}

#[tokio::test]
async fn a_denied_call_is_counted() {
    observed();
    let world = World::new().await;
    let facts =
        ["rpc.system.name=grpc", "rpc.method=test.v1.Echo/SayAsCustomer", "rpc.response.status_code=UNAUTHENTICATED"];
    let before = observed().value("rpc.server.call.duration", &facts);
    say(&world.anonymous(), CUSTOMER, "hello").await.expect_err("denied");
    assert!(observed().value("rpc.server.call.duration", &facts) > before);
    assert!(observed().value("rpc.client.call.duration", &facts) > 0);
}

#[tokio::test]
async fn a_rejected_call_is_a_failed_event_with_its_reason_and_a_completed_one_a_success() {
    let world = World::new().await;
    say(&world.anonymous(), SAY, "reject").await.expect_err("rejected");
    say(&world.anonymous(), SAY, "hello").await.expect("done");
    let events = world.events.take();
    assert_eq!(events.len(), 2);
    let error = events[0].event.error.as_ref().expect("failed");
    assert_eq!((error.reason.as_str(), events[0].event.status), ("CLOSED", EventStatus::Failed));
    assert_eq!((events[1].kind, events[1].event.status), (Kind::Server, EventStatus::Success));
}

#[tokio::test]
async fn a_call_cancelled_by_its_caller_is_recorded_as_cancelled() {
    let world = World::new().await;
    let channel = world.anonymous();
    let given_up = tokio::spawn(async move { say(&channel, SAY, "hold").await });
    world.echo.holding.notified().await;
    given_up.abort();
    world.echo.dropped.notified().await;
    // The record is dropped right after the handler, in the same task.
    tokio::task::yield_now().await;
    let events = world.events.take();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].event.error.as_ref().expect("failed").error_type, "CANCELLED");
}

#[tokio::test]
async fn a_slow_handlers_span_has_the_status_deadline_exceeded() {
    let world = trusting().await;
    let (trace_id, header) = traceparent(12);
    let request = raw::unary(SAY, "hold", &[("traceparent", &header), ("grpc-timeout", "50m")]);
    assert_eq!(raw::send(world.address, request).await.code(), tonic::Code::DeadlineExceeded);
    let spans = observed().spans_of(&trace_id);
    assert_eq!(spans.len(), 1);
    assert_eq!(attribute(&spans[0], "rpc.response.status_code").as_deref(), Some("DEADLINE_EXCEEDED"));
    assert_eq!(attribute(&spans[0], "error.type").as_deref(), Some("DEADLINE_EXCEEDED"));
    assert!(matches!(spans[0].status, SpanStatus::Error { .. }));
}

#[tokio::test]
async fn a_client_call_is_an_event_only_if_it_got_no_response() {
    let world = World::new().await;
    let events = Arc::new(Events::default());
    let channel = |address: String| {
        client(ClientConfig { events: Some(events.clone()), ..ClientConfig::new("test", vec![address], POLICIES) })
    };
    let live = channel(world.address.to_string());
    say(&live, SAY, "hello").await.expect("answered");
    say(&live, SAY, "reject").await.expect_err("answered too");
    assert!(events.take().is_empty());
    say(&channel(dead_address().await), SAY, "hello").await.expect_err("no instance");
    let seen = events.take();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].kind, seen[0].event.error.as_ref().expect("failed").error_type.as_str()),
        (Kind::Client, "CONNECTION_ERROR")
    );
}

#[tokio::test]
async fn a_span_lasts_as_long_as_its_stream() {
    let world = trusting().await;
    let (trace_id, header) = traceparent(10);
    let mut request = Request::new("two texts".to_owned());
    request.extensions_mut().insert(Untraced);
    request.metadata_mut().insert("traceparent", header.parse().expect("a value"));
    let mut grpc = tonic::client::Grpc::new(world.anonymous());
    grpc.ready().await.expect("ready");
    let codec = ProstCodec::<String, String>::default();
    let stream = grpc.server_streaming(request, STREAM.parse().expect("a path"), codec).await.expect("begins");
    let texts: Vec<_> = stream.into_inner().collect().await;
    assert_eq!(texts.len(), 2);
    let spans = observed().spans_of(&trace_id);
    assert_eq!(spans.len(), 1);
    assert_eq!(attribute(&spans[0], "rpc.response.status_code").as_deref(), Some("OK"));
}

#[tokio::test]
async fn health_checks_have_no_span() {
    let world = trusting().await;
    let (trace_id, header) = traceparent(11);
    let path = "/grpc.health.v1.Health/Check";
    let response = raw::send(world.address, raw::framed(path, &[], &[("traceparent", &header)])).await;
    assert_eq!(response.code(), tonic::Code::Ok);
    assert!(observed().spans_of(&trace_id).is_empty());
}
