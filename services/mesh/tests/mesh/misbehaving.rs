//! Misbehaving clients, over real sockets: others are served, resources are released, and rejections are counted. What
//! takes time (half frames, idle timeouts, zero windows) is tested in `connections.rs`, with paused time.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::deadlines::raw;
use crate::echo::SAY;
use crate::observed::observed;
use crate::world::{World, WorldOptions, reason, say};

const BUDGET_BYTES: usize = 100_000;

/// A server with a service name of its own, so that its metrics are separate.
pub(crate) async fn world(service: &'static str) -> World {
    world_with(service, BUDGET_BYTES).await
}

pub(crate) async fn world_with(service: &'static str, budget_bytes: usize) -> World {
    observed();
    let options = WorldOptions { memory_budget_bytes: Some(budget_bytes), ..WorldOptions::default() };
    World::altered(options, |config| config.service = service).await
}

pub(crate) fn held(service: &str, instrument: &str) -> u64 {
    observed().value(instrument, &[&format!("mesh.service={service}")])
}

pub(crate) fn refusals(service: &str, cause: &str) -> u64 {
    observed().value("mesh.server.refusals", &[&format!("mesh.service={service}"), &format!("cause={cause}")])
}

pub(crate) type Connection = JoinHandle<Result<(), h2::Error>>;

pub(crate) async fn connect(world: &World) -> (SendRequest<Bytes>, Connection) {
    let stream = TcpStream::connect(world.address).await.expect("connects");
    // Ignores the server's initial limit on streams.
    let builder = h2::client::Builder::new().initial_max_send_streams(1_000).clone();
    let (sender, connection) = builder.handshake(stream).await.expect("HTTP/2");
    (sender.ready().await.expect("ready"), tokio::spawn(connection))
}

pub(crate) fn head(headers: &[(&str, &str)]) -> http::Request<()> {
    let mut request = http::Request::post(format!("http://test{SAY}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}

/// Waits until a condition holds.
pub(crate) async fn until(what: impl Fn() -> bool) {
    let holds = async {
        while !what() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), holds).await.expect("the condition holds");
}

pub(crate) async fn others_are_served(world: &World) {
    assert_eq!(say(&world.anonymous(), SAY, "hello").await.expect("others are served"), "hello");
}

/// The start of an HTTP/2 connection: the preface and an empty SETTINGS.
pub(crate) const BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Encodes a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HPACK without compression: POST http://x/test.v1.Echo/Say, content-type application/grpc.
fn header_block() -> Vec<u8> {
    block(SAY, &[("content-type", "application/grpc")])
}

pub(crate) fn block(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let literal = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let mut block = [&[0x83, 0x86, 0x01, 1, b'x', 0x04][..], &literal(path)].concat();
    for (name, value) in headers {
        block.extend([&[0x00][..], &literal(name), &literal(value)].concat());
    }
    block
}

#[tokio::test]
async fn ten_thousand_streams_reset_immediately_close_the_connection() {
    let world = world("rapid-reset").await;
    let mut attack = BEGINNING.to_vec();
    for number in 0..10_000 {
        attack.extend(frame(1, 4, 2 * number + 1, &header_block()));
        attack.extend(frame(3, 0, 2 * number + 1, &[0, 0, 0, 8]));
    }
    let (mut reader, mut writer) = TcpStream::connect(world.address).await.expect("connects").into_split();
    let written = tokio::spawn(async move { writer.write_all(&attack).await });
    // Until the server closes or resets the connection.
    let mut received = vec![];
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut received).await;
    let _ = written.await.expect("no panic");
    until(|| held("rapid-reset", "mesh.server.connections") == 0).await;
    // By the HTTP/2 stack or by the mesh: it depends on how many arrive between two turns of the connection.
    assert!(refusals("rapid-reset", "protocol") + refusals("rapid-reset", "resets") > 0);
    assert_eq!(held("rapid-reset", "mesh.server.permits.used"), 0);
    assert_eq!(held("rapid-reset", "mesh.server.memory.reserved"), 0);
    others_are_served(&world).await;
}

#[tokio::test]
async fn streams_that_the_server_is_made_to_reset_close_the_connection() {
    let world = world("made-you-reset").await;
    let mut attack = BEGINNING.to_vec();
    for number in 0..3_000 {
        attack.extend(frame(1, 4, 2 * number + 1, &header_block()));
        // WINDOW_UPDATE with a zero increment: a stream error (CVE-2025-8671).
        attack.extend(frame(8, 0, 2 * number + 1, &[0, 0, 0, 0]));
    }
    let (mut reader, mut writer) = TcpStream::connect(world.address).await.expect("connects").into_split();
    let written = tokio::spawn(async move { writer.write_all(&attack).await });
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut vec![]).await;
    let _ = written.await.expect("no panic");
    until(|| held("made-you-reset", "mesh.server.connections") == 0).await;
    assert_eq!(refusals("made-you-reset", "protocol"), 1);
    assert_eq!(held("made-you-reset", "mesh.server.permits.used"), 0);
    others_are_served(&world).await;
}

