//! The retry layer over a mock: what is sent when, and what is not.

use super::*;
use crate::call::deadline::{INBOUND_CALL, InboundCall};
use crate::client::rng::FixedRng;
use crate::policy::{METHOD, PolicyTable};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tower_test::mock::{Handle, Mock, SendResponse, pair};

const READ: &str = "/test.v1.Test/Read";
const SET: &str = "/test.v1.Test/Set";
const STREAM: &str = "/test.v1.Test/Stream";
const WRITE: &str = "/test.v1.Test/Write";

const fn method(path: &'static str, idempotency: Idempotency, streaming: bool) -> MethodPolicy {
    MethodPolicy { path, idempotency, streaming, ..METHOD }
}

const POLICIES: PolicyTable = PolicyTable(&[
    method(READ, Idempotency::NoSideEffects, false),
    method(SET, Idempotency::Idempotent, false),
    method(STREAM, Idempotency::NoSideEffects, true),
    method(WRITE, Idempotency::Unknown, false),
]);

/// [`AttemptError`] as an error type for the mock.
#[derive(Debug, thiserror::Error)]
#[error("{0:?}")]
struct FailedAttempt(AttemptError);

type Reply = SendResponse<Response>;

/// A retry layer over a mock.
struct World {
    instances: Handle<Request, Response>,
    budget: Arc<RetryBudget>,
    layer: Box<dyn Fn(Request) -> BoxFuture<'static, Result<Response, Status>> + Send>,
}

impl World {
    fn new() -> Self {
        Self::with_retries(true)
    }

    fn with_retries(is_on: bool) -> Self {
        let (mock, instances): (Mock<Request, Response>, _) = pair();
        let budget = Arc::new(RetryBudget::new());
        let config = RetryConfig {
            is_on,
            budget: budget.clone(),
            rng: Arc::new(FixedRng(1.0)),
            metrics: Arc::new(ClientMetrics::new("test")),
        };
        let inner = mock.map_err(|error| error.downcast::<FailedAttempt>().expect("ours").0);
        let service = retry(config).layer(inner);
        Self { instances, budget, layer: Box::new(move |request| Box::pin(service.clone().oneshot(request))) }
    }

    /// The call runs in its own task; its attempts arrive at `attempt`.
    fn call(&self, path: &str) -> JoinHandle<Result<Response, Status>> {
        self.call_until(path, None)
    }

    fn call_until(&self, path: &str, deadline: Option<CallDeadline>) -> JoinHandle<Result<Response, Status>> {
        let mut request = http::Request::post(path).body(body_of(Bytes::from_static(b"bytes"))).expect("a request");
        if let Some(deadline) = deadline {
            deadline.write_to(Instant::now(), request.headers_mut());
        }
        let policy = POLICIES.find(path);
        request.extensions_mut().insert(ClientCall { policy, deadline, ..ClientCall::default() });
        tokio::spawn((self.layer)(request))
    }

    async fn attempt(&mut self) -> (Request, Reply) {
        let (request, reply) = self.instances.next_request().await.expect("an attempt");
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        assert_eq!(bytes, "bytes", "each attempt has the complete request");
        (Request::from_parts(parts, Body::empty()), reply)
    }

    /// The call's code, with no further attempt sent.
    async fn code(&mut self, call: JoinHandle<Result<Response, Status>>) -> Code {
        let outcome = call.await.expect("no panic");
        assert!(futures_util::FutureExt::now_or_never(self.instances.next_request()).flatten().is_none());
        outcome.map_or_else(|status| status.code(), |response| code_of(&response))
    }
}

fn rejected(code: Code) -> Response {
    Status::new(code, "").into_http()
}

fn pushed_back(value: &'static str) -> Response {
    let mut response = rejected(Code::Unavailable);
    response.headers_mut().insert(PUSHBACK, HeaderValue::from_static(value));
    response
}

fn failed_attempt(code: Code, reach: Reach) -> FailedAttempt {
    FailedAttempt(AttemptError { status: Status::new(code, ""), reach })
}

fn previous(request: &Request) -> Option<&str> {
    request.headers().get(PREVIOUS_ATTEMPTS).map(|value| value.to_str().expect("ascii"))
}

