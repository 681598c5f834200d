//! A minimal HTTP/2 client, for misbehaving callers. Also used by the attack benchmark.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::net::TcpSocket;
use tonic::Status;

/// A connection from an address; `window_bytes` is the flow-control window of each response.
pub(crate) async fn connect(from: [u8; 4], to: SocketAddr, window_bytes: u32) -> std::io::Result<SendRequest<Bytes>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let stream = socket.connect(to).await?;
    let mut builder = h2::client::Builder::new();
    let handshake = builder.initial_window_size(window_bytes).handshake(stream).await;
    let (sender, connection) = handshake.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends a call's headers.
pub(crate) async fn send_headers(
    sender: &SendRequest<Bytes>,
    path: &str,
    token: &str,
) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
    let mut request = http::Request::post(format!("http://attacked{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    sender.clone().ready().await?.send_request(request.body(()).expect("a request"), false)
}

/// A message in gRPC's framing.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("short"));
    frame.put_slice(message);
    frame.freeze()
}

/// Sends a message; returns the status in the response's headers, if any. The response is left unread.
pub(crate) async fn send_message(
    sender: &SendRequest<Bytes>,
    path: &str,
    token: &str,
    message: &[u8],
) -> Result<(Option<Status>, RecvStream), h2::Error> {
    let (response, mut stream) = send_headers(sender, path, token).await?;
    stream.send_data(framed(message), true)?;
    let response = response.await?;
    Ok((Status::from_header_map(response.headers()), response.into_body()))
}
