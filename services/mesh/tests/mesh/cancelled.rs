//! Callers that share a connection, as behind a gateway: one caller's cancellations do not affect the others.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::echo::{SAY, STREAM};
use crate::identity::{claims, signed};
use crate::misbehaving::{held, others_are_served, refusals, until, world_with};
use crate::world::{KEY_ID, World, reason};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;

/// Buffers what a client writes while it is held back. Then all of it is written together, and the server reads it in
/// one turn.
#[derive(Clone, Default)]
struct Cork(Arc<Mutex<(bool, Vec<u8>)>>);

impl Cork {
    /// Starts holding back, once all that was written before has been sent.
    fn close(&self) -> bool {
        let mut held = self.0.lock().expect("not poisoned");
        held.0 = held.1.is_empty();
        held.0
    }

    fn open(&self) {
        self.0.lock().expect("not poisoned").0 = false;
    }

    /// The number of buffered frames of a kind.
    fn frames(&self, kind: u8) -> usize {
        let held = self.0.lock().expect("not poisoned");
        let (mut rest, mut count) = (&held.1[..], 0);
        while let [a, b, c, this, ..] = *rest {
            count += usize::from(this == kind);
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            rest = rest.get(9 + length..).unwrap_or_default();
        }
        count
    }
}

struct Corked(TcpStream, Cork);

