//! TLS of a client's connections: the hook. What is trusted and shown is rustls' business.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

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

    /// The configuration for a new connection, with ALPN, and whom to expect.
    pub(crate) fn handshake(&self) -> (Arc<ClientConfig>, ServerName<'static>) {
        let mut config = (*(self.current)()).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        (Arc::new(config), self.server_name.clone())
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}
