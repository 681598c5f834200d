//! Answers INTERNAL when a handler panics; the process continues. Not tower-http's `CatchPanic`, which puts every
//! response's body into two more boxes.

use std::any::Any;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tonic::Code;
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::call::{Request, Response, ServerResult, respond};
use crate::status::mesh_status;

#[derive(Clone)]
pub(crate) struct CatchPanic<S> {
    inner: S,
}

pub(crate) fn catch_panic<S>() -> impl Layer<S, Service = CatchPanic<S>> + Clone {
    layer_fn(|inner| CatchPanic { inner })
}

impl<S> Service<Request> for CatchPanic<S>
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

    fn call(&mut self, request: Request) -> Self::Future {
        // The inner services hold only counts and permits, which drops restore: they can be used after a panic.
        let work = catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        Box::pin(async move {
            let answer = match work {
                Ok(work) => AssertUnwindSafe(work).catch_unwind().await,
                Err(said) => Err(said),
            };
            answer.unwrap_or_else(|said| Ok(internal(&*said)))
        })
    }
}

/// The panic's message is logged, and not sent.
fn internal(said: &(dyn Any + Send)) -> Response {
    let said = said
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| said.downcast_ref::<&'static str>().copied())
        .unwrap_or("nothing");
    tracing::error!(target: "ordermesh", reason = "PANIC", "a handler panicked: {said}");
    respond(mesh_status(Code::Internal, "PANIC", "internal error"))
}

#[cfg(test)]
mod tests;
