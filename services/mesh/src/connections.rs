//! One connection: TLS if there is any, HTTP/2's first bytes in time, calls, idleness, the end. And how many there are.
//! hyper's HTTP/2 builder is used directly: tonic's server would put layers of its own outside of ours.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::caller::PeerService;
use crate::incoming::incoming;
use crate::lingering::{lend, linger};
use crate::proxies::Proxies;
use crate::refusals::{Cause, Refusals};
use crate::serve::{Calls, Stack};
use crate::stalled::{WatchedBody, WatchingExecutor};
use crate::tls::{ServerTls, failure};
use crate::wire::{Answer, is_infrastructure};

/// A peer that answers no ping for so long is gone: a half-open connection, or one that sends half a frame.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// For all of a connection's first steps: TLS, and HTTP/2's preface.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// When most places are taken.
const CROWDED_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_CONCURRENT_STREAMS: u32 = 1_024;
/// Looser than our own limit on metadata, which answers with a status.
const MAX_HEADER_LIST_BYTES: u32 = 64 * 1_024;
/// A stream that is reset before it was begun costs its caller nothing: so many may wait (rapid reset, CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
/// Streams that we had to reset, for a connection's whole life; then it is ended.
const MAX_LOCAL_RESETS: usize = 1_024;
/// Connections without a call are closed after so long, and much sooner when most places are taken.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
const CROWDED_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TICK: Duration = Duration::from_secs(5);
/// An answer that its caller does not take for so long is dropped.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// What HTTP/2 keeps of an answer that is not taken: a frame more than this, for each stream.
const MAX_SEND_BUFFER_BYTES: usize = 64 * 1_024;
/// HTTP/2 begins with these words and a frame's head (of SETTINGS).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PREFACE_AND_HEAD_BYTES: usize = PREFACE.len() + 9;

/// The connections of a server.
pub(crate) struct Connections {
    pub(crate) max: usize,
    open: AtomicUsize,
    tls: Option<ServerTls>,
    proxies: Proxies,
    refusals: Arc<Refusals>,
    handshakes_failed: Counter<u64>,
}

/// One of them. Its place is free again in drop.
struct Place(Arc<Connections>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Connections {
    pub(crate) fn new(max: usize, tls: Option<ServerTls>, proxies: Proxies, refusals: Arc<Refusals>) -> Self {
        let handshakes_failed = global::meter("mesh")
            .u64_counter("mesh.server.tls.handshakes.failed")
            .with_description("TLS handshakes that failed, by cause")
            .build();
        Self { max, open: AtomicUsize::new(0), tls, proxies, refusals, handshakes_failed }
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    fn place(self: &Arc<Self>) -> Option<Place> {
        let free = |open: usize| (open < self.max).then_some(open + 1);
        self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).ok().map(|_| Place(self.clone()))
    }

    fn is_crowded(&self) -> bool {
        self.open() * 4 >= self.max * 3
    }

    fn patience(&self) -> Duration {
        if self.is_crowded() { CROWDED_HANDSHAKE_TIMEOUT } else { HANDSHAKE_TIMEOUT }
    }

    /// Serves a connection to its end, when there is a place for it. Who has none is hung up on: another instance has.
    pub(crate) fn serve<S>(
        self: &Arc<Self>,
        stream: S,
        peer: SocketAddr,
        stack: Stack,
        goaway: CancellationToken,
    ) -> Option<impl Future<Output = ()> + Send + use<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(place) = self.place() else {
            self.refusals.count(Cause::Connections);
            return None;
        };
        let connections = self.clone();
        Some(async move {
            let _place = place;
            connections.shake_hands(stream, peer, stack, goaway).await;
        })
    }

    async fn shake_hands<S>(&self, stream: S, peer: SocketAddr, stack: Stack, goaway: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = &self.tls else {
            return self.begin(stream, self.of(&stack, peer, None), goaway).await;
        };
        let handshake = timeout(self.patience(), tls.accept(stream));
        let Some(shaken) = goaway.run_until_cancelled(handshake).await else { return };
        match shaken.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
            Ok((stream, service)) => {
                let service = service.map(PeerService);
                self.begin(stream, self.of(&stack, peer, service), goaway).await;
            }
            Err(error) => {
                let service = KeyValue::new("mesh.service", self.refusals.service);
                self.handshakes_failed.add(1, &[service, KeyValue::new("cause", failure(&error))]);
                self.refusals.count(Cause::Tls);
                tracing::debug!(target: "ordermesh", %peer, %error, "a TLS handshake failed");
            }
        }
    }

    fn of(&self, stack: &Stack, peer: SocketAddr, service: Option<PeerService>) -> PerConnection {
        let proxies = self.proxies.trusts(peer.ip()).then(|| self.proxies.clone());
        PerConnection { calls: RefCell::new(stack.of_connection()), peer, proxies, service, activity: Arc::default() }
    }

    /// hyper would wait for ever for the first bytes, and keepalive begins after them.
    async fn begin<S>(&self, mut stream: S, service: PerConnection, goaway: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut first = [0; PREFACE_AND_HEAD_BYTES];
        let reading = timeout(self.patience(), stream.read_exact(&mut first));
        let Some(read) = goaway.run_until_cancelled(reading).await else { return };
        match read {
            // Somebody looked whether the port is open.
            Ok(Err(_gone)) => {}
            Ok(Ok(_)) if first.starts_with(PREFACE) => {
                let stream = Begun { first, given: 0, stream };
                self.http2(stream, service, goaway).await;
            }
            Ok(Ok(_)) | Err(_) => self.refusals.count(Cause::Preface),
        }
    }

    async fn http2<S>(&self, stream: S, service: PerConnection, goaway: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, mut given_back) = lend(stream);
        self.calls(stream, service, goaway).await;
        if let Ok(stream) = given_back.try_recv() {
            linger(stream).await;
        }
    }

    async fn calls<S>(&self, stream: S, service: PerConnection, goaway: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = service.activity.clone();
        let executor = WatchingExecutor { patience: STALL_TIMEOUT, refusals: self.refusals.clone() };
        let connection = http2::Builder::new(executor)
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .max_send_buf_size(MAX_SEND_BUFFER_BYTES)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut idle = std::pin::pin!(self.idle(&activity, IDLE_TIMEOUT));
        let mut asked = false;
        let ended = loop {
            tokio::select! {
                ended = &mut connection => break ended,
                // Whoever drains bounds what comes then.
                () = goaway.cancelled(), if !asked => {
                    asked = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut idle => {
                    if asked {
                        // There is still nothing to do, and the peer does not go: answers that he does not take, maybe.
                        if activity.watching.load(Ordering::Acquire) == 0 {
                            self.refusals.count(Cause::Stalled);
                        }
                        return;
                    }
                    asked = true;
                    connection.as_mut().graceful_shutdown();
                    idle.set(self.idle(&activity, STALL_TIMEOUT));
                }
            }
        };
        if let Err(error) = ended {
            if let Some(cause) = cause_of(&error) {
                self.refusals.count(cause);
            }
            tracing::debug!(target: "ordermesh", %error, "a connection ended badly");
        }
    }

    /// Returns when the connection has had no call for long enough.
    async fn idle(&self, activity: &Activity, limit: Duration) {
        let (mut seen, mut idle) = (activity.begun(), Duration::ZERO);
        loop {
            tokio::time::sleep(IDLE_TICK).await;
            let begun = activity.begun();
            if begun != seen || activity.open.load(Ordering::Acquire) > 0 {
                (seen, idle) = (begun, Duration::ZERO);
                continue;
            }
            idle += IDLE_TICK;
            if idle >= if self.is_crowded() { limit.min(CROWDED_IDLE_TIMEOUT) } else { limit } {
                return;
            }
        }
    }
}

