//! One connection: TLS if there is any, HTTP/2's first bytes in time, calls, idleness, the end. And how many there are.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use crate::caller::PeerService;
use crate::refusals::{Cause, Refusals};
use crate::serve::Stack;
use crate::stalled::{WatchedBody, WatchingExecutor};
use crate::tls::{ServerTls, failure};
use crate::wire::Response;

/// A peer that answers no ping for so long is gone: a half-open connection, or one that sends half a frame.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// For all of a connection's first steps: TLS, and HTTP/2's preface.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
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
/// HTTP/2 begins with these words and a frame's head (of SETTINGS).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PREFACE_AND_HEAD_BYTES: usize = PREFACE.len() + 9;

/// The connections of a server.
pub(crate) struct Connections {
    pub(crate) max: usize,
    open: AtomicUsize,
    tls: Option<ServerTls>,
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
    pub(crate) fn new(max: usize, tls: Option<ServerTls>, refusals: Arc<Refusals>) -> Self {
        let handshakes_failed = global::meter("mesh")
            .u64_counter("mesh.server.tls.handshakes.failed")
            .with_description("TLS handshakes that failed, by cause")
            .build();
        Self { max, open: AtomicUsize::new(0), tls, refusals, handshakes_failed }
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
            return self.begin(stream, PerConnection::new(stack, peer, None), goaway).await;
        };
        let handshake = timeout(HANDSHAKE_TIMEOUT, tls.accept(stream));
        let Some(shaken) = goaway.run_until_cancelled(handshake).await else { return };
        match shaken.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
            Ok((stream, service)) => {
                let service = service.map(PeerService);
                self.begin(stream, PerConnection::new(stack, peer, service), goaway).await;
            }
            Err(error) => {
                self.handshakes_failed.add(1, &[KeyValue::new("cause", failure(&error))]);
                self.refusals.count(Cause::Tls);
                tracing::debug!(target: "ordermesh", %peer, %error, "a TLS handshake failed");
            }
        }
    }

    /// hyper would wait for ever for the first bytes, and keepalive begins after them.
    async fn begin<S>(&self, mut stream: S, service: PerConnection, goaway: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut first = [0; PREFACE_AND_HEAD_BYTES];
        let reading = timeout(HANDSHAKE_TIMEOUT, stream.read_exact(&mut first));
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
        let activity = service.activity.clone();
        let executor = WatchingExecutor { patience: STALL_TIMEOUT, refusals: self.refusals.clone() };
        let connection = http2::Builder::new(executor)
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let enough = async {
            tokio::select! {
                () = goaway.cancelled() => {}
                () = self.idle(&activity) => {}
            }
        };
        let mut enough = std::pin::pin!(enough);
        let mut asked = false;
        let ended = loop {
            tokio::select! {
                ended = &mut connection => break ended,
                () = &mut enough, if !asked => {
                    asked = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        };
        if let Err(error) = ended {
            if is_against_the_rules(&error) {
                self.refusals.count(Cause::Protocol);
            }
            tracing::debug!(target: "ordermesh", %error, "a connection ended badly");
        }
    }

    /// Returns when the connection has had no call for long enough.
    async fn idle(&self, activity: &Activity) {
        let (mut seen, mut idle) = (activity.begun(), Duration::ZERO);
        loop {
            tokio::time::sleep(IDLE_TICK).await;
            let begun = activity.begun();
            if begun != seen || activity.open.load(Ordering::Acquire) > 0 {
                (seen, idle) = (begun, Duration::ZERO);
                continue;
            }
            idle += IDLE_TICK;
            if idle >= if self.is_crowded() { CROWDED_IDLE_TIMEOUT } else { IDLE_TIMEOUT } {
                return;
            }
        }
    }
}

/// Did we end the connection for what the peer did?
fn is_against_the_rules(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| !error.is_remote() && !error.is_io()) || error.is_timeout()
}

/// The calls of a connection.
#[derive(Debug, Default)]
struct Activity {
    open: AtomicUsize,
    begun: AtomicU64,
}

impl Activity {
    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    fn call(self: &Arc<Self>) -> OpenCall {
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.open.fetch_add(1, Ordering::AcqRel);
        OpenCall(self.clone())
    }
}

/// An open call, to the end of its answer.
struct OpenCall(Arc<Activity>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Clone)]
struct PerConnection {
    stack: Stack,
    peer: SocketAddr,
    service: Option<PeerService>,
    activity: Arc<Activity>,
}

impl PerConnection {
    fn new(stack: Stack, peer: SocketAddr, service: Option<PeerService>) -> Self {
        Self { stack, peer, service, activity: Arc::default() }
    }
}

impl hyper::service::Service<http::Request<Incoming>> for PerConnection {
    type Response = http::Response<WatchedBody<OpenCall>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        // The body fails when the caller resets the stream or is gone: either way he has given up.
        let mut request = request.map(|body| Body::new(body.map_err(|_| Status::cancelled("the caller has gone"))));
        request.extensions_mut().insert(self.peer);
        if let Some(service) = &self.service {
            request.extensions_mut().insert(service.clone());
        }
        let (mut stack, open) = (self.stack.clone(), self.activity.call());
        Box::pin(async move {
            let ready = stack.ready().await?;
            let response: Response = ready.call(request).await?;
            Ok(response.map(|body| WatchedBody::new(body, open)))
        })
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
