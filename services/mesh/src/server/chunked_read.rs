//! Reads a connection in chunks. The HTTP/2 stack reads all available input before it hands over the first stream, and
//! streams that wait for that are bounded only in number. They are kept with their headers, even if they were reset in
//! the meantime: each takes some 2 KB, and 60 KB when 2 KB of HPACK expand to the largest allowed headers. So the stack
//! gets one chunk for each poll of the connection's task, in which it hands over all streams of that chunk.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::io::{Filtered, ReadFilter};

/// The HTTP/2 client preface, and the head of the frame after it (SETTINGS).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const PREFACE_AND_HEAD_BYTES: usize = PREFACE.len() + 9;
/// One frame of the usual size. A chunk ends when it is reached; a single read is at most about as long.
const CHUNK_BYTES: usize = 16 * 1_024;

/// The bytes read in the current poll of a connection's task.
#[derive(Clone, Default)]
pub(crate) struct PollBudget(Arc<AtomicUsize>);

impl PollBudget {
    /// Wraps the connection's future; each poll has the whole budget.
    pub(crate) fn per_poll<F: Future>(&self, mut work: Pin<&mut F>) -> impl Future<Output = F::Output> {
        std::future::poll_fn(move |cx| {
            self.0.store(0, Ordering::Relaxed);
            work.as_mut().poll(cx)
        })
    }

    fn read<S>(&self, stream: &mut S, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncRead + Unpin,
    {
        if self.0.load(Ordering::Relaxed) >= CHUNK_BYTES {
            // The next poll follows immediately.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(cx, buffer))?;
        self.0.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

/// Gives the first bytes, which were already read, and then one chunk for each poll.
pub(crate) struct ChunkedRead {
    first: [u8; PREFACE_AND_HEAD_BYTES],
    given: usize,
    budget: PollBudget,
}

/// A stream that is read in chunks after its first bytes.
pub(crate) fn read_in_chunks<S>(
    first: [u8; PREFACE_AND_HEAD_BYTES],
    inner: S,
    budget: PollBudget,
) -> Filtered<S, ChunkedRead> {
    Filtered { inner, filter: ChunkedRead { first, given: 0, budget } }
}

impl ReadFilter for ChunkedRead {
    fn poll_read<S>(&mut self, inner: &mut S, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncRead + Unpin,
    {
        let left = &self.first[self.given..];
        if left.is_empty() {
            return self.budget.read(inner, cx, buffer);
        }
        let given = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..given]);
        self.given += given;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
