//! Errors on the wire: ONE function turns a service's error into a gRPC status, with exactly one `google.rpc.ErrorInfo`
//! and the other details where they fit (AIP-193).

mod log_limits;

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use kernel::error::chain;
use telemetry::{ErrorType, EventError};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::status::log_limits::LogLimits;

/// The domain of the mesh's own errors.
pub(crate) const MESH_DOMAIN: &str = "mesh.ordermesh";

/// The reason of [`crate::server`]'s error when the memory budget is used up.
pub(crate) const OUT_OF_MEMORY: &str = "OUT_OF_MEMORY";
/// The reason of [`crate::server`]'s error for a request of no message, or of more than one.
pub(crate) const REQUEST_CARDINALITY: &str = "REQUEST_CARDINALITY";
/// The reason of a client's error when no instance was reachable: the call was never sent.
pub(crate) const UNREACHABLE: &str = "UNREACHABLE";
/// The reason of a client's error when the connection was lost before the response arrived.
pub(crate) const CONNECTION_LOST: &str = "CONNECTION_LOST";

/// The number of status codes.
pub(crate) const CODES: usize = Code::Unauthenticated as usize + 1;

/// The reason of a client's error for a call that the traffic policy lets fail: it was never sent.
pub const INJECTED_FAULT: &str = "INJECTED_FAULT";

/// The suffix of the domains of this platform's errors.
const PLATFORM: &str = ".ordermesh";
/// ErrorInfo's metadata key for the type of an error's cause: see [`ErrorStatus::cause`].
const CAUSE: &str = "cause";

/// Details are sent in one header, in base64, and many clients accept at most 8 KiB of headers: violations beyond this
/// are counted and not listed.
const MAX_VIOLATION_BYTES: usize = 3_000;

/// An invalid field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The field's path, for example `items[2].quantity`.
    pub field: String,
    /// UPPER_SNAKE_CASE.
    pub reason: &'static str,
    /// A human-readable sentence.
    pub description: String,
}

/// The gRPC status of a service's error: one row of the service's table of errors (AIP-193).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorStatus<'e> {
    /// Never OK. The message of INTERNAL is not sent: the error is logged.
    pub code: Code,
    /// UPPER_SNAKE_CASE: part of the public contract.
    pub reason: &'static str,
    /// ErrorInfo's metadata. Never a secret.
    pub metadata: Vec<(&'static str, String)>,
    /// All invalid fields of the request.
    pub violations: &'e [Violation],
    /// The type of the error's cause, where it is known and the code does not express it: an order that fails because
    /// a lookup timed out is a TIMEOUT, whatever its code. Sent as ErrorInfo's metadata `cause`.
    pub cause: Option<ErrorType>,
    /// When to retry: RetryInfo.
    pub retry_after: Option<Duration>,
}

impl<'e> ErrorStatus<'e> {
    /// A status with this code, for this reason.
    pub fn new(code: Code, reason: &'static str) -> Self {
        Self { code, reason, metadata: Vec::new(), violations: &[], cause: None, retry_after: None }
    }

    /// An invalid request, with all of its violations.
    pub fn invalid(reason: &'static str, violations: &'e [Violation]) -> Self {
        Self { violations, ..Self::new(Code::InvalidArgument, reason) }
    }

    /// Adds a key to the metadata.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.metadata.push((name, value.to_string()));
        self
    }

    /// Sets the type of the error's cause.
    #[must_use]
    pub fn caused_by(self, cause: impl Into<Option<ErrorType>>) -> Self {
        Self { cause: cause.into(), ..self }
    }

    /// Sets when to retry.
    #[must_use]
    pub fn retry_after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }
}

/// A service's error, which its caller gets as a gRPC status.
pub trait ServiceError: Error + 'static {
    /// The row of the service's table of errors.
    fn error_status(&self) -> ErrorStatus<'_>;
}

/// The gRPC status of an error of the service `domain_service` ("order" → domain "order.ordermesh"). An internal error
/// is logged with its whole chain; its caller gets only the reason.
pub fn status<E: ServiceError>(domain_service: &str, error: &E) -> Status {
    let domain = format!("{domain_service}.ordermesh");
    let ErrorStatus { code, reason, metadata, violations, cause, retry_after } = error.error_status();
    let mut details = ErrorDetails::new();
    if let Some(delay) = retry_after {
        details.set_retry_info(Some(delay));
    }
    if code == Code::Internal {
        // An outage may cause many: at most one line a second for each reason.
        static LOG_LIMIT: LogLimits = LogLimits::new();
        if let Some(occurrences) = LOG_LIMIT.count(reason, Instant::now()) {
            tracing::error!(target: "ordermesh", reason, occurrences, chain = %chain(error), "internal error");
        }
        details.set_error_info(reason, domain, HashMap::new());
        return Status::with_error_details(Code::Internal, "internal error", details);
    }
    let message = error.to_string();
    let mut metadata: HashMap<String, String> =
        metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if let Some(cause) = cause {
        metadata.insert(CAUSE.to_owned(), cause.name().to_owned());
    }
    let reported = reported(violations);
    if violations.len() > reported.len() {
        metadata.insert("violations_left_out".to_owned(), (violations.len() - reported.len()).to_string());
    }
    if !reported.is_empty() {
        details.set_bad_request(reported.iter().map(field_violation).collect::<Vec<_>>());
    }
    if code == Code::FailedPrecondition {
        details.add_precondition_failure_violation(reason, domain.clone(), message.clone());
    }
    if code == Code::ResourceExhausted {
        details.add_quota_failure_violation(domain.clone(), message.clone());
    }
    details.set_error_info(reason, domain, metadata);
    Status::with_error_details(code, message, details)
}

