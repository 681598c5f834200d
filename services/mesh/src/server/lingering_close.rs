//! Lingering close: closing a socket with unread input sends RST, and the peer may then discard what it has not read
//! yet: the last responses, and the GOAWAY that names the calls that were not processed. So late input is read and discarded
//! until the peer closes too, or for a short time (as RFC 9112, section 9.6, recommends for HTTP/1.1).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::timeout;

const LINGER: Duration = Duration::from_secs(1);
/// Of one KiB each: together more input than calls in flight are expected to have left.
const MAX_READS: usize = 256;

/// Closes the write side, and waits until the peer closes too.
pub(crate) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let peer_closes = async {
        let _ = stream.shutdown().await;
        let mut ignored = [0; 1_024];
        for _ in 0..MAX_READS {
            if !matches!(stream.read(&mut ignored).await, Ok(1..)) {
                break;
            }
        }
    };
    // The timeout bounds a peer that does not close.
    let _ = timeout(LINGER, peer_closes).await;
}

/// A stream that is returned through a channel when its owner drops it: hyper takes ownership and does not return it.
pub(crate) struct ReturnOnDrop<S> {
    stream: Option<S>,
    back: Option<oneshot::Sender<S>>,
}

pub(crate) fn return_on_drop<S>(stream: S) -> (ReturnOnDrop<S>, oneshot::Receiver<S>) {
    let (back, returned) = oneshot::channel();
    (ReturnOnDrop { stream: Some(stream), back: Some(back) }, returned)
}

impl<S> Drop for ReturnOnDrop<S> {
    fn drop(&mut self) {
        if let Some((stream, back)) = self.stream.take().zip(self.back.take()) {
            // The receiver may be gone.
            let _ = back.send(stream);
        }
    }
}

impl<S: Unpin> ReturnOnDrop<S> {
    /// Present until drop.
    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut S>> {
        self.get_mut().stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReturnOnDrop<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReturnOnDrop<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(S::is_write_vectored)
    }
}

#[cfg(test)]
mod tests;
