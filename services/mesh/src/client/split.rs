//! Splits the calls of a service between its own instances and other targets of the traffic policy, by weight: a canary.
//! Calls of one order go to one target while the weights stay. Another target gets calls only while it has a connection, which
//! is made only to an instance that shares the service's store (`same_store`), and while it does not fail: its breaker is one
//! for the whole target. Other calls go to the service's own instances, and so does one that none of its instances got.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::request::Parts;
use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use tokio::time::Instant;
use tonic::Status;
use tower::Service;

use crate::call::wire::{Request, Response};
use crate::client::balance::code_of;
use crate::client::breaker::{Breaker, BreakerPermit, BreakerTransition, Gate};
use crate::client::call::{CallDeadline, ClientCall};
use crate::client::evidence::Evidence;
use crate::client::other_targets::{MakeTarget, OtherTarget, OtherTargets};
use crate::client::retry::replay::{Replay, body_of};
use crate::client::rng::{Rng, random_index};
use crate::status::{UNREACHABLE, reason_of};
use crate::traffic::{Backend, TrafficPolicy};

/// Orders are divided into so many parts, each of which goes to one target.
const POINTS: u64 = 1 << 20;

/// Another target that gets a share of the calls.
pub(crate) struct Canary<S> {
    stack: S,
    is_connected: Box<dyn Fn() -> bool + Send + Sync>,
    /// One for the whole target.
    breaker: Breaker,
}

impl<S> Canary<S> {
    /// `is_connected`: whether it has a connection; begins to connect.
    pub(crate) fn new(stack: S, is_connected: impl Fn() -> bool + Send + Sync + 'static, rng: Arc<dyn Rng>) -> Self {
        Self { stack, is_connected: Box::new(is_connected), breaker: Breaker::new(rng) }
    }
}

struct Shared<S> {
    service: &'static str,
    rng: Arc<dyn Rng>,
    others: OtherTargets<Canary<S>>,
    fallbacks: Counter<u64>,
}

/// The layer's service.
pub(crate) struct Split<S> {
    own: S,
    shared: Arc<Shared<S>>,
}

impl<S: Clone> Clone for Split<S> {
    fn clone(&self) -> Self {
        Self { own: self.own.clone(), shared: self.shared.clone() }
    }
}

impl<S> Split<S> {
    pub(crate) fn new(
        service: &'static str,
        own: S,
        traffic: TrafficPolicy,
        rng: Arc<dyn Rng>,
        make: MakeTarget<Canary<S>>,
    ) -> Self {
        let meter = global::meter("mesh");
        let fallbacks = meter.u64_counter("mesh.client.split.fallbacks");
        let fallbacks = fallbacks
            .with_description("Calls that another target should have got and the service's own instances did")
            .build();
        let others = OtherTargets::new(traffic, TrafficPolicy::has_backend, make);
        let shared = Shared { service, rng, others, fallbacks };
        Self { own, shared: Arc::new(shared) }
    }
}

/// The target of a call: of one order always the same, while the weights stay. With a larger share, the last backend keeps
/// the orders that it had.
fn choose<'a>(backends: &'a [Backend], affinity_key: Option<u64>, rng: &dyn Rng) -> Option<&'a Backend> {
    let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let point = match affinity_key {
        Some(key) => key % POINTS,
        None => u64::try_from(random_index(rng, POINTS as usize)).unwrap_or_default(),
    };
    let mut end = 0;
    backends.iter().find(|backend| {
        end += u64::from(backend.weight);
        point * total < end * POINTS
    })
}

impl<S: Clone> Shared<S> {
    /// The other target that gets this call, if one does and may.
    fn other(&self, backends: &[Backend], call: &ClientCall) -> Option<Admitted<S>> {
        let chosen = choose(backends, call.affinity_key, &*self.rng)?;
        let other = self.others.get(&chosen.name, chosen.addresses.as_ref()?);
        let now = Instant::now();
        if !(other.is_connected)() {
            self.fell_back(&other.name, "not_connected");
            return None;
        }
        let permit = match other.breaker.gate(now) {
            Gate::Closed => Some(other.breaker.permit()),
            Gate::HalfOpen => other.breaker.probe(now),
            Gate::Open => None,
        };
        if permit.is_none() {
            self.fell_back(&other.name, "breaker");
        }
        Some(Admitted { service: self.service, permit: Some(permit?), other, deadline: call.deadline })
    }

