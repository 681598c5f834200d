//! The client's telemetry layer: one CLIENT operation for the whole call including retries, and the RPC metrics.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use telemetry::propagation::{outgoing_baggage, outgoing_tracestate};
use telemetry::{Kind, Operation, Parent, Propagation};
use tokio::time::Instant;
use tonic::Status;
use tower::layer::layer_fn;
use tower::{Layer, Service};
use tracing::Instrument;

use crate::call::inbound_headers::operator_headers;
use crate::call::method_name;
use crate::call::metrics::CallDuration;
use crate::call::mirrored::is_mirrored;
use crate::call::record::{Record, Sink};
use crate::call::wire::{
    ATTRIBUTE_HEADERS, BAGGAGE, MIRRORED_HEADER, Request, Response, Side, TRACEPARENT, TRACESTATE, never_indexed,
};
use crate::client::attempted::AttemptedEndpoints;
use crate::client::attributes::CallAttributes;
use crate::client::call::ClientCall;
use crate::identity::caller::Untraced;
use crate::monitor::observed::Observer;
use crate::policy::{Idempotency, PolicyTable};
use crate::traffic::TrafficPolicy;

#[derive(Clone)]
pub(crate) struct ClientTelemetry<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// The layer's configuration.
pub(crate) struct ClientTelemetryConfig {
    pub(crate) policies: PolicyTable,
    pub(crate) events: Option<Sink>,
    pub(crate) is_mesh_service: bool,
    pub(crate) propagation: Propagation,
    pub(crate) traffic: TrafficPolicy,
    pub(crate) observer: Arc<Observer>,
}

struct Shared {
    config: ClientTelemetryConfig,
    duration: CallDuration,
}

pub(crate) fn client_telemetry<S>(
    config: ClientTelemetryConfig,
) -> impl Layer<S, Service = ClientTelemetry<S>> + Clone {
    let shared = Arc::new(Shared { config, duration: CallDuration::client() });
    layer_fn(move |inner| ClientTelemetry { inner, shared: shared.clone() })
}

impl<S> Service<Request> for ClientTelemetry<S>
where
    S: Service<Request, Response = Response, Error = Status>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let Shared { config, duration } = &*self.shared;
        let index = config.policies.index(request.uri().path());
        let policy = index.map(|index| &config.policies.0[index]);
        let (name, duration) = (method_name(policy), duration.clone());
        let attempted = AttemptedEndpoints::default();
        let observed = config.observer.begin(index, None).with_attempts(attempted.attempts());
        let tap = observed.details().cloned();
        let rule = policy.and_then(|policy| config.traffic.rule_for(policy, operator_headers().as_deref()));
        let (now, deadline) = (Instant::now(), crate::call::deadline::current());
        if request.extensions().get::<Untraced>().is_some() {
            request.extensions_mut().insert(ClientCall { policy, rule, attempted, tap, ..ClientCall::default() });
            let record = Record::new(Side::Client, name, None, duration, observed, now).with_deadline(deadline);
            return Box::pin(recorded(record, self.inner.call(request)));
        }
        // A call with side effects is never marked as mirrored and keeps its event, even if made for a mirrored call.
        let is_mirrored =
            policy.is_some_and(|policy| policy.idempotency == Idempotency::NoSideEffects) && is_mirrored();
        if is_mirrored && config.is_mesh_service {
            request.headers_mut().insert(MIRRORED_HEADER, HeaderValue::from_static("1"));
        }
        let event = policy.and_then(|policy| policy.event).filter(|_| !is_mirrored);
        let operation = Operation::open(Kind::Client, name, Parent::Current, event, config.events.clone());
        propagate(config, &operation, request.headers_mut());
        let mut affinity_key = None;
        if let Some(attributes) = request.extensions_mut().remove::<CallAttributes>() {
            let is_split = rule.as_ref().is_some_and(|rule| !rule.backends.is_empty());
            affinity_key = if is_split { attributes.affinity_key() } else { None };
            attributes.iter().for_each(|(name, value)| operation.set(name, value));
            if config.is_mesh_service {
                set_attribute_headers(&attributes, request.headers_mut());
            }
        }
        let span = operation.span().clone();
        let record =
            Record::new(Side::Client, name, Some(operation.clone()), duration, observed, now).with_deadline(deadline);
        request.extensions_mut().insert(ClientCall {
            policy,
            operation: Some(operation),
            deadline: None,
            rule,
            affinity_key,
            attempted,
            tap,
        });
        let work = span.in_scope(|| self.inner.call(request));
        Box::pin(recorded(record, work).instrument(span))
    }
}

/// Sends the order id and the user id of the call to a mesh service, whose own event then has them too.
fn set_attribute_headers(attributes: &CallAttributes, headers: &mut HeaderMap) {
    for (name, value) in attributes.iter() {
        let header = ATTRIBUTE_HEADERS.iter().find(|(attribute, _)| *attribute == name);
        if let Some(((_, header), value)) = header.zip(HeaderValue::from_str(value).ok()) {
            headers.insert(header, never_indexed(value));
        }
    }
}

/// Sets `traceparent`, and forwards the served call's `tracestate`; its `baggage`, which may contain anything about a
/// user, is forwarded to mesh services only.
fn propagate(config: &ClientTelemetryConfig, operation: &Operation, headers: &mut HeaderMap) {
    let propagation = config.propagation;
    if propagation.trace_context {
        if let Ok(traceparent) = HeaderValue::from_bytes(&operation.traceparent().header()) {
            headers.insert(TRACEPARENT, never_indexed(traceparent));
        }
        put(headers, TRACESTATE, outgoing_tracestate());
    }
    if propagation.baggage && config.is_mesh_service {
        put(headers, BAGGAGE, outgoing_baggage());
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, text: Option<String>) {
    if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.insert(name, never_indexed(value));
    }
}

async fn recorded(record: Record, work: impl Future<Output = Result<Response, Status>>) -> Result<Response, Status> {
    match work.await {
        Ok(response) => Ok(record.follow(response)),
        Err(status) => {
            record.failed(&status);
            Err(status)
        }
    }
}
