//! TLS of a client's connections: the hook. What is trusted and shown is rustls' business.

use std::sync::Arc;
use std::{fmt, io};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

const ALPN_HTTP2: &[u8] = b"h2";

/// TLS of the connections to a target.
#[derive(Clone)]
pub struct ClientTls {
    current: Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>,
    server_name: ServerName<'static>,
}

impl ClientTls {
    /// Always the same certificates and roots; the server's certificate must be for that name. ALPN is set by the mesh.
    pub fn new(config: Arc<ClientConfig>, server_name: ServerName<'static>) -> Self {
        Self::reloading(move || config.clone(), server_name)
    }

    /// Asks for the configuration before each connection: what was reloaded is used from the next one on.
    pub fn reloading(
        current: impl Fn() -> Arc<ClientConfig> + Send + Sync + 'static,
        server_name: ServerName<'static>,
    ) -> Self {
        Self { current: Arc::new(current), server_name }
    }

    /// Shakes hands over a connected stream.
    ///
    /// # Errors
    /// The server is not the one that was expected, speaks no HTTP/2, or the stream broke.
    pub async fn connect<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut config = (*(self.current)()).clone();
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        let stream = TlsConnector::from(Arc::new(config)).connect(self.server_name.clone(), stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_HTTP2) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the server does not speak HTTP/2"));
        }
        Ok(stream)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}
