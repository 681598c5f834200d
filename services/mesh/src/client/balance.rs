//! One attempt on one instance: picks it, sends the call, and reports the outcome to the instance's load and breaker. A
//! request that was not sent goes to the next instance.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;
use tonic::{Code, Status};
use tower::Service;

use crate::call::wire::{AttemptError, Reach, Request, Response};
use crate::client::attempted::AttemptedEndpoints;
use crate::client::breaker::{BreakerPermit, BreakerTransition};
use crate::client::call::CallDeadline;
use crate::client::endpoint::{Endpoint, Failure};
use crate::client::endpoints::Endpoints;
use crate::client::evidence::Evidence;

/// How many times a request may fail unsent (connections that close immediately) before the call fails.
const MAX_UNSENT: usize = 8;

/// The context of an attempt, in its request's extensions.
#[derive(Clone, Default)]
pub(crate) struct Attempt {
    pub(crate) deadline: Option<CallDeadline>,
    pub(crate) attempted: AttemptedEndpoints,
}

/// All instances of a target as a service. Clones share them.
#[derive(Clone)]
pub(crate) struct Balance(Arc<Shared>);

struct Shared {
    endpoints: Arc<Endpoints>,
    _closed: DropGuard,
}

impl Balance {
    pub(crate) fn new(endpoints: Arc<Endpoints>) -> Self {
        let closed = endpoints.closed().drop_guard();
        Self(Arc::new(Shared { endpoints, _closed: closed }))
    }
}

impl Shared {
    /// Tries other instances, for a request that was not sent, or found no connected one.
    async fn go_on(
        self: Arc<Self>,
        mut request: Box<Request>,
        attempt: Attempt,
        mut failures: Vec<String>,
    ) -> Result<Response, AttemptError> {
        while failures.len() < MAX_UNSENT {
            let before = attempt.attempted.get().clone();
            let (endpoint, permit) = self.endpoints.pick(&before).await?;
            attempt.attempted.get().push(endpoint.clone());
            match Ticket::new(endpoint, permit, attempt.deadline).send(*request).await {
                Ok(response) => return Ok(response),
                Err(Failure::NoResponse(failed)) => return Err(failed),
                Err(Failure::NotSent(unsent, why)) => {
                    attempt.attempted.mark_last_unsent();
                    failures.push(why);
                    request = unsent;
                }
            }
        }
        Err(self.endpoints.unreachable(failures))
    }
}

/// A response's status code as far as its headers show: an error is in the headers, and a response that begins counts as
/// OK.
pub(crate) fn code_of(response: &Response) -> Code {
    match response.headers().get(Status::GRPC_STATUS) {
        Some(code) => Code::from_bytes(code.as_bytes()),
        None if response.status().is_success() => Code::Ok,
        // Not a gRPC server, most likely a proxy.
        None => Code::Unknown,
    }
}

/// A call in flight on an instance. Dropped without a response, it was cancelled: its elapsed time is a lower bound.
struct Ticket {
    endpoint: Arc<Endpoint>,
    permit: BreakerPermit,
    deadline: Option<CallDeadline>,
    began: Instant,
    is_settled: bool,
}

impl Ticket {
    fn new(endpoint: Arc<Endpoint>, permit: BreakerPermit, deadline: Option<CallDeadline>) -> Self {
        let began = Instant::now();
        endpoint.load.begin(began);
        Self { endpoint, permit, deadline, began, is_settled: false }
    }

    /// Sends the request immediately. The returned future records its outcome.
    fn send(self, request: Request) -> impl Future<Output = Result<Response, Failure>> + Send + use<> {
        let sent = self.endpoint.send(request);
        async move {
            let outcome = match sent {
                Ok((index, sending)) => self.endpoint.outcome(index, sending.await),
                Err(unsent) => Err(unsent),
            };
            match &outcome {
                Ok(response) => self.settle(code_of(response)),
                Err(Failure::NoResponse(AttemptError { status, reach: Reach::Unknown })) => self.settle(status.code()),
                Err(Failure::NoResponse(_) | Failure::NotSent(..)) => self.unprocessed(),
            }
            outcome
        }
    }

