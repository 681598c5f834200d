//! Why a call is rejected. The reasons are public: clients depend on them.

use std::time::Duration;

use mesh::{Kind, Rejected, Rejection, TapCut, TooManyTaps};
use tonic::Status;

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
    NotRead(#[from] TapCut),
    #[error("this instance is shutting down")]
    Draining,
    #[error("the access token has expired: log in again")]
    TokenExpired,
    #[error("the tap's audit event cannot be stored")]
    Storage(#[from] storage::Error),
}

impl Rejected for Error {
    fn rejection(&self) -> Rejection<'_> {
        match self {
            Self::Invalid(invalid) => Rejection::invalid("INVALID_ARGUMENT", &invalid.0),
            Self::TooManyTaps(_) => Rejection::new(Kind::ResourceExhausted, "TOO_MANY_TAPS").retry_after(RETRY_AFTER),
            Self::NotRead(_) => Rejection::new(Kind::ResourceExhausted, "TAP_NOT_READ"),
            Self::Draining => Rejection::new(Kind::Unavailable, "DRAINING").retry_after(RETRY_AFTER),
            Self::TokenExpired => Rejection::new(Kind::Unauthenticated, "TOKEN_EXPIRED"),
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
    fn the_reasons_and_the_classes_of_their_events_change_only_on_purpose() {
        let all = [
            Error::Invalid(Invalid(vec![])),
            Error::TooManyTaps(TooManyTaps),
            Error::NotRead(TapCut { dropped: 1 }),
            Error::Draining,
            Error::TokenExpired,
            Error::Storage(storage::Error::Closed),
        ];
        let class = |error| mesh::error_class(&mesh::status("mesh", error)).kind;
        let listed: Vec<String> = all
            .iter()
            .map(|error| format!("{:?} {} {}", error.rejection().kind, error.rejection().reason, class(error)))
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
