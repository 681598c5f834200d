//! The identity layer: authenticates and authorizes the caller, and strips metadata that only the mesh may set.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use parking_lot::Mutex;
use telemetry::{LogLimit, Operation};
use tokio::time::Instant;
use tonic::Status;

use crate::call::Call;
use crate::call::inbound_headers::with_headers;
use crate::call::metrics::RPC_METHOD;
use crate::call::wire::{ATTRIBUTE_HEADERS, RESERVED_PREFIX, Request, Response, ServerFuture};
use crate::identity::authorizer::Authorizer;
use crate::identity::caller::{Caller, Role};
use crate::monitor::observed::TapDetails;
use crate::server::call_state::update;
use crate::server::layer::{Next, ServerLayer, TowerLayer, layer, ready, rejected};
use crate::server::limits::caller_key::CallerKey;
use crate::server::limits::usage::Peer;
use crate::server::rejections::{Cause, Rejections};
use crate::traffic::TrafficPolicy;

/// A log limit for each method and caller: a frequent one does not hide another.
#[derive(Default)]
struct DenialLogLimits(Mutex<HashMap<(&'static str, String), LogLimit>>);

/// Further callers are not logged; they are counted.
const MAX_LOGGED: usize = 256;

impl DenialLogLimits {
    fn count(&self, method: &'static str, caller: &str) -> Option<u64> {
        let mut limits = self.0.lock();
        let key = (method, caller.to_owned());
        if limits.len() >= MAX_LOGGED && !limits.contains_key(&key) {
            return None;
        }
        limits.entry(key).or_default().count(Instant::now())
    }
}

pub(crate) struct Auth {
    authorizer: Authorizer,
    traffic: TrafficPolicy,
    /// Calls that the traffic policy's audited callers would deny.
    audited: Counter<u64>,
    denial_log_limits: DenialLogLimits,
    rejections: Arc<Rejections>,
}

pub(crate) fn auth(authorizer: Authorizer, traffic: TrafficPolicy, rejections: Arc<Rejections>) -> TowerLayer<Auth> {
    let meter = global::meter("mesh");
    let audited = meter.u64_counter("mesh.server.audit.denials");
    let audited = audited.with_description("Calls that the traffic policy's audited callers would not admit").build();
    layer(Auth { authorizer, traffic, audited, denial_log_limits: DenialLogLimits::default(), rejections })
}

impl ServerLayer for Auth {
    fn call<N: Next>(self: &Arc<Self>, request: Request, next: &mut N) -> ServerFuture {
        let call = Call::of(&request);
        if call.class.is_infrastructure() {
            let caller = call.known_service().map(|name| Caller::Service { name: name.to_owned() });
            return next.call(authorized(request, caller.unwrap_or(Caller::Anonymous)));
        }
        if let Some(verdict) = self.authorizer.authorize_now(call, request.headers()) {
            return match verdict {
                Ok(caller) => next.call(self.admit(request, caller)),
                Err(status) => ready(self.reject(status)),
            };
        }
        let (mut next, this) = (next.take(), self.clone());
        Box::pin(async move {
            // The body is not Sync: only the head is held across the await.
            let (head, body) = request.into_parts();
            match this.authorizer.authorize(Call::in_extensions(&head.extensions), &head.headers).await {
                Ok(caller) => {
                    let request = Request::from_parts(head, body);
                    let headers = this.operator_headers(&request, &caller);
                    let work = next.call(this.admit(request, caller));
                    match headers {
                        Some(headers) => with_headers(headers, work).await,
                        None => work.await,
                    }
                }
                Err(status) => Ok(this.reject(status)),
            }
        })
    }
}

impl Auth {
    fn admit(&self, request: Request, caller: Caller) -> Request {
        self.audit(&request, &caller);
        authorized(request, caller)
    }

    /// Counts a call that a stricter list of callers would deny. It is served.
    fn audit(&self, request: &Request, caller: &Caller) {
        let Some(policy) = Call::of(request).policy else { return };
        let Some(rule) = self.traffic.rule(policy) else { return };
        let Some(admitted) = &rule.audited_callers else { return };
        let name = match caller {
            Caller::Anonymous => "anonymous",
            Caller::User { role: Role::Customer, .. } => "customer",
            Caller::User { role: Role::Operator, .. } => "operator",
            Caller::Service { name } => name,
        };
        if admitted.iter().any(|admitted| admitted == name) {
            return;
        }
        let attributes = [KeyValue::new(RPC_METHOD, policy.name()), KeyValue::new("caller", name.to_owned())];
        self.audited.add(1, &attributes);
        if let Some(details) = request.extensions().get::<Arc<TapDetails>>() {
            details.set_would_be_denied();
        }
        if let Some(occurrences) = self.denial_log_limits.count(policy.name(), name) {
            let method = policy.name();
            tracing::warn!(target: "ordermesh", method, caller = name, occurrences, "a stricter list of callers would deny calls");
        }
    }

    /// The headers of an operator's call, if a rule of the traffic policy matches some. Never a credential.
    fn operator_headers(&self, request: &Request, caller: &Caller) -> Option<HeaderMap> {
        let is_operator = matches!(caller, Caller::User { role: Role::Operator, .. });
        if !is_operator || !self.traffic.has_header_rules() {
            return None;
        }
        let mut headers = request.headers().clone();
        headers.remove(header::AUTHORIZATION);
        headers.remove(header::COOKIE);
        strip(&mut headers);
        Some(headers)
    }

    fn reject(&self, status: Status) -> Response {
        self.rejections.count(Cause::Identity);
        rejected(status)
    }
}

/// The request, with its caller in the extensions and for the limits.
fn authorized(mut request: Request, caller: Caller) -> Request {
    if let Some(peer) = request.extensions_mut().get_mut::<Peer>() {
        match &caller {
            Caller::User { user_id, .. } => peer.set_user(*user_id),
            Caller::Service { .. } => peer.set_mesh_service(),
            Caller::Anonymous => {}
        }
    }
    // Users share the connections of a proxy; a mesh service has its own.
    match &caller {
        Caller::User { user_id, .. } => update(|state| state.caller = Some(CallerKey::User(*user_id))),
        Caller::Service { .. } => update(|state| state.is_mesh_service = true),
        Caller::Anonymous => {}
    }
    if let Some(operation) = request.extensions().get::<Operation>() {
        record_caller(operation, &caller, request.headers());
    }
    strip(request.headers_mut());
    request.extensions_mut().insert(caller);
    request
}

fn record_caller(operation: &Operation, caller: &Caller, headers: &HeaderMap) {
    match caller {
        Caller::Anonymous => {}
        Caller::User { user_id, .. } => operation.set_user(*user_id),
        Caller::Service { name } => {
            operation.set_on_span("ordermesh.caller", name.clone());
            record_attributes(operation, headers);
        }
    }
}

/// Records the order id and the user id that a mesh service has sent.
fn record_attributes(operation: &Operation, headers: &HeaderMap) {
    for (attribute, header) in &*ATTRIBUTE_HEADERS {
        if let Some(value) = headers.get(header).and_then(|value| value.to_str().ok()) {
            operation.set(attribute, value);
        }
    }
}

fn strip(headers: &mut HeaderMap) {
    let reserved: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(RESERVED_PREFIX)).cloned().collect();
    for name in reserved {
        headers.remove(name);
    }
}
