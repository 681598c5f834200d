//! Answers INTERNAL when a handler panics; the process continues. Not tower-http's `CatchPanic`, which puts every
//! response's body into two more boxes.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::FutureExt;
use tonic::Code;

use crate::call::wire::{Request, Response, ServerFuture, respond};
use crate::server::layer::{Next, ServerLayer, TowerLayer, layer};
use crate::status::mesh_status;

pub(crate) struct CatchPanic;

pub(crate) fn catch_panic() -> TowerLayer<CatchPanic> {
    layer(CatchPanic)
}

impl ServerLayer for CatchPanic {
    fn call<N: Next>(self: &Arc<Self>, request: Request, next: &mut N) -> ServerFuture {
        // The inner services hold only counts and permits, which drops restore: they can be used after a panic.
        let work = catch_unwind(AssertUnwindSafe(|| next.call(request)));
        Box::pin(async move {
            let result = match work {
                Ok(work) => AssertUnwindSafe(work).catch_unwind().await,
                Err(payload) => Err(payload),
            };
            result.unwrap_or_else(|payload| Ok(internal(&*payload)))
        })
    }
}

/// The panic's message is logged, and not sent.
fn internal(payload: &(dyn Any + Send)) -> Response {
    let message = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&'static str>().copied())
        .unwrap_or("nothing");
    tracing::error!(target: "ordermesh", reason = "PANIC", "a handler panicked: {message}");
    respond(mesh_status(Code::Internal, "PANIC", "internal error"))
}

#[cfg(test)]
mod tests;
