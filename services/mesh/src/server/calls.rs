//! The calls of a connection, as hyper delivers them: what is not gRPC is rejected, the rest goes to the stack. Counts
//! open calls, and decides how a call ends: answered after its request's end, or reset.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use http_body::Body as _;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use crate::body::incoming::incoming_request;
use crate::call::{ServerResult, is_infrastructure};
use crate::identity::caller::PeerService;
use crate::server::edge::{Edge, after_request};
use crate::server::layers::rate_limit::{Key, network};
use crate::server::not_grpc::not_grpc;
use crate::server::proxies::Proxies;
use crate::server::rejections::{Cause, Rejections};
use crate::server::resets::ConnectionResets;
use crate::server::serve::Calls;
use crate::server::slots::Slot;
use crate::server::write_timeout::WatchedBody;

/// The activity of a connection.
pub(crate) struct Activity {
    /// Open calls of health and reflection: their streams never end, and do not keep the connection open.
    watching: AtomicUsize,
    /// Admitted calls: others do not keep the connection open.
    admitted: AtomicU64,
    pub(crate) resets: ConnectionResets,
    pub(crate) slot: Slot,
    /// Cancelled when the connection must close: its slot is evicted, or its identity has expired.
    pub(crate) leave: CancellationToken,
}

impl Activity {
    pub(crate) fn new(resets: ConnectionResets, slot: Slot) -> Self {
        Self {
            watching: AtomicUsize::new(0),
            admitted: AtomicU64::new(0),
            resets,
            leave: slot.leave().child_token(),
            slot,
        }
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.watching.load(Ordering::Acquire) > 0
    }

    pub(crate) fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Acquire)
    }

    fn call(self: &Arc<Self>, is_infrastructure: bool) -> OpenCall {
        self.watching.fetch_add(usize::from(is_infrastructure), Ordering::AcqRel);
        OpenCall { activity: self.clone(), is_infrastructure, is_admitted: false }
    }
}

/// An open call, until the end of its response.
pub(crate) struct OpenCall {
    activity: Arc<Activity>,
    is_infrastructure: bool,
    is_admitted: bool,
}

impl OpenCall {
    /// Applies what the stack has learned about the call.
    fn learn(&mut self, edge: &Edge) {
        if edge.is_platform {
            self.activity.slot.never_evict();
        }
        if edge.is_admitted && !self.is_infrastructure && !std::mem::replace(&mut self.is_admitted, true) {
            self.activity.admitted.fetch_add(1, Ordering::AcqRel);
            self.activity.slot.begin_use();
        }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if self.is_admitted {
            self.activity.slot.end_use();
        }
        self.activity.watching.fetch_sub(usize::from(self.is_infrastructure), Ordering::AcqRel);
    }
}

pub(crate) struct PerConnection {
    /// hyper delivers calls one after the other, never reentrantly.
    pub(crate) calls: RefCell<Calls>,
    pub(crate) peer: SocketAddr,
    /// Set when the peer is a trusted proxy.
    pub(crate) proxies: Option<Proxies>,
    pub(crate) service: Option<PeerService>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) rejections: Arc<Rejections>,
}

impl hyper::service::Service<http::Request<Incoming>> for PerConnection {
    type Response = http::Response<WatchedBody<Option<OpenCall>>>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let mut open = self.activity.call(is_infrastructure(request.uri().path()));
        let named = self.proxies.as_ref().map(|proxies| proxies.caller_behind(self.peer, request.headers()));
        let caller = named.map(|address| Key::Peer(network(address.ip())));
        let (work, edge) = Edge { caller, ..Edge::default() }.around(|| {
            // The body fails when the caller resets the stream or disconnects: either way it has given up.
            let mut request = request.map(incoming_request);
            if let Some(rejection) = not_grpc(&request) {
                self.rejections.count(Cause::NotGrpc);
                return Box::pin(std::future::ready(Ok(rejection))) as BoxFuture<'static, ServerResult>;
            }
            request.extensions_mut().insert(named.unwrap_or(self.peer));
            if let Some(service) = &self.service {
                request.extensions_mut().insert(service.clone());
            }
            (self.calls.borrow_mut())(request)
        });
        open.learn(&edge);
        Answering { open: Some(open), work, edge }
    }
}

/// A call, until its response begins.
pub(crate) struct Answering {
    work: BoxFuture<'static, ServerResult>,
    open: Option<OpenCall>,
    edge: Edge,
}

impl Future for Answering {
    type Output = Result<http::Response<WatchedBody<Option<OpenCall>>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            let (answer, edge) = std::mem::take(&mut this.edge).around(|| this.work.as_mut().poll(cx));
            this.edge = edge;
            if let Some(open) = &mut this.open {
                open.learn(&this.edge);
            }
            let response = ready!(answer)?;
            let is_whole = response.body().is_end_stream() || !response.status().is_success();
            match this.edge.rest.take() {
                Some(rest) if is_whole => this.work = Box::pin(after_request(rest, response)),
                Some(_) | None => {
                    let open = this.open.take();
                    if this.edge.was_reset {
                        count_reset(open.as_ref(), &mut this.edge);
                    }
                    return Poll::Ready(Ok(response.map(|body| WatchedBody::new(body, open))));
                }
            }
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        count_reset(self.open.as_ref(), &mut self.edge);
    }
}

/// Counts a reset. The call's handler is dropped, which releases all that it held.
fn count_reset(open: Option<&OpenCall>, edge: &mut Edge) {
    if let Some(open) = open {
        open.activity.resets.count(edge.caller.take());
    }
}
