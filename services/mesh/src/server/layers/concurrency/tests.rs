use super::*;
use crate::call::record::NoEvent;
use crate::call::wire::{Response, ServerResult};
use crate::policy::{METHOD, MethodPolicy, PolicyTable};
use crate::server::layer::Layered;
use crate::server::layer::testing::Client;
use crate::status::reason_of;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use std::convert::Infallible;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic_types::StatusExt;
use tower::{Layer, Service};
use tower_test::mock;

const fn method(path: &'static str, streaming: bool) -> MethodPolicy {
    MethodPolicy { path, streaming, ..METHOD }
}

const POLICIES: PolicyTable = PolicyTable(&[method("/t.T/Call", false), method("/t.T/Stream", true)]);

fn ok_response() -> Response {
    Response::new(Body::new(Full::new(Bytes::from_static(b"x")).map_err(|never| match never {})))
}

/// A stack with one permit for unary calls and one slot for streams, over a mocked handler.
fn stack() -> (mock::Spawn<Layered<Concurrency, Handler>>, mock::Handle<Request, Response>, Admission) {
    let admission = Admission::new(1, 1);
    let layer = concurrency(admission.clone(), Arc::new(Rejections::new("test")));
    let (handler, handle) = mock::pair();
    (mock::Spawn::new(layer.layer(Handler(handler))), handle, admission)
}

/// Adapts the mock, which may fail, to a handler, which may not.
#[derive(Clone)]
struct Handler(mock::Mock<Request, Response>);

impl Service<Request> for Handler {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, ServerResult>;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx).map_err(|error| panic!("the mock is not ready: {error}"))
    }
    fn call(&mut self, request: Request) -> Self::Future {
        let work = self.0.call(request);
        Box::pin(async move { Ok(work.await.expect("the mock answers")) })
    }
}

#[tokio::test]
async fn without_a_free_permit_a_call_is_rejected_immediately_and_streams_have_their_own_slots() {
    let (mut stack, mut handle, admission) = stack();
    handle.allow(9);
    let first = tokio::spawn(call(&mut stack, "/t.T/Call"));
    let (_, response) = handle.next_request().await.expect("it reaches the handler");
    assert_eq!((admission.calls.used(), admission.streams.used()), (1, 0));

    let rejected = call(&mut stack, "/t.T/Call").await.expect("a response");
    let status = Status::from_header_map(rejected.headers()).expect("a status");
    assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::Unavailable, Some("OVERLOADED")));
    assert_eq!(status.get_details_retry_info().and_then(|retry| retry.retry_delay), Some(RETRY_AFTER));
    assert!(rejected.extensions().get::<NoEvent>().is_some(), "no event for a rejected call");

    let _stream = tokio::spawn(call(&mut stack, "/t.T/Stream"));
    let _health = tokio::spawn(call(&mut stack, "/grpc.health.v1.Health/Check"));
    handle.next_request().await.expect("the stream reaches the handler");
    handle.next_request().await.expect("health reaches the handler");
    assert_eq!((admission.calls.used(), admission.streams.used()), (1, 1));

    response.send_response(ok_response());
    let response = first.await.expect("no panic").expect("a response");
    assert_eq!(admission.calls.used(), 1, "held until the response is encoded");
    let mut body = response.into_body();
    body.frame().await.expect("a frame").expect("a message");
    assert_eq!(admission.calls.used(), 0, "before the end of the body");
}

#[tokio::test]
async fn a_dropped_call_returns_its_permit() {
    let (mut stack, mut handle, admission) = stack();
    handle.allow(1);
    let call = call(&mut stack, "/t.T/Call");
    assert_eq!(admission.calls.used(), 1);
    drop(call);
    assert_eq!(admission.calls.used(), 0);
}

fn call(stack: &mut mock::Spawn<Layered<Concurrency, Handler>>, path: &str) -> BoxFuture<'static, ServerResult> {
    assert!(stack.poll_ready::<Request>().is_ready());
    stack.call(Client::new(POLICIES).request(path, Body::empty()))
}
