//! Establishes a connection: TCP, optional TLS, HTTP/2, and the instance's first bytes. Fails after one second.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::body::Body;

use crate::io::{Filtered, ReadFilter};
use crate::tls::{self, ClientTls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The address of a deleted instance does not answer at all: only pings detect that.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// An error may list a hundred field violations, in one header.
const MAX_HEADER_LIST_BYTES: u32 = 256 * 1_024;
/// The first byte of a TLS server's answer to a client that it does not understand (RFC 8446, section 5.1). HTTP/2
/// cannot begin with it: no SETTINGS frame is that long.
const TLS_ALERT: u8 = 21;

/// hyper's executor. hyper spawns two tasks for each call, of half a KiB and more: a task is moved three times while it
/// is spawned, and a box is small.
#[derive(Clone, Copy)]
struct BoxingExecutor;

impl<F> hyper::rt::Executor<F> for BoxingExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        tokio::spawn(Box::pin(work));
    }
}

/// An established connection.
pub(crate) struct Connected {
    /// Sends calls. When all clones are dropped, the connection is closed after its last stream.
    pub(crate) sender: SendRequest<Body>,
    /// Must be polled; ready when the connection accepts no more calls (open streams continue).
    pub(crate) until_closed: BoxFuture<'static, ()>,
}

/// Makes connections.
pub(crate) trait Connect: Send + Sync + 'static {
    /// Connects to `host:port`. The error is human-readable.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected, String>>;
}

/// Connects by TCP, with TLS or without.
pub(crate) struct Tcp {
    pub(crate) tls: Option<ClientTls>,
}

impl Tcp {
    async fn establish(&self, address: &str) -> Result<Connected, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        // gRPC's frames are small and awaited: Nagle's algorithm would only add latency.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return handshake(stream, address).await };
        let stream = tls.connect(stream).await.map_err(|error| tls_error(&error))?;
        handshake(stream, address).await
    }
}

/// The error of a failed TLS handshake.
fn tls_error(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS, and this client does".to_owned(),
        Some(error) => format!("TLS: {error}{}", tls::advice(error)),
        None => format!("TLS: {error}"),
    }
}

/// The error of a connection; a TLS server's rejection of our certificate is one of these.
fn read_error(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    format!("{error}{}", tls.map_or("", tls::advice))
}

impl Connect for Tcp {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected, String>> {
        Box::pin(async move {
            let made = timeout(CONNECT_TIMEOUT, self.establish(address)).await;
            made.map_err(|_elapsed| "connecting took more than a second".to_owned())?
        })
    }
}

/// Completes when the instance has sent its first bytes, the HTTP/2 SETTINGS. Before that there may be no server: the
/// kernel accepts connections for a process that is stopped, is about to exit, or is at its connection limit, and of calls
/// sent on one of these it would be unknown whether they were processed.
pub(crate) async fn handshake<T>(io: T, address: &str) -> Result<Connected, String>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (first_byte, mut first_bytes) = oneshot::channel();
    let (sender, connection) = http2::Builder::new(BoxingExecutor)
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .handshake::<_, Body>(TokioIo::new(Filtered { inner: io, filter: FirstByte(Some(first_byte)) }))
        .await
        .map_err(|error| error.to_string())?;
    let owned = address.to_owned();
    let mut until_closed: BoxFuture<'static, ()> = Box::pin(async move {
        if let Err(error) = connection.await {
            tracing::debug!(target: "ordermesh", address = %owned, %error, "connection closed with an error");
        }
    });
    let (first, is_closed) = tokio::select! {
        biased;
        () = &mut until_closed => (first_bytes.try_recv().ok(), true),
        first = &mut first_bytes => (first.ok(), false),
    };
    match first {
        Some(Ok(TLS_ALERT)) => Err("it speaks TLS, and this client does not".to_owned()),
        Some(Ok(_)) if !is_closed => Ok(Connected { sender, until_closed }),
        // With TLS 1.3, this is where a server's rejection of our certificate arrives.
        Some(Err(error)) => Err(format!("the connection ended before its first bytes: {error}")),
        Some(Ok(_)) => Err("the connection ended with its first bytes".to_owned()),
        None => Err("the connection ended before its first bytes".to_owned()),
    }
}

/// Reports the first byte that is read, or the error instead.
struct FirstByte(Option<oneshot::Sender<Result<u8, String>>>);

impl ReadFilter for FirstByte {
    fn poll_read<S>(&mut self, inner: &mut S, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncRead + Unpin,
    {
        let before = buffer.filled().len();
        let read = Pin::new(inner).poll_read(cx, buffer);
        let first = match &read {
            Poll::Ready(Ok(())) => buffer.filled().get(before).map(|first| Ok(*first)),
            Poll::Ready(Err(error)) => Some(Err(read_error(error))),
            Poll::Pending => None,
        };
        if let Some((sender, first)) = self.0.take_if(|_| first.is_some()).zip(first) {
            let _ = sender.send(first);
        }
        read
    }
}

/// An empty SETTINGS frame: what a server sends first.
#[cfg(test)]
pub(crate) const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

#[cfg(test)]
mod tests;
