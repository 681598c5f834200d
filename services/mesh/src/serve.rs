//! The accept loop, and the drain: health says NOT_SERVING → serve on while others notice → GOAWAY → a bounded wait.
//! hyper's HTTP/2 builder is used directly: tonic's server would put layers of its own outside of ours.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::health::Health;
use crate::token::Tokens;
use crate::wire::{Answer, Request, Response};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONCURRENT_STREAMS: u32 = 1_024;
const MAX_HEADER_LIST_BYTES: u32 = 32 * 1_024;
/// How long calls are still accepted after health says NOT_SERVING (at most a quarter of the drain's timeout).
const LINGER: Duration = Duration::from_millis(250);
/// After an accept error (out of file descriptors, most likely): others may close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(crate) type Stack = BoxCloneSyncService<Request, Response, Infallible>;

/// A server stack, ready to be served.
pub struct Server {
    pub(crate) stack: Stack,
    pub(crate) health: Health,
    pub(crate) tokens: Option<std::sync::Arc<Tokens>>,
    pub(crate) drain_timeout: Duration,
}

impl Server {
    /// Serves until the shutdown, then drains: returns when the last call is done, or `drain_timeout` after the GOAWAY.
    /// Long streams are expected to end with their service's own shutdown; those that do not are cut off then.
    ///
    /// # Errors
    /// The listener has no address. Errors of connections are survived.
    pub async fn serve(
        self,
        listener: TcpListener,
        ready: watch::Receiver<bool>,
        shutdown: CancellationToken,
    ) -> Result<(), io::Error> {
        let address = listener.local_addr()?;
        let (goaway, cut) = (CancellationToken::new(), CancellationToken::new());
        let connections = TaskTracker::new();
        let ready_now = *ready.borrow();
        self.health.say(ready_now).await;
        let follower = tokio::spawn(self.health.clone().follow(ready, shutdown.clone()));
        if let Some(tokens) = self.tokens.clone() {
            let until = goaway.clone();
            tokio::spawn(async move { until.run_until_cancelled(tokens.prefetch()).await });
        }
        let accepting = async {
            while let Some((stream, peer)) = accept(&listener, &goaway).await {
                let connection = PerConnection { stack: self.stack.clone(), peer };
                connections.spawn(serve_connection(stream, connection, goaway.clone(), cut.clone()));
            }
        };
        let draining = async {
            shutdown.cancelled().await;
            // The follower must be gone, or it could say SERVING after us.
            let _ = follower.await;
            self.health.say(false).await;
            tracing::debug!(target: "ordermesh", %address, "draining");
            tokio::time::sleep(LINGER.min(self.drain_timeout / 4)).await;
            goaway.cancel();
        };
        tokio::join!(accepting, draining);
        drop(listener);
        connections.close();
        if tokio::time::timeout(self.drain_timeout, connections.wait()).await.is_err() {
            tracing::warn!(target: "ordermesh", connections = connections.len(), "the drain took too long: the rest is cut off");
            cut.cancel();
            connections.wait().await;
        }
        Ok(())
    }
}

/// The next connection; `None` after the end.
pub(crate) async fn accept(listener: &TcpListener, end: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
    loop {
        match end.run_until_cancelled(listener.accept()).await? {
            Ok((stream, peer)) => {
                // gRPC's frames are small and answered at once: waiting to fill a packet only adds latency.
                let _ = stream.set_nodelay(true);
                return Some((stream, peer));
            }
            Err(error) => {
                tracing::warn!(target: "ordermesh", %error, "a connection could not be accepted");
                end.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await?;
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    service: PerConnection,
    goaway: CancellationToken,
    cut: CancellationToken,
) {
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut goaway = std::pin::pin!(goaway.cancelled_owned());
    let mut asked = false;
    let ended = loop {
        tokio::select! {
            ended = &mut connection => break ended,
            () = &mut goaway, if !asked => {
                asked = true;
                connection.as_mut().graceful_shutdown();
            }
            () = cut.cancelled() => return,
        }
    };
    if let Err(error) = ended {
        tracing::debug!(target: "ordermesh", %error, "a connection ended badly");
    }
}

#[derive(Clone)]
struct PerConnection {
    stack: Stack,
    peer: SocketAddr,
}

impl hyper::service::Service<http::Request<Incoming>> for PerConnection {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Answer>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        // The body fails when the caller resets the stream or is gone: either way he has given up.
        let mut request = request.map(|body| Body::new(body.map_err(|_| Status::cancelled("the caller has gone"))));
        request.extensions_mut().insert(self.peer);
        let mut stack = self.stack.clone();
        Box::pin(async move {
            let ready = stack.ready().await?;
            ready.call(request).await
        })
    }
}