#[tokio::test]
async fn a_thousand_calls_reset_in_their_handler_release_everything() {
    let world = world("reset").await;
    let (mut sender, connection) = connect(&world).await;
    for number in 0..1_000 {
        sender = sender.ready().await.expect("the connection stays open");
        let (_response, mut stream) = sender.send_request(head(&[]), false).expect("sent");
        // "hold", complete.
        stream.send_data(Bytes::from_static(b"\0\0\0\0\x06\x0a\x04hold"), true).expect("sent");
        world.echo.holding.notified().await;
        if number == 0 {
            assert_eq!(held("reset", "mesh.server.permits.used"), 1);
            assert_eq!(held("reset", "mesh.server.memory.reserved"), 44);
        }
        stream.send_reset(h2::Reason::CANCEL);
        world.echo.dropped.notified().await;
    }
    until(|| held("reset", "mesh.server.permits.used") == 0).await;
    until(|| held("reset", "mesh.server.memory.reserved") == 0).await;
    others_are_served(&world).await;
    connection.abort();
}

#[tokio::test]
async fn endless_request_bodies_stay_within_the_budget_and_release_it() {
    let world = world("endless").await;
    let (sender, connection) = connect(&world).await;
    let mut streams = vec![];
    // Each announces 10,000 bytes and sends half of them: 20,000 of the budget. Three fit into a caller's fair share.
    for number in 1..=8 {
        let (response, mut stream) =
            sender.clone().ready().await.expect("ready").send_request(head(&[]), false).expect("sent");
        let mut data = vec![0, 0, 0, 0x27, 0x10];
        data.resize(4_900, 0);
        stream.send_data(data.into(), false).expect("sent");
        streams.push((response, stream));
        if number <= 3 {
            until(|| held("endless", "mesh.server.memory.reserved") > number * 19_000).await;
        }
    }
    until(|| refusals("endless", "memory") == 5).await;
    let reserved = held("endless", "mesh.server.memory.reserved");
    assert!((55_000..=60_000).contains(&reserved), "{reserved}");
    let status = say(&world.anonymous(), SAY, "hello").await.expect_err("from the same address");
    assert_eq!(reason(&status), "OUT_OF_MEMORY");
    let other = world.service("order", crate::world::MESH_SECRET);
    assert_eq!(say(&other, SAY, &"x".repeat(9_000)).await.expect("others get memory").len(), 9_000);
    drop(streams);
    connection.abort();
    until(|| held("endless", "mesh.server.memory.reserved") == 0).await;
    others_are_served(&world).await;
}

#[tokio::test]
async fn calls_without_request_bodies_are_charged_for_their_headers() {
    let world = world("headers-only").await;
    let (sender, connection) = connect(&world).await;
    let headers: Vec<String> = (0..100).map(|number| format!("x-{number}")).collect();
    let headers: Vec<_> = headers.iter().map(|name| (name.as_str(), "")).collect();
    let mut streams = vec![];
    for _ in 0..20 {
        // 25,000 for each call, and 16,000 for its headers: one caller has half of a mebibyte.
        streams.push(sender.clone().ready().await.expect("ready").send_request(head(&headers), false).expect("sent"));
    }
    until(|| refusals("headers-only", "memory") == 7).await;
    assert_eq!(held("headers-only", "mesh.server.memory.reserved"), 0, "the calls' budget stays free");
    drop(streams);
    connection.abort();
    others_are_served(&world).await;
}

