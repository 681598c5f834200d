//! Why a service could not start, or why it ended.

use std::net::SocketAddr;
use std::path::PathBuf;

use storage::ownership::Exposed;

/// Why a service could not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be used.
    #[error("the {service} service's database cannot be used")]
    Database {
        service: &'static str,
        #[source]
        source: storage::Error,
    },
    /// A folder, a secret or a private key that another user can read or change.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The mesh secret is set but cannot be read.
    #[error("the mesh secret {path} cannot be read")]
    MeshSecret {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The initial keys for verifying access tokens cannot be read.
    #[error("the token keys {path} cannot be read")]
    TokenKeys {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The certificate, the key or the roots cannot be used.
    #[error("mutual TLS cannot be used")]
    Tls(#[from] mesh::tls::Error),
    /// The certificate is valid, but names another service.
    #[error("the certificate {certificate} names `{named}`, but this service is `{service}`")]
    NotOurs {
        certificate: PathBuf,
        /// The service that it names.
        named: String,
        service: &'static str,
    },
    /// The mesh secret never leaves the machine.
    #[error("the mesh secret is for loopback listeners only, and {listen} is not one: listen on 127.0.0.1")]
    NotLoopback { listen: SocketAddr },
    /// Shutdown was requested while the service waited for its database.
    #[error("shutdown was requested before the service had started")]
    Stopped,
    #[error("the server failed")]
    Serve(#[source] std::io::Error),
    /// A setting of the service itself, or a file that it names, is wrong.
    #[error("{0}")]
    Setting(String),
    /// Another error of the service itself.
    #[error("{0}")]
    Service(String),
}

impl Error {
    /// Whether a setting, or what it refers to, is wrong: another start with the same settings fails in the same way.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Database { source, .. } => source.is_configuration(),
            Self::Exposed(_)
            | Self::MeshSecret { .. }
            | Self::TokenKeys { .. }
            | Self::Tls(_)
            | Self::NotOurs { .. }
            | Self::NotLoopback { .. }
            | Self::Setting(_) => true,
            Self::Stopped | Self::Serve(_) | Self::Service(_) => false,
        }
    }
}
