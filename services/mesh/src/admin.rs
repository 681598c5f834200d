//! The admin port: plaintext HTTP/1 health checks, for clients without a certificate (kubelet). `/livez` is 200 while
//! the process works, and 503 when only a restart can help; `/readyz` is 200 when ready, and 503 when not ready or
//! draining.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::rate_limit::{Key, network};
use crate::serve::accept;
use crate::slots::Slots;

const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// They use file descriptors that the service needs. Beyond this, one connection of the client with the most is evicted.
const MAX_CONNECTIONS: usize = 64;

/// Serves `/livez` and `/readyz` until the shutdown.
pub async fn serve_admin(
    listener: TcpListener,
    ready: watch::Receiver<bool>,
    alive: watch::Receiver<bool>,
    shutdown: CancellationToken,
) {
    let slots = Slots::new(MAX_CONNECTIONS);
    while let Some((stream, peer)) = accept(&listener, &shutdown).await {
        let Some(slot) = slots.take(Some(Key::Peer(network(peer.ip())))) else { continue };
        let (ready, alive, shutdown) = (ready.clone(), alive.clone(), shutdown.clone());
        tokio::spawn(async move {
            let leave = slot.leave();
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(request.uri().path(), *ready.borrow(), *alive.borrow());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A prober that disconnects early is no error.
                _ = connection => {}
                () = shutdown.cancelled() => {}
                () = leave.cancelled() => {}
            }
            drop(slot);
        });
    }
}

fn answer(path: &str, is_ready: bool, is_alive: bool) -> Response<String> {
    let (status, text) = match path {
        "/livez" if is_alive => (StatusCode::OK, "alive\n"),
        "/livez" => (StatusCode::SERVICE_UNAVAILABLE, "not alive\n"),
        "/readyz" if is_ready => (StatusCode::OK, "ready\n"),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        _ => (StatusCode::NOT_FOUND, "the paths are /livez and /readyz\n"),
    };
    let mut response = Response::new(text.to_owned());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("read");
        text.lines().next().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn connections_are_limited_and_a_closed_one_frees_its_slot() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (_ready, watched) = watch::channel(true);
        let server = tokio::spawn(serve_admin(listener, watched.clone(), watched, CancellationToken::new()));
        let mut silent = vec![];
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.expect("connects"));
        }
        let mut refused = TcpStream::connect(address).await.expect("connects");
        assert!(!matches!(refused.read(&mut [0]).await, Ok(1..)), "closed");
        let mut left = silent.pop().expect("one of them");
        left.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("written");
        left.read_to_end(&mut vec![]).await.expect("read");
        assert_eq!(get(address, "/livez").await, "HTTP/1.1 200 OK");
        server.abort();
    }

    #[tokio::test]
    async fn readyz_reports_readiness_and_livez_reports_liveness() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (ready, watched) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let (alive, is_alive) = watch::channel(true);
        let server = tokio::spawn(serve_admin(listener, watched, is_alive, shutdown.clone()));
        assert_eq!(get(address, "/livez").await, "HTTP/1.1 200 OK");
        assert_eq!(get(address, "/readyz").await, "HTTP/1.1 503 Service Unavailable");
        ready.send_replace(true);
        assert_eq!(get(address, "/readyz").await, "HTTP/1.1 200 OK");
        alive.send_replace(false);
        assert_eq!(get(address, "/livez").await, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(get(address, "/else").await, "HTTP/1.1 404 Not Found");
        shutdown.cancel();
        server.await.expect("ends");
    }
}
