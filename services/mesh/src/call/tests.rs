use super::*;
use crate::policy::METHOD;
use std::time::Duration;
use tonic::body::Body;

const POLICIES: PolicyTable = PolicyTable(&[
    MethodPolicy { path: "/t.T/Call", timeout: Some(Duration::from_secs(5)), ..METHOD },
    MethodPolicy { path: "/t.T/Stream", streaming: true, ..METHOD },
]);

fn classify(path: &str, timeout: Option<&'static str>, now: Instant) -> Call {
    let mut request = http::Request::post(path).body(Body::empty()).expect("a request");
    if let Some(timeout) = timeout {
        request.headers_mut().insert("grpc-timeout", http::HeaderValue::from_static(timeout));
    }
    Call::classify(POLICIES, &request, None, now)
}

#[test]
fn a_call_is_classified_by_its_path_and_its_policy() {
    #[rustfmt::skip]
    let table = [
        ("/t.T/Call",                                                     Class::Unary,       Some(0)),
        ("/t.T/Stream",                                                   Class::Stream,      Some(1)),
        ("/t.T/Other",                                                    Class::Unknown,     None),
        ("/grpc.health.v1.Health/Check",                                  Class::HealthCheck, None),
        ("/grpc.health.v1.Health/Watch",                                  Class::HealthWatch, None),
        ("/grpc.health.v1.Healthy/Check",                                 Class::Unknown,     None),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",      Class::Reflection,  None),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Class::Reflection,  None),
    ];
    for (path, class, index) in table {
        let call = classify(path, None, Instant::now());
        assert_eq!((call.class, call.index), (class, index), "{path}");
        assert_eq!(call.policy.is_some(), index.is_some(), "{path}");
        assert_eq!(class.is_infrastructure(), path.starts_with("/grpc.") && class != Class::Unknown, "{path}");
    }
}

#[test]
fn the_deadline_is_the_earlier_of_the_methods_and_the_callers() {
    let now = Instant::now();
    let deadline = |path, timeout| classify(path, timeout, now).deadline;
    let after = |seconds| Ok(Some(now + Duration::from_secs(seconds)));
    assert_eq!(deadline("/t.T/Call", None), after(5));
    assert_eq!(deadline("/t.T/Call", Some("2S")), after(2));
    assert_eq!(deadline("/t.T/Call", Some("9S")), after(5));
    assert_eq!(deadline("/t.T/Stream", None), Ok(None));
    assert_eq!(deadline("/t.T/Stream", Some("9S")), after(9));
    assert_eq!(deadline("/t.T/Call", Some("soon")), Err(Malformed));
}
