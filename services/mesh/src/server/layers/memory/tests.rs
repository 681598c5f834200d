use super::*;
use crate::server::layer::testing::Client;
use crate::status::OUT_OF_MEMORY;
use futures_util::future::BoxFuture;
use http_body::Frame;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

/// A handler's future, in a box.
fn boxed(work: impl Future<Output = ServerResult> + Send + 'static) -> BoxFuture<'static, ServerResult> {
    Box::pin(work)
}

#[tokio::test]
async fn messages_for_health_and_reflection_are_short_and_have_their_own_budget() {
    use http_body_util::{BodyExt, Full};
    let budget = Shares::new(Resource::Memory, 0, 0);
    let handler = tower::service_fn(|request: Request| {
        boxed(async move {
            let rejected = request.into_body().collect().await.err();
            Ok(respond(rejected.unwrap_or_else(|| Status::ok(""))))
        })
    });
    let client = Client::new(PolicyTable(&[]));
    let mut stack = memory(PolicyTable(&[]), budget, 1 << 20, Arc::new(Rejections::new("test"))).layer(handler);
    let mut ask = async |path: &str, length: u32| {
        let mut message = vec![0];
        message.extend(length.to_be_bytes());
        message.resize(message.len() + 100, 7);
        let body = Body::new(Full::new(Bytes::from(message)).map_err(|never| match never {}));
        let response = stack.call(client.request(path, body)).await.expect("answered");
        Status::from_header_map(response.headers()).map(|status| crate::status::reason_of(&status))
    };
    let check = "/grpc.health.v1.Health/Check";
    assert_eq!(ask(check, 100).await, Some(None), "despite the exhausted budget of the calls");
    assert_eq!(ask("/t.T/Call", 100).await, Some(Some(OUT_OF_MEMORY.to_owned())), "control");
    assert_eq!(ask(check, 5_000).await, Some(Some("MESSAGE_TOO_LARGE".to_owned())), "by its length prefix");
}

#[tokio::test]
async fn a_field_with_too_many_elements_is_rejected_however_its_frames_are_cut_and_elements_are_charged() {
    use crate::policy::{FieldLimit, METHOD, MethodPolicy};
    use http_body_util::{BodyExt, StreamBody};
    use tonic_types::StatusExt;
    const LIMITS: &[FieldLimit] = &[FieldLimit { path: &[1], field: "skus", max_items: 3, reason: "INVALID_LENGTH" }];
    const POLICIES: PolicyTable = PolicyTable(&[MethodPolicy { path: "/t.T/Call", limits: LIMITS, ..METHOD }]);
    let budget = Shares::new(Resource::Memory, 10_000, 0);
    let seen = budget.clone();
    let handler = tower::service_fn(move |request: Request| {
        let seen = seen.clone();
        boxed(async move {
            let rejected = request.into_body().collect().await.err();
            let status = rejected.unwrap_or_else(|| Status::not_found(seen.used().to_string()));
            Ok(respond(status))
        })
    });
    let mut stack = memory(POLICIES, budget, 1 << 20, Arc::new(Rejections::new("shop"))).layer(handler);
    for cut in [1, 4, 5, 6, 100] {
        for elements in [3, 4_u8] {
            let message = [&[0, 0, 0, 0, 2 * elements][..], &[0x0a, 0].repeat(elements.into())].concat();
            let frames: Vec<_> =
                message.chunks(cut).map(|frame| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(frame)))).collect();
            let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
            let request = Client::new(POLICIES).request("/t.T/Call", body);
            let status = Status::from_header_map(stack.call(request).await.expect("answered").headers());
            let status = status.expect("a status");
            if elements == 3 {
                assert_eq!(status.message(), (4 * 11 + 3 * 64).to_string(), "the bytes and the elements");
                continue;
            }
            assert_eq!(status.code(), Code::InvalidArgument);
            let details = status.get_error_details();
            assert_eq!(details.error_info().map(|info| info.domain.as_str()), Some("shop.ordermesh"));
            assert_eq!(details.bad_request().map(|bad| bad.field_violations[0].field.as_str()), Some("skus"));
        }
    }
}

#[tokio::test]
async fn a_response_is_charged_until_its_bytes_are_dropped_and_a_stream_ends_when_the_budget_is_exhausted() {
    use crate::policy::{METHOD, MethodPolicy};
    use http_body_util::{BodyExt, StreamBody};
    const POLICIES: PolicyTable = PolicyTable(&[
        MethodPolicy { path: "/t.T/Call", ..METHOD },
        MethodPolicy { path: "/t.T/Stream", streaming: true, ..METHOD },
    ]);
    let budget = Shares::new(Resource::Memory, 1_000, 0);
    let begun = Arc::new(AtomicUsize::new(0));
    let seen = begun.clone();
    let handler = tower::service_fn(move |_: Request| {
        seen.fetch_add(1, Ordering::Relaxed);
        let frames = [400, 200].map(|length| Ok::<_, Status>(Frame::data(Bytes::from(vec![7; length]))));
        let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
        boxed(std::future::ready(Ok(Response::new(body))))
    });
    let mut stack = memory(POLICIES, budget.clone(), 1 << 20, Arc::new(Rejections::new("test"))).layer(handler);
    let client = Client::new(POLICIES);
    let request = |path: &str| client.request(path, Body::empty());
    let response = stack.call(request("/t.T/Call")).await.expect("answered");
    assert_eq!(budget.used(), 800, "encoded and charged before the headers are sent");
    let rejected = stack.call(request("/t.T/Call")).await.expect("answered");
    let status = Status::from_header_map(rejected.headers()).expect("in the headers");
    assert_eq!(crate::status::reason_of(&status).as_deref(), Some(OUT_OF_MEMORY));
    assert_eq!(begun.load(Ordering::Relaxed), 1, "a response as long as the last one would not fit");
    drop(response);
    assert_eq!(budget.used(), 0);

    let mut body = stack.call(request("/t.T/Stream")).await.expect("answered").into_body();
    let frame = body.frame().await.expect("a frame").expect("well-formed").into_data().expect("data");
    let piece = frame.slice(..1);
    drop(frame);
    assert_eq!(budget.used(), 800, "a slice of it keeps all of it");
    let trailers = body.frame().await.expect("the end").expect("well-formed").into_trailers().expect("trailers");
    let status = Status::from_header_map(&trailers).expect("a status");
    assert_eq!(crate::status::reason_of(&status).as_deref(), Some(OUT_OF_MEMORY));
    assert!(body.frame().await.is_none());
    drop(piece);
    assert_eq!(budget.used(), 0);
}
