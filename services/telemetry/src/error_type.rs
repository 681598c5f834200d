//! The types of an event's error: a closed list, because the type is an attribute of a metric.

use std::fmt;

/// The type of an event's error. Types of gRPC codes have the code's name in the gRPC specification, except
/// ValidationError and TIMEOUT; others are more specific than the code, where the cause is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ErrorType {
    /// The request itself is invalid (INVALID_ARGUMENT).
    ValidationError,
    /// The memory budget is used up.
    OutOfMemoryError,
    /// The payment gateway declined the payment.
    PaymentDeclined,
    /// The payment gateway did not respond in time.
    GatewayTimeout,
    /// The payment gateway refused a refund.
    RefundRefused,
    /// Stock could not be allocated.
    AllocationError,
    /// An operator must intervene.
    NeedsAttention,
    /// No response in time (DEADLINE_EXCEEDED).
    Timeout,
    /// No connection, or a lost one.
    ConnectionError,
    /// A response that cannot be read.
    MalformedAnswer,
    /// CANCELLED
    Cancelled,
    /// UNKNOWN
    Unknown,
    /// NOT_FOUND
    NotFound,
    /// ALREADY_EXISTS
    AlreadyExists,
    /// PERMISSION_DENIED
    PermissionDenied,
    /// RESOURCE_EXHAUSTED
    ResourceExhausted,
    /// FAILED_PRECONDITION
    FailedPrecondition,
    /// ABORTED
    Aborted,
    /// OUT_OF_RANGE
    OutOfRange,
    /// UNIMPLEMENTED
    Unimplemented,
    /// INTERNAL
    Internal,
    /// UNAVAILABLE, for another reason than the connection.
    Unavailable,
    /// DATA_LOSS
    DataLoss,
    /// UNAUTHENTICATED
    Unauthenticated,
}

/// All types.
pub const ERROR_TYPES: [ErrorType; 24] = [
    ErrorType::ValidationError,
    ErrorType::OutOfMemoryError,
    ErrorType::PaymentDeclined,
    ErrorType::GatewayTimeout,
    ErrorType::RefundRefused,
    ErrorType::AllocationError,
    ErrorType::NeedsAttention,
    ErrorType::Timeout,
    ErrorType::ConnectionError,
    ErrorType::MalformedAnswer,
    ErrorType::Cancelled,
    ErrorType::Unknown,
    ErrorType::NotFound,
    ErrorType::AlreadyExists,
    ErrorType::PermissionDenied,
    ErrorType::ResourceExhausted,
    ErrorType::FailedPrecondition,
    ErrorType::Aborted,
    ErrorType::OutOfRange,
    ErrorType::Unimplemented,
    ErrorType::Internal,
    ErrorType::Unavailable,
    ErrorType::DataLoss,
    ErrorType::Unauthenticated,
];

impl ErrorType {
    /// Its name in spans, logs, metrics and the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ValidationError => "ValidationError",
            Self::OutOfMemoryError => "OutOfMemoryError",
            Self::PaymentDeclined => "PaymentDeclined",
            Self::GatewayTimeout => "GATEWAY_TIMEOUT",
            Self::RefundRefused => "REFUND_REFUSED",
            Self::AllocationError => "AllocationError",
            Self::NeedsAttention => "NeedsAttention",
            Self::Timeout => "TIMEOUT",
            Self::ConnectionError => "CONNECTION_ERROR",
            Self::MalformedAnswer => "MALFORMED_ANSWER",
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::DataLoss => "DATA_LOSS",
            Self::Unauthenticated => "UNAUTHENTICATED",
        }
    }

    /// The type of a name.
    pub fn named(name: &str) -> Option<Self> {
        ERROR_TYPES.into_iter().find(|error_type| error_type.name() == name)
    }
}

impl fmt::Display for ErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_parsed_from_its_printed_name_and_no_name_is_used_twice() {
        for error_type in ERROR_TYPES {
            assert_eq!(ErrorType::named(&error_type.to_string()), Some(error_type));
        }
        assert_eq!(ErrorType::named("Timeout"), None);
    }
}