/// Why we ended a connection; `None` when the peer did, or the network.
fn cause_of(error: &hyper::Error) -> Option<Cause> {
    if error.is_timeout() {
        return Some(Cause::Silent);
    }
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| !error.is_remote() && !error.is_io()).then_some(Cause::Protocol)
}

/// The calls of a connection.
#[derive(Debug, Default)]
struct Activity {
    open: AtomicUsize,
    /// Health's and reflection's: their streams never end, and keep nobody's place.
    watching: AtomicUsize,
    begun: AtomicU64,
}

impl Activity {
    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    fn counter(&self, is_infrastructure: bool) -> &AtomicUsize {
        if is_infrastructure { &self.watching } else { &self.open }
    }

    fn call(self: &Arc<Self>, is_infrastructure: bool) -> OpenCall {
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.counter(is_infrastructure).fetch_add(1, Ordering::AcqRel);
        OpenCall { activity: self.clone(), is_infrastructure }
    }
}

/// An open call, to the end of its answer.
struct OpenCall {
    activity: Arc<Activity>,
    is_infrastructure: bool,
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.activity.counter(self.is_infrastructure).fetch_sub(1, Ordering::AcqRel);
    }
}

struct PerConnection {
    /// hyper gives calls one after the other, and never one while it gives another.
    calls: RefCell<Calls>,
    peer: SocketAddr,
    /// When the peer is one of them.
    proxies: Option<Proxies>,
    service: Option<PeerService>,
    activity: Arc<Activity>,
}

impl hyper::service::Service<http::Request<Incoming>> for PerConnection {
    type Response = http::Response<WatchedBody<Option<OpenCall>>>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        // The body fails when the caller resets the stream or is gone: either way he has given up.
        let mut request = request.map(|body| incoming(body, |_| Status::cancelled("the caller has gone")));
        let caller = self.proxies.as_ref().map(|proxies| proxies.caller_behind(self.peer, request.headers()));
        request.extensions_mut().insert(caller.unwrap_or(self.peer));
        if let Some(service) = &self.service {
            request.extensions_mut().insert(service.clone());
        }
        let open = Some(self.activity.call(is_infrastructure(request.uri().path())));
        Answering { open, work: (self.calls.borrow_mut())(request) }
    }
}

/// A call, until its answer begins.
struct Answering {
    work: BoxFuture<'static, Answer>,
    open: Option<OpenCall>,
}

impl Future for Answering {
    type Output = Result<http::Response<WatchedBody<Option<OpenCall>>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.work.as_mut().poll(cx))?;
        let open = self.open.take();
        Poll::Ready(Ok(response.map(|body| WatchedBody::new(body, open))))
    }
}

/// A stream whose first bytes were read already.
struct Begun<S> {
    first: [u8; PREFACE_AND_HEAD_BYTES],
    given: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = &this.first[this.given..];
        if left.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let given = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..given]);
        this.given += given;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
