//! A response that holds a resource (a permit, memory) until its body has ended, failed, or been dropped.

use std::task::{Context, Poll, ready};

use http_body::Body as _;
use tonic::body::Body;

use crate::body::{Frames, NextFrame, poll_frame, wrap};
use crate::call::wire::Response;

/// Holds nothing for a body that has already ended: the resource is released immediately.
pub(crate) fn hold<T: Send + Unpin + 'static>(response: Response, resource: T) -> Response {
    hold_until(response, Holding { resource: Some(resource), until_encoded: false })
}

/// The same, until the response's only message is encoded, which its body does when its first frame is polled.
pub(crate) fn hold_until_encoded<T: Send + Unpin + 'static>(response: Response, resource: T) -> Response {
    hold_until(response, Holding { resource: Some(resource), until_encoded: true })
}

fn hold_until<T: Send + Unpin + 'static>(response: Response, holding: Holding<T>) -> Response {
    if response.body().is_end_stream() { response } else { response.map(|inner| wrap(inner, holding)) }
}

struct Holding<T> {
    resource: Option<T>,
    until_encoded: bool,
}

impl<T: Send + Unpin + 'static> Frames for Holding<T> {
    fn poll_next(&mut self, inner: &mut Body, cx: &mut Context<'_>) -> Poll<NextFrame> {
        let frame = ready!(poll_frame(inner, cx));
        // The trailers are the end, and the caller may send its next call before the body is dropped.
        if self.until_encoded || !matches!(&frame, Some(Ok(frame)) if frame.is_data()) {
            self.resource = None;
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests;
