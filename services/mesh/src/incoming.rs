//! A body that comes in by HTTP/2. h2 says whether its stream is at its end under the lock of the whole connection, and each
//! layer asks, several times. So it is asked once, when the body begins; after that its last frame tells.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

struct IncomingBody<F> {
    inner: Incoming,
    is_at_end: bool,
    lost: F,
}

/// As tonic's; what breaks it is told by `lost`.
pub(crate) fn incoming<F>(inner: Incoming, lost: F) -> Body
where
    F: Fn(&hyper::Error) -> Status + Send + Unpin + 'static,
{
    let is_at_end = inner.is_end_stream();
    Body::new(IncomingBody { inner, is_at_end, lost })
}

impl<F> http_body::Body for IncomingBody<F>
where
    F: Fn(&hyper::Error) -> Status + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        this.is_at_end = !matches!(&frame, Some(Ok(frame)) if frame.is_data());
        Poll::Ready(frame.map(|frame| frame.map_err(|error| (this.lost)(&error))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_at_end
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
