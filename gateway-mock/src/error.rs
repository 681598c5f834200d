//! The gateway's errors. Their reasons are public: merchants act on them.

use mesh::{ErrorStatus, ServiceError, Violation};
use tonic::Code;

/// The service's name: the domain of its errors is `gateway.ordermesh`.
pub(crate) const SERVICE: &str = "gateway";

/// Why a call is rejected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    #[error("the ledger failed")]
    Ledger(#[from] storage::Error),
}

impl ServiceError for Error {
    fn error_status(&self) -> ErrorStatus<'_> {
        match self {
            Self::InvalidApiKey => ErrorStatus::new(Code::Unauthenticated, "INVALID_API_KEY"),
            Self::InvalidArgument(violations) => ErrorStatus::invalid("INVALID_ARGUMENT", violations),
            Self::ChargeKeyReused => ErrorStatus::new(Code::AlreadyExists, "CHARGE_KEY_REUSED"),
            Self::ChargeNotFound => ErrorStatus::new(Code::NotFound, "CHARGE_NOT_FOUND"),
            Self::ChargeNotRefundable => ErrorStatus::new(Code::FailedPrecondition, "CHARGE_NOT_REFUNDABLE"),
            Self::Unavailable => ErrorStatus::new(Code::Unavailable, "GATEWAY_UNAVAILABLE"),
            Self::Ledger(error) if error.is_unavailable() => ErrorStatus::new(Code::Unavailable, "GATEWAY_UNAVAILABLE"),
            Self::Ledger(_) => ErrorStatus::new(Code::Internal, "INTERNAL"),
        }
    }
}

impl storage::Failure for Error {
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

/// The error as a gRPC status.
pub(crate) fn status(error: Error) -> tonic::Status {
    mesh::status(SERVICE, &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_are_public_and_stable() {
        let all = [
            Error::InvalidApiKey,
            Error::InvalidArgument(Vec::new()),
            Error::ChargeKeyReused,
            Error::ChargeNotFound,
            Error::ChargeNotRefundable,
            Error::Unavailable,
            Error::Ledger(storage::Error::Closed),
            Error::Ledger(storage::Error::Panicked),
        ];
        let listed: Vec<String> = all
            .iter()
            .map(|error| format!("{:?} {}", error.error_status().code, error.error_status().reason))
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
