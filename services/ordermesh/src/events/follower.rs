//! A stream of events that goes on after the last message, at any instance, whatever ends it: none is missed or repeated.

use std::time::Duration;

use contracts::data::v1::{TraceEvent, WatchTraceEventsResponse};
use kernel::backoff::full_jitter;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::error::{Error, refusal};
use crate::events::Filter;
use crate::events::session::Session;
use crate::out;

/// Bookmarks come every ten seconds: a stream from which nothing comes for so long leads nowhere any more.
const SILENCE: Duration = Duration::from_secs(35);
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_CAP: Duration = Duration::from_secs(5);

/// Follows events.
pub(crate) struct Follower {
    session: Session,
    filter: Filter,
    /// Of the last message.
    cursor: String,
    stream: Option<Streaming<WatchTraceEventsResponse>>,
    /// Streams that have ended before anything but their first bookmark came.
    failures: u32,
}

impl Follower {
    /// From now on.
    ///
    /// # Errors
    /// The call is refused.
    pub(crate) async fn begin(session: Session, filter: Filter) -> Result<Self, Error> {
        let mut follower = Self { session, filter, cursor: String::new(), stream: None, failures: 0 };
        let bookmark = follower.message().await.map_err(Error::refused("WatchTraceEvents"))?;
        follower.cursor = bookmark.cursor;
        // Its place is known. It would be ended if it were not read while the window is.
        follower.stream = None;
        Ok(follower)
    }

    /// Whose calls they are.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// The next event.
    ///
    /// # Errors
    /// The stream cannot be gone on with.
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
        let message = message.map_err(|_| Status::unavailable("nothing came, not even a bookmark"))?;
        message?.ok_or_else(|| Status::unavailable("the stream ended without a reason"))
    }

    /// Waits until another stream may be better; logs in again when the token has ended.
    async fn recover(&mut self, status: Status) -> Result<(), Error> {
        self.failures = self.failures.saturating_add(1);
        let mut status = status;
        if status.code() == Code::Unauthenticated {
            match self.session.renew().await {
                // The token's end is no failure; a token that is refused when it is new is.
                Ok(()) if self.failures == 1 => return Ok(()),
                Ok(()) => {}
                Err(Error::Refused { status: refused, .. }) => status = *refused,
                Err(error) => return Err(error),
            }
        }
        if !may_pass(status.code()) {
            return Err(Error::refused("WatchTraceEvents")(status));
        }
        let asked = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
        let wait = full_jitter(self.failures, BACKOFF, BACKOFF_CAP, rand::random()).max(asked.min(BACKOFF_CAP));
        let told = refusal(&status);
        out::complain(format_args!("the stream ended ({told}); it goes on in {:.1} s", wait.as_secs_f64()));
        sleep(wait).await;
        Ok(())
    }
}

/// May the same call be answered better another time, or by another instance?
fn may_pass(code: Code) -> bool {
    match code {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Cancelled
        // A connection that breaks in the middle of a stream.
        | Code::Unknown
        | Code::Internal
        // An instance of the release before, during an upgrade.
        | Code::Unimplemented => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        // The cursor is older than events are kept.
        | Code::OutOfRange
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

#[cfg(test)]
mod tests;
