//! A body that ends early: at its call's deadline, at the drain, on eviction.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::HeaderMap;
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;

use crate::body::{Frames, NextFrame, poll_frame, wrap};
use crate::call::deadline::exceeded;
use crate::call::wire::Side;

/// Ends a body with the status of `end`: a server's stream by its trailers, a client's by an error. `end` is polled only
/// while the body is pending.
pub(crate) fn end_when<E>(inner: Body, side: Side, end: E) -> Body
where
    E: Future<Output = Status> + Send + Unpin + 'static,
{
    wrap(inner, Ending { side, end })
}

/// Ends a body at its call's deadline.
pub(crate) fn end_at(inner: Body, side: Side, deadline: Instant) -> Body {
    end_when(inner, side, AtDeadline { deadline, timer: None })
}

/// Trailers with a status; fails only for a message that is not a header value.
pub(crate) fn trailers(status: &Status) -> NextFrame {
    let mut trailers = HeaderMap::new();
    Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)))
}

struct Ending<E> {
    side: Side,
    end: E,
}

impl<E: Future<Output = Status> + Send + Unpin + 'static> Frames for Ending<E> {
    fn poll_next(&mut self, inner: &mut Body, cx: &mut Context<'_>) -> Poll<NextFrame> {
        if let Poll::Ready(frame) = poll_frame(inner, cx) {
            return Poll::Ready(frame);
        }
        let Poll::Ready(status) = Pin::new(&mut self.end).poll(cx) else { return Poll::Pending };
        *inner = Body::empty();
        Poll::Ready(match self.side {
            Side::Client => Some(Err(status)),
            Side::Server => trailers(&status),
        })
    }
}

struct AtDeadline {
    deadline: Instant,
    /// Created when the body is first pending: most bodies are complete already.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Future for AtDeadline {
    type Output = Status;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Status> {
        let Self { deadline, timer } = self.get_mut();
        timer.get_or_insert_with(|| Box::pin(sleep_until(*deadline))).as_mut().poll(cx).map(|()| exceeded())
    }
}
