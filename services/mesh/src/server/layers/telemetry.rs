//! The server's telemetry layer: an operation (span and event slot) and the RPC metrics of each call.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName};
use telemetry::{Kind, Operation, Parent, Propagation, RemoteContext, TraceParent};
use tokio::time::Instant;
use tower::layer::layer_fn;
use tower::{Layer, Service};
use tracing::Instrument;

use crate::call::deadline::{effective, requested_timeout};
use crate::call::metrics::CallDuration;
use crate::call::record::{Record, Side, Sink};
use crate::call::{
    BAGGAGE, Request, Response, ServerResult, TRACEPARENT, TRACESTATE, find, is_infrastructure, method_name,
};
use crate::identity::authorizer::Gatekeeper;
use crate::identity::caller::non_recording;
use crate::policy::{MethodPolicy, PolicyTable};
use crate::server::rejections::{Cause, Rejections};

/// The layer's configuration.
#[derive(Clone)]
pub(crate) struct ServerTelemetryConfig {
    pub(crate) policies: PolicyTable,
    pub(crate) gatekeeper: Gatekeeper,
    pub(crate) events: Option<Sink>,
    pub(crate) trust_client_trace_context: bool,
    pub(crate) propagation: Propagation,
    pub(crate) rejections: Arc<Rejections>,
}

#[derive(Clone)]
pub(crate) struct ServerTelemetry<S> {
    inner: S,
    shared: Arc<(ServerTelemetryConfig, CallDuration)>,
}

pub(crate) fn server_telemetry<S>(
    config: ServerTelemetryConfig,
) -> impl Layer<S, Service = ServerTelemetry<S>> + Clone {
    let shared = Arc::new((config, CallDuration::server()));
    layer_fn(move |inner| ServerTelemetry { inner, shared: shared.clone() })
}

impl ServerTelemetryConfig {
    /// The context of mesh services is trusted. A client's context starts a linked trace, unless clients are trusted,
    /// and its `tracestate` and `baggage` are not forwarded. A mesh service that sends no context does not want to be
    /// traced (the relay of trace events).
    fn open(&self, request: &Request, policy: Option<&'static MethodPolicy>) -> Operation {
        let headers = request.headers();
        let name = method_name(policy);
        let event = policy.and_then(|policy| policy.event);
        if !self.propagation.trace_context {
            return Operation::open(Kind::Server, name, Parent::Root, event, self.events.clone());
        }
        let theirs = headers.get(TRACEPARENT).and_then(|value| {
            let span_ref = value.to_str().ok().and_then(|text| text.parse::<TraceParent>().ok());
            if span_ref.is_none() {
                self.rejections.count(Cause::Traceparent);
            }
            span_ref
        });
        let from_service = self.gatekeeper.known_service(headers, request.extensions()).is_some();
        let parent = match theirs {
            None if from_service => return non_recording(name, event.zip(self.events.clone())),
            None => Parent::Root,
            Some(span_ref) if from_service || self.trust_client_trace_context => Parent::Remote(span_ref),
            Some(span_ref) => Parent::LinkedRoot(span_ref),
        };
        let Parent::Remote(span_ref) = parent else {
            return Operation::open(Kind::Server, name, parent, event, self.events.clone());
        };
        // Both are rare: without them, the operation is opened under its remote parent directly.
        let tracestate = list(headers, TRACESTATE);
        let baggage = if self.propagation.baggage { list(headers, BAGGAGE) } else { None };
        if tracestate.is_none() && baggage.is_none() {
            return Operation::open(Kind::Server, name, parent, event, self.events.clone());
        }
        let (tracestate, baggage) = (tracestate.as_deref(), baggage.as_deref());
        let _current = RemoteContext { parent: span_ref, tracestate, baggage }.attach();
        Operation::open(Kind::Server, name, Parent::Current, event, self.events.clone())
    }
}

/// The value of a list header: several headers are joined with commas.
fn list(headers: &HeaderMap, name: HeaderName) -> Option<Cow<'_, str>> {
    let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let first = Cow::Borrowed(values.next()?);
    Some(values.fold(first, |all, value| Cow::Owned(format!("{all},{value}"))))
}

impl<S> Service<Request> for ServerTelemetry<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, ServerResult>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        if is_infrastructure(request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        let (config, duration) = &*self.shared;
        let policy = find(config.policies, &request);
        let operation = config.open(&request, policy);
        // Until identity admits the caller: anonymous clients must not fill the event store.
        operation.hold_until_admitted();
        let timeout = effective(requested_timeout(request.headers()).ok().flatten(), policy);
        let now = Instant::now();
        let deadline = timeout.and_then(|timeout| now.checked_add(timeout));
        let span = operation.span().clone();
        let record = Record::new(Side::Server, method_name(policy), Some(operation.clone()), duration.clone(), now)
            .with_deadline(deadline);
        request.extensions_mut().insert(operation);
        let work = span.in_scope(|| self.inner.call(request));
        let call = async move {
            match work.await {
                Ok(response) => Ok(record.follow(response)),
                Err(never) => match never {},
            }
        };
        Box::pin(call.instrument(span))
    }
}
