//! Response write timeout. A slow reader may keep its HTTP/2 flow-control window at zero, and the call's permit and
//! memory would be held forever, because a body that cannot be sent is not polled. So the task of each call is watched:
//! the timeout runs while the response waits for its caller, and not while it waits for its handler. An evicted stream
//! gets much less time.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

use crate::server::rejections::{Cause, Rejections};

tokio::task_local! {
    static WRITE_PROGRESS: Arc<WriteProgress>;
}

/// The time in which an evicted stream must send its final status.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(2);

/// The progress of a call's response.
#[derive(Debug, Default)]
pub(crate) struct WriteProgress {
    /// 0 while the handler is awaited, else a number that changes with each frame.
    frames: AtomicU64,
    /// Of a stream: cancelled on eviction.
    evicted: OnceLock<CancellationToken>,
}

/// Called inside a stream's task: bounds its end after `evicted`, even if its caller reads nothing.
pub(crate) fn end_after_eviction(evicted: CancellationToken) {
    // Without a task of its own, as in tests, there is no bound. A call has one slot.
    let _ = WRITE_PROGRESS.try_with(|progress| progress.evicted.set(evicted));
}

/// hyper's executor, which watches the tasks that it spawns: each serves one call.
#[derive(Clone)]
pub(crate) struct WriteTimeoutExecutor {
    pub(crate) timeout: Duration,
    pub(crate) rejections: Arc<Rejections>,
}

impl<F> hyper::rt::Executor<F> for WriteTimeoutExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        let (timeout, rejections) = (self.timeout, self.rejections.clone());
        tokio::spawn(async move {
            let progress = Arc::new(WriteProgress::default());
            let unread =
                WriteTimeout { progress: progress.clone(), timeout, last_frames: 0, timer: None, evicted: None };
            tokio::select! {
                biased;
                () = WRITE_PROGRESS.scope(progress, work) => {}
                // Dropping the work resets the stream, and releases what the call holds.
                cause = unread => rejections.count(cause),
            }
        });
    }
}

/// Ready when the response has waited for its caller too long. Polled after the task's work, in each poll.
struct WriteTimeout {
    progress: Arc<WriteProgress>,
    timeout: Duration,
    last_frames: u64,
    timer: Option<Pin<Box<Sleep>>>,
    evicted: Option<BoxFuture<'static, ()>>,
}

impl Future for WriteTimeout {
    type Output = Cause;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Cause> {
        let this = self.get_mut();
        if let Some(evicted) = this.progress.evicted.get() {
            let has_ended = || {
                let evicted = evicted.clone();
                Box::pin(async move {
                    evicted.cancelled_owned().await;
                    sleep(EVICTION_TIMEOUT).await;
                }) as BoxFuture<'static, ()>
            };
            if this.evicted.get_or_insert_with(has_ended).as_mut().poll(cx).is_ready() {
                return Poll::Ready(Cause::Evicted);
            }
        }
        let now = this.progress.frames.load(Ordering::Relaxed);
        if now != this.last_frames {
            (this.last_frames, this.timer) = (now, None);
        }
        if now == 0 {
            return Poll::Pending;
        }
        let timeout = this.timeout;
        this.timer.get_or_insert_with(|| Box::pin(sleep(timeout))).as_mut().poll(cx).map(|()| Cause::WriteTimeout)
    }
}

/// The HTTP/2 stack accepts all data it is given, however small the caller's window. So it gets pieces: it polls for
/// each once the window has room for its first byte. A message's last piece is a single byte, which is then sent
/// completely, because nothing watches it any more.
const PIECE_BYTES: usize = 16 * 1024;
/// A response of this size may be kept for a caller that reads nothing.
const SMALL_BYTES: usize = 1024;

/// A response body that reports its progress, and is sent in pieces.
pub(crate) struct WatchedBody<G> {
    inner: Body,
    /// The unsent rest of the current frame.
    rest: Bytes,
    progress: Option<Arc<WriteProgress>>,
    frames: Cell<u64>,
    _guard: G,
}

impl<G> WatchedBody<G> {
    /// Called inside the call's task. The guard is dropped with the body.
    pub(crate) fn new(inner: Body, guard: G) -> Self {
        let progress = WRITE_PROGRESS.try_with(Arc::clone).ok();
        let body = Self { inner, rest: Bytes::new(), progress, frames: Cell::new(0), _guard: guard };
        // The headers are being sent.
        body.mark_sent();
        body
    }

    fn first_piece(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data() {
            Ok(data) if data.len() > SMALL_BYTES => {
                self.rest = data;
                Frame::data(self.next_piece())
            }
            Ok(data) => Frame::data(data),
            Err(other) => other,
        }
    }

    fn next_piece(&mut self) -> Bytes {
        let left = self.rest.len();
        if left == 1 {
            // A slice would keep the whole message in memory.
            return Bytes::copy_from_slice(&std::mem::take(&mut self.rest));
        }
        self.rest.split_to((left - 1).min(PIECE_BYTES))
    }

    fn mark_sent(&self) {
        self.frames.set(self.frames.get() + 1);
        if let Some(progress) = &self.progress {
            progress.frames.store(self.frames.get(), Ordering::Relaxed);
        }
    }
}

impl<G: Unpin> http_body::Body for WatchedBody<G> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if !this.rest.is_empty() {
            this.mark_sent();
            return Poll::Ready(Some(Ok(Frame::data(this.next_piece()))));
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.mark_sent();
                Poll::Ready(frame.map(|frame| frame.map(|frame| this.first_piece(frame))))
            }
            Poll::Pending => {
                if let Some(progress) = &this.progress {
                    progress.frames.store(0, Ordering::Relaxed);
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rest.is_empty() { self.inner.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests;