#[tokio::test(start_paused = true)]
async fn a_retryable_call_is_retried_and_sends_its_attempt_count() {
    for path in [READ, SET] {
        let mut world = World::new();
        let call = world.call(path);
        let (first, reply) = world.attempt().await;
        assert_eq!(previous(&first), None);
        let failed = Instant::now();
        reply.send_response(rejected(Code::Unavailable));
        let (second, reply) = world.attempt().await;
        assert_eq!((previous(&second), failed.elapsed()), (Some("1"), BACKOFF));
        reply.send_error(failed_attempt(Code::Unavailable, Reach::Unknown));
        let (third, reply) = world.attempt().await;
        assert_eq!((previous(&third), failed.elapsed()), (Some("2"), BACKOFF + 2 * BACKOFF));
        reply.send_response(Response::new(Body::empty()));
        assert_eq!(world.code(call).await, Code::Ok);
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_last_attempt_its_failure_is_the_result() {
    let mut world = World::new();
    let call = world.call(READ);
    for _ in 0..ATTEMPTS {
        world.attempt().await.1.send_response(rejected(Code::Unavailable));
    }
    assert_eq!(world.code(call).await, Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_have_its_effect_twice_is_not_retried() {
    let mut world = World::new();
    let call = world.call(WRITE);
    world.attempt().await.1.send_error(failed_attempt(Code::Unavailable, Reach::Unknown));
    assert_eq!(world.code(call).await, Code::Unavailable);
    let call = world.call(WRITE);
    world.attempt().await.1.send_response(rejected(Code::Unavailable));
    assert_eq!(world.code(call).await, Code::Unavailable, "rejected by the instance");
}

#[tokio::test(start_paused = true)]
async fn with_retries_off_a_response_is_returned_and_transparent_retries_remain() {
    let mut world = World::with_retries(false);
    let call = world.call(READ);
    world.attempt().await.1.send_error(failed_attempt(Code::Unavailable, Reach::Refused));
    world.attempt().await.1.send_response(rejected(Code::Unavailable));
    assert_eq!(world.code(call).await, Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn only_some_codes_are_retried() {
    for number in 1..=16 {
        let code = Code::from_i32(number);
        let mut world = World::new();
        let call = world.call(READ);
        world.attempt().await.1.send_response(rejected(code));
        if [Code::Unavailable, Code::Aborted, Code::DeadlineExceeded].contains(&code) {
            world.attempt().await.1.send_response(Response::new(Body::empty()));
            assert_eq!(world.code(call).await, Code::Ok);
        } else {
            assert_eq!(world.code(call).await, code);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_has_begun_is_the_result_whatever_its_trailers() {
    let mut world = World::new();
    let call = world.call(READ);
    let mut trailers = HeaderMap::new();
    Status::unavailable("too late").add_header(&mut trailers).expect("headers");
    let failing = http_body_util::Empty::new().with_trailers(std::future::ready(Some(Ok(trailers))));
    world.attempt().await.1.send_response(Response::new(Body::new(failing)));
    assert_eq!(world.code(call).await, Code::Ok, "so far");
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_of_any_method_is_transparently_retried_immediately_and_outside_the_budget() {
    let mut world = World::new();
    while world.budget.withdraw() {}
    let call = world.call(WRITE);
    let began = Instant::now();
    for _ in 0..TRANSPARENT {
        world.attempt().await.1.send_error(failed_attempt(Code::Unavailable, Reach::Refused));
    }
    let (again, reply) = world.attempt().await;
    assert_eq!((previous(&again), began.elapsed()), (None, Duration::ZERO));
    reply.send_error(failed_attempt(Code::Unavailable, Reach::Refused));
    assert_eq!(world.code(call).await, Code::Unavailable, "and not forever");
}

#[tokio::test(start_paused = true)]
async fn a_refused_streaming_call_is_transparently_retried_and_a_broken_stream_is_not() {
    let mut world = World::new();
    let call = world.call(STREAM);
    world.attempt().await.1.send_error(failed_attempt(Code::Unavailable, Reach::Refused));
    world.attempt().await.1.send_response(Response::new(Body::empty()));
    assert_eq!(world.code(call).await, Code::Ok);
    for outcome in [failed_attempt(Code::Unavailable, Reach::Unknown), failed_attempt(Code::Internal, Reach::Unknown)] {
        let call = world.call(STREAM);
        world.attempt().await.1.send_error(outcome);
        assert_ne!(world.code(call).await, Code::Ok, "it may have been processed: its reader resumes it");
    }
}

#[tokio::test(start_paused = true)]
async fn when_no_instance_is_reachable_any_call_is_retried() {
    let mut world = World::new();
    let call = world.call(WRITE);
    world.attempt().await.1.send_error(failed_attempt(Code::Unavailable, Reach::NotSent));
    world.attempt().await.1.send_response(Response::new(Body::empty()));
    assert_eq!(world.code(call).await, Code::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_server_may_delay_or_forbid_the_next_attempt() {
    let mut world = World::new();
    let call = world.call(READ);
    let began = Instant::now();
    world.attempt().await.1.send_response(pushed_back("700"));
    let (_, reply) = world.attempt().await;
    assert_eq!(began.elapsed(), Duration::from_millis(700));
    reply.send_response(pushed_back("-1"));
    assert_eq!(world.code(call).await, Code::Unavailable);
    for unreadable in ["soon", "", "99999999999"] {
        let call = world.call(READ);
        world.attempt().await.1.send_response(pushed_back(unreadable));
        assert_eq!(world.code(call).await, Code::Unavailable, "{unreadable:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_budget_stops_retries_and_calls_refill_it() {
    let mut world = World::new();
    while world.budget.withdraw() {}
    let mut attempts = 0;
    for _ in 0..50 {
        let call = world.call(READ);
        world.attempt().await.1.send_response(rejected(Code::Unavailable));
        attempts += 1;
        tokio::select! {
            biased;
            (_, reply) = world.attempt() => {
                attempts += 1;
                reply.send_response(Response::new(Body::empty()));
            }
            () = sleep(MAX_BACKOFF) => {}
        }
        call.await.expect("no panic").expect("a response");
    }
    assert_eq!(attempts, 50 + 50 / 5);
}

#[tokio::test(start_paused = true)]
async fn each_attempt_sends_the_time_left_and_none_begins_past_the_deadline() {
    let mut world = World::new();
    let until = |millis| CallDeadline { at: Instant::now() + Duration::from_millis(millis), is_method_timeout: true };
    let call = world.call_until(READ, Some(until(100)));
    let (first, reply) = world.attempt().await;
    assert_eq!(first.headers()["grpc-timeout"], "100000u");
    sleep(Duration::from_millis(30)).await;
    reply.send_response(rejected(Code::Unavailable));
    let (second, reply) = world.attempt().await;
    assert_eq!(second.headers()["grpc-timeout"], "50000u", "30 ms of work and 20 ms of waiting later");
    let seen = second.extensions().get::<Attempt>().and_then(|attempt| attempt.deadline).expect("a deadline");
    assert!(!seen.is_method_timeout, "the time left is not the method's full timeout");
    sleep(Duration::from_millis(20)).await;
    reply.send_response(rejected(Code::Unavailable));
    assert_eq!(world.code(call).await, Code::Unavailable, "the next would begin 40 ms later, with 30 ms left");
}

#[tokio::test(start_paused = true)]
async fn only_one_hop_retries() {
    let mut world = World::new();
    let mut headers = HeaderMap::new();
    for (is_retry, expected) in [(false, Code::Ok), (true, Code::Unavailable)] {
        if is_retry {
            headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(1));
        }
        let mut request = http::Request::post(READ).body(body_of(Bytes::from_static(b"bytes"))).expect("a request");
        request.extensions_mut().insert(ClientCall { policy: POLICIES.find(READ), ..ClientCall::default() });
        let call = tokio::spawn(INBOUND_CALL.scope(InboundCall::new(None, &headers), (world.layer)(request)));
        world.attempt().await.1.send_response(rejected(Code::Unavailable));
        if expected == Code::Ok {
            world.attempt().await.1.send_response(Response::new(Body::empty()));
        }
        assert_eq!(world.code(call).await, expected);
    }
}
