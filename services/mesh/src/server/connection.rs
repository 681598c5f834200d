//! One connection, from accept to close: TLS (if configured), the HTTP/2 preface, calls, the idle timeout; and the limit
//! on connections. hyper's HTTP/2 builder is used directly: tonic's server would put its own layers around ours.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::future::OptionFuture;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::identity::caller::PeerService;
use crate::server::chunked_read::{PREFACE, PREFACE_AND_HEAD_BYTES, PollBudget, read_in_chunks};
use crate::server::connection_service::{Activity, ConnectionService, Stack};
use crate::server::layer::Next;
use crate::server::limits::caller_key::CallerKey;
use crate::server::limits::resets::{ConnectionResets, Excess, Resets};
use crate::server::limits::slots::{Slot, Slots};
use crate::server::limits::usage::{ConnectionCallers, UsageTable};
use crate::server::lingering_close::{linger, return_on_drop};
use crate::server::proxies::Proxies;
use crate::server::rejections::{Cause, Rejections};
use crate::server::write_timeout::WriteTimeoutExecutor;
use crate::tls::{ServerTls, failure};

/// A connection whose peer leaves a ping unanswered is closed: it is half-open, or the peer has sent half a frame.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// For each of a connection's first steps: the TLS handshake, and the HTTP/2 preface.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same, near the connection limit: at three quarters of it.
const CROWDED_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_CONCURRENT_STREAMS: u32 = 1_024;
/// Looser than our own limit on metadata, which answers with a status.
const MAX_HEADER_LIST_BYTES: u32 = 64 * 1_024;
/// Streams that the peer resets before the HTTP/2 stack hands them over are queued with their headers, whatever the
/// limit on concurrent streams (CVE-2023-44487). Beyond this the connection is closed; a single chunk of input
/// (`chunked_read`) yields fewer. The rate of resets is limited in `resets`.
const MAX_PENDING_RESETS: usize = MAX_CONCURRENT_STREAMS as usize;
/// Streams that we reset because their frames violate HTTP/2, over a connection's lifetime (CVE-2025-8671); then it is
/// closed. Callers behind one proxy cannot cause this for each other: a proxy writes its own frames.
const MAX_LOCAL_RESETS: usize = 1_024;
/// Flow-control windows of a stream (HTTP/2's default) and of a connection. Requests that are not being read, because
/// they wait for token keys, must not block others on their connection: it takes sixteen to fill its window.
const STREAM_WINDOW_BYTES: u32 = 64 * 1_024 - 1;
const CONNECTION_WINDOW_BYTES: u32 = 1_024 * 1_024;
/// Connections without an admitted call are closed after this time, and much sooner near the connection limit.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
const CROWDED_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TICK: Duration = Duration::from_secs(5);
/// Write timeout: a response that its caller does not read for this long is dropped, and a connection whose peer does not
/// read the GOAWAY is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// What HTTP/2 buffers of an unread response, per stream (plus one frame).
const MAX_SEND_BUFFER_BYTES: usize = 64 * 1_024;

/// Grace period after the GOAWAY of an evicted connection, or one whose peer's certificate has expired: with calls, to
/// complete them; when idle, to deliver it.
const EVICTION_GRACE: Duration = Duration::from_secs(2);
const IDLE_EVICTION_GRACE: Duration = Duration::from_millis(100);

/// Makes an instance of the server's stack for each connection: avoids `BoxCloneService`, which clones every layer per request
/// and boxes its future once more.
#[derive(Clone)]
pub(crate) struct MakeStack(Arc<dyn Fn() -> Stack + Send + Sync>);

impl MakeStack {
    /// The stack must always be ready, as all of our layers are: they reject instead of applying backpressure.
    pub(crate) fn new<S>(service: S) -> Self
    where
        S: Next + Sync,
    {
        Self(Arc::new(move || {
            let mut service = service.clone();
            Box::new(move |request| {
                let ready = service.poll_ready(&mut Context::from_waker(Waker::noop()));
                debug_assert!(ready.is_ready(), "a layer applies backpressure instead of rejecting");
                service.call(request)
            })
        }))
    }

    pub(crate) fn make(&self) -> Stack {
        (self.0)()
    }
}

/// A server's connections.
pub(crate) struct Connections {
    slots: Arc<Slots>,
    usage: Arc<UsageTable>,
    tls: Option<ServerTls>,
    proxies: Proxies,
    resets: Arc<Resets>,
    rejections: Arc<Rejections>,
    handshakes_failed: Counter<u64>,
}

