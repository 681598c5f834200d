//! Conformance to gRPC's specifications, as third-party clients see it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use crate::deadlines::raw;
use crate::echo::{CUSTOMER, SAY, UNLISTED};
use crate::misbehaving::{BEGINNING, block, frame, refusals};
use crate::world::{World, WorldOptions, reason};

/// A FileDescriptorSet of one file, other.proto, with the service other.v1.Other.
const OTHER: &[u8] = b"\x0a\x20\x0a\x0bother.proto\x12\x08other.v1\x32\x07\x0a\x05Other";

#[tokio::test]
async fn disabled_reflection_is_unimplemented_and_everything_else_is_served() {
    use v1::server_reflection_request::MessageRequest;
    let world = World::altered(WorldOptions::default(), |config| config.reflection = false).await;
    let list = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(world.anonymous());
    let rejected = client.server_reflection_info(futures_util::stream::iter([list])).await.expect_err("disabled");
    assert_eq!(rejected.code(), tonic::Code::Unimplemented, "{rejected:?}");
    let mut health = tonic_health::pb::health_client::HealthClient::new(world.anonymous());
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    health.check(request).await.expect("health is independent");
}

#[tokio::test]
async fn reflection_lists_the_served_services_and_resolves_all_symbols() {
    let world = World::altered(WorldOptions::default(), |config| config.descriptors = &[OTHER]).await;
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "test.v1.Echo",
    ];
    // Both versions are the same except for their package.
    macro_rules! ask {
        ($version:ident) => {{
            use $version::server_reflection_request::MessageRequest;
            use $version::server_reflection_response::MessageResponse;
            let ask =
                |request| $version::ServerReflectionRequest { host: String::new(), message_request: Some(request) };
            let requests = futures_util::stream::iter([
                ask(MessageRequest::ListServices(String::new())),
                ask(MessageRequest::FileContainingSymbol("other.v1.Other".into())),
                ask(MessageRequest::FileContainingSymbol("grpc.reflection.v1alpha.ServerReflection".into())),
            ]);
            let mut client = $version::server_reflection_client::ServerReflectionClient::new(world.anonymous());
            let answers = client.server_reflection_info(requests).await.expect("answers").into_inner();
            let answers: Vec<_> =
                answers.map(|response| response.expect("well-formed").message_response).collect().await;
            let [Some(MessageResponse::ListServicesResponse(list)), other, own] = &answers[..] else {
                panic!("{answers:?}")
            };
            let mut names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, expected);
            for file in [other, own] {
                assert!(matches!(file, Some(MessageResponse::FileDescriptorResponse(_))), "{file:?}");
            }
        }};
    }
    ask!(v1);
    ask!(v1alpha);
}

#[tokio::test]
async fn a_service_that_is_not_served_here_is_unimplemented_for_any_caller() {
    let elsewhere = World::altered(WorldOptions::default(), |config| config.services = vec!["other.v1.Other"]).await;
    let here = World::new().await;
    for path in [CUSTOMER, SAY] {
        let response = raw::send(elsewhere.address, raw::unary(path, "hello", &[])).await;
        assert_eq!((response.code(), reason(&response).as_str()), (Code::Unimplemented, "METHOD_NOT_FOUND"), "{path}");
    }
    assert_eq!(elsewhere.handlers_started(), 0);
    let response = raw::send(here.address, raw::unary(CUSTOMER, "hello", &[])).await;
    assert_eq!(response.code(), Code::Unauthenticated, "control");
}

#[tokio::test]
async fn a_watch_of_an_unknown_service_reports_that_and_stays_open_until_the_goaway() {
    let world = World::new().await;
    let request = || HealthCheckRequest { service: "nope".into() };
    let mut client = HealthClient::new(world.anonymous());
    let check = client.check(request()).await.expect_err("unknown");
    assert_eq!((check.code(), reason(&check).as_str()), (Code::NotFound, "NOT_FOUND"));
    let mut watch = client.watch(request()).await.expect("watched").into_inner();
    assert_eq!(watch.next().await.expect("one").expect("well-formed").status(), ServingStatus::ServiceUnknown);
    world.ready.send_replace(false);
    let more = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(more.is_err(), "still unknown: {more:?}");
    world.shutdown.cancel();
    let end = watch.next().await.expect("an end").expect_err("with a status");
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "DRAINING"));
}

