//! Buffers a unary request: it is served once its only message is complete, so a slow sender holds nothing but the
//! memory that its bytes are charged to.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::call::wire::Request;
use crate::monitor::observed::TapDetails;
use crate::status::mesh_status;

/// For a whole message; those from outside are short. Less than the methods' deadlines, which are for their handlers.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(3);

/// Frames joined to one piece: a single one as it is; several are copied, because a frame of one byte can keep many
/// alive.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    only: Bytes,
    several: BytesMut,
}

impl Pieces {
    pub(crate) fn push(&mut self, frame: Bytes) {
        if self.only.is_empty() && self.several.is_empty() {
            self.only = frame;
            return;
        }
        self.several.extend_from_slice(&std::mem::take(&mut self.only));
        self.several.extend_from_slice(&frame);
    }

    pub(crate) fn take(&mut self) -> Bytes {
        if self.several.is_empty() {
            std::mem::take(&mut self.only)
        } else {
            std::mem::take(&mut self.several).freeze()
        }
    }
}

/// Why a request is not complete.
pub(crate) enum BufferError {
    /// It is rejected, or its caller has cancelled it.
    Broken(Status),
    TooSlow(Status),
}

pub(crate) type Buffered = Result<Request, BufferError>;

/// Reads a request's body.
pub(crate) fn buffer(request: Request) -> Buffering {
    let (head, body) = request.into_parts();
    Buffering { head: Some(head), body, read: Pieces::default(), bytes: 0 }
}

/// Ready when the request is complete.
pub(crate) struct Buffering {
    /// `None` once it is ready.
    head: Option<http::request::Parts>,
    body: Body,
    read: Pieces,
    bytes: usize,
}

impl Buffering {
    /// Reads with the timeout of a message.
    pub(crate) async fn in_time(self) -> Buffered {
        timeout(MESSAGE_TIMEOUT, self).await.unwrap_or_else(|_elapsed| {
            let message = format!("the request was not complete after {} s", MESSAGE_TIMEOUT.as_secs());
            Err(BufferError::TooSlow(mesh_status(Code::DeadlineExceeded, "REQUEST_TOO_SLOW", message)))
        })
    }

    fn message(&mut self) -> Body {
        let message = self.read.take();
        if message.is_empty() {
            return Body::empty();
        }
        Body::new(Full::new(message).map_err(|never| match never {}))
    }
}

impl Future for Buffering {
    type Output = Buffered;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Buffered> {
        let this = self.get_mut();
        while !this.body.is_end_stream() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    this.bytes += data.len();
                    this.read.push(data);
                }
                Some(Err(status)) => return Poll::Ready(Err(BufferError::Broken(status))),
                None => break,
            }
        }
        let message = this.message();
        Poll::Ready(match this.head.take() {
            Some(head) => {
                if let Some(details) = head.extensions.get::<Arc<TapDetails>>() {
                    details.set_request_bytes(this.bytes);
                }
                Ok(Request::from_parts(head, message))
            }
            None => Err(BufferError::Broken(Status::internal("the request was read already"))),
        })
    }
}

#[cfg(test)]
mod tests;
