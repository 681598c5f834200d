//! Why calls are rejected, and the statuses of the answers.

use std::time::Duration;

use chassis::Invalid;
use mesh::{Kind, Refusal, Violation};
use sea_orm::DbErr;
use telemetry::{ErrorClass, LogLimit};
use tokio::time::Instant;
use tonic::Status;

/// When a caller should retry if the catalogue is unavailable.
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
    /// The stored product is not the version that the caller has seen.
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
    /// An injected fault: as if the database were unavailable.
    #[error("the database refuses connections, on purpose")]
    Refused,
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
            | Self::FollowerTooSlow(_)
            | Self::Refused => None,
        }
    }
}

impl Refusal for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid(_) => Kind::InvalidArgument,
            Self::NoDeliveryZone { .. } => Kind::NotFound,
            Self::EtagMismatch { .. } => Kind::Aborted,
            Self::CursorExpired => Kind::OutOfRange,
            Self::TokenExpired => Kind::Unauthenticated,
            Self::FollowerTooSlow(_) | Self::TooManySearches => Kind::ResourceExhausted,
            // A statement that fails for its data, or a stored value that cannot be decoded, is not cured by waiting.
            Self::Storage(error) => chassis::storage_kind(error),
            Self::Refused | Self::Draining | Self::TooManyFollowers => Kind::Unavailable,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_ARGUMENT",
            Self::NoDeliveryZone { .. } => "NO_DELIVERY_ZONE",
            Self::EtagMismatch { .. } => "ETAG_MISMATCH",
            Self::CursorExpired => "CURSOR_EXPIRED",
            Self::Draining => "DRAINING",
            Self::TokenExpired => "TOKEN_EXPIRED",
            Self::TooManyFollowers => "TOO_MANY_FOLLOWERS",
            Self::TooManySearches => "TOO_MANY_SEARCHES",
            Self::FollowerTooSlow(_) => "FOLLOWER_TOO_SLOW",
            Self::Storage(error) if !error.is_unavailable() => "LOOKUP_FAILED",
            Self::Storage(_) | Self::Refused => "CATALOG_UNAVAILABLE",
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NoDeliveryZone { country } => vec![("country_code", country.clone())],
            Self::EtagMismatch { sku } => vec![("sku", sku.clone())],
            Self::Invalid(_)
            | Self::CursorExpired
            | Self::Draining
            | Self::TokenExpired
            | Self::TooManyFollowers
            | Self::TooManySearches
            | Self::FollowerTooSlow(_)
            | Self::Storage(_)
            | Self::Refused => vec![],
        }
    }

    fn class(&self) -> Option<ErrorClass> {
        match self {
            Self::Storage(error) => error.class(),
            Self::Refused => Some(ErrorClass::ConnectionError),
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

    fn violations(&self) -> &[Violation] {
        match self {
            Self::Invalid(Invalid(violations)) => violations,
            Self::NoDeliveryZone { .. }
            | Self::EtagMismatch { .. }
            | Self::CursorExpired
            | Self::Draining
            | Self::TokenExpired
            | Self::TooManyFollowers
            | Self::TooManySearches
            | Self::FollowerTooSlow(_)
            | Self::Storage(_)
            | Self::Refused => &[],
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        (self.kind() == Kind::Unavailable || matches!(self, Self::TooManySearches)).then_some(RETRY_AFTER)
    }
}

/// The status of a rejected call.
pub(crate) fn status(error: impl Into<Error>) -> Status {
    let error = error.into();
    if let Error::Storage(cause) = &error {
        // The caller only gets the unavailability; the cause is logged here (the mesh logs internal errors itself).
        if error.kind() == Kind::Unavailable {
            static LOG_LIMIT: LogLimit = LogLimit::new();
            if let Some(since_last_line) = LOG_LIMIT.count(Instant::now()) {
                tracing::warn!(target: "ordermesh", reason = error.reason(), since_last_line, chain = %chain(cause), "{error}");
            }
        }
    }
    mesh::status("data", &error)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reason: they are public, so a change here changes the contract.
    #[test]
    fn the_reasons_are_those_of_the_contract() {
        let corrupt = storage::Error::Corrupt { what: "currency", value: "EURO".into() };
        let all = [
            (Error::Invalid(Invalid(vec![])), Kind::InvalidArgument, "INVALID_ARGUMENT", "ValidationError"),
            (Error::NoDeliveryZone { country: "AQ".into() }, Kind::NotFound, "NO_DELIVERY_ZONE", "NOT_FOUND"),
            (Error::EtagMismatch { sku: "MUG".into() }, Kind::Aborted, "ETAG_MISMATCH", "ABORTED"),
            (Error::CursorExpired, Kind::OutOfRange, "CURSOR_EXPIRED", "OUT_OF_RANGE"),
            (Error::Draining, Kind::Unavailable, "DRAINING", "UNAVAILABLE"),
            (Error::TokenExpired, Kind::Unauthenticated, "TOKEN_EXPIRED", "UNAUTHENTICATED"),
            (Error::TooManyFollowers, Kind::Unavailable, "TOO_MANY_FOLLOWERS", "UNAVAILABLE"),
            (Error::TooManySearches, Kind::ResourceExhausted, "TOO_MANY_SEARCHES", "RESOURCE_EXHAUSTED"),
            (Error::FollowerTooSlow(RETRY_AFTER), Kind::ResourceExhausted, "FOLLOWER_TOO_SLOW", "RESOURCE_EXHAUSTED"),
            (Error::Storage(corrupt), Kind::Internal, "LOOKUP_FAILED", "INTERNAL"),
            (Error::Storage(storage::Error::Panicked), Kind::Internal, "LOOKUP_FAILED", "INTERNAL"),
            (Error::Storage(storage::Error::Closed), Kind::Unavailable, "CATALOG_UNAVAILABLE", "UNAVAILABLE"),
            (Error::Refused, Kind::Unavailable, "CATALOG_UNAVAILABLE", "CONNECTION_ERROR"),
        ];
        for (error, kind, reason, class) in all {
            assert_eq!((error.kind(), error.reason()), (kind, reason), "{error}");
            assert_eq!(mesh::error_class(&mesh::status("data", &error)).kind, class, "{error}");
        }
    }

    #[test]
    fn only_transient_errors_have_a_retry_delay() {
        for error in [Error::Refused, Error::Draining, Error::TooManyFollowers, Error::TooManySearches] {
            assert_eq!(error.retry_after(), Some(RETRY_AFTER), "{error}");
        }
        assert_eq!(Error::CursorExpired.retry_after(), None);
        assert_eq!(Error::EtagMismatch { sku: "MUG".into() }.retry_after(), None);
    }
}
