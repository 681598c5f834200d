//! Charges the frames of a response, until their bytes are dropped.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::body::ending::trailers;
use crate::body::{NextFrame, poll_frame};
use crate::server::layers::memory::budget::{Account, Held, out_of_memory};
use crate::server::rejections::{Cause, Rejections};

/// The buffer that a response is encoded into grows by doubling, and is kept whole until its last byte is sent.
pub(crate) const RESPONSE_COST_FACTOR: usize = 2;

/// Charges the frames of a response.
pub(crate) struct Charge {
    /// `None` after the end of the response.
    account: Option<Arc<Account>>,
    rejections: Arc<Rejections>,
}

impl Charge {
    pub(crate) fn new(account: Arc<Account>, rejections: Arc<Rejections>) -> Self {
        Self { account: Some(account), rejections }
    }

    /// A stream, whose frames are charged as they are sent.
    pub(crate) fn stream(self, inner: Body) -> Body {
        Body::new(ChargedBody { first: None, inner, charge: self })
    }

    /// A unary response whose first frame is encoded already; an error when it does not fit.
    pub(crate) fn unary(mut self, first: NextFrame, inner: Body) -> Result<Body, Status> {
        let first = self.frame(first)?;
        Ok(Body::new(ChargedBody { first: Some(first), inner, charge: self }))
    }

    /// A unary response's first frame: it is encoded when it is polled.
    pub(crate) async fn encoded(&self, inner: &mut Body) -> NextFrame {
        // The handler has completed.
        if let Some(account) = &self.account {
            account.give_back_request();
        }
        std::future::poll_fn(|cx| poll_frame(inner, cx)).await
    }

    /// The same frame, which holds its memory until its bytes are dropped.
    fn frame(&mut self, frame: NextFrame) -> Result<NextFrame, Status> {
        let Some(Ok(frame)) = frame else {
            self.account = None;
            return Ok(frame);
        };
        match (frame.into_data(), &self.account) {
            (Ok(data), Some(account)) => {
                let held = account.take(data.len().saturating_mul(RESPONSE_COST_FACTOR)).map_err(|full| {
                    self.rejections.count(Cause::Memory);
                    out_of_memory(full)
                })?;
                Ok(Some(Ok(Frame::data(Bytes::from_owner(Charged { data, _held: held })))))
            }
            (Ok(data), None) => Ok(Some(Ok(Frame::data(data)))),
            (Err(trailers), _) => {
                // They are the end, and the caller may send its next call before the body is dropped.
                self.account = None;
                Ok(Some(Ok(trailers)))
            }
        }
    }
}

struct Charged {
    data: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

struct ChargedBody {
    /// Already encoded.
    first: Option<NextFrame>,
    inner: Body,
    charge: Charge,
}

impl http_body::Body for ChargedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<NextFrame> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(first);
        }
        let frame = ready!(poll_frame(&mut this.inner, cx));
        Poll::Ready(this.charge.frame(frame).unwrap_or_else(|rejection| {
            // A stream that has begun: it ends with the error in its trailers.
            this.inner = Body::empty();
            trailers(&rejection)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.first.is_none() { self.inner.size_hint() } else { SizeHint::default() }
    }
}
