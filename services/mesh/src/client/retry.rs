//! The retry layer (gRFC A6): another attempt for a call that failed, if its policy allows it, no response has begun,
//! the deadline permits it, and the target's budget allows it.
//!
//! Transparent retries: an attempt that the instance refused, unprocessed, is repeated for any method, immediately and
//! outside the budget, if its request is complete (also for a streaming response). A request that was not sent is given
//! to another instance further in (`balance`), before this layer sees it.

pub(crate) mod attempt_spans;
pub(crate) mod budget;
pub(crate) mod replay;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue};
use kernel::backoff::backoff;
use telemetry::Operation;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tower::{Layer, Service, ServiceExt};

use crate::call::deadline::serves_a_retry;
use crate::call::wire::{
    AttemptError, PREVIOUS_ATTEMPTS, PUSHBACK, Reach, Request, Response, TRACEPARENT, never_indexed,
};
use crate::client::attempted::AttemptedEndpoints;
use crate::client::balance::{Attempt, code_of};
use crate::client::call::{CallDeadline, ClientCall};
use crate::client::metrics::{ClientMetrics, SERVER_ADDRESS, SERVER_PORT};
use crate::client::retry::attempt_spans::AttemptSpans;
use crate::client::retry::budget::RetryBudget;
use crate::client::retry::replay::{Replay, body_of};
use crate::client::rng::Rng;
use crate::monitor::observed::TapDetails;
use crate::policy::{Idempotency, MethodPolicy};
use crate::status::code_name;

/// The first attempt and two retries.
pub(crate) const ATTEMPTS: u32 = 3;
/// Transparent retries per call: an instance that shuts down refuses what it has not processed.
const TRANSPARENT: u32 = 3;
/// Short: a retry goes to another instance, if there is one.
const BACKOFF: Duration = Duration::from_millis(20);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// The layer's configuration.
pub(crate) struct RetryConfig {
    /// When off, a failure is the call's result; transparent retries still happen.
    pub(crate) is_on: bool,
    pub(crate) budget: Arc<RetryBudget>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) metrics: Arc<ClientMetrics>,
}

#[derive(Clone)]
pub(crate) struct Retry<S> {
    inner: S,
    config: Arc<RetryConfig>,
}

pub(crate) fn retry<S>(config: RetryConfig) -> impl Layer<S, Service = Retry<S>> + Clone {
    let config = Arc::new(config);
    layer_fn(move |inner| Retry { inner, config: config.clone() })
}

impl<S> Service<Request> for Retry<S>
where
    S: Service<Request, Response = Response, Error = AttemptError> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx).map_err(|failure| failure.status)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.config.budget.deposit();
        let (mut parts, body) = request.into_parts();
        let client_call: ClientCall = parts.extensions.remove().unwrap_or_default();
        let has_policy = client_call.policy.is_some();
        let call = Retries::new(self.config.clone(), client_call);
        // The inner layers do not need the rest of them.
        parts.extensions.clear();
        call.add_to(&mut parts.extensions, call.deadline);
        if !has_policy {
            let work = self.inner.call(Request::from_parts(parts, body));
            return Box::pin(async move { work.await.map_err(|failure| failure.status) });
        }
        let bytes = match Replay::of(body) {
            Replay::Kept(bytes) => {
                call.tap.iter().for_each(|tap| tap.set_request_bytes(bytes.len()));
                bytes
            }
            Replay::Once(body) => {
                let work = self.inner.call(Request::from_parts(parts, body));
                return Box::pin(async move { work.await.map_err(|failure| failure.status) });
            }
        };
        // What is kept for retries should be small: it is copied for each call, and rarely needed.
        let extensions = std::mem::take(&mut parts.extensions);
        let kept = Kept { parts: parts.clone(), bytes: bytes.clone() };
        parts.extensions = extensions;
        let first = self.inner.call(Request::from_parts(parts, body_of(bytes)));
        let inner = self.inner.clone();
        Box::pin(async move {
            let outcome = first.await;
            let (code, next) = call.after(&outcome);
            if next == Next::Return {
                return outcome.map_err(|failure| failure.status);
            }
            drop(outcome);
            // Rare: its state should not be part of every call's future.
            Box::pin(call.go_on(inner, kept, code, next)).await
        })
    }
}

fn may_repeat(policy: &MethodPolicy) -> bool {
    match policy.idempotency {
        // A broken stream is resumed by its reader, which has the position.
        Idempotency::Idempotent | Idempotency::NoSideEffects => !policy.streaming,
        Idempotency::Unknown => false,
    }
}

/// A failed attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Failed {
    code: Code,
    /// How far it got, if it has no response.
    reach: Option<Reach>,
    pushback: Pushback,
}

/// The server's instruction for retries (gRFC A6, `grpc-retry-pushback-ms`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pushback {
    Nothing,
    Never,
    After(Duration),
}

impl Pushback {
    fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(PUSHBACK) else { return Self::Nothing };
        // A6: an unreadable value means never.
        let millis = value.to_str().ok().and_then(|text| text.parse::<i32>().ok());
        millis
            .and_then(|millis| u64::try_from(millis).ok())
            .map_or(Self::Never, |millis| Self::After(Duration::from_millis(millis)))
    }
}

impl Failed {
    /// `None` when a response has begun: from then on nothing is retried.
    fn of(outcome: &Result<Response, AttemptError>) -> Option<Self> {
        match outcome {
            Ok(response) => {
                let code = code_of(response);
                (code != Code::Ok).then(|| Self { code, reach: None, pushback: Pushback::of(response.headers()) })
            }
            Err(AttemptError { status, reach }) => {
                Some(Self { code: status.code(), reach: Some(*reach), pushback: Pushback::Nothing })
            }
        }
    }
}

