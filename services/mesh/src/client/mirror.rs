//! Mirrors calls: a share of a method's calls is sent to another target of the traffic policy as well. Nothing comes back of
//! a mirrored call: its response is read and dropped, and neither its failure nor its latency reaches the caller. It has its
//! method's timeout and no event, and is not repeated once it was sent; the instances that get it have their own breakers.
//! Only calls of mesh services without side effects are mirrored: others carry credentials of their own.

use std::any::Any;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use http::request::Parts;
use http_body_util::BodyExt;
use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use telemetry::LogLimit;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::call::deadline::exceeded;
use crate::call::metrics::RPC_STATUS;
use crate::call::mirrored::is_mirrored;
use crate::call::record::reported_status;
use crate::call::wire::{MIRRORED_HEADER, Request, Response};
use crate::client::attempted::AttemptedEndpoints;
use crate::client::call::{CallDeadline, ClientCall};
use crate::client::other_targets::{MakeTarget, OtherTarget, OtherTargets};
use crate::client::retry::replay::{Replay, body_of};
use crate::client::rng::Rng;
use crate::monitor::observed::{End, Observer, TapEnd};
use crate::monitor::statistics::is_server_error;
use crate::policy::{MethodPolicy, PolicyTable};
use crate::status::code_name;
use crate::traffic::TrafficPolicy;

/// While as many mirrored calls of a channel are in flight to one target, further ones are dropped.
const MAX_IN_FLIGHT: usize = 16;

/// A target that gets mirrored calls.
pub(crate) struct Shadow<S> {
    stack: S,
    observer: Arc<Observer>,
    in_flight: Arc<Semaphore>,
    failures: LogLimit,
    /// Exists as long as the shadow.
    _kept: Arc<dyn Any + Send + Sync>,
}

impl<S> Shadow<S> {
    /// `kept`: what is in snapshots while it exists.
    pub(crate) fn new(stack: S, observer: Arc<Observer>, kept: Arc<dyn Any + Send + Sync>) -> Self {
        let in_flight = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        Self { stack, observer, in_flight, failures: LogLimit::new(), _kept: kept }
    }
}

struct Shared<T> {
    service: &'static str,
    is_mesh_service: bool,
    policies: PolicyTable,
    rng: Arc<dyn Rng>,
    shadows: OtherTargets<Shadow<T>>,
    mirrored: Counter<u64>,
    dropped: Counter<u64>,
}

/// The layer's service: `S` makes the calls, and `T` their copies.
pub(crate) struct Mirror<S, T> {
    inner: S,
    shared: Arc<Shared<T>>,
}

impl<S: Clone, T> Clone for Mirror<S, T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

pub(crate) fn mirror<S, T>(
    service: &'static str,
    is_mesh_service: bool,
    policies: PolicyTable,
    traffic: TrafficPolicy,
    rng: Arc<dyn Rng>,
    make: MakeTarget<Shadow<T>>,
) -> impl Layer<S, Service = Mirror<S, T>> {
    let counter = |name: &'static str, description: &'static str| {
        global::meter("mesh").u64_counter(name).with_description(description).build()
    };
    let shared = Arc::new(Shared {
        service,
        is_mesh_service,
        policies,
        rng,
        shadows: OtherTargets::new(traffic, TrafficPolicy::has_mirror, make),
        mirrored: counter(
            "mesh.client.mirror.calls",
            "Mirrored calls, by the status that the other target responded with",
        ),
        dropped: counter(
            "mesh.client.mirror.dropped",
            "Calls that the traffic policy mirrors and that were not mirrored",
        ),
    });
    layer_fn(move |inner| Mirror { inner, shared: shared.clone() })
}

/// The other target to which a call is mirrored.
struct Mirrored<T> {
    shadow: Arc<OtherTarget<Shadow<T>>>,
    policy: &'static MethodPolicy,
    deadline: CallDeadline,
    permit: OwnedSemaphorePermit,
}

impl<T> Shared<T> {
    fn mirrored(&self, request: &Request) -> Option<Mirrored<T>> {
        let call: &ClientCall = request.extensions().get()?;
        let mirror = call.rule.as_ref()?.mirror.as_ref()?;
        if !self.is_mesh_service {
            self.drop_call(&mirror.name, "external");
            return None;
        }
        if is_mirrored() || self.rng.fraction() * 100.0 >= f64::from(mirror.percent) {
            return None;
        }
        let policy = call.policy?;
        let at = Instant::now().checked_add(policy.timeout?)?;
        let shadow = self.shadows.get(&mirror.name, &mirror.addresses);
        let Ok(permit) = shadow.in_flight.clone().try_acquire_owned() else {
            self.drop_call(&shadow.name, "in_flight");
            return None;
        };
        Some(Mirrored { shadow, policy, deadline: CallDeadline { at, is_method_timeout: true }, permit })
    }

