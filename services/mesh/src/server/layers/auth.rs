//! The identity layer: authenticates and authorizes the caller, and strips metadata that only the mesh may set.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use telemetry::Operation;
use tonic::Status;
use tower::layer::layer_fn;
use tower::{Layer, Service};
use uuid::Uuid;

use crate::call::record::NoEvent;
use crate::call::{
    ORDER_HEADER, RESERVED_PREFIX, Request, Response, ServerResult, USER_HEADER, is_infrastructure, respond,
};
use crate::identity::authorizer::Gatekeeper;
use crate::identity::caller::Caller;
use crate::server::edge::note;
use crate::server::layers::rate_limit::Key;
use crate::server::rejections::{Cause, Rejections};

#[derive(Clone)]
pub(crate) struct Identity<S> {
    inner: S,
    shared: Arc<Shared>,
}

struct Shared {
    gatekeeper: Gatekeeper,
    rejections: Arc<Rejections>,
}

pub(crate) fn identity<S>(
    gatekeeper: Gatekeeper,
    rejections: Arc<Rejections>,
) -> impl Layer<S, Service = Identity<S>> + Clone {
    let shared = Arc::new(Shared { gatekeeper, rejections });
    layer_fn(move |inner| Identity { inner, shared: shared.clone() })
}

impl<S> Service<Request> for Identity<S>
where
    S: Service<Request, Response = Response, Error = Infallible, Future = BoxFuture<'static, ServerResult>>,
    S: Clone + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, ServerResult>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        if is_infrastructure(request.uri().path()) {
            if let Some(service) = self.shared.gatekeeper.known_service(request.headers(), request.extensions()) {
                note(|edge| edge.is_platform = true);
                request.extensions_mut().insert(service);
            }
            strip(request.headers_mut());
            return self.inner.call(request);
        }
        let (path, headers, connection) = (request.uri().path(), request.headers(), request.extensions());
        if let Some(verdict) = self.shared.gatekeeper.authorize_now(path, headers, connection) {
            return match verdict {
                Ok(caller) => self.inner.call(admitted(request, caller)),
                Err(rejection) => Box::pin(std::future::ready(Ok(self.shared.reject(rejection)))),
            };
        }
        // The instance that is ready serves; its clone is for the next call.
        let clone = self.inner.clone();
        let (mut inner, shared) = (std::mem::replace(&mut self.inner, clone), self.shared.clone());
        Box::pin(async move {
            // The body is not Sync: only the head is held across the await.
            let (head, body) = request.into_parts();
            match shared.gatekeeper.admit(head.uri.path(), &head.headers, &head.extensions).await {
                Ok(caller) => inner.call(admitted(Request::from_parts(head, body), caller)).await,
                Err(rejection) => Ok(shared.reject(rejection)),
            }
        })
    }
}

impl Shared {
    fn reject(&self, rejection: Status) -> Response {
        self.rejections.count(Cause::Identity);
        let mut response = respond(rejection);
        response.extensions_mut().insert(NoEvent);
        response
    }
}

fn admitted(mut request: Request, caller: Caller) -> Request {
    // Users share connections, behind a gateway; a mesh service has its own.
    match &caller {
        Caller::User { user_id, .. } => note(|edge| edge.caller = Some(Key::User(*user_id))),
        Caller::Service { .. } => note(|edge| edge.is_platform = true),
        Caller::Anonymous => {}
    }
    if let Some(operation) = request.extensions().get::<Operation>() {
        record_caller(operation, &caller);
        if matches!(caller, Caller::Service { .. }) {
            record_attributes(operation, request.headers());
        }
    }
    strip(request.headers_mut());
    request.extensions_mut().insert(caller);
    request
}

fn record_caller(operation: &Operation, caller: &Caller) {
    match caller {
        Caller::Anonymous => {}
        Caller::User { user_id, .. } => operation.set_user(*user_id),
        Caller::Service { name } => operation.set_on_span("ordermesh.caller", name.clone()),
    }
}

/// Records the order and user that a mesh service's call concerns.
fn record_attributes(operation: &Operation, headers: &HeaderMap) {
    let id = |name| headers.get(name).and_then(|value: &HeaderValue| Uuid::try_parse_ascii(value.as_bytes()).ok());
    if let Some(order) = id(ORDER_HEADER) {
        operation.set_order(order);
    }
    if let Some(user) = id(USER_HEADER) {
        operation.set_user(user);
    }
}

fn strip(headers: &mut HeaderMap) {
    let reserved: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(RESERVED_PREFIX)).cloned().collect();
    for name in reserved {
        headers.remove(name);
    }
}
