use super::*;
use crate::policy::{METHOD, MethodPolicy, PolicyTable};
use crate::server::layer::testing::Client;
use crate::status::reason_of;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

const fn method(path: &'static str, streaming: bool) -> MethodPolicy {
    MethodPolicy { path, streaming, ..METHOD }
}

#[tokio::test(start_paused = true)]
async fn a_stream_must_begin_in_time_but_a_call_without_a_deadline_is_not_bounded() {
    const POLICIES: PolicyTable = PolicyTable(&[method("/t.T/Call", false), method("/t.T/Watch", true)]);
    let handler = tower::service_fn(|_: Request| -> ServerFuture { Box::pin(std::future::pending()) });
    let mut stack = server_deadline(Arc::new(Rejections::new("test"))).layer(handler);
    #[rustfmt::skip]
    let table = [
        ("/t.T/Call",                    None,       false),
        ("/t.T/Watch",                   None,       true),
        ("/t.T/Watch",                   Some("9H"), true),
        ("/grpc.health.v1.Health/Watch", None,       true),
        ("/grpc.health.v1.Health/Watch", Some("9H"), true),
        ("/unknown",                     None,       true),
    ];
    let client = Client::new(POLICIES);
    for (path, timeout, is_bounded) in table {
        let mut request = http::Request::post(path).body(Body::empty()).expect("a request");
        if let Some(timeout) = timeout {
            request.headers_mut().insert("grpc-timeout", http::HeaderValue::from_static(timeout));
        }
        let began = Instant::now();
        let outcome = tokio::time::timeout(Duration::from_secs(3_600), stack.call(client.classified(request))).await;
        assert_eq!(outcome.is_ok(), is_bounded, "{path}");
        let Ok(Ok(response)) = outcome else { continue };
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(reason_of(&status).as_deref(), Some("DEADLINE_EXCEEDED"));
        assert_eq!(began.elapsed(), RESPONSE_START_TIMEOUT);
    }
}
