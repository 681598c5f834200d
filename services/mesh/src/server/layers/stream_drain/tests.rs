use super::*;
use crate::call::wire::Response;
use crate::policy::PolicyTable;
use crate::server::layer::testing::Client;
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::Instant;
use tonic::body::Body;
use tower::{Layer, Service};

#[tokio::test(start_paused = true)]
async fn a_health_watch_ends_with_unavailable_at_the_goaway() {
    let goaway = CancellationToken::new();
    let (client, grace) = (Client::new(PolicyTable(&[])), Duration::from_secs(7));
    for (path, end_after_goaway) in [("/grpc.health.v1.Health/Watch", Duration::ZERO), ("/else", Duration::MAX)] {
        let handler = tower::service_fn(|_: Request| -> BoxFuture<'static, ServerResult> {
            let forever = futures_util::stream::pending::<Result<Frame<Bytes>, Status>>();
            Box::pin(async move { Ok(Response::new(Body::new(StreamBody::new(forever)))) })
        });
        let mut stack = stream_drain(None, goaway.clone(), grace).layer(handler);
        let request = client.request(path, Body::empty());
        let mut body = stack.call(request).await.expect("answered").into_body();
        assert!(tokio::time::timeout(Duration::from_secs(3_600), body.frame()).await.is_err(), "before the drain");
        goaway.cancel();
        let began = Instant::now();
        let frame = tokio::time::timeout(Duration::from_secs(3_600), body.frame()).await;
        if end_after_goaway == Duration::MAX {
            assert!(frame.is_err(), "a call of an unknown method is not ended");
            continue;
        }
        let trailers = frame.expect("in time").expect("a frame").expect("well-formed").into_trailers();
        let status = Status::from_header_map(&trailers.expect("trailers")).expect("a status");
        assert_eq!((status.code(), began.elapsed()), (Code::Unavailable, end_after_goaway));
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_request_never_ends_does_not_delay_the_drain() {
    let goaway = CancellationToken::new();
    let handler =
        tower::service_fn(|_: Request| -> BoxFuture<'static, ServerResult> { Box::pin(std::future::pending()) });
    let mut stack = stream_drain(None, goaway.clone(), Duration::from_secs(7)).layer(handler);
    let request = Client::new(PolicyTable(&[])).request("/grpc.health.v1.Health/Watch", Body::empty());
    let mut call = stack.call(request);
    assert!(tokio::time::timeout(Duration::from_secs(3_600), &mut call).await.is_err(), "before the drain");
    goaway.cancel();
    let response = call.await.expect("answered");
    let status = Status::from_header_map(response.headers()).expect("a status");
    assert_eq!(status.code(), Code::Unavailable);
}
