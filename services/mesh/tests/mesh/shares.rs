//! One caller takes all it can get, in every way, and another caller is served as if it were alone.

use bytes::Bytes;
use futures_util::FutureExt;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tonic::{Code, Status};

use crate::echo::{OPERATOR, SAY, STREAM};
use crate::misbehaving::{held, others_are_served, refusals, until};
use crate::observed::observed;
use crate::world::{MESH_SECRET, World, WorldOptions, call, reason, say, with_metadata};

/// More than the permits.
const MANY: usize = 600;
const HOLD: &[u8] = b"\0\0\0\0\x06\x0a\x04hold";
const FOREVER: &[u8] = b"\0\0\0\0\x09\x0a\x07forever";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

async fn world(service: &'static str, alter: impl FnOnce(&mut mesh::ServerConfig)) -> World {
    observed();
    World::altered(WorldOptions::default(), |config| {
        config.service = service;
        alter(config);
    })
    .await
}

/// A connection from an address that no other client here uses.
async fn stream_of_anonymous(world: &World) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("bound");
    socket.connect(world.address).await.expect("connects")
}

async fn anonymous(world: &World, window: u32) -> SendRequest<Bytes> {
    let stream = stream_of_anonymous(world).await;
    let builder = h2::client::Builder::new().initial_max_send_streams(1_000).initial_window_size(window).clone();
    let (sender, connection) = builder.handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender.ready().await.expect("ready")
}

