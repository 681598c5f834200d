//! How a connection is made: TCP, TLS if there is to be, HTTP/2. Within one second, or not at all.

use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::body::Body;

use crate::tls::ClientTls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The address of an instance that was deleted answers nothing at all: only pings tell.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer may list a hundred field violations, in one header.
const MAX_HEADER_LIST_BYTES: u32 = 256 * 1_024;

/// A connection that was made.
pub(crate) struct Connected {
    /// Calls go in here. When all of these are gone, the connection ends after its last stream.
    pub(crate) sender: SendRequest<Body>,
    /// Must be polled; done when the connection takes no more calls (streams that are open go on).
    pub(crate) until_closed: BoxFuture<'static, ()>,
}

/// Makes connections.
pub(crate) trait Connect: Send + Sync + 'static {
    /// Connects to `host:port`. The error is for a person.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected, String>>;
}

/// Connects by TCP, with TLS or without.
pub(crate) struct Tcp {
    pub(crate) tls: Option<ClientTls>,
}

impl Tcp {
    async fn make(&self, address: &str) -> Result<Connected, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        // gRPC's frames are small and waited for: filling a packet only adds latency.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return handshake(TokioIo::new(stream), address).await };
        let stream = tls.connect(stream).await.map_err(|error| format!("TLS: {error}"))?;
        handshake(TokioIo::new(stream), address).await
    }
}

impl Connect for Tcp {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected, String>> {
        Box::pin(async move {
            let made = timeout(CONNECT_TIMEOUT, self.make(address)).await;
            made.map_err(|_elapsed| "connecting took more than a second".to_owned())?
        })
    }
}

pub(crate) async fn handshake<T>(io: T, address: &str) -> Result<Connected, String>
where
    T: Read + Write + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .handshake::<_, Body>(io)
        .await
        .map_err(|error| error.to_string())?;
    let address = address.to_owned();
    let until_closed = Box::pin(async move {
        if let Err(error) = connection.await {
            tracing::debug!(target: "ordermesh", %address, %error, "a connection ended badly");
        }
    });
    Ok(Connected { sender, until_closed })
}
