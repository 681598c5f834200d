//! Why a call is rejected. The reasons are public: clients depend on them.

use std::time::Duration;

use chassis::Invalid;
use mesh::{ErrorStatus, ServiceError};
use sea_orm::DbErr;
use tonic::{Code, Status};

/// When a caller may retry.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a call was rejected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The request breaks the rules.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// No delivery rule covers the country.
    #[error("we do not deliver to {country}")]
    NoDeliveryZone { country: String },
    /// The stored product is not the version that the caller has read.
    #[error("the product {sku} has changed since the etag was read: read it again")]
    EtagMismatch { sku: String },
    /// Events after the cursor may have been deleted.
    #[error("the cursor is older than events are kept: those after it may have been deleted; start again without it")]
    CursorExpired,
    /// This instance is shutting down; another one can serve.
    #[error("this instance is shutting down; resume at another one with the last cursor")]
    Draining,
    /// The access token expired while the stream was open.
    #[error("the access token has expired; log in again and resume with the last cursor")]
    TokenExpired,
    /// The limit of streams is reached.
    #[error("this instance has reached its limit of followers")]
    TooManyFollowers,
    /// The limit of waiting searches is reached.
    #[error("too many searches of the catalogue are waiting, most of them from this address")]
    TooManySearches,
    /// The client has not read the stream for too long.
    #[error("the stream was not read for {} s; resume with the last cursor", .0.as_secs())]
    FollowerTooSlow(Duration),
    /// The database failed, or is unavailable.
    #[error("{}", if .0.is_unavailable() { "the database does not answer" } else { "the store failed" })]
    Storage(#[from] storage::Error),
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        Self::Storage(error.into())
    }
}

impl storage::Failure for Error {
    fn storage(&self) -> Option<&storage::Error> {
        match self {
            Self::Storage(error) => Some(error),
            Self::Invalid(_)
            | Self::NoDeliveryZone { .. }
            | Self::EtagMismatch { .. }
            | Self::CursorExpired
            | Self::Draining
            | Self::TokenExpired
            | Self::TooManyFollowers
            | Self::TooManySearches
            | Self::FollowerTooSlow(_) => None,
        }
    }
}

impl ServiceError for Error {
    fn error_status(&self) -> ErrorStatus<'_> {
        let unavailable = |reason| ErrorStatus::new(Code::Unavailable, reason).retry_after(RETRY_AFTER);
        match self {
            Self::Invalid(invalid) => ErrorStatus::invalid("INVALID_ARGUMENT", &invalid.0),
            Self::NoDeliveryZone { country } => {
                ErrorStatus::new(Code::NotFound, "NO_DELIVERY_ZONE").with("country_code", country)
            }
            Self::EtagMismatch { sku } => ErrorStatus::new(Code::Aborted, "ETAG_MISMATCH").with("sku", sku),
            Self::CursorExpired => ErrorStatus::new(Code::OutOfRange, "CURSOR_EXPIRED"),
            Self::Draining => unavailable("DRAINING"),
            Self::TokenExpired => ErrorStatus::new(Code::Unauthenticated, "TOKEN_EXPIRED"),
            Self::TooManyFollowers => unavailable("TOO_MANY_FOLLOWERS"),
            Self::TooManySearches => {
                ErrorStatus::new(Code::ResourceExhausted, "TOO_MANY_SEARCHES").retry_after(RETRY_AFTER)
            }
            Self::FollowerTooSlow(_) => ErrorStatus::new(Code::ResourceExhausted, "FOLLOWER_TOO_SLOW"),
            Self::Storage(error) => chassis::store_failed(error),
        }
    }
}

/// The status of a rejected call.
pub(crate) fn status(error: Error) -> Status {
    mesh::status("data", &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reason: they are public, so a change here changes the contract.
    #[test]
    fn the_reasons_are_those_of_the_contract() {
        let corrupt = storage::Error::Corrupt { what: "currency", value: "EURO".into() };
        let all = [
            (Error::Invalid(Invalid(vec![])), Code::InvalidArgument, "INVALID_ARGUMENT", "ValidationError"),
            (Error::NoDeliveryZone { country: "AQ".into() }, Code::NotFound, "NO_DELIVERY_ZONE", "NOT_FOUND"),
            (Error::EtagMismatch { sku: "MUG".into() }, Code::Aborted, "ETAG_MISMATCH", "ABORTED"),
            (Error::CursorExpired, Code::OutOfRange, "CURSOR_EXPIRED", "OUT_OF_RANGE"),
            (Error::Draining, Code::Unavailable, "DRAINING", "UNAVAILABLE"),
            (Error::TokenExpired, Code::Unauthenticated, "TOKEN_EXPIRED", "UNAUTHENTICATED"),
            (Error::TooManyFollowers, Code::Unavailable, "TOO_MANY_FOLLOWERS", "UNAVAILABLE"),
            (Error::TooManySearches, Code::ResourceExhausted, "TOO_MANY_SEARCHES", "RESOURCE_EXHAUSTED"),
            (Error::FollowerTooSlow(RETRY_AFTER), Code::ResourceExhausted, "FOLLOWER_TOO_SLOW", "RESOURCE_EXHAUSTED"),
            (Error::Storage(corrupt), Code::Internal, "STORE_FAILED", "INTERNAL"),
            (Error::Storage(storage::Error::Panicked), Code::Internal, "STORE_FAILED", "INTERNAL"),
            (Error::Storage(storage::Error::Closed), Code::Unavailable, "STORE_FAILED", "UNAVAILABLE"),
        ];
        for (error, code, reason, error_type) in all {
            assert_eq!((error.error_status().code, error.error_status().reason), (code, reason), "{error}");
            assert_eq!(mesh::event_error(&mesh::status("data", &error)).error_type, error_type, "{error}");
        }
    }

    #[test]
    fn only_transient_errors_have_a_retry_delay() {
        let closed = Error::Storage(storage::Error::Closed);
        for error in [closed, Error::Draining, Error::TooManyFollowers, Error::TooManySearches] {
            assert_eq!(error.error_status().retry_after, Some(RETRY_AFTER), "{error}");
        }
        assert_eq!(Error::CursorExpired.error_status().retry_after, None);
        assert_eq!(Error::EtagMismatch { sku: "MUG".into() }.error_status().retry_after, None);
    }
}
