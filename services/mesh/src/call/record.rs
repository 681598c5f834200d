//! The record of one call, on either side: completed once, from wherever the status is found, and with a pessimistic
//! outcome if it never is. It moves from the call's future into its response's body, so a span lasts as long as its
//! call.
//!
//! The status is in the headers (Trailers-Only), else in the trailers, else it is the body's error; an end without
//! trailers is UNKNOWN; a drop is CANCELLED, or DEADLINE_EXCEEDED past the deadline.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::HeaderMap;
use http_body::Body as _;
use telemetry::{EventSink, Operation, Outcome};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::body::{Frames, NextFrame, poll_frame, wrap};
use crate::call::deadline::exceeded;
use crate::call::metrics::{CallDuration, ERROR_TYPE, RPC_METHOD, RPC_STATUS, RPC_SYSTEM};
use crate::call::wire::{Response, Side, is_ok};
use crate::monitor::observed::{End, Observed, TapEnd};
use crate::monitor::statistics::is_server_error;
use crate::server::call_state;
use crate::status::{INJECTED_FAULT, code_name, event_error, reason_of};

pub(crate) type Sink = Arc<dyn EventSink>;

/// Marks a response in its extensions: rejected before it reached the service (identity, limits). A metric and a span,
/// no event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoEvent;

/// What determined the call's outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    /// The peer's response (on a server: the handler's).
    Peer,
    /// This side, without a response.
    Us,
}

/// The caller's clock started earlier: a call cancelled this shortly before its deadline counts as past it.
const LATE_WITHIN: Duration = Duration::from_millis(20);

/// The record of one call.
pub(crate) struct Record {
    side: Side,
    method: &'static str,
    operation: Option<Operation>,
    duration: CallDuration,
    observed: Observed,
    started: Instant,
    deadline: Option<Instant>,
    response_bytes: u64,
    settled: bool,
}

impl Record {
    pub(crate) fn new(
        side: Side,
        method: &'static str,
        operation: Option<Operation>,
        duration: CallDuration,
        observed: Observed,
        started: Instant,
    ) -> Self {
        if let Some(operation) = &operation {
            operation.set_on_span(RPC_SYSTEM, "grpc");
            operation.set_on_span(RPC_METHOD, method);
        }
        Self { side, method, operation, duration, observed, started, deadline: None, response_bytes: 0, settled: false }
    }

    /// Sets the deadline, which distinguishes a cancelled call from one past its deadline.
    pub(crate) fn with_deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Continues in the response's body, unless the headers have the status.
    pub(crate) fn follow(mut self, response: Response) -> Response {
        if let Some(reported_status) = reported_status(response.headers()) {
            if response.extensions().get::<NoEvent>().is_some()
                && let Some(operation) = &self.operation
            {
                operation.discard();
            }
            self.settle(reported_status.as_ref().copied(), By::Peer);
            return response;
        }
        // tonic's Body::new replaces a body that has already ended: a wrapper would be dropped unpolled.
        if response.body().is_end_stream() {
            self.settle(Err(&no_trailers()), By::Peer);
            return response;
        }
        self.observe_caller();
        response.map(|inner| wrap(inner, self))
    }

    /// The call got no response.
    pub(crate) fn failed(mut self, status: &Status) {
        self.settle(Err(status), By::Us);
    }

    /// On a server, the caller is known when the response begins, and only while the call's future is polled or dropped.
    fn observe_caller(&mut self) {
        if self.side == Side::Server {
            self.observed.set_caller(call_state::caller_class);
        }
    }

    fn settle(&mut self, outcome: Result<(), &Status>, by: By) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let code = outcome.map_or_else(Status::code, |()| Code::Ok);
        let is_error = match self.side {
            Side::Client => code != Code::Ok,
            Side::Server => is_server_error(code),
        };
        let took = self.started.elapsed();
        self.duration.record(took, self.method, code, is_error);
        self.observe_caller();
        self.observed.end(End {
            method: self.method,
            code,
            took,
            response_bytes: self.response_bytes,
            tap: self.observed.is_tapped().then(|| TapEnd {
                status: outcome.err(),
                operation: self.operation.as_ref().filter(|operation| !operation.span().is_disabled()),
            }),
        });
        let Some(operation) = self.operation.take() else { return };
        operation.set_on_span(RPC_STATUS, code_name(code));
        if is_error {
            operation.set_on_span(ERROR_TYPE, code_name(code));
            operation.mark_error(outcome.err().map_or("", Status::message));
        }
        // If the peer responded, the event is the peer's: the caller's operation produces one only without a response.
        let is_injected = || outcome.err().and_then(reason_of).is_some_and(|reason| reason == INJECTED_FAULT);
        let no_response = by == By::Us
            && (matches!(code, Code::DeadlineExceeded | Code::Unavailable) || code != Code::Ok && is_injected());
        // A call of an unknown method is no event of this service.
        if (self.side == Side::Client && !no_response) || (code == Code::Unimplemented && !is_injected()) {
            operation.discard();
        }
        operation.end(outcome.map_or_else(|status| Outcome::Failed(event_error(status)), |()| Outcome::Success));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let late = self.deadline.is_some_and(|deadline| deadline <= Instant::now() + LATE_WITHIN);
        let status = if late { exceeded() } else { Status::cancelled("the call was cancelled") };
        self.settle(Err(&status), By::Us);
    }
}

/// The call's status, if headers or trailers have one.
pub(crate) fn reported_status(headers: &HeaderMap) -> Option<Result<(), Status>> {
    if is_ok(headers) { Some(Ok(())) } else { Status::from_header_map(headers).map(Err) }
}

fn no_trailers() -> Status {
    Status::unknown("the response ended without a grpc-status")
}

impl Frames for Record {
    fn poll_next(&mut self, inner: &mut Body, cx: &mut Context<'_>) -> Poll<NextFrame> {
        let entered = self.operation.as_ref().map(|operation| operation.span().enter());
        let frame = ready!(poll_frame(inner, cx));
        drop(entered);
        match &frame {
            Some(Ok(frame)) => match frame.trailers_ref() {
                Some(trailers) => {
                    let reported_status = reported_status(trailers).unwrap_or_else(|| Err(no_trailers()));
                    self.settle(reported_status.as_ref().copied(), By::Peer);
                }
                None => {
                    self.response_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                    // A body that reports its end is not polled again.
                    if inner.is_end_stream() {
                        self.settle(Err(&no_trailers()), By::Peer);
                    }
                }
            },
            Some(Err(status)) => self.settle(Err(status), By::Us),
            None => self.settle(Err(&no_trailers()), By::Peer),
        }
        Poll::Ready(frame)
    }
}
