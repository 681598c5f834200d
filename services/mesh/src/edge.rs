//! What a connection keeps of a call while the stack works on it. The stack takes the request whole; the connection
//! outlives it, and must know which part of the request nobody read, which caller it was, and whether the stream was reset.

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::rate_limit::Key;
use crate::wire::{Answer, Response};

/// Of a request that was refused early. One that is too long by far is still read to its end.
const MAX_DISCARDED_BYTES: usize = 8 * 1_024 * 1_024;
/// A caller that sends more slowly, or that waits for the answer before it ends its request, gets the answer after that.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

tokio::task_local! {
    static EDGE: RefCell<Edge>;
}

/// One call's.
#[derive(Default)]
pub(crate) struct Edge {
    /// The request's body, when it was dropped before its end.
    pub(crate) rest: Option<Incoming>,
    /// The caller, when one is known that shares the connection with others.
    pub(crate) caller: Option<Key>,
    /// The stream was reset while its request was read.
    pub(crate) was_reset: bool,
    /// It was let in, and is served.
    pub(crate) is_admitted: bool,
    /// One of the platform's services calls.
    pub(crate) is_platform: bool,
}

impl Edge {
    /// Does a part of the call's work, which may change the edge by [`note`].
    pub(crate) fn around<T>(self, work: impl FnOnce() -> T) -> (T, Self) {
        EDGE.sync_scope(RefCell::new(self), || {
            let done = work();
            (done, EDGE.with(RefCell::take))
        })
    }
}

/// Changes the edge of the call that is worked on; outside of one it does nothing.
pub(crate) fn note(change: impl FnOnce(&mut Edge)) {
    let _ = EDGE.try_with(|edge| edge.try_borrow_mut().map(|mut edge| change(&mut edge)));
}

/// The caller of the call that is worked on.
pub(crate) fn caller() -> Option<Key> {
    EDGE.try_with(|edge| edge.try_borrow().ok()?.caller.clone()).ok().flatten()
}

/// An answer that follows the end of its request. HTTP/2 allows an answer before that, with RST_STREAM(NO_ERROR) after it
/// (RFC 9113, section 8.1); curl and older Envoys take that for an error and lose the answer. So the rest of the request is
/// read and thrown away first. Nothing else is held meanwhile: no permit, no memory.
pub(crate) async fn after_request(rest: Incoming, response: Response) -> Answer {
    // A caller that is slow or sends too much had its chance: it gets the answer and RST_STREAM.
    let _ = timeout(DISCARD_TIMEOUT, discard(rest)).await;
    Ok(response)
}

async fn discard(mut rest: Incoming) {
    let mut bytes = 0;
    while let Some(frame) = rest.frame().await {
        let Ok(frame) = frame else { return note(|edge| edge.was_reset = true) };
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > MAX_DISCARDED_BYTES {
            return;
        }
    }
}