    fn fell_back(&self, name: &str, cause: &'static str) {
        let attributes = [
            KeyValue::new("mesh.target", self.service),
            KeyValue::new("backend", name.to_owned()),
            KeyValue::new("cause", cause),
        ];
        self.fallbacks.add(1, &attributes);
    }
}

/// A call that another target gets. One that its caller cancelled is dropped.
struct Admitted<S> {
    service: &'static str,
    other: Arc<OtherTarget<Canary<S>>>,
    deadline: Option<CallDeadline>,
    /// `None` once the result is recorded.
    permit: Option<BreakerPermit>,
}

impl<S> Drop for Admitted<S> {
    fn drop(&mut self) {
        self.record(Evidence::of_cancelled(self.deadline, Instant::now()));
    }
}

impl<S> Admitted<S> {
    fn record(&mut self, evidence: Evidence) {
        let Some(permit) = self.permit.take() else { return };
        let (service, name, breaker) = (self.service, &self.other.name, &self.other.breaker);
        let transition = match evidence {
            Evidence::Works => breaker.succeeded(permit),
            Evidence::Fails => breaker.failed(permit, Instant::now()),
            Evidence::None => return breaker.undecided(permit, Instant::now()),
        };
        match transition {
            BreakerTransition::None => {}
            BreakerTransition::Opened => {
                tracing::warn!(target: "ordermesh", "{name} fails: its calls go to {service}");
            }
            BreakerTransition::Closed => tracing::info!(target: "ordermesh", "{name} gets calls of {service} again"),
        }
    }
}

/// Whether no instance of the target got the call.
fn is_unreachable(result: &Result<Response, Status>) -> bool {
    result.as_ref().err().and_then(reason_of).is_some_and(|reason| reason == UNREACHABLE)
}

impl<S> Service<Request> for Split<S>
where
    S: Service<Request, Response = Response, Error = Status, Future = BoxFuture<'static, Result<Response, Status>>>
        + Clone
        + Send
        + Sync
        + 'static,
{
    type Response = Response;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.own.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.shared.others.prune();
        let admitted = request.extensions().get::<ClientCall>().and_then(|call| {
            let backends = &call.rule.as_ref()?.backends;
            if backends.is_empty() { None } else { self.shared.other(backends, call) }
        });
        let Some(mut admitted) = admitted else { return self.own.call(request) };
        let (parts, body) = request.into_parts();
        let (body, kept): (_, Option<(Parts, Bytes)>) = match Replay::of(body) {
            Replay::Kept(bytes) => (body_of(bytes.clone()), Some((parts.clone(), bytes))),
            Replay::Once(body) => (body, None),
        };
        // Both stacks are always ready.
        let (mut stack, mut own, shared) = (admitted.other.stack.clone(), self.own.clone(), self.shared.clone());
        Box::pin(async move {
            let result = stack.call(Request::from_parts(parts, body)).await;
            if !is_unreachable(&result) {
                let code = result.as_ref().map_or_else(Status::code, code_of);
                admitted.record(Evidence::of_version(code, admitted.deadline));
                return result;
            }
            admitted.record(Evidence::None);
            let Some(request) = kept.and_then(with_time_left) else { return result };
            shared.fell_back(&admitted.other.name, "unreachable");
            own.call(request).await
        })
    }
}

/// A kept request with the time that is left; `None` when none is.
fn with_time_left((mut parts, bytes): (Parts, Bytes)) -> Option<Request> {
    let deadline = parts.extensions.get_mut::<ClientCall>().and_then(|call| call.deadline.as_mut()).map(|deadline| {
        deadline.is_method_timeout = false;
        *deadline
    });
    let is_in_time = deadline.is_none_or(|deadline| deadline.write_to(Instant::now(), &mut parts.headers));
    is_in_time.then(|| Request::from_parts(parts, body_of(bytes)))
}

#[cfg(test)]
mod tests;