    fn attributes(&self, backend: &str, key: &'static str, value: &'static str) -> [KeyValue; 3] {
        [
            KeyValue::new("mesh.target", self.service),
            KeyValue::new("backend", backend.to_owned()),
            KeyValue::new(key, value),
        ]
    }

    fn drop_call(&self, backend: &str, cause: &'static str) {
        self.dropped.add(1, &self.attributes(backend, "cause", cause));
    }

    fn end(&self, shadow: &OtherTarget<Shadow<T>>, policy: &MethodPolicy, result: Result<(), &Status>) {
        let code = result.map_or_else(Status::code, |()| Code::Ok);
        self.mirrored.add(1, &self.attributes(&shadow.name, RPC_STATUS, code_name(code)));
        let Some(status) = result.err().filter(|status| is_server_error(status.code())) else { return };
        if let Some(occurrences) = shadow.failures.count(Instant::now()) {
            let (backend, method, code) = (&shadow.name, policy.name(), code_name(code));
            tracing::warn!(target: "ordermesh", backend, method, code, occurrences, "mirrored calls failed: {}", status.message());
        }
    }
}

impl<T> Shared<T>
where
    T: Service<Request, Response = Response, Error = Status, Future = BoxFuture<'static, Result<Response, Status>>>
        + Clone
        + Send
        + Sync
        + 'static,
{
    /// Sends the copy in a task of its own.
    fn send(self: &Arc<Self>, mirrored: Mirrored<T>, mut parts: Parts, bytes: Bytes) {
        let Mirrored { shadow, policy, deadline, permit } = mirrored;
        let (began, attempted) = (Instant::now(), AttemptedEndpoints::default());
        let index = self.policies.index(policy.path);
        let observed = shadow.observer.begin(index, None).with_attempts(attempted.attempts());
        // Only for taps: the shadow's span is a child of the original call's.
        let original = parts.extensions.get::<ClientCall>().and_then(|call| call.operation.clone());
        let original = original.filter(|operation| observed.is_tapped() && !operation.span().is_disabled());
        deadline.write_to(began, &mut parts.headers);
        parts.headers.insert(MIRRORED_HEADER, HeaderValue::from_static("1"));
        let (policy_of, at) = (Some(policy), deadline.at);
        let tap = observed.details().cloned();
        let call = ClientCall { policy: policy_of, deadline: Some(deadline), attempted, tap, ..ClientCall::default() };
        parts.extensions.insert(call);
        let request = Request::from_parts(parts, body_of(bytes));
        let (shared, mut stack) = (self.clone(), shadow.stack.clone());
        tokio::spawn(async move {
            // The stack is always ready.
            let response = timeout_at(at, async { read(stack.call(request).await?).await });
            let result = response.await.unwrap_or_else(|_elapsed| Err(exceeded()));
            let status = result.as_ref().err();
            observed.end(End {
                method: policy.name(),
                code: status.map_or(Code::Ok, Status::code),
                took: began.elapsed(),
                response_bytes: result.as_ref().copied().unwrap_or_default(),
                tap: observed.is_tapped().then_some(TapEnd { status, operation: original.as_ref() }),
            });
            shared.end(&shadow, policy, status.map_or(Ok(()), Err));
            drop(permit);
        });
    }
}

/// Reads a response to its end. Returns its bytes.
async fn read(response: Response) -> Result<u64, Status> {
    if let Some(status) = reported_status(response.headers()) {
        return status.map(|()| 0);
    }
    let (mut body, mut bytes) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        if let Some(status) = frame.trailers_ref().and_then(reported_status) {
            return status.map(|()| bytes);
        }
    }
    Err(Status::unknown("the response ended without a grpc-status"))
}

impl<S, T> Service<Request> for Mirror<S, T>
where
    S: Service<Request>,
    T: Service<Request, Response = Response, Error = Status, Future = BoxFuture<'static, Result<Response, Status>>>
        + Clone
        + Send
        + Sync
        + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> S::Future {
        self.shared.shadows.prune();
        let Some(mirrored) = self.shared.mirrored(&request) else { return self.inner.call(request) };
        let (parts, body) = request.into_parts();
        match Replay::of(body) {
            Replay::Kept(bytes) => {
                let work = self.inner.call(Request::from_parts(parts.clone(), body_of(bytes.clone())));
                self.shared.send(mirrored, parts, bytes);
                work
            }
            Replay::Once(body) => {
                self.shared.drop_call(&mirrored.shadow.name, "request_size");
                self.inner.call(Request::from_parts(parts, body))
            }
        }
    }
}

#[cfg(test)]
mod tests;
