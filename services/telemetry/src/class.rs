//! The classes of an event's error: a closed list, because the class is an attribute of a metric.

use std::fmt;

/// The class of an event's error. Classes of gRPC codes have the code's name in the gRPC specification; others are more
/// specific than the code, where the cause is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ErrorClass {
    /// The request itself is invalid (INVALID_ARGUMENT).
    ValidationError,
    /// The memory budget is used up.
    OutOfMemoryError,
    /// The payment gateway declined the payment.
    PaymentDeclined,
    /// The payment gateway did not respond in time.
    GatewayTimeout,
    /// The payment gateway declined a refund.
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

/// All classes.
pub const ERROR_CLASSES: [ErrorClass; 24] = [
    ErrorClass::ValidationError,
    ErrorClass::OutOfMemoryError,
    ErrorClass::PaymentDeclined,
    ErrorClass::GatewayTimeout,
    ErrorClass::RefundRefused,
    ErrorClass::AllocationError,
    ErrorClass::NeedsAttention,
    ErrorClass::Timeout,
    ErrorClass::ConnectionError,
    ErrorClass::MalformedAnswer,
    ErrorClass::Cancelled,
    ErrorClass::Unknown,
    ErrorClass::NotFound,
    ErrorClass::AlreadyExists,
    ErrorClass::PermissionDenied,
    ErrorClass::ResourceExhausted,
    ErrorClass::FailedPrecondition,
    ErrorClass::Aborted,
    ErrorClass::OutOfRange,
    ErrorClass::Unimplemented,
    ErrorClass::Internal,
    ErrorClass::Unavailable,
    ErrorClass::DataLoss,
    ErrorClass::Unauthenticated,
];

impl ErrorClass {
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

    /// The class of a name.
    pub fn named(name: &str) -> Option<Self> {
        ERROR_CLASSES.into_iter().find(|class| class.name() == name)
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_parsed_from_its_printed_name_and_no_name_is_used_twice() {
        for class in ERROR_CLASSES {
            assert_eq!(ErrorClass::named(&class.to_string()), Some(class));
        }
        assert_eq!(ErrorClass::named("Timeout"), None);
    }
}
