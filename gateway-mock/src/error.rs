//! The errors at start, and those of calls. The reasons of [`Refused`] are public: merchants act on them.

use std::net::SocketAddr;

use mesh::{Kind, Rejected, Rejection, Violation};

/// The service's name: the domain of its errors is `gateway.ordermesh`.
pub(crate) const SERVICE: &str = "gateway";

/// Why the gateway cannot start or stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No API key is set: no merchant could authenticate.
    #[error("an API key is required: set GATEWAY_API_KEY or GATEWAY_API_KEY_FILE")]
    ApiKeyMissing,
    /// The API key cannot be sent as metadata.
    #[error("an API key is 1 to 255 visible ASCII characters")]
    ApiKeyMalformed,
    /// The API key's file cannot be read.
    #[error("the API key's file {path} cannot be read")]
    ApiKeyFile {
        /// The path as configured.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A secret or a private key that other users may read or change.
    #[error(transparent)]
    Exposed(#[from] storage::ownership::Exposed),
    /// The certificate, its key or the roots cannot be used.
    #[error("TLS cannot be used")]
    Tls(#[from] mesh::tls::Error),
    /// The ledger cannot be opened or migrated.
    #[error("the ledger cannot be opened")]
    Ledger(#[from] storage::Error),
    /// An address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address as configured.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Telemetry cannot be set up.
    #[error("telemetry cannot be set up")]
    Telemetry(#[from] telemetry::SetupError),
    /// Signal handlers cannot be installed.
    #[error("signal handlers cannot be installed")]
    Signal(#[source] std::io::Error),
    /// Accepting connections failed.
    #[error("the listener failed")]
    Serve(#[source] std::io::Error),
}

impl Error {
    /// Whether a setting, or what it refers to, is invalid: a restart with the same settings fails the same way.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::ApiKeyMissing | Self::ApiKeyMalformed | Self::ApiKeyFile { .. } | Self::Exposed(_) | Self::Tls(_) => {
                true
            }
            Self::Ledger(error) => error.is_configuration(),
            Self::Telemetry(error) => error.is_setting(),
            Self::Bind { .. } | Self::Signal(_) | Self::Serve(_) => false,
        }
    }
}

/// Why a call is rejected.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The metadata `x-api-key` is missing or wrong.
    #[error("the API key in x-api-key is missing or wrong")]
    InvalidApiKey,
    /// Fields are invalid; all violations are listed.
    #[error("the request has invalid fields")]
    InvalidArgument(Vec<Violation>),
    /// The key has a charge with another amount.
    #[error("the charge key was used for another amount")]
    ChargeKeyReused,
    /// The key has no row.
    #[error("there is no charge under this key")]
    ChargeNotFound,
    /// Nothing was charged under the key.
    #[error("the charge was declined or cancelled: there is nothing to refund")]
    ChargeNotRefundable,
    /// An injected fault.
    #[error("the gateway is unavailable")]
    Unavailable,
    /// The ledger failed.
    #[error("the ledger failed")]
    Ledger(#[from] storage::Error),
}

impl Rejected for Refused {
    fn rejection(&self) -> Rejection<'_> {
        match self {
            Self::InvalidApiKey => Rejection::new(Kind::Unauthenticated, "INVALID_API_KEY"),
            Self::InvalidArgument(violations) => Rejection::invalid("INVALID_ARGUMENT", violations),
            Self::ChargeKeyReused => Rejection::new(Kind::AlreadyExists, "CHARGE_KEY_REUSED"),
            Self::ChargeNotFound => Rejection::new(Kind::NotFound, "CHARGE_NOT_FOUND"),
            Self::ChargeNotRefundable => Rejection::new(Kind::FailedPrecondition, "CHARGE_NOT_REFUNDABLE"),
            Self::Unavailable => Rejection::new(Kind::Unavailable, "GATEWAY_UNAVAILABLE"),
            Self::Ledger(error) if error.is_unavailable() => Rejection::new(Kind::Unavailable, "GATEWAY_UNAVAILABLE"),
            Self::Ledger(_) => Rejection::new(Kind::Internal, "INTERNAL"),
        }
    }
}

impl storage::Failure for Refused {
    fn storage(&self) -> Option<&storage::Error> {
        match self {
            Self::Ledger(error) => Some(error),
            Self::InvalidApiKey
            | Self::InvalidArgument(_)
            | Self::ChargeKeyReused
            | Self::ChargeNotFound
            | Self::ChargeNotRefundable
            | Self::Unavailable => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_are_public_and_stable() {
        let all = [
            Refused::InvalidApiKey,
            Refused::InvalidArgument(Vec::new()),
            Refused::ChargeKeyReused,
            Refused::ChargeNotFound,
            Refused::ChargeNotRefundable,
            Refused::Unavailable,
            Refused::Ledger(storage::Error::Closed),
            Refused::Ledger(storage::Error::Panicked),
        ];
        let listed: Vec<String> = all
            .iter()
            .map(|refused| format!("{:?} {}", refused.rejection().kind, refused.rejection().reason))
            .collect();
        assert_eq!(
            listed,
            [
                "Unauthenticated INVALID_API_KEY",
                "InvalidArgument INVALID_ARGUMENT",
                "AlreadyExists CHARGE_KEY_REUSED",
                "NotFound CHARGE_NOT_FOUND",
                "FailedPrecondition CHARGE_NOT_REFUNDABLE",
                "Unavailable GATEWAY_UNAVAILABLE",
                "Unavailable GATEWAY_UNAVAILABLE",
                "Internal INTERNAL",
            ]
        );
    }
}
