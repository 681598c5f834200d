//! Error details: no status leaves without ErrorInfo, and no layer's error leaves as anything but a status. tonic's own
//! errors (unknown method, malformed message, too large) have no details.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tower::{BoxError, Layer, Service};

use crate::call::{Request, Response, ServerResult, is_ok, respond};
use crate::status::{REQUEST_CARDINALITY, code_name, mesh_status, no_such_method, reason_of};

#[derive(Clone)]
pub(crate) struct Rescue<S> {
    inner: S,
}

pub(crate) fn rescue<S>() -> impl Layer<S, Service = Rescue<S>> + Clone {
    layer_fn(|inner| Rescue { inner })
}

impl<S> Service<Request> for Rescue<S>
where
    S: Service<Request, Response = Response>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, ServerResult>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // A layer that has failed reports that when it is called.
        self.inner.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let work = self.inner.call(request);
        Box::pin(async move {
            match work.await {
                Ok(response) => Ok(amended(response)),
                Err(error) => Ok(respond(explained(Status::from_error(error.into())))),
            }
        })
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
    response.map(|inner| Body::new(RescuedBody { inner }))
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
    let _ = explained(status).add_header(headers);
}

/// tonic's messages for an unreadable request.
const UNREADABLE: [&str; 3] =
    ["failed to decode Protobuf message", "Unexpected EOF decoding stream", "protocol error:"];

/// The same error with ErrorInfo; where tonic's code blames the wrong side, with a better one.
fn explained(status: Status) -> Status {
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

struct RescuedBody {
    inner: Body,
}

impl http_body::Body for RescuedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut frame = ready!(Pin::new(&mut self.get_mut().inner).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            amend(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
