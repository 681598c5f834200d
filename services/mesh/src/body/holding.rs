//! A response that holds a resource (a permit, memory) until its body has ended, failed, or been dropped.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::call::Response;

/// Holds nothing for a body that has already ended: the resource is released immediately.
pub(crate) fn hold<T: Send + Unpin + 'static>(response: Response, held: T) -> Response {
    if response.body().is_end_stream() {
        return response;
    }
    response.map(|inner| Body::new(HoldingBody { inner, held: Some(held), until_encoded: false }))
}

/// The same, until the response's only message is encoded, which its body does when its first frame is polled.
pub(crate) fn hold_until_encoded<T: Send + Unpin + 'static>(response: Response, held: T) -> Response {
    if response.body().is_end_stream() {
        return response;
    }
    response.map(|inner| Body::new(HoldingBody { inner, held: Some(held), until_encoded: true }))
}

struct HoldingBody<T> {
    inner: Body,
    held: Option<T>,
    until_encoded: bool,
}

impl<T: Send + Unpin + 'static> http_body::Body for HoldingBody<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        // The trailers are the end, and the caller may send its next call before the body is dropped.
        if this.until_encoded || !matches!(&frame, Some(Ok(frame)) if frame.is_data()) {
            this.held = None;
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