    fn settle(mut self, code: Code) {
        self.is_settled = true;
        let now = Instant::now();
        let (endpoint, took) = (&*self.endpoint, now.saturating_duration_since(self.began));
        endpoint.metrics.attempt(&endpoint.attributes);
        let evidence = Evidence::of(code, self.deadline);
        endpoint.attempts.lock().record(now, took, matches!(evidence, Evidence::Fails));
        match evidence {
            Evidence::Fails => {
                endpoint.load.failed(now, took);
                self.report(endpoint.breaker.failed(self.permit, now));
            }
            Evidence::None => {
                endpoint.load.took(now, took);
                endpoint.breaker.undecided(self.permit, now);
            }
            Evidence::Works => {
                // An overloaded instance works, but its quick rejections must not attract more calls.
                if code == Code::ResourceExhausted {
                    endpoint.load.failed(now, took)
                } else {
                    endpoint.load.took(now, took)
                }
                self.report(endpoint.breaker.succeeded(self.permit));
            }
        }
    }

    /// Not sent, or refused: the outcome is no evidence about the instance, except that it is probably stopping.
    fn unprocessed(mut self) {
        self.is_settled = true;
        self.endpoint.breaker.undecided(self.permit, Instant::now());
    }

    fn cancelled_by_caller(&self) {
        let now = Instant::now();
        self.endpoint.metrics.attempt(&self.endpoint.attributes);
        let took = now.saturating_duration_since(self.began);
        self.endpoint.load.no_response(now, took);
        let failed = matches!(Evidence::of_cancelled(self.deadline, now), Evidence::Fails);
        self.endpoint.attempts.lock().record(now, took, failed);
        if failed {
            self.report(self.endpoint.breaker.failed(self.permit, now));
        } else {
            self.endpoint.breaker.undecided(self.permit, now);
        }
    }

    fn report(&self, transition: BreakerTransition) {
        let (endpoint, address) = (&*self.endpoint, self.endpoint.address());
        match transition {
            BreakerTransition::None => {}
            BreakerTransition::Opened => {
                endpoint.metrics.breakers_open(&endpoint.attributes, 1);
                tracing::warn!(target: "ordermesh", address, "circuit breaker opened");
            }
            BreakerTransition::Closed => {
                let now = Instant::now();
                endpoint.load.recovered(now, now.saturating_duration_since(self.began));
                endpoint.metrics.breakers_open(&endpoint.attributes, -1);
                tracing::info!(target: "ordermesh", address, "circuit breaker closed");
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.endpoint.load.end();
        if !self.is_settled {
            self.cancelled_by_caller();
        }
    }
}

impl Service<Request> for Balance {
    type Response = Response;
    type Error = AttemptError;
    type Future = BoxFuture<'static, Result<Response, AttemptError>>;

    /// Always ready: a call waits for an instance by itself, or fails.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), AttemptError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let attempt: Attempt = request.extensions_mut().remove().unwrap_or_default();
        let shared = self.0.clone();
        let mut attempted = attempt.attempted.get();
        let Some((endpoint, permit)) = shared.endpoints.pick_now(&attempted) else {
            drop(attempted);
            return Box::pin(shared.go_on(Box::new(request), attempt, vec![]));
        };
        attempted.push(endpoint.clone());
        drop(attempted);
        let sending = Ticket::new(endpoint, permit, attempt.deadline).send(request);
        Box::pin(async move {
            match sending.await {
                Ok(response) => Ok(response),
                Err(Failure::NoResponse(failed)) => Err(failed),
                // Rare: boxed separately, or every call's future would be as large.
                Err(Failure::NotSent(unsent, why)) => {
                    attempt.attempted.mark_last_unsent();
                    Box::pin(shared.go_on(unsent, attempt, vec![why])).await
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
