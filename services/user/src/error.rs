//! Why a call is rejected. The reasons are public: clients depend on them.

use std::time::Duration;

use mesh::{ErrorStatus, ServiceError};
use tonic::Code;

/// Why a call is rejected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fields break the rules; lists all of them.
    #[error(transparent)]
    Invalid(#[from] chassis::Invalid),
    /// No such account, or a wrong password: the error does not reveal which.
    #[error("the e-mail or the password is wrong")]
    InvalidCredentials,
    /// Too many failed log-ins to this account from this address, or more concurrent ones than the processors can
    /// check.
    #[error("too many log-ins")]
    TooManyLogins { retry_after: Duration },
    /// More passwords than the processors can hash, or too many wrong ones under one request id.
    #[error("too many requests")]
    TooManyRequests { retry_after: Duration },
    /// Another account has the e-mail.
    #[error("there is an account with this e-mail already")]
    EmailTaken,
    /// The request id belongs to another command.
    #[error("the request id was used for another command")]
    RequestIdReused,
    /// The refresh token's session has ended or never existed.
    #[error("the session has ended: log in again")]
    SessionEnded,
    /// The token's account no longer exists.
    #[error("there is no such account")]
    AccountNotFound,
    /// The caller is a service or anonymous, although the policy table admits only users.
    #[error("a user's access token is required")]
    UserTokenRequired,
    #[error("the user store failed")]
    Storage(#[from] storage::Error),
    /// A stored hash cannot be read, or the cost is out of range.
    #[error("a password could not be hashed")]
    Hash(#[source] bcrypt::BcryptError),
    #[error("no thread could be started for a password")]
    Thread(#[source] std::io::Error),
    #[error("a password's thread panicked")]
    Panicked,
    /// Signing the token failed.
    #[error("an access token could not be signed")]
    Sign(#[source] jsonwebtoken::errors::Error),
    /// There is no signing key.
    #[error("there is no signing key")]
    NoSigningKey,
}

impl ServiceError for Error {
    fn error_status(&self) -> ErrorStatus<'_> {
        match self {
            Self::Invalid(invalid) => ErrorStatus::invalid("INVALID_ARGUMENT", &invalid.0),
            Self::InvalidCredentials => ErrorStatus::new(Code::Unauthenticated, "INVALID_CREDENTIALS"),
            Self::TooManyLogins { retry_after } => {
                ErrorStatus::new(Code::ResourceExhausted, "TOO_MANY_LOGINS").retry_after(*retry_after)
            }
            Self::TooManyRequests { retry_after } => {
                ErrorStatus::new(Code::ResourceExhausted, "TOO_MANY_REQUESTS").retry_after(*retry_after)
            }
            Self::EmailTaken => ErrorStatus::new(Code::AlreadyExists, "EMAIL_TAKEN"),
            Self::RequestIdReused => ErrorStatus::new(Code::FailedPrecondition, "REQUEST_ID_REUSED"),
            Self::SessionEnded => ErrorStatus::new(Code::Unauthenticated, "SESSION_ENDED"),
            Self::AccountNotFound => ErrorStatus::new(Code::NotFound, "ACCOUNT_NOT_FOUND"),
            Self::UserTokenRequired => ErrorStatus::new(Code::Unauthenticated, "PERSON_REQUIRED"),
            Self::Storage(error) => chassis::store_failed(error),
            Self::Hash(_) | Self::Thread(_) | Self::Panicked | Self::Sign(_) | Self::NoSigningKey => {
                ErrorStatus::new(Code::Internal, "INTERNAL")
            }
        }
    }
}

impl storage::Failure for Error {
    fn storage(&self) -> Option<&storage::Error> {
        if let Self::Storage(error) = self { Some(error) } else { None }
    }
}

/// The status of a rejected call; the domain is `user.ordermesh`.
pub(crate) fn status(error: Error) -> tonic::Status {
    mesh::status("user", &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_and_the_error_types_of_their_events_change_only_on_purpose() {
        let retry_after = Duration::from_secs(1);
        let all = [
            Error::Invalid(chassis::Invalid(vec![])),
            Error::InvalidCredentials,
            Error::TooManyLogins { retry_after },
            Error::TooManyRequests { retry_after },
            Error::EmailTaken,
            Error::RequestIdReused,
            Error::SessionEnded,
            Error::AccountNotFound,
            Error::UserTokenRequired,
            Error::Storage(storage::Error::Closed),
            Error::Storage(storage::Error::Panicked),
            Error::NoSigningKey,
        ];
        let error_type = |error| mesh::event_error(&mesh::status("user", error)).error_type;
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
                "Unauthenticated INVALID_CREDENTIALS UNAUTHENTICATED",
                "ResourceExhausted TOO_MANY_LOGINS RESOURCE_EXHAUSTED",
                "ResourceExhausted TOO_MANY_REQUESTS RESOURCE_EXHAUSTED",
                "AlreadyExists EMAIL_TAKEN ALREADY_EXISTS",
                "FailedPrecondition REQUEST_ID_REUSED FAILED_PRECONDITION",
                "Unauthenticated SESSION_ENDED UNAUTHENTICATED",
                "NotFound ACCOUNT_NOT_FOUND NOT_FOUND",
                "Unauthenticated PERSON_REQUIRED UNAUTHENTICATED",
                "Unavailable STORE_FAILED UNAVAILABLE",
                "Internal STORE_FAILED INTERNAL",
                "Internal INTERNAL INTERNAL",
            ]
        );
    }
}
