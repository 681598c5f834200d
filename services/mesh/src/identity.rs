//! The identity layer: who calls, and may he? Metadata that only the mesh may set goes no further.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName};
use telemetry::Operation;
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::caller::Caller;
use crate::gatekeeper::Gatekeeper;
use crate::record::NoEvent;
use crate::refusals::{Cause, Refusals};
use crate::wire::{Answer, RESERVED_PREFIX, Request, Response, is_infrastructure, respond};

#[derive(Clone)]
pub(crate) struct Identity<S> {
    inner: S,
    gatekeeper: Gatekeeper,
    refusals: Arc<Refusals>,
}

pub(crate) fn identity<S>(
    gatekeeper: Gatekeeper,
    refusals: Arc<Refusals>,
) -> impl Layer<S, Service = Identity<S>> + Clone {
    layer_fn(move |inner| Identity { inner, gatekeeper: gatekeeper.clone(), refusals: refusals.clone() })
}

impl<S> Service<Request> for Identity<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        // The instance that was made ready serves; its clone waits for the next call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        if is_infrastructure(request.uri().path()) {
            strip(request.headers_mut());
            return Box::pin(inner.call(request));
        }
        let (gatekeeper, refusals) = (self.gatekeeper.clone(), self.refusals.clone());
        Box::pin(async move {
            // The body is not Sync: only the head is held over the wait.
            let (mut head, body) = request.into_parts();
            match gatekeeper.admit(head.uri.path(), &head.headers, &head.extensions).await {
                Ok(caller) => {
                    strip(&mut head.headers);
                    if let Some(operation) = head.extensions.get::<Operation>() {
                        operation.admit();
                        tell(operation, &caller);
                    }
                    head.extensions.insert(caller);
                    inner.call(Request::from_parts(head, body)).await
                }
                Err(refusal) => {
                    refusals.count(Cause::Identity);
                    let mut response = respond(refusal);
                    response.extensions_mut().insert(NoEvent);
                    Ok(response)
                }
            }
        })
    }
}

fn tell(operation: &Operation, caller: &Caller) {
    match caller {
        Caller::Anonymous => {}
        Caller::Person { user_id, .. } => operation.set_user(*user_id),
        Caller::Service { name } => operation.set_on_span("ordermesh.caller", name.clone()),
    }
}

fn strip(headers: &mut HeaderMap) {
    let reserved: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(RESERVED_PREFIX)).cloned().collect();
    for name in reserved {
        headers.remove(name);
    }
}