impl Connections {
    pub(crate) fn new(
        max: usize,
        tls: Option<ServerTls>,
        proxies: Proxies,
        resets: Arc<Resets>,
        rejections: Arc<Rejections>,
    ) -> Self {
        let handshakes_failed = global::meter("mesh")
            .u64_counter("mesh.server.tls.handshakes.failed")
            .with_description("TLS handshakes that failed, by cause")
            .build();
        Self { slots: Slots::new(max), usage: Arc::default(), tls, proxies, resets, rejections, handshakes_failed }
    }

    pub(crate) fn open_connections(&self) -> usize {
        self.slots.used()
    }

    pub(crate) fn limit(&self) -> usize {
        self.slots.limit
    }

    /// Trusted proxies carry many callers, and are never evicted.
    fn take_slot(&self, peer: SocketAddr) -> Option<Slot> {
        let is_trusted = self.proxies.trusts(peer.ip());
        self.slots.take((!is_trusted).then(|| CallerKey::of_address(peer.ip())))
    }

    fn is_crowded(&self) -> bool {
        self.open_connections() * 4 >= self.slots.limit * 3
    }

    fn handshake_timeout(&self) -> Duration {
        if self.is_crowded() { CROWDED_HANDSHAKE_TIMEOUT } else { HANDSHAKE_TIMEOUT }
    }