/// The decision after an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Its outcome is the call's.
    Return,
    /// A transparent retry.
    Transparent,
    /// A retry after a wait.
    After(Duration),
}

/// A request, kept for retries.
struct Kept {
    parts: http::request::Parts,
    bytes: Bytes,
}

/// One call with all its attempts.
struct Retries {
    config: Arc<RetryConfig>,
    operation: Option<Operation>,
    may_repeat: bool,
    /// Only one hop retries: not this one, if the served call is itself a retry.
    is_left_to_caller: bool,
    deadline: Option<CallDeadline>,
    /// Attempts before the current one.
    previous: u32,
    transparent: u32,
    attempted: AttemptedEndpoints,
    attempt_spans: AttemptSpans,
    tap: Option<Arc<TapDetails>>,
}

impl Retries {
    fn new(config: Arc<RetryConfig>, call: ClientCall) -> Self {
        let ClientCall { policy, operation, deadline, attempted, tap, rule: _, affinity_key: _ } = call;
        Self {
            attempt_spans: AttemptSpans::begin(operation.clone()),
            operation,
            may_repeat: config.is_on && policy.is_some_and(may_repeat),
            // Read here: the task that makes this call is the one that serves the other.
            is_left_to_caller: serves_a_retry(),
            deadline,
            previous: 0,
            transparent: 0,
            attempted,
            tap,
            config,
        }
    }

    /// An attempt's status code, and the decision after it.
    fn after(&self, outcome: &Result<Response, AttemptError>) -> (Code, Next) {
        Failed::of(outcome).map_or((Code::Ok, Next::Return), |failed| (failed.code, self.next(failed)))
    }

    /// The retries, after the first attempt failed.
    async fn go_on<S>(mut self, mut inner: S, kept: Kept, mut code: Code, mut next: Next) -> Result<Response, Status>
    where
        S: Service<Request, Response = Response, Error = AttemptError>,
    {
        loop {
            self.attempt_spans.failed(code, self.attempted.last().as_ref());
            if let Next::After(wait) = next {
                sleep(wait).await;
            }
            inner.ready().await.map_err(|failure| failure.status)?;
            let mut request = Request::from_parts(kept.parts.clone(), body_of(kept.bytes.clone()));
            self.mark(&mut request, next == Next::Transparent);
            let outcome = inner.call(request).await;
            (code, next) = self.after(&outcome);
            if next == Next::Return {
                self.attempt_spans.ended(code, self.attempted.last().as_ref());
                return outcome.map_err(|failure| failure.status);
            }
        }
    }

    /// Sets a retry's span, its count, and the time left.
    fn mark(&mut self, request: &mut Request, is_transparent: bool) {
        self.previous += u32::from(!is_transparent);
        self.transparent += u32::from(is_transparent);
        // Replaces the call's own; without propagation there is none.
        let traceparent = self.attempt_spans.again(self.previous, is_transparent);
        if let (Some(traceparent), Some(header)) = (traceparent, request.headers_mut().get_mut(TRACEPARENT)) {
            *header = never_indexed(traceparent);
        }
        if self.previous > 0 {
            request.headers_mut().insert(PREVIOUS_ATTEMPTS, HeaderValue::from(self.previous));
        }
        let deadline = self.deadline.map(|deadline| CallDeadline { is_method_timeout: false, ..deadline });
        self.add_to(request.extensions_mut(), deadline);
        if let Some(deadline) = deadline {
            deadline.write_to(Instant::now(), request.headers_mut());
        }
    }

    fn add_to(&self, extensions: &mut http::Extensions, deadline: Option<CallDeadline>) {
        extensions.insert(Attempt { deadline, attempted: self.attempted.clone() });
    }

    fn next(&self, failed: Failed) -> Next {
        if failed.reach == Some(Reach::Refused) && self.transparent < TRANSPARENT {
            // The public name of refused calls in the metric.
            self.config.metrics.retry("NOT_BEGUN");
            return Next::Transparent;
        }
        let is_worth_it = match failed.reach {
            Some(Reach::NotSent | Reach::Refused) => true,
            Some(Reach::Unknown) => self.may_repeat && failed.code == Code::Unavailable,
            None => {
                self.may_repeat && matches!(failed.code, Code::Unavailable | Code::Aborted | Code::DeadlineExceeded)
            }
        };
        if !is_worth_it || self.previous + 1 >= ATTEMPTS || self.is_left_to_caller {
            return Next::Return;
        }
        let wait = match failed.pushback {
            Pushback::Never => return Next::Return,
            Pushback::After(wait) => wait,
            Pushback::Nothing => backoff(self.previous + 1, BACKOFF, MAX_BACKOFF, self.config.rng.fraction()),
        };
        if self.deadline.is_some_and(|deadline| deadline.at <= Instant::now() + wait) {
            return Next::Return;
        }
        if !self.config.budget.withdraw() {
            self.config.metrics.rejection("retry_budget");
            return Next::Return;
        }
        self.config.metrics.retry(code_name(failed.code));
        Next::After(wait)
    }
}

/// However it ends: the call's span names the last instance.
impl Drop for Retries {
    fn drop(&mut self) {
        let recorded = self.operation.as_ref().filter(|operation| !operation.span().is_disabled());
        if let Some((operation, server)) = recorded.zip(self.attempted.last()) {
            operation.set_on_span(SERVER_ADDRESS, server.host().to_owned());
            server.port_u16().into_iter().for_each(|port| operation.set_on_span(SERVER_PORT, i64::from(port)));
        }
    }
}

#[cfg(test)]
mod tests;
