//! An incoming HTTP/2 body. h2 locks the whole connection to determine whether a stream has ended, and each layer checks
//! that several times. So it is read from h2 once, when the body begins; after that the last frame marks the end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use crate::server::call_state::update;

struct IncomingBody<F> {
    /// `Some` until drop.
    inner: Option<Incoming>,
    is_at_end: bool,
    is_request: bool,
    lost: F,
}

/// A response's body as tonic's; `lost` maps an error to a status.
pub(crate) fn incoming<F>(inner: Incoming, lost: F) -> Body
where
    F: Fn(&hyper::Error) -> Status + Send + Unpin + 'static,
{
    let is_at_end = inner.is_end_stream();
    Body::new(IncomingBody { inner: Some(inner), is_at_end, is_request: false, lost })
}

/// A request's body. Its unread rest is left to the call's state.
pub(crate) fn incoming_request(inner: Incoming) -> Body {
    let lost = |_: &hyper::Error| {
        // Or the connection is closed, and it does not matter.
        update(|state| state.was_reset = true);
        Status::cancelled("the caller has cancelled or disconnected")
    };
    let is_at_end = inner.is_end_stream();
    Body::new(IncomingBody { inner: Some(inner), is_at_end, is_request: true, lost })
}

impl<F> Drop for IncomingBody<F> {
    fn drop(&mut self) {
        if self.is_request && !self.is_at_end {
            let rest = self.inner.take();
            update(|state| state.rest = rest);
        }
    }
}

impl<F> http_body::Body for IncomingBody<F>
where
    F: Fn(&hyper::Error) -> Status + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        this.is_at_end = !matches!(&frame, Some(Ok(frame)) if frame.is_data());
        Poll::Ready(frame.map(|frame| frame.map_err(|error| (this.lost)(&error))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_at_end
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(SizeHint::default, Incoming::size_hint)
    }
}
