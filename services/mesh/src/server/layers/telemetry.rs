//! The server's outermost layer: it classifies the call, and opens its operation (span and event slot) and its RPC metrics.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use telemetry::{Kind, Operation, Parent, Propagation, RemoteContext, TraceParent};
use tokio::time::Instant;
use tracing::Instrument;

use crate::call::caller_class::CallerClass;
use crate::call::metrics::CallDuration;
use crate::call::mirrored::with_mirrored;
use crate::call::record::{Record, Sink};
use crate::call::wire::{
    BAGGAGE, MIRRORED_HEADER, PREVIOUS_ATTEMPTS, Request, STORE_HEADER, ServerFuture, Side, TRACEPARENT, TRACESTATE,
};
use crate::call::{Call, method_name};
use crate::identity::authorizer::Authorizer;
use crate::identity::caller::non_recording;
use crate::monitor::observed::Observer;
use crate::policy::Idempotency;
use crate::server::call_state::update;
use crate::server::layer::{Next, ServerLayer, TowerLayer, layer};
use crate::server::rejections::{Cause, Rejections};

/// The attribute of a mirrored call's span.
const MIRRORED: &str = "ordermesh.mirrored";

/// The layer's configuration.
pub(crate) struct ServerTelemetryConfig {
    pub(crate) authorizer: Authorizer,
    pub(crate) events: Option<Sink>,
    pub(crate) trust_client_trace_context: bool,
    pub(crate) propagation: Propagation,
    pub(crate) rejections: Arc<Rejections>,
    pub(crate) store_id: Option<HeaderValue>,
    pub(crate) observer: Arc<Observer>,
}

pub(crate) struct ServerTelemetry {
    config: ServerTelemetryConfig,
    duration: CallDuration,
}

pub(crate) fn server_telemetry(config: ServerTelemetryConfig) -> TowerLayer<ServerTelemetry> {
    layer(ServerTelemetry { config, duration: CallDuration::server() })
}

impl ServerLayer for ServerTelemetry {
    fn call<N: Next>(self: &Arc<Self>, mut request: Request, next: &mut N) -> ServerFuture {
        let Self { config, duration } = &**self;
        let now = Instant::now();
        let service = config.authorizer.service(request.headers(), request.extensions());
        let call = Call::classify(config.authorizer.policies(), &request, service, now);
        if call.class.is_infrastructure() {
            update(|state| state.is_infrastructure = true);
            let shown = config.store_id.clone().filter(|_| call.known_service().is_some());
            request.extensions_mut().insert(call);
            let work = next.call(request);
            let Some(store_id) = shown else { return work };
            return Box::pin(async move {
                let mut response = work.await?;
                response.headers_mut().insert(STORE_HEADER, store_id);
                Ok(response)
            });
        }
        // Its caller gets nothing of it. A call with side effects is an event even if it is marked.
        let may_be_mirrored = call.policy.is_some_and(|policy| policy.idempotency == Idempotency::NoSideEffects);
        let is_mirrored =
            may_be_mirrored && call.known_service().is_some() && request.headers().contains_key(MIRRORED_HEADER);
        let operation = config.open(&request, &call, is_mirrored);
        // Until identity admits the caller: anonymous clients must not fill the event store.
        operation.hold_until_admitted();
        let span = operation.span().clone();
        let service = call.service.as_ref().and_then(|service| service.as_ref().ok());
        let observed = config.observer.begin(call.index, service.cloned().map(CallerClass::Service));
        if let Some(details) = observed.details() {
            details.set_attempt(previous_attempts(request.headers()).saturating_add(1));
            request.extensions_mut().insert(details.clone());
        }
        let name = method_name(call.policy);
        let record = Record::new(Side::Server, name, Some(operation.clone()), duration.clone(), observed, now)
            .with_deadline(call.deadline.ok().flatten());
        request.extensions_mut().insert(call);
        request.extensions_mut().insert(operation);
        let work = span.in_scope(|| next.call(request));
        let recorded = async move {
            match work.await {
                Ok(response) => Ok(record.follow(response)),
                Err(never) => match never {},
            }
        };
        let recorded = recorded.instrument(span);
        if is_mirrored { Box::pin(with_mirrored(recorded)) } else { Box::pin(recorded) }
    }
}

impl ServerTelemetryConfig {
    /// The context of mesh services is trusted. A client's context starts a linked trace, unless clients are trusted,
    /// and its `tracestate` and `baggage` are not forwarded. A call of a mesh service without a context is not
    /// traced (the relay of trace events). A mirrored call has no event.
    fn open(&self, request: &Request, call: &Call, is_mirrored: bool) -> Operation {
        let operation = self.opened(request, call, is_mirrored);
        if is_mirrored {
            operation.set_on_span(MIRRORED, true);
        }
        operation
    }

    fn opened(&self, request: &Request, call: &Call, is_mirrored: bool) -> Operation {
        let headers = request.headers();
        let name = method_name(call.policy);
        let event = call.policy.and_then(|policy| policy.event).filter(|_| !is_mirrored);
        if !self.propagation.trace_context {
            return Operation::open(Kind::Server, name, Parent::Root, event, self.events.clone());
        }
        let remote = headers.get(TRACEPARENT).and_then(|value| {
            let traceparent = value.to_str().ok().and_then(|text| text.parse::<TraceParent>().ok());
            if traceparent.is_none() {
                self.rejections.count(Cause::Traceparent);
            }
            traceparent
        });
        let from_service = call.known_service().is_some();
        let parent = match remote {
            None if from_service => return non_recording(name, event.zip(self.events.clone())),
            None => Parent::Root,
            Some(traceparent) if from_service || self.trust_client_trace_context => Parent::Remote(traceparent),
            Some(traceparent) => Parent::LinkedRoot(traceparent),
        };
        let Parent::Remote(traceparent) = parent else {
            return Operation::open(Kind::Server, name, parent, event, self.events.clone());
        };
        // Both are rare: without them, the operation is opened under its remote parent directly.
        let tracestate = list(headers, TRACESTATE);
        let baggage = if self.propagation.baggage { list(headers, BAGGAGE) } else { None };
        if tracestate.is_none() && baggage.is_none() {
            return Operation::open(Kind::Server, name, parent, event, self.events.clone());
        }
        let (tracestate, baggage) = (tracestate.as_deref(), baggage.as_deref());
        let _current = RemoteContext { parent: traceparent, tracestate, baggage }.attach();
        Operation::open(Kind::Server, name, Parent::Current, event, self.events.clone())
    }
}

fn previous_attempts(headers: &HeaderMap) -> u32 {
    headers.get(PREVIOUS_ATTEMPTS).and_then(|count| count.to_str().ok()?.parse().ok()).unwrap_or_default()
}

/// The value of a list header: several headers are joined with commas.
fn list(headers: &HeaderMap, name: HeaderName) -> Option<Cow<'_, str>> {
    let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let first = Cow::Borrowed(values.next()?);
    Some(values.fold(first, |all, value| Cow::Owned(format!("{all},{value}"))))
}
