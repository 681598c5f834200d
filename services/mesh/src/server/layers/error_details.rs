//! Error details: no status leaves without ErrorInfo. tonic's own errors (unknown method, malformed message, too large)
//! have no details.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::HeaderMap;
use http_body::Body as _;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::body::{Frames, NextFrame, poll_frame, wrap};
use crate::call::wire::{Request, Response, ServerFuture, is_ok};
use crate::server::layer::{Next, ServerLayer, TowerLayer, layer};
use crate::status::{REQUEST_CARDINALITY, code_name, mesh_status, no_such_method, reason_of};

pub(crate) struct AddErrorDetails;

pub(crate) fn error_details() -> TowerLayer<AddErrorDetails> {
    layer(AddErrorDetails)
}

impl ServerLayer for AddErrorDetails {
    fn call<N: Next>(self: &Arc<Self>, request: Request, next: &mut N) -> ServerFuture {
        let work = next.call(request);
        Box::pin(async move { work.await.map(amended) })
    }
}

fn amended(mut response: Response) -> Response {
    if response.headers().contains_key(Status::GRPC_STATUS) {
        amend(response.headers_mut());
        return response;
    }
    if response.body().is_end_stream() {
        return response;
    }
    response.map(|inner| wrap(inner, AmendTrailers))
}

/// Adds ErrorInfo to headers (or trailers) whose status has none.
fn amend(headers: &mut HeaderMap) {
    if is_ok(headers) {
        return;
    }
    let Some(status) = Status::from_header_map(headers) else { return };
    if status.code() == Code::Ok || reason_of(&status).is_some() {
        return;
    }
    // Fails only for a message that is not a header value, and it came from one.
    let _ = with_error_info(status).add_header(headers);
}

/// tonic's messages for an unreadable request.
const UNREADABLE: [&str; 3] =
    ["failed to decode Protobuf message", "Unexpected EOF decoding stream", "protocol error:"];

/// The same error with ErrorInfo; where tonic's code attributes it to the wrong side, with the right code.
fn with_error_info(status: Status) -> Status {
    if reason_of(&status).is_some() {
        return status;
    }
    let (code, message) = (status.code(), status.message());
    let is = |other: Code| code == other;
    if is(Code::Unimplemented) && message.is_empty() {
        return no_such_method();
    }
    if is(Code::Internal) && message.starts_with("Missing request message") {
        // gRPC's table of status codes: "request cardinality violation".
        let message = "this method takes exactly one request message, and there was none";
        return mesh_status(Code::Unimplemented, REQUEST_CARDINALITY, message);
    }
    let (code, reason) = if is(Code::Unimplemented) && message.contains("compressed with") {
        (code, "COMPRESSION_NOT_SUPPORTED")
    } else if is(Code::OutOfRange) && message.contains("encoded message length too large") {
        (Code::Internal, "ANSWER_TOO_LARGE")
    } else if (is(Code::OutOfRange) || is(Code::ResourceExhausted)) && message.contains("message length too large") {
        (Code::ResourceExhausted, "MESSAGE_TOO_LARGE")
    } else if is(Code::Internal) && UNREADABLE.iter().any(|start| message.starts_with(start)) {
        (Code::InvalidArgument, "MALFORMED_MESSAGE")
    } else {
        (code, code_name(code))
    };
    mesh_status(code, reason, message)
}

struct AmendTrailers;

impl Frames for AmendTrailers {
    fn poll_next(&mut self, inner: &mut Body, cx: &mut Context<'_>) -> Poll<NextFrame> {
        let mut frame = ready!(poll_frame(inner, cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            amend(trailers);
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests;
