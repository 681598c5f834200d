//! Keeps a request's bytes for retries. Only a body that is complete when it is polled is kept (that of a unary call),
//! and only up to a limit; a longer or incomplete one is sent once, as it arrives.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use smallvec::SmallVec;
use tonic::Status;
use tonic::body::Body;

/// The longest request that is kept.
pub(crate) const KEPT_BYTES: usize = 64 * 1_024;

/// A unary request is one frame.
type Frames = SmallVec<[Result<Frame<Bytes>, Status>; 1]>;

/// A request's body, ready to be sent.
pub(crate) enum Replay {
    /// Complete: may be sent any number of times.
    Kept(Bytes),
    /// May be sent once.
    Once(Body),
}

impl Replay {
    /// Reads the available part of a body; does not wait for the rest.
    pub(crate) fn of(mut body: Body) -> Self {
        let mut frames = Frames::new();
        let mut bytes = 0;
        // Nothing waits here: the sender of the rest polls it with its own waker.
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            match Pin::new(&mut body).poll_frame(cx) {
                Poll::Ready(None) => return Self::Kept(joined(frames)),
                Poll::Ready(Some(frame)) => {
                    let data = frame.as_ref().ok().and_then(Frame::data_ref).map(Bytes::len);
                    bytes += data.unwrap_or(0);
                    frames.push(frame);
                    // A unary request has neither trailers nor errors.
                    if data.is_none() || bytes > KEPT_BYTES {
                        break;
                    }
                }
                Poll::Pending => break,
            }
        }
        Self::Once(Body::new(Begun { frames: frames.into_iter(), rest: body }))
    }
}

fn joined(frames: Frames) -> Bytes {
    let mut data = frames.into_iter().filter_map(|frame| frame.ok()?.into_data().ok());
    let Some(first) = data.next() else { return Bytes::new() };
    let Some(second) = data.next() else { return first };
    let mut all = BytesMut::from(first);
    std::iter::once(second).chain(data).for_each(|more| all.extend_from_slice(&more));
    all.freeze()
}

/// A body of kept bytes.
pub(crate) fn body_of(bytes: Bytes) -> Body {
    if bytes.is_empty() { Body::empty() } else { Body::new(Whole(Some(bytes))) }
}

/// Has no size hint, like gRPC's bodies: no content-length is sent.
struct Whole(Option<Bytes>);

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.get_mut().0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// A body whose first frames were already read.
struct Begun {
    frames: smallvec::IntoIter<[Result<Frame<Bytes>, Status>; 1]>,
    rest: Body,
}

impl http_body::Body for Begun {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        match this.frames.next() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut this.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.len() == 0 && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests;
