//! The identity layer: authenticates and authorizes the caller, and strips metadata that only the mesh may set.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use telemetry::Operation;
use tonic::Status;

use crate::call::Call;
use crate::call::wire::{ATTRIBUTE_HEADERS, RESERVED_PREFIX, Request, Response, ServerFuture};
use crate::identity::authorizer::Authorizer;
use crate::identity::caller::Caller;
use crate::server::call_state::update;
use crate::server::layer::{Next, ServerLayer, TowerLayer, layer, ready, rejected};
use crate::server::limits::caller_key::CallerKey;
use crate::server::limits::usage::Peer;
use crate::server::rejections::{Cause, Rejections};

pub(crate) struct Auth {
    authorizer: Authorizer,
    rejections: Arc<Rejections>,
}

pub(crate) fn auth(authorizer: Authorizer, rejections: Arc<Rejections>) -> TowerLayer<Auth> {
    layer(Auth { authorizer, rejections })
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
                Ok(caller) => next.call(authorized(request, caller)),
                Err(status) => ready(self.reject(status)),
            };
        }
        let (mut next, this) = (next.take(), self.clone());
        Box::pin(async move {
            // The body is not Sync: only the head is held across the await.
            let (head, body) = request.into_parts();
            match this.authorizer.authorize(Call::in_extensions(&head.extensions), &head.headers).await {
                Ok(caller) => next.call(authorized(Request::from_parts(head, body), caller)).await,
                Err(status) => Ok(this.reject(status)),
            }
        })
    }
}

impl Auth {
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

/// Records what a mesh service's call concerns.
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
