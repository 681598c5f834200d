//! The Payment Service's errors. Their reasons are public: callers act on them.

use std::time::Duration;

use chassis::Invalid;
use mesh::{ErrorStatus, ServiceError};
use tonic::Code;

use crate::ports::NoResponse;

/// Why a call is rejected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fields are invalid; all violations are listed.
    #[error("the request has invalid fields: {0}")]
    Invalid(#[from] Invalid),
    /// The order has a payment with another command.
    #[error("the order's payment was requested with another command")]
    RequestIdReused,
    /// The order has no payment.
    #[error("there is no payment of this order")]
    PaymentNotFound,
    /// The gateway's ledger could not be read.
    #[error("the gateway's ledger cannot be read: {0}")]
    GatewayUnreachable(NoResponse),
    #[error("the payment store failed")]
    Storage(#[from] storage::Error),
}

impl ServiceError for Error {
    fn error_status(&self) -> ErrorStatus<'_> {
        match self {
            Self::Invalid(invalid) => ErrorStatus::invalid("INVALID_ARGUMENT", &invalid.0),
            Self::RequestIdReused => ErrorStatus::new(Code::FailedPrecondition, "REQUEST_ID_REUSED"),
            Self::PaymentNotFound => ErrorStatus::new(Code::NotFound, "PAYMENT_NOT_FOUND"),
            Self::GatewayUnreachable(no_response) => ErrorStatus::new(Code::Unavailable, "GATEWAY_UNREACHABLE")
                .caused_by(no_response.error_type)
                .retry_after(Duration::from_secs(1)),
            Self::Storage(error) => chassis::store_failed(error),
        }
    }
}

impl storage::Failure for Error {
    fn storage(&self) -> Option<&storage::Error> {
        match self {
            Self::Storage(error) => Some(error),
            Self::Invalid(_) | Self::RequestIdReused | Self::PaymentNotFound | Self::GatewayUnreachable(_) => None,
        }
    }
}

/// The error as a gRPC status.
pub(crate) fn status(error: Error) -> tonic::Status {
    mesh::status("payment", &error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn the_reasons_and_their_error_classes_are_stable() {
        let all = [
            Error::Invalid(Invalid(vec![])),
            Error::RequestIdReused,
            Error::PaymentNotFound,
            Error::GatewayUnreachable(NoResponse::new("unusable")),
            Error::GatewayUnreachable(Status::deadline_exceeded("too late").into()),
            Error::GatewayUnreachable(Status::unavailable("no connection").into()),
            Error::Storage(storage::Error::Closed),
            Error::Storage(storage::Error::Panicked),
        ];
        let error_type = |error| mesh::event_error(&mesh::status("payment", error)).error_type;
        let listed: Vec<String> = all
            .iter()
            .map(|error| {
                format!("{:?} {} {}", error.error_status().code, error.error_status().reason, error_type(error))
            })
            .collect();
        assert_eq!(
            listed,
            [
                "InvalidArgument INVALID_ARGUMENT ValidationError",
                "FailedPrecondition REQUEST_ID_REUSED FAILED_PRECONDITION",
                "NotFound PAYMENT_NOT_FOUND NOT_FOUND",
                "Unavailable GATEWAY_UNREACHABLE MALFORMED_ANSWER",
                "Unavailable GATEWAY_UNREACHABLE TIMEOUT",
                "Unavailable GATEWAY_UNREACHABLE CONNECTION_ERROR",
                "Unavailable STORE_FAILED UNAVAILABLE",
                "Internal STORE_FAILED INTERNAL",
            ]
        );
    }
}
