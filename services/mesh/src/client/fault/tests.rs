use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::{Layer, Service, service_fn};

use super::{FAULT, inject_faults};
use crate::call::deadline::requested_timeout;
use crate::call::wire::{Request, Response};
use crate::client::call::{CallDeadline, ClientCall};
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

/// Makes a call with this delay and a deadline in a second; returns what its handler got: the time left, and whether a timeout
/// would count as the instance's failure.
async fn delayed(delay: Duration) -> (Result<Option<(Duration, bool)>, Status>, Duration) {
    type Seen = Arc<parking_lot::Mutex<Option<(Duration, bool)>>>;
    let seen = Seen::default();
    let by_handler = seen.clone();
    let handler =
        service_fn(move |request: Request| -> futures_util::future::BoxFuture<'static, Result<Response, Status>> {
            let call: &ClientCall = request.extensions().get().expect("a call");
            let left = requested_timeout(request.headers()).expect("well-formed").expect("a timeout");
            *by_handler.lock() = call.deadline.map(|deadline| (left, deadline.is_method_timeout));
            Box::pin(async { Ok(Response::new(Body::empty())) })
        });
    let mut stack = inject_faults("data", Arc::new(FixedRng(0.0))).layer(handler);
    let mut request = Request::new(Body::empty());
    let fault = Fault { percent: 100, delay: Some(delay), code: None };
    let rule = Some(Arc::new(TrafficRule { fault: Some(fault), ..TrafficRule::default() }));
    let deadline = CallDeadline { at: Instant::now() + Duration::from_secs(1), is_method_timeout: true };
    assert!(deadline.write_to(Instant::now(), request.headers_mut()));
    request.extensions_mut().insert(ClientCall { rule, deadline: Some(deadline), ..ClientCall::default() });
    let began = Instant::now();
    let result = stack.call(request).await;
    (result.map(|_| *seen.lock()), began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_delay_uses_up_the_calls_time_and_is_no_failure_of_the_instance() {
    let (result, took) = delayed(DELAY).await;
    let left = Duration::from_millis(800);
    assert_eq!((result.expect("it is sent"), took), (Some((left, false)), DELAY));

    let (result, took) = delayed(Duration::from_secs(3)).await;
    let status = result.expect_err("its time is over");
    let reason = status.get_details_error_info().expect("ErrorInfo").reason;
    assert_eq!((status.code(), reason.as_str()), (Code::DeadlineExceeded, "INJECTED_FAULT"));
    assert!(took < Duration::from_secs(1), "before the deadline's own status: {took:?}");
}

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
