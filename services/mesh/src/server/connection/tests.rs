//! Connections over a duplex stream, in paused time: start, idle timeout, close, and misbehaving peers.

use super::*;
use crate::server::call_state::update;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::client::SendRequest;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

use crate::call::wire::{Request, Response, ServerResult};

/// HTTP/2 frame types.
const SETTINGS: u8 = 4;
const PING: u8 = 6;

/// A server with two connection slots. Its handler answers with 100 kB; `Watch` streams without end; `Reject` answers
/// without reading the request; `Read` answers after reading it; `Hold` neither reads nor answers.
struct World {
    connections: Arc<Connections>,
    rejections: Arc<Rejections>,
    goaway: CancellationToken,
}

impl World {
    fn new() -> Self {
        let rejections = Arc::new(Rejections::new("test"));
        let connections =
            Arc::new(Connections::new(2, None, Proxies::default(), Arc::new(Resets::new()), rejections.clone()));
        Self { connections, rejections, goaway: CancellationToken::new() }
    }

    /// The client end of a new connection, and the task that serves it.
    fn connect(&self) -> Option<(DuplexStream, tokio::task::JoinHandle<()>)> {
        let (ours, theirs) = duplex(1 << 20);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let handler = tower::service_fn(|request: Request| -> BoxFuture<'static, ServerResult> {
            let full = || Body::new(Full::new(Bytes::from(vec![0; 100_000])).map_err(|never| match never {}));
            let path = request.uri().path().to_owned();
            update(|state| {
                state.is_admitted = true;
                state.is_infrastructure = path.starts_with("/grpc.health");
            });
            Box::pin(async move {
                Ok(Response::new(match path.as_str() {
                    "/t.T/Watch" | "/grpc.health.v1.Health/Watch" => {
                        Body::new(StreamBody::new(futures_util::stream::pending::<Result<_, Status>>()))
                    }
                    "/t.T/Reject" => Body::empty(),
                    "/t.T/Read" => request.into_body().collect().await.map(|_| Body::empty()).expect("a body"),
                    "/t.T/Hold" => {
                        let _unread = request;
                        std::future::pending().await
                    }
                    _ => full(),
                }))
            })
        });
        let make_stack = MakeStack::new(handler);
        let served = self.connections.serve(theirs, peer, make_stack, self.goaway.clone())?;
        Some((ours, tokio::spawn(served)))
    }

    fn seen(&self) -> Vec<Cause> {
        self.rejections.counted.lock().clone()
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
    let (response, _) = sender.send_request(head(path), true).expect("sent");
    response.await.expect("answered")
}

fn head(path: &str) -> http::Request<()> {
    let request = http::Request::post(format!("http://test{path}"));
    request.header("content-type", "application/grpc").body(()).expect("a request")
}

