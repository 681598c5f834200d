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

use crate::caller::PeerService;
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
                        self.refusals.count(Cause::Stalled);
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
    begun: AtomicU64,
}

impl Activity {
    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// `None` of health and reflection: their streams never end, and keep nobody's place.
    fn call(self: &Arc<Self>, is_infrastructure: bool) -> Option<OpenCall> {
        self.begun.fetch_add(1, Ordering::AcqRel);
        if is_infrastructure {
            return None;
        }
        self.open.fetch_add(1, Ordering::AcqRel);
        Some(OpenCall(self.clone()))
    }
}

/// An open call, to the end of its answer.
struct OpenCall(Arc<Activity>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
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
        let mut request = request.map(|body| Body::new(body.map_err(|_| Status::cancelled("the caller has gone"))));
        let caller = self.proxies.as_ref().map(|proxies| proxies.caller_behind(self.peer, request.headers()));
        request.extensions_mut().insert(caller.unwrap_or(self.peer));
        if let Some(service) = &self.service {
            request.extensions_mut().insert(service.clone());
        }
        let open = self.activity.call(is_infrastructure(request.uri().path()));
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
mod tests {
    use super::*;
    use bytes::Bytes;
    use h2::client::SendRequest;
    use http_body_util::{Full, StreamBody};
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use crate::wire::{Request, Response};

    /// Types of HTTP/2's frames.
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;

    /// A server of two connections, whose handler answers with 100 kB, and to `Watch` without an end.
    struct World {
        connections: Arc<Connections>,
        refusals: Arc<Refusals>,
        goaway: CancellationToken,
    }

    impl World {
        fn new() -> Self {
            let refusals = Arc::new(Refusals::new("test"));
            let connections = Arc::new(Connections::new(2, None, Proxies::default(), refusals.clone()));
            Self { connections, refusals, goaway: CancellationToken::new() }
        }

        /// A new connection's other end, and the task that serves it.
        fn connect(&self) -> Option<(DuplexStream, tokio::task::JoinHandle<()>)> {
            let (ours, theirs) = duplex(1 << 20);
            let peer = SocketAddr::from(([127, 0, 0, 1], 1));
            let handler = tower::service_fn(|request: Request| -> BoxFuture<'static, Answer> {
                let body = if request.uri().path().ends_with("/Watch") {
                    Body::new(StreamBody::new(futures_util::stream::pending::<Result<_, Status>>()))
                } else {
                    Body::new(Full::new(Bytes::from(vec![0; 100_000])).map_err(|never| match never {}))
                };
                Box::pin(std::future::ready(Ok(Response::new(body))))
            });
            let stack = Stack::new(handler);
            let served = self.connections.serve(theirs, peer, stack, self.goaway.clone())?;
            Some((ours, tokio::spawn(served)))
        }

        fn seen(&self) -> Vec<Cause> {
            self.refusals.seen.lock().expect("not poisoned").clone()
        }
    }

    async fn handshake(stream: DuplexStream, window: u32) -> SendRequest<Bytes> {
        let builder = h2::client::Builder::new().initial_window_size(window).clone();
        let (sender, connection) = builder.handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        sender.ready().await.expect("ready")
    }

    async fn call(sender: &mut SendRequest<Bytes>) -> http::Response<h2::RecvStream> {
        call_of(sender, "/t.T/Call").await
    }

    async fn call_of(sender: &mut SendRequest<Bytes>, path: &str) -> http::Response<h2::RecvStream> {
        let request = http::Request::post(format!("http://test{path}")).body(()).expect("a request");
        let (response, _) = sender.send_request(request, true).expect("sent");
        response.await.expect("answered")
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_begin_in_time_is_ended() {
        for first in [&b""[..], b"PRI * HTTP/2.0\r\n", PREFACE] {
            let world = World::new();
            let (mut stream, served) = world.connect().expect("a place");
            stream.write_all(first).await.expect("written");
            let began = Instant::now();
            served.await.expect("no panic");
            assert_eq!((began.elapsed(), world.seen()), (HANDSHAKE_TIMEOUT, vec![Cause::Preface]));
            assert_eq!(world.connections.open(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn when_it_is_crowded_less_time_is_given() {
        let world = World::new();
        let (_one, _other) = (world.connect().expect("a place"), world.connect().expect("a place"));
        let began = Instant::now();
        while world.seen().len() < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(began.elapsed() <= CROWDED_HANDSHAKE_TIMEOUT + Duration::from_millis(100), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_http2_is_ended_at_once() {
        let world = World::new();
        let (mut stream, served) = world.connect().expect("a place");
        let began = Instant::now();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: somebody.example.com\r\n\r\n").await.expect("written");
        served.await.expect("no panic");
        assert_eq!((began.elapsed(), world.seen()), (Duration::ZERO, vec![Cause::Preface]));
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_frame_is_waited_for_no_longer_than_keepalive_waits() {
        let world = World::new();
        let (mut stream, served) = world.connect().expect("a place");
        stream.write_all(PREFACE).await.expect("written");
        // SETTINGS, empty; then the head of HEADERS: 16 bytes that never come, flags END_STREAM, END_HEADERS; stream 1.
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("written");
        stream.write_all(&[0, 0, 16, 1, 5, 0, 0, 0, 1, 0x82]).await.expect("written");
        let began = Instant::now();
        served.await.expect("no panic");
        assert!(began.elapsed() <= KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT + Duration::from_secs(1));
        assert_eq!(world.seen(), [Cause::Silent]);
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_so_many_connections_and_a_place_is_free_again_after_one() {
        let world = World::new();
        let (first, served) = world.connect().expect("a place");
        let _second = world.connect().expect("a place");
        assert!(world.connect().is_none());
        assert_eq!((world.seen(), world.connections.open()), (vec![Cause::Connections], 2));
        drop(first);
        served.await.expect("no panic");
        assert!(world.connect().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_ended_and_sooner_when_it_is_crowded() {
        let world = World::new();
        let idle = |world: &World| world.connect().expect("a place");
        let (stream, served) = idle(&world);
        let mut sender = handshake(stream, 65_535).await;
        call(&mut sender).await.into_body().data().await.expect("data").expect("well-formed");
        let began = Instant::now();
        served.await.expect("no panic");
        assert!((IDLE_TIMEOUT..IDLE_TIMEOUT + 2 * IDLE_TICK).contains(&began.elapsed()), "{:?}", began.elapsed());
        // Both places taken.
        let ((one, served), (other, _)) = (idle(&world), idle(&world));
        let (_one, _other) = (handshake(one, 65_535).await, handshake(other, 65_535).await);
        let began = Instant::now();
        served.await.expect("no panic");
        assert!(began.elapsed() < CROWDED_IDLE_TIMEOUT + 2 * IDLE_TICK, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_is_dropped_and_the_connection_serves_on() {
        let world = World::new();
        let (stream, _served) = world.connect().expect("a place");
        let mut sender = handshake(stream, 0).await;
        let began = Instant::now();
        let mut stuck = call(&mut sender).await.into_body();
        let error = stuck.data().await.expect("not the end").expect_err("the window is shut: a reset");
        assert_eq!((error.reason(), began.elapsed()), (Some(h2::Reason::CANCEL), STALL_TIMEOUT));
        assert_eq!(world.seen(), [Cause::Stalled]);
        assert_eq!(call(&mut sender).await.status(), http::StatusCode::OK);
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_of_a_byte_is_as_good_as_none() {
        let world = World::new();
        let (stream, _served) = world.connect().expect("a place");
        let mut sender = handshake(stream, 1).await;
        let began = Instant::now();
        let mut stuck = call(&mut sender).await.into_body();
        assert_eq!(stuck.data().await.expect("not the end").expect("a byte").len(), 1);
        // The room for it is not given back.
        let error = stuck.data().await.expect("not the end").expect_err("a reset");
        assert_eq!((error.reason(), began.elapsed()), (Some(h2::Reason::CANCEL), STALL_TIMEOUT));
        assert_eq!(world.seen(), [Cause::Stalled]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_whole_however_it_is_cut() {
        let world = World::new();
        let (stream, _served) = world.connect().expect("a place");
        let mut sender = handshake(stream, 20_000).await;
        let mut body = call(&mut sender).await.into_body();
        let mut read = 0;
        while let Some(data) = body.data().await {
            let length = data.expect("not reset").len();
            read += length;
            body.flow_control().release_capacity(length).expect("given back");
        }
        assert_eq!(read, 100_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_health_keeps_no_connection_and_a_services_stream_does() {
        for (path, is_kept) in [("/t.T/Watch", true), ("/grpc.health.v1.Health/Watch", false)] {
            let world = World::new();
            let (stream, served) = world.connect().expect("a place");
            let mut sender = handshake(stream, 65_535).await;
            let _stream = call_of(&mut sender, path).await;
            let ended = timeout(2 * IDLE_TIMEOUT, served).await;
            assert_eq!(ended.is_err(), is_kept, "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_ended_takes_what_still_comes_for_a_moment() {
        let world = World::new();
        let (mut stream, served) = world.connect().expect("a place");
        stream.write_all(PREFACE).await.expect("written");
        stream.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await.expect("written");
        // Every frame to the end; its pings are answered, or it would not end.
        let mut head = [0; 9];
        while stream.read_exact(&mut head).await.is_ok() {
            world.goaway.cancel();
            let mut payload = vec![0; usize::from(head[2])];
            stream.read_exact(&mut payload).await.expect("a whole frame");
            if head[3] == PING && head[4] == 0 {
                stream.write_all(&[&[0, 0, 8, PING, 1, 0, 0, 0, 0], &payload[..]].concat()).await.expect("written");
            }
        }
        stream.write_all(b"a call that was on its way").await.expect("it is taken");
        assert!(!served.is_finished());
        served.await.expect("no panic");
        stream.write_all(b"too late").await.expect_err("it is closed");
    }
}
