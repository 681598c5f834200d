//! What a call's result says about who served it: for the breakers of instances and targets.

use tokio::time::Instant;
use tonic::Code;

use crate::client::call::CallDeadline;

/// What a call's result says about its instance.
pub(crate) enum Evidence {
    Works,
    Fails,
    None,
}

impl Evidence {
    /// A deadline counts as the instance's failure only if the call had the method's full timeout: otherwise a caller with
    /// very short deadlines could open the breaker for all.
    pub(crate) fn of(code: Code, deadline: Option<CallDeadline>) -> Self {
        match code {
            Code::Unavailable | Code::Internal | Code::Unknown => Self::Fails,
            Code::DeadlineExceeded if deadline.is_some_and(|deadline| deadline.is_method_timeout) => Self::Fails,
            Code::DeadlineExceeded | Code::Cancelled => Self::None,
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
            | Code::Unauthenticated => Self::Works,
        }
    }

    /// The same about another version of a service: one that lacks the method, has too little of something, or has lost data
    /// is no target for the calls of this one.
    pub(crate) fn of_version(code: Code, deadline: Option<CallDeadline>) -> Self {
        let fails = matches!(code, Code::Unimplemented | Code::ResourceExhausted | Code::DataLoss);
        if fails { Self::Fails } else { Self::of(code, deadline) }
    }

    /// Of a call that its caller cancelled.
    pub(crate) fn of_cancelled(deadline: Option<CallDeadline>, now: Instant) -> Self {
        match deadline {
            Some(CallDeadline { at, is_method_timeout: true }) if at <= now => Self::Fails,
            Some(_) | None => Self::None,
        }
    }
}