/// A call with this message, or without one.
async fn send(
    sender: &SendRequest<Bytes>,
    path: &str,
    message: Option<&'static [u8]>,
    headers: &[(&'static str, &str)],
) -> (ResponseFuture, SendStream<Bytes>) {
    let mut request = http::Request::post(format!("http://test{path}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut sender = sender.clone().ready().await.expect("ready");
    let (response, mut stream) = sender.send_request(request.body(()).expect("a request"), false).expect("sent");
    if let Some(message) = message {
        stream.send_data(Bytes::from_static(message), true).expect("sent");
    }
    (response, stream)
}

async fn body(response: ResponseFuture) -> RecvStream {
    response.await.expect("answered").into_body()
}

/// The status at the end of a stream.
async fn end(mut body: RecvStream) -> Status {
    while let Some(data) = body.data().await {
        data.expect("data");
    }
    let trailers = body.trailers().await.expect("trailers").expect("trailers");
    Status::from_header_map(&trailers).expect("a status")
}

#[tokio::test]
async fn calls_without_a_message_take_no_permit() {
    let world = world("no-message", |config| config.max_concurrency = 1).await;
    let sender = anonymous(&world, 65_535).await;
    let mut calls = vec![];
    for _ in 0..MANY {
        calls.push(send(&sender, SAY, None, &[]).await);
    }
    for _ in 0..20 {
        others_are_served(&world).await;
    }
    // The calls are open, and one is served when its message arrives. The others are never events.
    let (response, mut stream) = calls.swap_remove(7);
    stream.send_data(Bytes::from_static(b"\0\0\0\0\x04\x0a\x02hi"), true).expect("sent");
    assert_eq!(end(body(response).await).await.code(), Code::Ok);
    let timed_out = send(&sender, SAY, None, &[("grpc-timeout", "1m")]).await;
    let status = Status::from_header_map(timed_out.0.await.expect("answered").headers()).expect("a status");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(world.events.take().len(), 21);
    assert!(calls.into_iter().any(|(response, _)| response.now_or_never().is_none()));
}

#[tokio::test]
async fn unread_responses_hold_no_permit() {
    let world = world("not-taken", |config| config.max_concurrency = 2).await;
    let sender = anonymous(&world, 0).await;
    let mut answers = vec![];
    for _ in 0..MANY {
        let (response, _stream) = send(&sender, SAY, Some(b"\0\0\0\0\x04\x0a\x02hi"), &[]).await;
        answers.push(body(response).await);
    }
    assert_eq!(world.handlers_started(), MANY, "each has been served");
    for _ in 0..20 {
        others_are_served(&world).await;
    }
    assert_eq!(held("not-taken", "mesh.server.permits.used"), 0);
    assert!(answers.into_iter().all(|mut response| response.data().now_or_never().is_none()), "none is read");
}

#[tokio::test]
async fn one_address_gets_at_most_half_of_the_permits_and_others_get_some() {
    let world = world("half", |config| config.max_concurrency = 8).await;
    let sender = anonymous(&world, 65_535).await;
    let mut calls = vec![];
    for _ in 0..4 {
        calls.push(send(&sender, SAY, Some(HOLD), &[]).await);
        world.echo.holding.notified().await;
    }
    let (rejected, _stream) = send(&sender, SAY, Some(HOLD), &[]).await;
    let status = Status::from_header_map(rejected.await.expect("answered").headers()).expect("a status");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "TOO_MANY_CONCURRENT_CALLS"));
    for _ in 0..20 {
        others_are_served(&world).await;
    }
    assert_eq!((refusals("half", "fair_share"), refusals("half", "concurrency")), (1, 0));
    // A returned permit is available again.
    world.echo.release.add_permits(1);
    until(|| held("half", "mesh.server.permits.used") < 4).await;
    let (response, _stream) = send(&sender, SAY, Some(HOLD), &[]).await;
    assert_eq!(end(body(response).await).await.code(), Code::Ok);
}

#[tokio::test]
async fn behind_a_trusted_proxy_one_customer_takes_no_permits_from_others() {
    let network = "127.0.0.2/32".parse().expect("a network");
    let world = world("gateway", |config| (config.max_concurrency, config.trusted_proxies) = (8, vec![network])).await;
    let gateway = anonymous(&world, 65_535).await;
    let mut calls = vec![];
    for _ in 0..4 {
        calls.push(send(&gateway, SAY, Some(HOLD), &[("x-forwarded-for", "192.0.2.1")]).await);
        world.echo.holding.notified().await;
    }
    let code = async |address: &str| {
        let (response, _stream) =
            send(&gateway, SAY, Some(b"\0\0\0\0\x04\x0a\x02hi"), &[("x-forwarded-for", address)]).await;
        let (head, body) = response.await.expect("answered").into_parts();
        match Status::from_header_map(&head.headers) {
            Some(rejected) => rejected.code(),
            None => end(body).await.code(),
        }
    };
    assert_eq!(code("192.0.2.1").await, Code::ResourceExhausted);
    for last in 2..20 {
        assert_eq!(code(&format!("192.0.2.{last}")).await, Code::Ok);
    }
}

#[tokio::test]
async fn some_permits_are_reserved_for_mesh_services() {
    let world = world("reserve", |config| config.max_concurrency = 16).await;
    let sender = anonymous(&world, 65_535).await;
    let mut calls = vec![];
    // As many as the fair share of an address allows.
    for _ in 0..7 {
        calls.push(send(&sender, SAY, Some(HOLD), &[]).await);
        world.echo.holding.notified().await;
    }
    let service = world.service("order", MESH_SECRET);
    let mut services = vec![];
    for _ in 0..9 {
        let service = service.clone();
        services.push(tokio::spawn(async move { say(&service, SAY, "hold").await }));
        world.echo.holding.notified().await;
    }
    assert_eq!(held("reserve", "mesh.server.permits.used"), 16, "services have no share limit");
    assert_eq!(reason(&say(&world.anonymous(), SAY, "hello").await.expect_err("none left")), "OVERLOADED");
    world.echo.release.add_permits(16);
    for call in services {
        assert_eq!(call.await.expect("no panic").expect("served"), "released");
    }
}

#[tokio::test]
async fn the_idlest_connection_of_the_largest_holder_is_evicted_for_a_new_client() {
    let world = world("connections-share", |config| config.max_connections = 4).await;
    let (mut idle, busy) = (stream_of_anonymous(&world).await, anonymous(&world, 65_535).await);
    let (open, _stream) = send(&busy, STREAM, Some(FOREVER), &[]).await;
    let open = body(open).await;
    // Each calls and is rejected: that does not count as use of a connection.
    let rejected = [anonymous(&world, 65_535).await, anonymous(&world, 65_535).await];
    for sender in rejected.iter().chain(&rejected) {
        let (response, _stream) = send(sender, OPERATOR, Some(HOLD), &[]).await;
        let status = Status::from_header_map(response.await.expect("answered").headers()).expect("a status");
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    let _arrival = crate::misbehaving::connect(&world).await;
    assert!(matches!(idle.read(&mut [0; 64]).await, Ok(0) | Err(_)), "the oldest, and idle");
    until(|| held("connections-share", "mesh.server.connections") == 4).await;
    let is_there =
        |sender: &SendRequest<Bytes>| sender.clone().ready().now_or_never().is_some_and(|ready| ready.is_ok());
    assert_eq!(rejected.each_ref().map(is_there), [true, true]);
    // The next eviction is one whose calls are rejected, and not the one that is served.
    others_are_served(&world).await;
    until(|| rejected.each_ref().map(is_there) == [false, true]).await;
    assert_eq!((refusals("connections-share", "evicted"), refusals("connections-share", "connections")), (2, 0));
    assert!(!open.is_end_stream());
}

#[tokio::test]
async fn the_oldest_stream_of_the_caller_with_the_most_is_evicted_for_another_caller() {
    let world = world("streams-share", |config| config.max_streams = 3).await;
    let sender = anonymous(&world, 65_535).await;
    let mut streams = vec![];
    for _ in 0..3 {
        let (response, _stream) = send(&sender, STREAM, Some(FOREVER), &[]).await;
        streams.push(body(response).await);
    }
    let regular = crate::misbehaving::connect(&world).await.0;
    let (response, _stream) = send(&regular, STREAM, Some(FOREVER), &[]).await;
    let mut watch = body(response).await;
    assert!(watch.data().await.is_some(), "it is served");
    let status = end(streams.remove(0)).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "OVERLOADED"));
    assert_eq!((refusals("streams-share", "evicted"), refusals("streams-share", "streams")), (1, 0));
    assert_eq!(held("streams-share", "mesh.server.permits.used"), 3);
}

#[tokio::test]
async fn health_watches_of_one_client_block_neither_checks_nor_other_clients_watches() {
    let world = world("watches", |_| {}).await;
    let mut watches = vec![];
    for _ in 0..3 {
        let sender = anonymous(&world, 65_535).await;
        for _ in 0..400 {
            watches.push(send(&sender, WATCH, Some(b"\0\0\0\0\0"), &[]).await);
        }
    }
    let mut health = tonic_health::pb::health_client::HealthClient::new(world.anonymous());
    let request = || tonic_health::pb::HealthCheckRequest::default();
    for _ in 0..20 {
        assert_eq!(health.check(request()).await.expect("answered").into_inner().status, 1);
    }
    let mut watch = health.watch(request()).await.expect("it begins").into_inner();
    assert_eq!(watch.message().await.expect("well-formed").expect("its state").status, 1);
    let greeting = call(&world.anonymous(), SAY, with_metadata("hello", &[])).await;
    assert_eq!(greeting.expect("served").into_inner(), "hello");
}