    /// Serves a connection until it is closed. `None` over the limit: the connection is closed, another instance may
    /// accept it.
    pub(crate) fn serve<S>(
        self: &Arc<Self>,
        stream: S,
        peer: SocketAddr,
        make_stack: MakeStack,
        goaway: CancellationToken,
    ) -> Option<impl Future<Output = ()> + Send + use<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(slot) = self.take_slot(peer) else {
            self.rejections.count(Cause::Connections);
            return None;
        };
        let (connections, evicted) = (self.clone(), slot.evicted());
        Some(async move {
            let evict = async {
                evicted.cancelled().await;
                connections.rejections.count(Cause::Evicted);
                tokio::time::sleep(EVICTION_GRACE).await;
            };
            tokio::select! {
                // First: the eviction is counted even if the connection closes in the same poll.
                biased;
                () = evict => {}
                () = connections.serve_transport(stream, peer, make_stack, goaway, slot) => {}
            }
        })
    }

    /// TLS, if it is configured; then serves the stream until the connection is closed.
    async fn serve_transport<S>(
        &self,
        stream: S,
        peer: SocketAddr,
        make_stack: MakeStack,
        goaway: CancellationToken,
        slot: Slot,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = &self.tls else {
            return self.serve_stream(stream, self.connection_service(&make_stack, peer, None, slot), goaway).await;
        };
        let handshake = timeout(self.handshake_timeout(), tls.accept(stream));
        // No call has begun: no grace period is needed.
        let evicted = slot.evicted();
        let Some(Some(outcome)) = goaway.run_until_cancelled(evicted.run_until_cancelled(handshake)).await else {
            return;
        };
        match outcome.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
            Ok((stream, None)) => {
                self.serve_stream(stream, self.connection_service(&make_stack, peer, None, slot), goaway).await
            }
            Ok((stream, Some((peer_service, valid_for)))) => {
                slot.never_evict();
                let service = self.connection_service(&make_stack, peer, Some(PeerService(peer_service.into())), slot);
                let close = service.activity.close.clone();
                let expires = async {
                    tokio::time::sleep(valid_for).await;
                    // The peer's certificate has expired: it must authenticate again, on a new connection.
                    self.rejections.count(Cause::Expired);
                    close.cancel();
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = self.serve_stream(stream, service, goaway) => {}
                    () = expires => {}
                }
            }
            Err(error) => {
                let service = KeyValue::new("mesh.service", self.rejections.service);
                self.handshakes_failed.add(1, &[service, KeyValue::new("cause", failure(&error))]);
                self.rejections.count(Cause::Tls);
                tracing::debug!(target: "ordermesh", %peer, %error, "TLS handshake failed");
            }
        }
    }

    fn connection_service(
        &self,
        make_stack: &MakeStack,
        peer: SocketAddr,
        peer_service: Option<PeerService>,
        slot: Slot,
    ) -> ConnectionService {
        let proxies = self.proxies.trusts(peer.ip()).then(|| self.proxies.clone());
        let activity = Arc::new(Activity::new(ConnectionResets::new(self.resets.clone()), slot));
        let (stack, rejections) = (RefCell::new(make_stack.make()), self.rejections.clone());
        let callers = ConnectionCallers::new(self.usage.clone());
        ConnectionService { stack, peer, callers, proxies, peer_service, activity, rejections }
    }

    /// Reads the preface with a timeout, then serves HTTP/2: hyper has none for the first bytes, and keepalive begins after them.
    async fn serve_stream<S>(&self, mut stream: S, service: ConnectionService, goaway: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut first = [0; PREFACE_AND_HEAD_BYTES];
        let reading = timeout(self.handshake_timeout(), stream.read_exact(&mut first));
        let close = service.activity.close.clone();
        let Some(Some(read)) = goaway.run_until_cancelled(close.run_until_cancelled(reading)).await else { return };
        match read {
            // A port probe: closed before the preface.
            Ok(Err(_gone)) => {}
            Ok(Ok(_)) if first.starts_with(PREFACE) => {
                let budget = PollBudget::default();
                self.serve_http2(read_in_chunks(first, stream, budget.clone()), budget, service, goaway).await;
            }
            Ok(Ok(_)) | Err(_) => self.rejections.count(Cause::Preface),
        }
    }

    /// Serves calls, then closes the socket with a lingering close; an evicted connection is closed without it.
    async fn serve_http2<S>(&self, stream: S, budget: PollBudget, service: ConnectionService, goaway: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // The slot is held until the socket is closed.
        let _activity = service.activity.clone();
        let (stream, mut returned) = return_on_drop(stream);
        self.serve_calls(stream, budget, service, goaway).await;
        if let Ok(stream) = returned.try_recv() {
            linger(stream).await;
        }
    }

    async fn serve_calls<S>(&self, stream: S, budget: PollBudget, service: ConnectionService, goaway: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = service.activity.clone();
        let executor = WriteTimeoutExecutor { timeout: WRITE_TIMEOUT, rejections: self.rejections.clone() };
        let connection = http2::Builder::new(executor)
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(MAX_SEND_BUFFER_BYTES)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut idle = std::pin::pin!(self.wait_until_idle(&activity, IDLE_TIMEOUT));
        let (mut is_going_away, mut closing) = (false, None);
        let close = &activity.close;
        let ended = loop {
            tokio::select! {
                ended = budget.per_poll(connection.as_mut()) => break ended,
                // The drain timeout bounds what follows.
                () = goaway.cancelled(), if !is_going_away => {
                    is_going_away = true;
                    connection.as_mut().graceful_shutdown();
                }
                excess = activity.resets.exceeded() => {
                    if excess == Excess::Limit {
                        return;
                    }
                    if !std::mem::replace(&mut is_going_away, true) {
                        self.rejections.count(Cause::Resets);
                        connection.as_mut().graceful_shutdown();
                        idle.set(self.wait_until_idle(&activity, WRITE_TIMEOUT));
                    }
                }
                () = close.cancelled(), if closing.is_none() => {
                    is_going_away = true;
                    connection.as_mut().graceful_shutdown();
                    let grace = if activity.slot.is_in_use() { EVICTION_GRACE } else { IDLE_EVICTION_GRACE };
                    closing = Some(Box::pin(tokio::time::sleep(grace)));
                }
                Some(()) = OptionFuture::from(closing.as_mut()) => return,
                () = &mut idle => {
                    if is_going_away {
                        // Still no admitted call, and the peer does not close: it may not be reading its responses.
                        if !activity.has_infrastructure_calls() {
                            self.rejections.count(Cause::WriteTimeout);
                        }
                        return;
                    }
                    is_going_away = true;
                    connection.as_mut().graceful_shutdown();
                    idle.set(self.wait_until_idle(&activity, WRITE_TIMEOUT));
                }
            }
        };
        if let Err(error) = ended {
            if let Some(cause) = cause_of(&error) {
                self.rejections.count(cause);
            }
            tracing::debug!(target: "ordermesh", %error, "connection closed with an error");
        }
    }

    /// Returns when the connection has had no admitted call for `limit` (less near the connection limit).
    async fn wait_until_idle(&self, activity: &Activity, limit: Duration) {
        let (mut last, mut idle) = (activity.admitted(), Duration::ZERO);
        loop {
            tokio::time::sleep(IDLE_TICK).await;
            let admitted = activity.admitted();
            if admitted != last || activity.slot.is_in_use() {
                (last, idle) = (admitted, Duration::ZERO);
                continue;
            }
            idle += IDLE_TICK;
            if idle >= if self.is_crowded() { limit.min(CROWDED_IDLE_TIMEOUT) } else { limit } {
                return;
            }
        }
    }
}

/// Why the server closed a connection; `None` when the peer or the network did.
fn cause_of(error: &hyper::Error) -> Option<Cause> {
    if error.is_timeout() {
        return Some(Cause::KeepaliveTimeout);
    }
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| !error.is_remote() && !error.is_io()).then_some(Cause::Protocol)
}

#[cfg(test)]
mod tests;
