//! A stream of events that is resumed after the last message, on any instance, however it ends: no event is missed or
//! repeated.

use std::time::Duration;

use contracts::data::v1::{TraceEvent, WatchTraceEventsResponse};
use kernel::backoff::backoff;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::error::{Error, describe};
use crate::events::Filter;
use crate::events::session::Session;
use crate::out;

/// A bookmark is sent every ten seconds: a stream without messages for this long is dead.
const SILENCE: Duration = Duration::from_secs(35);
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_CAP: Duration = Duration::from_secs(5);

pub(crate) struct Follower {
    session: Session,
    filter: Filter,
    /// The cursor of the last message.
    cursor: String,
    stream: Option<Streaming<WatchTraceEventsResponse>>,
    /// Consecutive streams that ended before a message after their first bookmark.
    failures: u32,
}

impl Follower {
    /// Follows events from now on.
    ///
    /// # Errors
    /// The call is rejected.
    pub(crate) async fn begin(session: Session, filter: Filter) -> Result<Self, Error> {
        let mut follower = Self { session, filter, cursor: String::new(), stream: None, failures: 0 };
        let bookmark = follower.message().await.map_err(Error::rejected("WatchTraceEvents"))?;
        follower.cursor = bookmark.cursor;
        // The position is known; the stream would be ended by the server if it were not read while the window is.
        follower.stream = None;
        Ok(follower)
    }

    /// The session that the calls use.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// The next event.
    ///
    /// # Errors
    /// The stream cannot be resumed.
    pub(crate) async fn next(&mut self) -> Result<TraceEvent, Error> {
        loop {
            let is_first = self.stream.is_none();
            match self.message().await {
                Ok(message) => {
                    self.cursor = message.cursor;
                    if !is_first {
                        self.failures = 0;
                    }
                    if let Some(event) = message.event {
                        return Ok(event);
                    }
                }
                Err(status) => {
                    self.stream = None;
                    self.recover(status).await?;
                }
            }
        }
    }

    async fn message(&mut self) -> Result<WatchTraceEventsResponse, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = self.session.watch(self.filter.watch(self.cursor.clone())).await?;
                self.stream.insert(stream)
            }
        };
        let message = timeout(SILENCE, stream.message()).await;
        let message = message.map_err(|_| Status::unavailable("no message, not even a bookmark"))?;
        message?.ok_or_else(|| Status::unavailable("the stream ended without a reason"))
    }

    /// Waits before the next stream; logs in again if the token has expired.
    async fn recover(&mut self, status: Status) -> Result<(), Error> {
        self.failures = self.failures.saturating_add(1);
        let mut status = status;
        if status.code() == Code::Unauthenticated {
            match self.session.renew().await {
                // An expired token is not a failure; a new token that is rejected is.
                Ok(()) if self.failures == 1 => return Ok(()),
                Ok(()) => {}
                Err(Error::Rejected { status: rejected, .. }) => status = *rejected,
                Err(error) => return Err(error),
            }
        }
        if !may_pass(status.code()) {
            return Err(Error::rejected("WatchTraceEvents")(status));
        }
        let requested = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
        let wait = backoff(self.failures, BACKOFF, BACKOFF_CAP, rand::random()).max(requested.min(BACKOFF_CAP));
        let message = describe(&status);
        out::complain(format_args!("the stream ended ({message}); resuming in {:.1} s", wait.as_secs_f64()));
        sleep(wait).await;
        Ok(())
    }
}

/// Whether a retry, perhaps on another instance, may succeed.
fn may_pass(code: Code) -> bool {
    match code {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Cancelled
        // A connection that breaks during a stream.
        | Code::Unknown
        | Code::Internal
        // An instance of an earlier release, during an upgrade.
        | Code::Unimplemented => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        // The cursor is older than the retention of events.
        | Code::OutOfRange
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

#[cfg(test)]
mod tests;