impl Corked {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = self.1.0.lock().expect("not poisoned");
        while !held.0 && !held.1.is_empty() {
            let written = std::task::ready!(Pin::new(&mut self.0).poll_write(cx, &held.1))?;
            held.1.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Corked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Corked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_out(cx))?;
        self.1.0.lock().expect("not poisoned").1.extend(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A connection that many callers share.
struct Shared {
    sender: SendRequest<Bytes>,
    cork: Cork,
    connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Shared {
    async fn with(world: &World) -> Self {
        let (stream, cork) = (TcpStream::connect(world.address).await.expect("connects"), Cork::default());
        // Nagle's algorithm would keep each small write back for as long as a delayed ACK takes.
        stream.set_nodelay(true).expect("set");
        let builder = h2::client::Builder::new().initial_max_send_streams(1_000).clone();
        let (sender, connection) = builder.handshake(Corked(stream, cork.clone())).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        Self { sender: sender.ready().await.expect("ready"), cork, connection }
    }

    /// A call with a text of less than 128 bytes.
    fn call(&mut self, path: &str, text: &str, token: Option<&str>) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = http::Request::post(format!("http://test{path}")).header("content-type", "application/grpc");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let (response, mut stream) =
            self.sender.send_request(request.body(()).expect("a request"), false).expect("sent");
        let length = u8::try_from(text.len()).expect("short");
        let message = [&[0, 0, 0, 0, length + 2, 0x0a, length], text.as_bytes()].concat();
        stream.send_data(message.into(), true).expect("sent");
        (response, stream)
    }

    /// Begins calls that never complete and cancels them, with `more` after them: the server sees all in one turn.
    async fn cancelled<T>(&mut self, count: usize, token: Option<&str>, more: impl FnOnce(&mut Self) -> T) -> T {
        until(|| self.cork.close()).await;
        let calls: Vec<_> = (0..count).map(|_| self.call(SAY, "hold", token)).collect();
        until(|| self.cork.frames(HEADERS) == count).await;
        for (_, mut stream) in calls {
            stream.send_reset(Reason::CANCEL);
        }
        until(|| self.cork.frames(RST_STREAM) == count).await;
        self.cork.open();
        // The next write flushes the buffer.
        more(self)
    }
}

async fn status(response: ResponseFuture) -> Status {
    let (head, mut body) = response.await.expect("answered").into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return status;
    }
    while let Some(data) = body.data().await {
        let length = data.expect("data").len();
        body.flow_control().release_capacity(length).expect("released");
    }
    let trailers = body.trailers().await.expect("trailers").expect("trailers");
    Status::from_header_map(&trailers).expect("a status")
}

#[tokio::test]
async fn calls_begun_and_cancelled_together_do_not_affect_others_on_their_connection() {
    let world = world_with("cancelled", 64 << 20).await;
    let mut shared = Shared::with(&world).await;
    let (watch, _) = shared.call(STREAM, "forever", None);
    let watch = watch.await.expect("it begins");
    let (slow, _) = shared.call(SAY, "hold", None);
    world.echo.holding.notified().await;
    for _ in 0..20 {
        let (other, _) = shared.cancelled(100, None, |shared| shared.call(SAY, "hello", None)).await;
        assert_eq!(status(other).await.code(), Code::Ok);
    }
    // The work is dropped and its permits are released: two calls are left.
    until(|| held("cancelled", "mesh.server.permits.used") == 2).await;
    world.echo.release.add_permits(1);
    assert_eq!(status(slow).await.code(), Code::Ok, "a slow call is served to its end");
    until(|| held("cancelled", "mesh.server.permits.used") == 1).await;
    assert!(!watch.body().is_end_stream() && !shared.connection.is_finished());
    drop(watch);
    until(|| held("cancelled", "mesh.server.memory.reserved") == 0).await;
    assert_eq!((refusals("cancelled", "resets"), refusals("cancelled", "protocol")), (0, 0));
}

#[tokio::test]
async fn a_connection_flooded_with_cancelled_calls_gets_a_goaway_and_open_calls_are_served() {
    let world = world_with("flood", 64 << 20).await;
    let mut shared = Shared::with(&world).await;
    let (watch, mut cancel) = shared.call(STREAM, "forever", None);
    let mut watch = watch.await.expect("it begins").into_body();
    watch.data().await.expect("its messages").expect("well-formed");
    while refusals("flood", "resets") == 0 {
        shared.cancelled(500, None, |shared| shared.sender.clone()).await;
        // Any round trip would do.
        let (next, _) = shared.call(SAY, "hello", None);
        let _ = next.await;
    }
    assert!(watch.data().now_or_never().is_none(), "still open");
    assert!(!shared.connection.is_finished());
    cancel.send_reset(Reason::CANCEL);
    let ended = tokio::time::timeout(Duration::from_secs(60), shared.connection).await.expect("closed");
    let reason = ended.expect("no panic").err().and_then(|error| error.reason());
    assert!(matches!(reason, None | Some(Reason::NO_ERROR)), "{reason:?}");
    assert_eq!((refusals("flood", "resets"), refusals("flood", "protocol")), (1, 0));
    others_are_served(&world).await;
}

#[tokio::test]
async fn a_user_that_floods_a_connection_is_rejected_and_others_on_it_are_not() {
    let world = world_with("flood-of-one", 64 << 20).await;
    let mut shared = Shared::with(&world).await;
    let token = |number: u128| {
        let mut claims = claims("customer");
        claims["sub"] = uuid::Uuid::from_u128(number).to_string().into();
        signed(&claims, KEY_ID)
    };
    let (misbehaving, other) = (token(1), token(2));
    let mut rejected = None;
    // The quota allows two thousand, and one more each 10 ms: the next call usually comes sooner.
    for _ in 0..40 {
        let other = shared.cancelled(100, Some(&misbehaving), |shared| shared.call(SAY, "hello", Some(&other))).await;
        assert_eq!(status(other.0).await.code(), Code::Ok, "others are served");
        // By now the cancelled ones are counted.
        let own = shared.call(SAY, "hello", Some(&misbehaving));
        let own = status(own.0).await;
        if own.code() != Code::Ok {
            rejected = Some(own);
            break;
        }
    }
    let rejected = rejected.expect("the flood is stopped");
    assert_eq!((rejected.code(), reason(&rejected).as_str()), (Code::ResourceExhausted, "TOO_MANY_CANCELLED"));
    assert!(rejected.get_details_retry_info().is_some());
    assert!(refusals("flood-of-one", "resets") > 0);
    assert!(!shared.connection.is_finished(), "the connection stays open");
}
