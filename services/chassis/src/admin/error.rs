//! Why a call is rejected. The reasons are public: clients depend on them.

use std::time::Duration;

use mesh::{ErrorStatus, ServiceError, TapNotRead, TooManyTaps};
use tonic::{Code, Status};

use crate::decode::Invalid;

/// When a caller may retry.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    TooManyTaps(#[from] TooManyTaps),
    #[error(transparent)]
    NotRead(#[from] TapNotRead),
    #[error("this instance is shutting down")]
    Draining,
    #[error("the access token has expired: log in again")]
    TokenExpired,
    #[error("the tap's audit event cannot be stored")]
    Storage(#[from] storage::Error),
}

impl ServiceError for Error {
    fn error_status(&self) -> ErrorStatus<'_> {
        match self {
            Self::Invalid(invalid) => ErrorStatus::invalid("INVALID_ARGUMENT", &invalid.0),
            Self::TooManyTaps(_) => ErrorStatus::new(Code::ResourceExhausted, "TOO_MANY_TAPS").retry_after(RETRY_AFTER),
            Self::NotRead(_) => ErrorStatus::new(Code::ResourceExhausted, "TAP_NOT_READ"),
            Self::Draining => ErrorStatus::new(Code::Unavailable, "DRAINING").retry_after(RETRY_AFTER),
            Self::TokenExpired => ErrorStatus::new(Code::Unauthenticated, "TOKEN_EXPIRED"),
            Self::Storage(error) => crate::store_failed(error),
        }
    }
}

/// The status of a rejected call; the domain is `mesh.ordermesh`.
pub(crate) fn status(error: Error) -> Status {
    mesh::status("mesh", &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_and_the_error_types_of_their_events_change_only_on_purpose() {
        let all = [
            Error::Invalid(Invalid(vec![])),
            Error::TooManyTaps(TooManyTaps),
            Error::NotRead(TapNotRead { dropped: 1 }),
            Error::Draining,
            Error::TokenExpired,
            Error::Storage(storage::Error::Closed),
        ];
        let error_type = |error| mesh::event_error(&mesh::status("mesh", error)).error_type;
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
                "ResourceExhausted TOO_MANY_TAPS RESOURCE_EXHAUSTED",
                "ResourceExhausted TAP_NOT_READ RESOURCE_EXHAUSTED",
                "Unavailable DRAINING UNAVAILABLE",
                "Unauthenticated TOKEN_EXPIRED UNAUTHENTICATED",
                "Unavailable STORE_FAILED UNAVAILABLE",
            ]
        );
    }
}
