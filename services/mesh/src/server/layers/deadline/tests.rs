use super::*;
use crate::policy::METHOD;
use crate::status::reason_of;
use tonic::Status;
use tonic::body::Body;

const fn method(path: &'static str, streaming: bool) -> MethodPolicy {
    MethodPolicy { path, streaming, ..METHOD }
}

#[tokio::test(start_paused = true)]
async fn a_stream_must_begin_in_time_but_a_call_without_a_deadline_is_not_bounded() {
    const POLICIES: PolicyTable = PolicyTable(&[method("/t.T/Call", false), method("/t.T/Watch", true)]);
    let handler = tower::service_fn(|_: Request| std::future::pending::<ServerResult>());
    let mut stack = server_deadline(POLICIES, Arc::new(Rejections::new("test"))).layer(handler);
    #[rustfmt::skip]
    let table = [
        ("/t.T/Call",                    None,       false),
        ("/t.T/Watch",                   None,       true),
        ("/t.T/Watch",                   Some("9H"), true),
        ("/grpc.health.v1.Health/Watch", None,       true),
        ("/grpc.health.v1.Health/Watch", Some("9H"), true),
        ("/unknown",                     None,       true),
    ];
    for (path, asked, is_bounded) in table {
        let mut request = http::Request::post(path).body(Body::empty()).expect("a request");
        if let Some(asked) = asked {
            request.headers_mut().insert("grpc-timeout", http::HeaderValue::from_static(asked));
        }
        let began = Instant::now();
        let answer = tokio::time::timeout(Duration::from_secs(3_600), stack.call(request)).await;
        assert_eq!(answer.is_ok(), is_bounded, "{path}");
        let Ok(Ok(response)) = answer else { continue };
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(reason_of(&status).as_deref(), Some("DEADLINE_EXCEEDED"));
        assert_eq!(began.elapsed(), BEGIN_WITHIN);
    }
}
