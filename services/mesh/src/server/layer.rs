//! A layer of the server's stack: what it does with a request. One generic service makes a tower layer of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::Status;
use tower::Service;

use crate::call::record::NoEvent;
use crate::call::wire::{Request, Response, ServerFuture, ServerResult, respond};

/// What one layer does.
pub(crate) trait ServerLayer: Send + Sync + 'static {
    /// Responds itself, or passes the request on.
    fn call<N: Next>(self: &Arc<Self>, request: Request, next: &mut N) -> ServerFuture;
}

/// The rest of the stack. Always ready: a layer rejects instead of applying backpressure.
pub(crate) trait Next:
    Service<Request, Response = Response, Error = Infallible, Future = ServerFuture> + Clone + Send + 'static
{
    /// Takes the service that `poll_ready` has readied, to call it in a future; a clone replaces it for the next call
    /// (see "Be careful when cloning inner services" in the documentation of tower's `Service`).
    fn take(&mut self) -> Self {
        let clone = self.clone();
        std::mem::replace(self, clone)
    }
}

impl<S> Next for S where
    S: Service<Request, Response = Response, Error = Infallible, Future = ServerFuture> + Clone + Send + 'static
{
}

/// The tower layer.
pub(crate) fn layer<L: ServerLayer>(layer: L) -> TowerLayer<L> {
    TowerLayer(Arc::new(layer))
}

pub(crate) struct TowerLayer<L>(Arc<L>);

impl<L> Clone for TowerLayer<L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<L, S> tower::Layer<S> for TowerLayer<L> {
    type Service = Layered<L, S>;

    fn layer(&self, inner: S) -> Layered<L, S> {
        Layered { layer: self.0.clone(), inner }
    }
}

/// A layer around the rest of the stack.
pub(crate) struct Layered<L, S> {
    layer: Arc<L>,
    inner: S,
}

impl<L, S: Clone> Clone for Layered<L, S> {
    fn clone(&self) -> Self {
        Self { layer: self.layer.clone(), inner: self.inner.clone() }
    }
}

impl<L: ServerLayer, S: Next> Service<Request> for Layered<L, S> {
    type Response = Response;
    type Error = Infallible;
    type Future = ServerFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> ServerFuture {
        self.layer.call(request, &mut self.inner)
    }
}

/// The innermost service, with its future in a box like those of the layers.
#[derive(Clone)]
pub(crate) struct Boxed<S>(pub(crate) S);

impl<S> Service<Request> for Boxed<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = ServerFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> ServerFuture {
        Box::pin(self.0.call(request))
    }
}

/// The response to a call that is rejected before it reaches the service: a metric and a span, no event.
pub(crate) fn rejected(status: Status) -> Response {
    let mut response = respond(status);
    response.extensions_mut().insert(NoEvent);
    response
}

/// The future of a response that exists.
pub(crate) fn ready(response: Response) -> ServerFuture {
    let result: ServerResult = Ok(response);
    Box::pin(std::future::ready(result))
}

#[cfg(test)]
pub(crate) mod testing;
