//! Bodies that wrap others. Most of them do something with each frame that passes: these are [`Frames`] in one generic
//! body.

pub(crate) mod ending;
pub(crate) mod holding;
pub(crate) mod incoming;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// A body's next frame; `None` at its end.
pub(crate) type NextFrame = Option<Result<Frame<Bytes>, Status>>;

/// What is done with the frames of a body.
pub(crate) trait Frames: Send + Unpin + 'static {
    /// The next frame of the wrapping body. To end it, replace the inner one by an empty one.
    fn poll_next(&mut self, inner: &mut Body, cx: &mut Context<'_>) -> Poll<NextFrame>;
}

/// Wraps a body.
pub(crate) fn wrap(inner: Body, frames: impl Frames) -> Body {
    Body::new(Wrapped { inner, frames })
}

/// The next frame of a body that is not pinned.
pub(crate) fn poll_frame(body: &mut Body, cx: &mut Context<'_>) -> Poll<NextFrame> {
    Pin::new(body).poll_frame(cx)
}

struct Wrapped<F> {
    inner: Body,
    frames: F,
}

impl<F: Frames> http_body::Body for Wrapped<F> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<NextFrame> {
        let Self { inner, frames } = self.get_mut();
        frames.poll_next(inner, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