#[tokio::test]
async fn unread_responses_stay_within_the_budget_and_release_it() {
    let world = world("unread").await;
    let stream = TcpStream::connect(world.address).await.expect("connects");
    let (sender, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    // A response of just over 9,000 bytes holds 18,000; two fit into a caller's share, and the third becomes an error in
    // the headers.
    let mut message = vec![0, 0, 0, 0x23, 0x2b, 0x0a, 0xa8, 0x46];
    message.resize(message.len() + 9_000, b'x');
    let mut answers = vec![];
    for number in 0..5 {
        let (response, mut stream) =
            sender.clone().ready().await.expect("ready").send_request(head(&[]), false).expect("sent");
        stream.send_data(message.clone().into(), true).expect("sent");
        let response = response.await.expect("headers");
        let rejection = Status::from_header_map(response.headers()).map(|status| reason(&status));
        assert_eq!(rejection.as_deref(), (number > 1).then_some("OUT_OF_MEMORY"), "response {number}");
        answers.push((response, stream));
    }
    let reserved = held("unread", "mesh.server.memory.reserved");
    assert!((36_000..37_000).contains(&reserved), "{reserved}");
    assert_eq!(world.handlers_started(), 2, "beyond its share, a caller is rejected before the handler");
    let other = world.service("order", crate::world::MESH_SECRET);
    assert_eq!(say(&other, SAY, &"x".repeat(9_000)).await.expect("others get memory").len(), 9_000);
    // A reset releases it.
    drop(answers.swap_remove(0));
    until(|| held("unread", "mesh.server.memory.reserved") < 19_000).await;
    drop(answers);
    until(|| held("unread", "mesh.server.memory.reserved") == 0).await;
    connection.abort();
}

#[tokio::test]
async fn half_a_frame_delays_no_other_connection() {
    let world = world("half-a-frame").await;
    let mut stream = TcpStream::connect(world.address).await.expect("connects");
    stream.write_all(BEGINNING).await.expect("written");
    stream.write_all(&[0, 0, 16, 1, 5, 0, 0, 0, 1, 0x82]).await.expect("written");
    until(|| held("half-a-frame", "mesh.server.connections") == 1).await;
    others_are_served(&world).await;
    drop(stream);
    until(|| held("half-a-frame", "mesh.server.connections") == 0).await;
}

#[tokio::test]
async fn headers_beyond_http2s_own_limit_end_the_stream_but_not_the_server() {
    let world = world("huge-headers").await;
    let (sender, connection) = connect(&world).await;
    let long = "y".repeat(15_000);
    let names: Vec<_> = (0..20).map(|number| format!("x-{number}")).collect();
    let headers: Vec<_> = names.iter().map(|name| (name.as_str(), long.as_str())).collect();
    let (response, _stream) =
        sender.clone().ready().await.expect("ready").send_request(head(&headers), true).expect("sent");
    // 431 (h2's response), or the connection is closed.
    if let Ok(response) = response.await {
        assert_eq!(response.status(), http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    others_are_served(&world).await;
    assert_eq!(world.handlers_started(), 1, "only the others'");
    connection.abort();
}

#[tokio::test]
async fn endless_continuation_frames_close_the_connection() {
    let world = world("continuation").await;
    let mut stream = TcpStream::connect(world.address).await.expect("connects");
    stream.write_all(BEGINNING).await.expect("written");
    // HEADERS without END_HEADERS on stream 1, then CONTINUATION frames: a literal of 16,000 bytes each.
    stream.write_all(&[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]).await.expect("written");
    let mut continuation = vec![0, 0x3e, 0x87, 9, 0, 0, 0, 0, 1, 0x40, 1, b'x', 0x7f, 0x81, 0x7c];
    continuation.resize(9 + 0x3e87, b'y');
    let mut sent = 0_u64;
    while refusals("continuation", "protocol") == 0 {
        if stream.write_all(&continuation).await.is_ok() {
            sent += 1;
        }
        assert!(sent < 1_000, "16 MB of headers were accepted");
        tokio::task::yield_now().await;
    }
    others_are_served(&world).await;
}

#[tokio::test]
async fn malformed_input_gets_the_right_code_and_the_next_call_works() {
    let world = world("malformed").await;
    let compressed = |encoding: &str| {
        // The flag claims compression.
        let mut request = raw::with_body(SAY, Bytes::from_static(b"\x01\0\0\0\x01x"), &[]);
        request.headers_mut().insert("grpc-encoding", encoding.parse().expect("a value"));
        request
    };
    let headers = |headers: &[(&str, &str)]| raw::unary(SAY, "hello", headers);
    #[rustfmt::skip]
    let table = [
        (compressed("snappy"),                              Code::Unimplemented,   "COMPRESSION_NOT_SUPPORTED"),
        (compressed("identity"),                            Code::InvalidArgument, "MALFORMED_MESSAGE"),
        (headers(&[("grpc-timeout", "soon")]),              Code::InvalidArgument, "MALFORMED_TIMEOUT"),
        (headers(&[("grpc-timeout", "123456789S")]),        Code::InvalidArgument, "MALFORMED_TIMEOUT"),
        (raw::with_body(SAY, Bytes::from_static(b"\0"), &[]), Code::InvalidArgument, "MALFORMED_MESSAGE"),
        (raw::with_body(SAY, Bytes::new(), &[]),            Code::Unimplemented,   "REQUEST_CARDINALITY"),
    ];
    for (number, (request, code, expected)) in table.into_iter().enumerate() {
        let response: Status = raw::send(world.address, request).await;
        assert_eq!((response.code(), reason(&response).as_str()), (code, expected), "row {number}");
    }
    // On a public method, invalid credentials are ignored.
    for nonsense in [("traceparent", "00-zz"), ("authorization", "Bearer ..."), ("x-ordermesh-secret", "guess")] {
        assert_eq!(raw::send(world.address, headers(&[nonsense])).await.code(), Code::Ok, "{nonsense:?}");
    }
    assert_eq!((refusals("malformed", "timeout"), refusals("malformed", "traceparent")), (2, 1));
    others_are_served(&world).await;
}

#[tokio::test]
async fn a_connection_over_the_limit_is_closed() {
    observed();
    let world = World::altered(WorldOptions::default(), |config| {
        (config.service, config.max_connections) = ("crowded", 1);
    })
    .await;
    let (sender, connection) = connect(&world).await;
    let mut second = TcpStream::connect(world.address).await.expect("connects");
    let read = tokio::io::AsyncReadExt::read(&mut second, &mut [0; 1]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(refusals("crowded", "connections"), 1);
    drop(sender);
    connection.abort();
    until(|| held("crowded", "mesh.server.connections") == 0).await;
    others_are_served(&world).await;
}