/// As many violations as fit.
fn reported(violations: &[Violation]) -> &[Violation] {
    let mut bytes = 0;
    let fit = violations.iter().take_while(|violation| {
        bytes += violation.field.len() + violation.reason.len() + violation.description.len() + 12;
        bytes <= MAX_VIOLATION_BYTES
    });
    &violations[..fit.count()]
}

fn field_violation(violation: &Violation) -> FieldViolation {
    let mut field = FieldViolation::new(violation.field.clone(), violation.description.clone());
    field.reason = violation.reason.to_owned();
    field
}

/// A status as a trace event's error: of the type that its ErrorInfo names as the cause, else of its code's.
pub fn event_error(status: &Status) -> EventError {
    let info = if status.details().is_empty() { None } else { status.get_details_error_info() };
    // An external service's metadata may mean anything.
    let of_platform = info.as_ref().filter(|info| info.domain.ends_with(PLATFORM));
    let cause = of_platform.and_then(|info| info.metadata.get(CAUSE)).and_then(|cause| ErrorType::named(cause));
    let reason = info.map(|info| info.reason);
    let error_type = cause.unwrap_or_else(|| error_type_of(status.code(), reason.as_deref()));
    EventError::new(error_type, reason.unwrap_or_else(|| code_name(status.code()).to_owned()), status.message())
}

/// The error type of a status without a cause.
#[rustfmt::skip]
fn error_type_of(code: Code, reason: Option<&str>) -> ErrorType {
    match (code, reason) {
        (Code::ResourceExhausted, Some(OUT_OF_MEMORY))                   => ErrorType::OutOfMemoryError,
        (Code::ResourceExhausted, _)                                     => ErrorType::ResourceExhausted,
        (Code::InvalidArgument, _)                                       => ErrorType::ValidationError,
        (Code::DeadlineExceeded, _)                                      => ErrorType::Timeout,
        // Without a reason it is not from this platform: gRPC libraries report connection errors like this. An injected one
        // stands for them.
        (Code::Unavailable, None | Some(UNREACHABLE | CONNECTION_LOST | INJECTED_FAULT)) => ErrorType::ConnectionError,
        (Code::Unavailable, Some(_))                                     => ErrorType::Unavailable,
        (Code::Cancelled, _)                                             => ErrorType::Cancelled,
        (Code::NotFound, _)                                              => ErrorType::NotFound,
        (Code::AlreadyExists, _)                                         => ErrorType::AlreadyExists,
        (Code::PermissionDenied, _)                                      => ErrorType::PermissionDenied,
        (Code::FailedPrecondition, _)                                    => ErrorType::FailedPrecondition,
        (Code::Aborted, _)                                               => ErrorType::Aborted,
        (Code::OutOfRange, _)                                            => ErrorType::OutOfRange,
        (Code::Unimplemented, _)                                         => ErrorType::Unimplemented,
        (Code::Internal, _)                                              => ErrorType::Internal,
        (Code::DataLoss, _)                                              => ErrorType::DataLoss,
        (Code::Unauthenticated, _)                                       => ErrorType::Unauthenticated,
        (Code::Unknown | Code::Ok, _)                                    => ErrorType::Unknown,
    }
}

/// The ErrorInfo's reason, if it has one.
pub(crate) fn reason_of(status: &Status) -> Option<String> {
    if status.details().is_empty() { None } else { status.get_details_error_info().map(|info| info.reason) }
}

/// A status of the mesh itself.
pub(crate) fn mesh_status(code: Code, reason: &'static str, message: impl Into<String>) -> Status {
    mesh_status_retry(code, reason, message, None)
}

/// A status of the mesh itself with a retry delay.
pub(crate) fn mesh_status_retry(
    code: Code,
    reason: &'static str,
    message: impl Into<String>,
    retry_after: Option<Duration>,
) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, MESH_DOMAIN, HashMap::new());
    if let Some(delay) = retry_after {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, message, details)
}

/// The status for a path that is not in the contract.
pub(crate) fn no_such_method() -> Status {
    let message = "unknown method; reflection lists the known ones";
    mesh_status(Code::Unimplemented, "METHOD_NOT_FOUND", message)
}

/// The code's name in the gRPC specification.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests;
