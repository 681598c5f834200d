//! What a caller gets when a handler panics: INTERNAL, and the process goes on.

use std::any::Any;

use tonic::Code;

use crate::status::mesh_status;
use crate::wire::{Response, respond};

/// The answer for tower-http's `CatchPanic`. What the panic said is logged, and not told.
pub(crate) fn answer(panic: Box<dyn Any + Send + 'static>) -> Response {
    let said = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&'static str>().copied())
        .unwrap_or("nothing");
    tracing::error!(target: "ordermesh", reason = "PANIC", "a handler panicked and said: {said}");
    respond(mesh_status(Code::Internal, "PANIC", "internal error"))
}