/// Sends up to `most` bytes, as far as the windows allow.
async fn send(stream: &mut h2::SendStream<Bytes>, most: usize) -> usize {
    let mut sent = 0;
    while sent < most {
        stream.reserve_capacity(most - sent);
        let room = timeout(Duration::from_millis(1), std::future::poll_fn(|cx| stream.poll_capacity(cx))).await;
        let Ok(Some(Ok(room))) = room else { break };
        stream.send_data(vec![0; room].into(), false).expect("sent");
        sent += room;
    }
    sent
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_timely_preface_is_closed() {
    for first in [&b""[..], b"PRI * HTTP/2.0\r\n", PREFACE] {
        let world = World::new();
        let (mut stream, served) = world.connect().expect("a slot");
        stream.write_all(first).await.expect("written");
        let began = Instant::now();
        served.await.expect("no panic");
        assert_eq!((began.elapsed(), world.seen()), (HANDSHAKE_TIMEOUT, vec![Cause::Preface]));
        assert_eq!(world.connections.open_connections(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn handshake_timeouts_are_shorter_near_the_connection_limit() {
    let world = World::new();
    let (_one, _other) = (world.connect().expect("a slot"), world.connect().expect("a slot"));
    let began = Instant::now();
    while world.seen().len() < 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() <= CROWDED_HANDSHAKE_TIMEOUT + Duration::from_millis(100), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_http2_is_closed_immediately() {
    let world = World::new();
    let (mut stream, served) = world.connect().expect("a slot");
    let began = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: other.example.com\r\n\r\n").await.expect("written");
    served.await.expect("no panic");
    assert_eq!((began.elapsed(), world.seen()), (Duration::ZERO, vec![Cause::Preface]));
}

#[tokio::test(start_paused = true)]
async fn half_a_frame_is_bounded_by_keepalive() {
    let world = World::new();
    let (mut stream, served) = world.connect().expect("a slot");
    stream.write_all(PREFACE).await.expect("written");
    // SETTINGS, empty; then the head of HEADERS: 16 bytes, of which one is sent; flags END_STREAM, END_HEADERS; stream
    // 1.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("written");
    stream.write_all(&[0, 0, 16, 1, 5, 0, 0, 0, 1, 0x82]).await.expect("written");
    let began = Instant::now();
    served.await.expect("no panic");
    assert!(began.elapsed() <= KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT + Duration::from_secs(1));
    assert_eq!(world.seen(), [Cause::KeepaliveTimeout]);
}

#[tokio::test(start_paused = true)]
async fn connections_are_limited_and_a_closed_one_frees_its_slot() {
    let world = World::new();
    let (first, served) = world.connect().expect("a slot");
    let _second = world.connect().expect("a slot");
    assert!(world.connect().is_none());
    assert_eq!((world.seen(), world.connections.open_connections()), (vec![Cause::Connections], 2));
    drop(first);
    served.await.expect("no panic");
    assert!(world.connect().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_sooner_near_the_connection_limit() {
    let world = World::new();
    let idle = |world: &World| world.connect().expect("a slot");
    let (stream, served) = idle(&world);
    let mut sender = handshake(stream, 65_535).await;
    call(&mut sender).await.into_body().data().await.expect("data").expect("well-formed");
    let began = Instant::now();
    served.await.expect("no panic");
    assert!((IDLE_TIMEOUT..IDLE_TIMEOUT + 2 * IDLE_TICK).contains(&began.elapsed()), "{:?}", began.elapsed());
    // Both slots are taken.
    let ((one, served), (other, _)) = (idle(&world), idle(&world));
    let (_one, _other) = (handshake(one, 65_535).await, handshake(other, 65_535).await);
    let began = Instant::now();
    served.await.expect("no panic");
    assert!(began.elapsed() < CROWDED_IDLE_TIMEOUT + 2 * IDLE_TICK, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_unread_response_is_reset_and_the_connection_keeps_serving() {
    let world = World::new();
    let (stream, _served) = world.connect().expect("a slot");
    let mut sender = handshake(stream, 0).await;
    let began = Instant::now();
    let mut stuck = call(&mut sender).await.into_body();
    let error = stuck.data().await.expect("not the end").expect_err("the window is zero: a reset");
    assert_eq!((error.reason(), began.elapsed()), (Some(h2::Reason::CANCEL), WRITE_TIMEOUT));
    assert_eq!(world.seen(), [Cause::WriteTimeout]);
    assert_eq!(call(&mut sender).await.status(), http::StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_window_of_one_byte_is_like_a_zero_window() {
    let world = World::new();
    let (stream, _served) = world.connect().expect("a slot");
    let mut sender = handshake(stream, 1).await;
    let began = Instant::now();
    let mut stuck = call(&mut sender).await.into_body();
    assert_eq!(stuck.data().await.expect("not the end").expect("a byte").len(), 1);
    // The byte's capacity is not released.
    let error = stuck.data().await.expect("not the end").expect_err("a reset");
    assert_eq!((error.reason(), began.elapsed()), (Some(h2::Reason::CANCEL), WRITE_TIMEOUT));
    assert_eq!(world.seen(), [Cause::WriteTimeout]);
}

#[tokio::test(start_paused = true)]
async fn a_response_is_complete_however_it_is_chunked() {
    let world = World::new();
    let (stream, _served) = world.connect().expect("a slot");
    let mut sender = handshake(stream, 20_000).await;
    let mut body = call(&mut sender).await.into_body();
    let mut read = 0;
    while let Some(data) = body.data().await {
        let length = data.expect("not reset").len();
        read += length;
        body.flow_control().release_capacity(length).expect("released");
    }
    assert_eq!(read, 100_000);
}

#[tokio::test(start_paused = true)]
async fn a_health_stream_does_not_keep_a_connection_open_but_a_services_stream_does() {
    for (path, is_kept) in [("/t.T/Watch", true), ("/grpc.health.v1.Health/Watch", false)] {
        let world = World::new();
        let (stream, served) = world.connect().expect("a slot");
        let mut sender = handshake(stream, 65_535).await;
        let _stream = call_of(&mut sender, path).await;
        let ended = timeout(2 * IDLE_TIMEOUT, served).await;
        assert_eq!(ended.is_err(), is_kept, "{path}");
        assert_eq!(world.seen(), [], "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_discards_late_input_for_a_short_time() {
    let world = World::new();
    let (mut stream, served) = world.connect().expect("a slot");
    stream.write_all(PREFACE).await.expect("written");
    stream.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await.expect("written");
    // Read every frame; pings must be answered, or the connection does not close.
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        world.goaway.cancel();
        let mut payload = vec![0; usize::from(head[2])];
        stream.read_exact(&mut payload).await.expect("a whole frame");
        if head[3] == PING && head[4] == 0 {
            stream.write_all(&[&[0, 0, 8, PING, 1, 0, 0, 0, 0], &payload[..]].concat()).await.expect("written");
        }
    }
    stream.write_all(b"a call that was on its way").await.expect("still accepted");
    assert!(!served.is_finished());
    served.await.expect("no panic");
    stream.write_all(b"too late").await.expect_err("closed");
}

#[tokio::test(start_paused = true)]
async fn unread_requests_do_not_block_others_on_their_connection() {
    let world = World::new();
    let (stream, _served) = world.connect().expect("a slot");
    let mut sender = handshake(stream, 65_535).await;
    // The client learns the server's windows with its first response.
    call_of(&mut sender, "/t.T/Reject").await;
    let mut unread = vec![];
    for _ in 0..8 {
        let (response, mut stream) = sender.send_request(head("/t.T/Hold"), false).expect("sent");
        assert_eq!(send(&mut stream, 1 << 21).await, STREAM_WINDOW_BYTES as usize, "its own window and no more");
        unread.push((response, stream));
    }
    let (response, mut stream) = sender.send_request(head("/t.T/Read"), false).expect("sent");
    assert_eq!(send(&mut stream, 1 << 21).await, 1 << 21);
    stream.send_data(Bytes::new(), true).expect("sent");
    assert_eq!(response.await.expect("answered").status(), http::StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn an_unread_response_does_not_block_others_on_its_connection() {
    let world = World::new();
    let (stream, _served) = world.connect().expect("a slot");
    let builder = h2::client::Builder::new().initial_window_size(20_000).initial_connection_window_size(90_000).clone();
    let (sender, connection) = builder.handshake::<_, Bytes>(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut sender = sender.ready().await.expect("ready");
    let (began, mut unread) = (Instant::now(), vec![]);
    for _ in 0..4 {
        unread.push(call(&mut sender).await);
    }
    let mut body = call(&mut sender).await.into_body();
    let mut read = 0;
    while let Some(data) = body.data().await {
        let length = data.expect("not reset").len();
        read += length;
        body.flow_control().release_capacity(length).expect("released");
    }
    assert_eq!((read, began.elapsed()), (100_000, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn an_early_response_is_sent_after_the_requests_end_or_a_timeout() {
    let world = World::new();
    let (stream, _served) = world.connect().expect("a slot");
    let mut sender = handshake(stream, 65_535).await;
    call_of(&mut sender, "/t.T/Reject").await;
    let rejected = |sender: &mut SendRequest<Bytes>| sender.send_request(head("/t.T/Reject"), false).expect("sent");
    let began = Instant::now();
    // The request ends.
    let (mut response, mut stream) = rejected(&mut sender);
    assert_eq!(send(&mut stream, 1 << 20).await, 1 << 20, "it is read");
    assert!(futures_util::FutureExt::now_or_never(&mut response).is_none(), "the response waits for the request's end");
    stream.send_data(Bytes::new(), true).expect("sent");
    response.await.expect("answered");
    assert_eq!(began.elapsed(), Duration::ZERO);
    let is_reset = timeout(Duration::from_secs(9), std::future::poll_fn(|cx| stream.poll_reset(cx))).await;
    assert!(!matches!(is_reset, Ok(Ok(_))), "{is_reset:?}");
    // The request does not end.
    let began = Instant::now();
    let (response, mut stream) = rejected(&mut sender);
    response.await.expect("answered");
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    let reset = std::future::poll_fn(|cx| stream.poll_reset(cx)).await.expect("reset");
    assert_eq!(reset, h2::Reason::NO_ERROR, "control: the client is asked to stop sending");
    // The request is too large.
    let began = Instant::now();
    let (response, mut stream) = rejected(&mut sender);
    assert!(send(&mut stream, 1 << 25).await < 1 << 24, "the client is asked to stop sending");
    response.await.expect("answered");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}
