//! Buffers a unary request: it is served once its only message is complete, so a slow sender holds nothing but the
//! memory that its bytes are charged to.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::status::mesh_status;
use crate::wire::Request;

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
pub(crate) enum NotWhole {
    /// It is rejected, or its caller has cancelled it.
    Broken(Status),
    TooSlow(Status),
}

pub(crate) type Whole = Result<Request, NotWhole>;

/// Reads a request's body.
pub(crate) fn whole(request: Request) -> Reading {
    let (head, body) = request.into_parts();
    Reading { head: Some(head), body, read: Pieces::default() }
}

/// Ready when the request is complete.
pub(crate) struct Reading {
    /// `None` once it is ready.
    head: Option<http::request::Parts>,
    body: Body,
    read: Pieces,
}

impl Reading {
    /// Reads with the timeout of a message.
    pub(crate) async fn in_time(self) -> Whole {
        timeout(MESSAGE_TIMEOUT, self).await.unwrap_or_else(|_elapsed| {
            let message = format!("the request was not complete after {} s", MESSAGE_TIMEOUT.as_secs());
            Err(NotWhole::TooSlow(mesh_status(Code::DeadlineExceeded, "REQUEST_TOO_SLOW", message)))
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

impl Future for Reading {
    type Output = Whole;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Whole> {
        let this = self.get_mut();
        while !this.body.is_end_stream() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => this.read.push(frame.into_data().unwrap_or_default()),
                Some(Err(status)) => return Poll::Ready(Err(NotWhole::Broken(status))),
                None => break,
            }
        }
        let message = this.message();
        Poll::Ready(match this.head.take() {
            Some(head) => Ok(Request::from_parts(head, message)),
            None => Err(NotWhole::Broken(Status::internal("the request was read already"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    fn request() -> (mpsc::UnboundedSender<Result<Frame<Bytes>, Status>>, Request) {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        (sender, Request::new(Body::new(StreamBody::new(frames))))
    }

    fn data(bytes: &'static [u8]) -> Result<Frame<Bytes>, Status> {
        Ok(Frame::data(Bytes::from_static(bytes)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_complete_however_its_frames_are_cut_and_whichever_task_polled_first() {
        let (sender, request) = request();
        let mut reading = whole(request);
        for bytes in [&b"a"[..], b"", b"bc"] {
            sender.send(data(bytes)).expect("read");
            assert!((&mut reading).now_or_never().is_none(), "more may come");
        }
        let reading = tokio::spawn(reading.in_time());
        sender.send(data(b"d")).expect("read");
        drop(sender);
        let Ok(request) = reading.await.expect("no panic") else { panic!("not complete") };
        let mut body = request.into_body();
        let only = body.frame().await.expect("a frame").expect("well-formed").into_data().expect("data");
        assert_eq!((&only[..], body.is_end_stream()), (&b"abcd"[..], true));
    }

    #[tokio::test(start_paused = true)]
    async fn reading_a_message_is_bounded_by_a_timeout() {
        let (sender, request) = request();
        sender.send(data(b"a")).expect("read");
        let began = tokio::time::Instant::now();
        let Err(NotWhole::TooSlow(status)) = whole(request).in_time().await else { panic!("complete") };
        assert_eq!((status.code(), began.elapsed()), (Code::DeadlineExceeded, MESSAGE_TIMEOUT));
    }

    #[tokio::test]
    async fn an_error_ends_it_and_an_empty_request_is_complete() {
        let (sender, broken) = request();
        sender.send(Err(Status::cancelled("gone"))).expect("read");
        assert!(
            matches!(whole(broken).in_time().await, Err(NotWhole::Broken(status)) if status.code() == Code::Cancelled)
        );
        let Ok(empty) = whole(Request::new(Body::empty())).in_time().await else { panic!("not complete") };
        assert!(empty.into_body().is_end_stream());
    }
}
