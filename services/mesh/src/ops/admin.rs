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

use crate::server::limits::caller_key::CallerKey;
use crate::server::limits::slots::Slots;
use crate::server::serve::accept;

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
        let Some(slot) = slots.take(Some(CallerKey::of_address(peer.ip()))) else { continue };
        let (ready, alive, shutdown) = (ready.clone(), alive.clone(), shutdown.clone());
        tokio::spawn(async move {
            let leave = slot.evicted();
            let service = service_fn(move |request: Request<Incoming>| {
                let response = respond(request.uri().path(), *ready.borrow(), *alive.borrow());
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

fn respond(path: &str, is_ready: bool, is_alive: bool) -> Response<String> {
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
mod tests;
