//! The accept loop, and the drain: health reports NOT_SERVING, serving continues for a while, GOAWAY, a bounded wait.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use telemetry::LogLimit;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::identity::token::Tokens;
use crate::ops::health::Health;
use crate::ops::limit_metrics::ServerLimits;
use crate::ops::observed_server::ObservedServer;
use crate::server::connection::MakeStack;

/// Pause after an accept error (most likely, out of file descriptors): open connections may close meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A server stack, ready to be served.
pub struct Server {
    pub(crate) make_stack: MakeStack,
    pub(crate) health: Health,
    pub(crate) tokens: Option<Arc<Tokens>>,
    pub(crate) accepts_secret: bool,
    /// Exported as metrics while the server exists.
    pub(crate) limits: Arc<ServerLimits>,
    /// In snapshots while the server exists.
    pub(crate) _observed: Arc<ObservedServer>,
    /// Cancelled when every connection gets its GOAWAY.
    pub(crate) goaway: CancellationToken,
    pub(crate) pre_drain_delay: Duration,
    pub(crate) drain_timeout: Duration,
}

impl Server {
    /// Serves until the shutdown, then drains: health reports NOT_SERVING; serving continues for `pre_drain_delay`, until
    /// clients have removed the instance; every connection gets a GOAWAY, and no more are accepted; returns when the last call is complete,
    /// or after `drain_timeout`. Streams do not delay it: those that their service has not ended shortly after the
    /// GOAWAY are ended with UNAVAILABLE.
    ///
    /// # Errors
    /// The listener has no address, or is not on loopback although the mesh secret is accepted. Connection errors are
    /// not returned.
    pub async fn serve(
        self,
        listener: TcpListener,
        ready: watch::Receiver<bool>,
        shutdown: CancellationToken,
    ) -> Result<(), io::Error> {
        let address = listener.local_addr()?;
        if self.accepts_secret && !address.ip().is_loopback() {
            let message = "the mesh secret is for loopback listeners only";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let (goaway, force_close) = (self.goaway.clone(), CancellationToken::new());
        let connections = TaskTracker::new();
        let ready_now = *ready.borrow();
        self.health.set_serving(ready_now);
        let follower = tokio::spawn(self.health.clone().follow(ready, shutdown.clone()));
        if let Some(tokens) = self.tokens.clone() {
            let until = goaway.clone();
            tokio::spawn(async move { until.run_until_cancelled(tokens.follow()).await });
        }
        let accepting = async {
            while let Some((stream, peer)) = accept(&listener, &goaway).await {
                let open = &self.limits.connections;
                if let Some(connection) = open.serve(stream, peer, self.make_stack.clone(), goaway.clone()) {
                    let force_close = force_close.clone();
                    connections.spawn(async move { force_close.run_until_cancelled(connection).await });
                }
            }
        };
        let draining = async {
            shutdown.cancelled().await;
            // The follower must have ended, or it could report SERVING again.
            let _ = follower.await;
            self.health.set_serving(false);
            tracing::debug!(target: "ordermesh", %address, "draining");
            tokio::time::sleep(self.pre_drain_delay).await;
            goaway.cancel();
        };
        tokio::join!(accepting, draining);
        drop(listener);
        connections.close();
        if tokio::time::timeout(self.drain_timeout, connections.wait()).await.is_err() {
            tracing::warn!(target: "ordermesh", connections = connections.len(), "drain timeout: open connections are closed");
            force_close.cancel();
            connections.wait().await;
        }
        Ok(())
    }
}

/// The next connection; `None` once `end` is cancelled.
pub(crate) async fn accept(listener: &TcpListener, end: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
    loop {
        match end.run_until_cancelled(listener.accept()).await? {
            Ok((stream, peer)) => {
                // gRPC's frames are small and answered immediately: Nagle's algorithm would only add latency.
                let _ = stream.set_nodelay(true);
                return Some((stream, peer));
            }
            Err(error) => {
                static LOG_LIMIT: LogLimit = LogLimit::new();
                if let Some(occurrences) = LOG_LIMIT.count(Instant::now()) {
                    tracing::warn!(target: "ordermesh", %error, occurrences, "a connection could not be accepted");
                }
                end.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await?;
            }
        }
    }
}