#[tokio::test]
async fn requests_that_are_not_grpc_are_rejected_with_http_statuses_and_counted() {
    crate::observed::observed();
    let world = World::altered(WorldOptions::default(), |config| config.service = "not-grpc").await;
    let stream = TcpStream::connect(world.address).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut ask = async |method: &str, path: &str, content_type: &str, length: usize| {
        let request = http::Request::builder().method(method).uri(format!("http://test{path}"));
        let request = request.header("content-type", content_type).body(Full::new(Bytes::from(vec![0; length])));
        let response = sender.send_request(request.expect("a request")).await.expect("a response");
        let (head, body) = response.into_parts();
        assert_eq!(head.headers.contains_key("grpc-status"), head.status.is_success(), "{head:?}");
        (head, body.collect().await.expect("a whole body").to_bytes())
    };
    for (path, content_type) in
        [(SAY, "application/json"), ("/grpc.health.v1.Health/Check", "application/grpc+json"), (UNLISTED, "text/plain")]
    {
        let (head, text) = ask("POST", path, content_type, 300_000).await;
        assert_eq!(head.status, http::StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
        assert!(text.starts_with(b"this is a gRPC server"), "{text:?}");
    }
    let (head, text) = ask("GET", SAY, "application/grpc", 0).await;
    assert_eq!((head.status, text.len()), (http::StatusCode::METHOD_NOT_ALLOWED, 0));
    assert_eq!(head.headers["allow"], "POST");
    assert_eq!((refusals("not-grpc", "not_grpc"), world.handlers_started()), (4, 0));
    let (head, _) = ask("POST", SAY, "application/grpc+proto; x=y", 0).await;
    assert_eq!(head.status, http::StatusCode::OK, "control: it is gRPC, though not a request");
    connection.abort();
}

#[tokio::test]
async fn a_compressed_request_is_rejected_with_the_accepted_encodings() {
    let world = World::new().await;
    let stream = TcpStream::connect(world.address).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    for encoding in ["gzip", "deflate", "zstd"] {
        let response = sender.send_request(raw::unary(SAY, "hello", &[("grpc-encoding", encoding)])).await;
        let head = response.expect("a response").into_parts().0;
        assert_eq!(head.headers["grpc-accept-encoding"], "identity");
        let status = tonic::Status::from_header_map(&head.headers).expect("a status");
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unimplemented, "COMPRESSION_NOT_SUPPORTED"));
    }
    assert_eq!(world.handlers_started(), 0);
    connection.abort();
}

/// The types and flags of stream 1's frames, up to the ping's response.
async fn frames_of_the_response(stream: &mut TcpStream) -> Vec<(u8, u8)> {
    const PING: u8 = 6;
    stream.write_all(&frame(PING, 0, 0, b"the last")).await.expect("written");
    let mut frames = vec![];
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("a frame");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.expect("a whole frame");
        match (head[3], head[8]) {
            (PING, _) if payload == b"the last" => return frames,
            (kind, 1) => frames.push((kind, head[4])),
            _ => {}
        }
    }
}

#[tokio::test]
async fn an_error_before_the_request_is_read_does_not_reset_its_stream() {
    const HEADERS: u8 = 1;
    const END_STREAM: u8 = 1;
    let world = World::altered(WorldOptions::default(), |config| {
        config.max_message_bytes = 1_000;
        config.rate_limits = vec![(crate::echo::READ, mesh::Quota { calls: 1, per: Duration::from_secs(86_400) })];
    })
    .await;
    crate::world::say(&world.anonymous(), crate::echo::READ, "hello").await.expect("within its quota");
    let grpc = ("content-type", "application/grpc");
    #[rustfmt::skip]
    let table = [
        (SAY,                vec![grpc, ("grpc-encoding", "gzip")]),
        (SAY,                vec![grpc, ("grpc-timeout", "soon")]),
        (SAY,                vec![grpc]),
        (CUSTOMER,           vec![grpc]),
        (CUSTOMER,           vec![grpc, ("authorization", "Bearer a.b.c")]),
        (crate::echo::READ,  vec![grpc]),
        ("/no.such/Method",  vec![grpc]),
    ];
    for (path, headers) in table {
        let mut stream = TcpStream::connect(world.address).await.expect("connects");
        stream.write_all(BEGINNING).await.expect("written");
        stream.write_all(&frame(HEADERS, 4, 1, &block(path, &headers))).await.expect("written");
        // A message whose length exceeds the limit, and is still being sent.
        let message = [&[0, 0, 1, 0, 0][..], &[7; 10_000]].concat();
        stream.write_all(&frame(0, 0, 1, &message)).await.expect("written");
        let before = frames_of_the_response(&mut stream).await;
        stream.write_all(&frame(0, END_STREAM, 1, &[7; 10_000])).await.expect("written");
        let mut frames = before;
        while !frames.iter().any(|(_, flags)| flags & END_STREAM != 0) {
            frames.extend(frames_of_the_response(&mut stream).await);
        }
        frames.extend(frames_of_the_response(&mut stream).await);
        // WINDOW_UPDATE is not part of the response.
        frames.retain(|(kind, _)| *kind != 8);
        assert_eq!(frames, [(HEADERS, 4 | END_STREAM)], "{path} {headers:?}");
    }
}
