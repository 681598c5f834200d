//! Deadlines: enforced, reported, and shorter at the next hop.

use std::time::Duration;

use tonic::Code;

use crate::echo::{SAY, STREAM};
use crate::world::{World, WorldOptions, call, reason, say, with_metadata};
use mesh::Credentials;

#[tokio::test]
async fn a_slow_handler_is_dropped_at_the_callers_deadline_with_error_info() {
    let world = World::new().await;
    // Not the mesh's client: this one has no timeout of its own.
    let request = raw::unary(SAY, "hold", &[("grpc-timeout", "50m")]);
    let response = raw::send(world.address, request).await;
    assert_eq!(response.code(), Code::DeadlineExceeded);
    assert_eq!(reason(&response), "DEADLINE_EXCEEDED");
    world.echo.dropped.notified().await;
}

#[tokio::test]
async fn the_client_enforces_the_deadline_when_the_server_does_not_answer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = listener.local_addr().expect("an address").to_string();
    let channel = crate::world::channel(vec![silent], Credentials::None);
    let mut request = tonic::Request::new("anything".to_owned());
    request.set_timeout(Duration::from_millis(50));
    let status = call(&channel, SAY, request).await.expect_err("no response");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
}

#[tokio::test]
async fn a_malformed_timeout_is_rejected_and_starts_no_handler() {
    let world = World::new().await;
    let response = raw::send(world.address, raw::unary(SAY, "hello", &[("grpc-timeout", "123456789S")])).await;
    assert_eq!((response.code(), reason(&response).as_str()), (Code::InvalidArgument, "MALFORMED_TIMEOUT"));
    assert_eq!(world.handlers_started(), 0);
    let response = raw::send(world.address, raw::unary(SAY, "hello", &[("grpc-timeout", "12345678S")])).await;
    assert_eq!(response.code(), Code::Ok, "eight digits are allowed");
}

#[tokio::test]
async fn a_call_past_its_deadline_on_arrival_starts_no_handler() {
    let world = World::new().await;
    let response = raw::send(world.address, raw::unary(SAY, "hello", &[("grpc-timeout", "0m")])).await;
    assert_eq!(response.code(), Code::DeadlineExceeded);
    assert_eq!(world.handlers_started(), 0);
    assert!(world.events.take().is_empty(), "the caller is not authenticated: it must not fill the event store");
}

#[tokio::test]
async fn the_methods_own_timeout_is_the_maximum() {
    let world = World::new().await;
    let request = with_metadata("time left", &[("grpc-timeout", "1H")]);
    let left = call(&world.anonymous(), SAY, request).await.expect("answered").into_inner();
    let left: u64 = left.parse().expect("microseconds");
    assert!(left <= 5_000_000, "{left} µs are left of 5 s");
}

#[tokio::test]
async fn the_deadline_is_propagated_to_the_next_hop_and_is_shorter_there() {
    let second = World::new().await;
    let first = World::with(WorldOptions { next: Some(second.anonymous()), ..WorldOptions::default() }).await;
    let mut request = tonic::Request::new("forward time left".to_owned());
    request.set_timeout(Duration::from_millis(900));
    let left = call(&first.anonymous(), SAY, request).await.expect("answered").into_inner();
    let left: u64 = left.parse().expect("microseconds");
    assert!(left < 900_000, "{left} µs are left of 900 ms, not the method's 5 s");
    // Control: without a deadline from the caller, the method's own timeout is propagated.
    let left = say(&first.anonymous(), SAY, "forward time left").await.expect("answered");
    let left: u64 = left.parse().expect("microseconds");
    assert!((900_000..5_000_000).contains(&left), "{left} µs are left of 5 s");
}

#[tokio::test]
async fn a_stream_ends_at_its_callers_deadline() {
    let world = World::new().await;
    let response = raw::send(world.address, raw::unary(STREAM, "forever", &[("grpc-timeout", "50m")])).await;
    assert_eq!((response.code(), reason(&response).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
}

/// A client without the mesh: only hyper.
pub(crate) mod raw {
    use std::net::SocketAddr;

    use bytes::{BufMut, Bytes, BytesMut};
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tonic::{Code, Status};

    pub(crate) fn unary(path: &str, text: &str, headers: &[(&str, &str)]) -> http::Request<Full<Bytes>> {
        // google.protobuf.StringValue: field 1, length-delimited.
        let mut message = BytesMut::new();
        message.put_u8(0x0a);
        message.put_u8(u8::try_from(text.len()).expect("short"));
        message.put_slice(text.as_bytes());
        framed(path, &message, headers)
    }

    pub(crate) fn framed(path: &str, message: &[u8], headers: &[(&str, &str)]) -> http::Request<Full<Bytes>> {
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).expect("short"));
        frame.put_slice(message);
        with_body(path, frame.freeze(), headers)
    }

    pub(crate) fn with_body(path: &str, body: Bytes, headers: &[(&str, &str)]) -> http::Request<Full<Bytes>> {
        let mut request = http::Request::post(format!("http://test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body)).expect("a request")
    }

    /// Returns the status, from headers or trailers.
    pub(crate) async fn send(address: SocketAddr, request: http::Request<Full<Bytes>>) -> Status {
        send_over(tokio::net::TcpStream::connect(address).await.expect("connects"), request).await
    }

    /// The same, over any connection.
    pub(crate) async fn send_over<S>(stream: S, request: http::Request<Full<Bytes>>) -> Status
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.expect("a response");
        assert_eq!(response.status(), http::StatusCode::OK);
        let in_headers = Status::from_header_map(response.headers());
        let collected = response.into_body().collect().await.expect("a body");
        let in_trailers = collected.trailers().and_then(Status::from_header_map);
        connection.abort();
        in_headers.or(in_trailers).unwrap_or_else(|| Status::new(Code::Unknown, "no grpc-status"))
    }
}
