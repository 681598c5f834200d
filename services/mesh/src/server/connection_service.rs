//! The service that hyper calls for each request of a connection: what is not gRPC is rejected, the rest goes to the
//! stack. Counts open calls, and decides how a call ends: answered after its request's end, or reset.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use http_body::Body as _;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use crate::body::incoming::incoming_request;
use crate::call::wire::{Request, ServerFuture};
use crate::identity::caller::PeerService;
use crate::server::call_state::{CallState, respond_after_request};
use crate::server::limits::caller_key::CallerKey;
use crate::server::limits::resets::ConnectionResets;
use crate::server::limits::slots::Slot;
use crate::server::limits::usage::ConnectionCallers;
use crate::server::not_grpc::not_grpc;
use crate::server::proxies::Proxies;
use crate::server::rejections::{Cause, Rejections};
use crate::server::write_timeout::WatchedBody;

/// One connection's instance of the server's stack.
pub(crate) type Stack = Box<dyn FnMut(Request) -> ServerFuture + Send>;

/// The activity of a connection.
pub(crate) struct Activity {
    /// Open calls of health and reflection, whose streams may never end: they do not keep the connection open.
    infrastructure_calls: AtomicUsize,
    /// The total number of admitted calls: others do not keep the connection open.
    admitted_total: AtomicU64,
    pub(crate) resets: ConnectionResets,
    pub(crate) slot: Slot,
    /// Cancelled when the connection must close: its slot is evicted, or its identity has expired.
    pub(crate) close: CancellationToken,
}

impl Activity {
    pub(crate) fn new(resets: ConnectionResets, slot: Slot) -> Self {
        Self {
            infrastructure_calls: AtomicUsize::new(0),
            admitted_total: AtomicU64::new(0),
            resets,
            close: slot.evicted().child_token(),
            slot,
        }
    }

    pub(crate) fn has_infrastructure_calls(&self) -> bool {
        self.infrastructure_calls.load(Ordering::Acquire) > 0
    }

    pub(crate) fn admitted(&self) -> u64 {
        self.admitted_total.load(Ordering::Acquire)
    }

    fn open_call(self: &Arc<Self>) -> OpenCall {
        OpenCall { activity: self.clone(), is_infrastructure: false, is_admitted: false }
    }
}

/// An open call, until the end of its response.
pub(crate) struct OpenCall {
    activity: Arc<Activity>,
    is_infrastructure: bool,
    is_admitted: bool,
}

impl OpenCall {
    /// Applies what the stack has determined about the call.
    fn apply(&mut self, state: &CallState) {
        if state.is_mesh_service {
            self.activity.slot.never_evict();
        }
        if state.is_infrastructure && !std::mem::replace(&mut self.is_infrastructure, true) {
            self.activity.infrastructure_calls.fetch_add(1, Ordering::AcqRel);
        }
        if state.is_admitted && !self.is_infrastructure && !std::mem::replace(&mut self.is_admitted, true) {
            self.activity.admitted_total.fetch_add(1, Ordering::AcqRel);
            self.activity.slot.begin_use();
        }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if self.is_admitted {
            self.activity.slot.end_use();
        }
        self.activity.infrastructure_calls.fetch_sub(usize::from(self.is_infrastructure), Ordering::AcqRel);
    }
}

/// hyper's service of one connection.
pub(crate) struct ConnectionService {
    /// hyper delivers calls one after the other, never reentrantly.
    pub(crate) stack: RefCell<Stack>,
    pub(crate) peer: SocketAddr,
    pub(crate) callers: Arc<ConnectionCallers>,
    /// Set when the peer is a trusted proxy.
    pub(crate) proxies: Option<Proxies>,
    /// The mesh service that the client certificate names.
    pub(crate) peer_service: Option<PeerService>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) rejections: Arc<Rejections>,
}

impl hyper::service::Service<http::Request<Incoming>> for ConnectionService {
    type Response = http::Response<WatchedBody<Option<OpenCall>>>;
    type Error = Infallible;
    type Future = Responding;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let mut open = self.activity.open_call();
        let forwarded = self.proxies.as_ref().map(|proxies| proxies.caller_behind(self.peer, request.headers()));
        let caller = forwarded.map(|address| CallerKey::of_address(address.ip()));
        let (work, state) = CallState { caller, ..CallState::default() }.around(|| {
            // The body fails when the caller resets the stream or disconnects: either way the call is cancelled.
            let mut request = request.map(incoming_request);
            if let Some(rejection) = not_grpc(&request) {
                self.rejections.count(Cause::NotGrpc);
                return Box::pin(std::future::ready(Ok(rejection))) as ServerFuture;
            }
            request.extensions_mut().insert(self.callers.peer(forwarded.unwrap_or(self.peer)));
            if let Some(service) = &self.peer_service {
                request.extensions_mut().insert(service.clone());
            }
            (self.stack.borrow_mut())(request)
        });
        open.apply(&state);
        Responding { open: Some(open), work, state }
    }
}

/// A call, until its response begins.
pub(crate) struct Responding {
    work: ServerFuture,
    open: Option<OpenCall>,
    state: CallState,
}

impl Future for Responding {
    type Output = Result<http::Response<WatchedBody<Option<OpenCall>>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            let (result, state) = std::mem::take(&mut this.state).around(|| this.work.as_mut().poll(cx));
            this.state = state;
            if let Some(open) = &mut this.open {
                open.apply(&this.state);
            }
            let response = ready!(result)?;
            let is_whole = response.body().is_end_stream() || !response.status().is_success();
            match this.state.rest.take() {
                Some(rest) if is_whole => this.work = Box::pin(respond_after_request(rest, response)),
                Some(_) | None => {
                    let open = this.open.take();
                    if this.state.was_reset {
                        count_reset(open.as_ref(), &mut this.state);
                    }
                    return Poll::Ready(Ok(response.map(|body| WatchedBody::new(body, open))));
                }
            }
        }
    }
}

impl Drop for Responding {
    fn drop(&mut self) {
        // The call's future is dropped like it is polled: what it records at its end needs the call's state.
        let ((), state) = std::mem::take(&mut self.state).around(|| self.work = Box::pin(std::future::pending()));
        self.state = state;
        count_reset(self.open.as_ref(), &mut self.state);
    }
}

/// Counts a reset. The call's handler is dropped, which releases all that it held.
fn count_reset(open: Option<&OpenCall>, state: &mut CallState) {
    if let Some(open) = open {
        open.activity.resets.count(state.caller.take());
    }
}
