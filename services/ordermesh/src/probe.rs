//! Probes a process's readiness on its admin port, without an HTTP client: `/readyz` is one line of HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The interval between two probes.
const INTERVAL: Duration = Duration::from_millis(10);
/// The timeout of a probe.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Completes when the process behind an admin port is ready.
pub(crate) async fn until_ready(admin: SocketAddr) {
    while !is_ready(admin).await {
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Whether it is ready now.
pub(crate) async fn is_ready(admin: SocketAddr) -> bool {
    matches!(tokio::time::timeout(TIMEOUT, request_readiness(admin)).await, Ok(Ok(true)))
}

/// Whether the address accepts connections.
pub(crate) async fn listens(address: SocketAddr) -> bool {
    matches!(tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await, Ok(Ok(_)))
}

async fn request_readiness(admin: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut status = [0; 12];
    stream.read_exact(&mut status).await?;
    Ok(status.ends_with(b" 200"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn only_a_200_is_ready() {
        for (response, ready) in
            [("HTTP/1.1 200 OK\r\n\r\n", true), ("HTTP/1.1 503 Not yet\r\n\r\n", false), ("", false)]
        {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let answering = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("a caller");
                let mut question = [0; 16];
                stream.read_exact(&mut question).await.expect("asked");
                stream.write_all(response.as_bytes()).await.expect("answered");
            });
            assert_eq!(is_ready(address).await, ready, "{response:?}");
            answering.await.expect("ends");
            assert!(!is_ready(address).await, "the listener is closed");
        }
    }
}
