//! Deadline propagation: reading and writing `grpc-timeout`, and the inbound call's deadline. The two layers are in
//! `server/layers/deadline` and `client/deadline`.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status};

use crate::call::wire::PREVIOUS_ATTEMPTS;
use crate::policy::MethodPolicy;
use crate::status::mesh_status;

pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// What calls inherit from the inbound call, the one that is being served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct InboundCall {
    /// When the inbound call must end.
    pub(crate) deadline: Option<Instant>,
    /// Whether the inbound call is a retry. Then its own calls are not retried: one hop retries, not every hop.
    pub(crate) is_retry: bool,
}

impl InboundCall {
    pub(crate) fn new(deadline: Option<Instant>, headers: &HeaderMap) -> Self {
        Self { deadline, is_retry: headers.contains_key(PREVIOUS_ATTEMPTS) }
    }
}

tokio::task_local! {
    /// The call that this task serves.
    pub(crate) static INBOUND_CALL: InboundCall;
}

/// The time left of the call that is being served; `None` when it has no deadline, or when no call is being served.
pub fn time_left() -> Option<Duration> {
    current().map(|deadline| deadline.saturating_duration_since(Instant::now()))
}

/// The deadline of the call that is being served.
pub(crate) fn current() -> Option<Instant> {
    INBOUND_CALL.try_with(|call| call.deadline).ok().flatten()
}

/// Whether the call that is being served is a retry.
pub(crate) fn serves_a_retry() -> bool {
    INBOUND_CALL.try_with(|call| call.is_retry).unwrap_or(false)
}

/// A malformed `grpc-timeout`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

/// Reads a `grpc-timeout`: at most 8 digits, and one unit.
pub(crate) fn parse(text: &[u8]) -> Result<Duration, Malformed> {
    let Some((unit, digits)) = text.split_last() else { return Err(Malformed) };
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    let number = digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Ok(Duration::from_secs(number * 3600)),
        b'M' => Ok(Duration::from_secs(number * 60)),
        b'S' => Ok(Duration::from_secs(number)),
        b'm' => Ok(Duration::from_millis(number)),
        b'u' => Ok(Duration::from_micros(number)),
        b'n' => Ok(Duration::from_nanos(number)),
        _ => Err(Malformed),
    }
}

/// Writes a `grpc-timeout`, in the finest unit that fits, rounded down.
pub(crate) fn format(timeout: Duration) -> HeaderValue {
    const LIMIT: u64 = 100_000_000;
    let below = |number: u128| u64::try_from(number).ok().filter(|number| *number < LIMIT);
    let (mut number, unit) = match (below(timeout.as_micros()), below(timeout.as_millis())) {
        (Some(micros), _) => (micros, b'u'),
        (None, Some(millis)) => (millis, b'm'),
        (None, None) => (timeout.as_secs().min(LIMIT - 1), b'S'),
    };
    // Formatted by hand, because it happens for each attempt.
    let mut text = [b'0', b'0', b'0', b'0', b'0', b'0', b'0', b'0', unit];
    let mut first = 8;
    while number > 0 || first == 8 {
        first -= 1;
        text[first] += (number % 10) as u8;
        number /= 10;
    }
    HeaderValue::from_bytes(&text[first..]).unwrap_or(HeaderValue::from_static("99999999S"))
}

/// The caller's requested timeout.
pub(crate) fn requested_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Malformed> {
    headers.get(GRPC_TIMEOUT).map(|value| parse(value.as_bytes())).transpose()
}

/// The lesser of the caller's timeout and the method's.
pub(crate) fn effective(requested: Option<Duration>, policy: Option<&MethodPolicy>) -> Option<Duration> {
    earlier(requested, policy.and_then(|policy| policy.timeout))
}

/// The lesser of two optional limits.
pub(crate) fn earlier<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, None) => one,
        (None, other) => other,
    }
}

/// The status of a call whose deadline has passed.
pub(crate) fn exceeded() -> Status {
    mesh_status(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline was exceeded")
}

/// The work's output, if it completes in time. tokio's `timeout_at` creates its timer before it polls the work, but most
/// handlers complete in their first poll.
pub(crate) async fn within<T>(deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut alarm = pin!(None::<Sleep>);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        if alarm.is_none() {
            alarm.set(Some(sleep_until(deadline)));
        }
        alarm.as_mut().as_pin_mut().map_or(Poll::Pending, |alarm| alarm.poll(cx).map(|()| None))
    })
    .await
}

#[cfg(test)]
mod tests;
