//! What a connection keeps of a call while the stack works on it. The stack consumes the request; the connection
//! outlives it, and needs the unread part of the request, the caller, and whether the stream was reset.

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::call::caller_class::CallerClass;
use crate::call::wire::{Response, ServerResult};
use crate::server::limits::caller_key::CallerKey;

/// How much of the body of a request that was rejected early is drained: requests somewhat above their limit are read to
/// their end, so that their clients read the response.
const MAX_DISCARDED_BYTES: usize = 8 * 1_024 * 1_024;
/// A caller that sends more slowly, or waits for the response before it ends its request, gets the response after this.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

tokio::task_local! {
    static CALL_STATE: RefCell<CallState>;
}

/// The state of one call.
#[derive(Default)]
pub(crate) struct CallState {
    /// The unread rest of the request's body, when it was dropped before its end.
    pub(crate) rest: Option<Incoming>,
    /// The caller, when it is known and shares the connection with others.
    pub(crate) caller: Option<CallerKey>,
    /// The authenticated user, also of a call that it may not make.
    pub(crate) caller_class: CallerClass,
    /// The stream was reset while its request was read.
    pub(crate) was_reset: bool,
    /// It was admitted.
    pub(crate) is_admitted: bool,
    /// It is a call of health or reflection.
    pub(crate) is_infrastructure: bool,
    /// The caller is a mesh service.
    pub(crate) is_mesh_service: bool,
}

impl CallState {
    /// Runs a part of the call's work, which may change the state by [`update`].
    pub(crate) fn around<T>(self, work: impl FnOnce() -> T) -> (T, Self) {
        CALL_STATE.sync_scope(RefCell::new(self), || {
            let done = work();
            (done, CALL_STATE.with(RefCell::take))
        })
    }
}

/// Changes the current call's state; a no-op outside of a call.
pub(crate) fn update(change: impl FnOnce(&mut CallState)) {
    let _ = CALL_STATE.try_with(|state| state.try_borrow_mut().map(|mut state| change(&mut state)));
}

/// The current call's caller.
pub(crate) fn caller() -> Option<CallerKey> {
    CALL_STATE.try_with(|state| state.try_borrow().ok()?.caller.clone()).ok().flatten()
}

/// The class of the current call's caller, if that is not a service; anonymous when it is not authenticated.
pub(crate) fn caller_class() -> CallerClass {
    let class = CALL_STATE.try_with(|state| state.try_borrow().map(|state| state.caller_class.clone()).ok());
    class.ok().flatten().unwrap_or_default()
}

/// A response that follows the end of its request. HTTP/2 allows an earlier response, followed by RST_STREAM(NO_ERROR)
/// (RFC 9113, section 8.1), but curl and older Envoys treat that as an error and lose the response. So the rest of the
/// request is read and discarded first. Nothing else is held meanwhile: no permit, no memory.
pub(crate) async fn respond_after_request(rest: Incoming, response: Response) -> ServerResult {
    // If the request is slow or too large, its caller gets the response and RST_STREAM.
    let _ = timeout(DISCARD_TIMEOUT, discard(rest)).await;
    Ok(response)
}

async fn discard(mut rest: Incoming) {
    let mut bytes = 0;
    while let Some(frame) = rest.frame().await {
        let Ok(frame) = frame else { return update(|state| state.was_reset = true) };
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > MAX_DISCARDED_BYTES {
            return;
        }
    }
}
