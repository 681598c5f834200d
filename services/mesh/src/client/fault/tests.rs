use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::{Layer, Service, service_fn};

use super::{FAULT, inject_faults};
use crate::call::wire::{Request, Response};
use crate::client::call::ClientCall;
use crate::client::rng::FixedRng;
use crate::traffic::{Fault, TrafficRule};

/// Makes a call with a fault of 30 %, by a generator that returns `fraction`; returns the result and how long it took.
async fn call(fault: Option<Fault>, fraction: f64) -> (Result<Response, Status>, Duration) {
    let handler =
        service_fn(|_request: Request| -> futures_util::future::BoxFuture<'static, Result<Response, Status>> {
            Box::pin(async { Ok(Response::new(Body::empty())) })
        });
    let mut stack = inject_faults("data", Arc::new(FixedRng(fraction))).layer(handler);
    let mut request = Request::new(Body::empty());
    let rule = fault.map(|fault| Arc::new(TrafficRule { fault: Some(fault), ..TrafficRule::default() }));
    request.extensions_mut().insert(ClientCall { rule, ..ClientCall::default() });
    let began = Instant::now();
    (stack.call(request).await, began.elapsed())
}

const DELAY: Duration = Duration::from_millis(200);

#[tokio::test(start_paused = true)]
async fn a_share_of_the_calls_is_delayed_or_fails_and_says_that_it_is_on_purpose() {
    assert_eq!(FAULT, "ordermesh.fault");
    let fault = Fault { percent: 30, delay: Some(DELAY), code: None };
    let (result, took) = call(Some(fault), 0.29).await;
    assert!(result.is_ok() && took == DELAY, "{took:?}");
    let (result, took) = call(Some(fault), 0.30).await;
    assert!(result.is_ok() && took.is_zero(), "{took:?}");

    let fault = Fault { percent: 30, delay: None, code: Some(Code::Unavailable) };
    let (result, took) = call(Some(fault), 0.0).await;
    let status = result.expect_err("it fails");
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!((status.code(), info.reason.as_str(), took), (Code::Unavailable, "INJECTED_FAULT", Duration::ZERO));
    assert!(status.message().contains("on purpose"));
    let (result, _) = call(Some(fault), 0.9).await;
    result.expect("it is served");

    let fault = Fault { percent: 100, delay: Some(DELAY), code: Some(Code::Internal) };
    let (result, took) = call(Some(fault), 0.999).await;
    assert_eq!((result.expect_err("it fails").code(), took), (Code::Internal, DELAY));
    let (result, took) = call(None, 0.0).await;
    assert!(result.is_ok() && took.is_zero());
}
