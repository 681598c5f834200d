//! The client's deadline layer: the earliest of the method's own timeout, the call's requested one, and the deadline of
//! the call that is being served. It is sent as `grpc-timeout`, and enforced here as well: the peer may have crashed.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::HeaderMap;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::call::deadline::{
    GRPC_TIMEOUT, Side, TimedBody, current, earlier, effective, exceeded, format, requested_timeout,
};
use crate::call::{Request, Response, find, never_indexed};
use crate::policy::PolicyTable;
use crate::status::mesh_status;

/// The call's deadline: in the request's extensions, for the attempts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Until {
    pub(crate) deadline: Instant,
    /// Whether the call has its method's full timeout.
    pub(crate) is_full: bool,
}

impl Until {
    /// Writes the time left into the headers; `false` when none is left.
    pub(crate) fn stamp(self, now: Instant, headers: &mut HeaderMap) -> bool {
        let left = self.deadline.saturating_duration_since(now);
        headers.insert(GRPC_TIMEOUT, never_indexed(format(left)));
        left.as_micros() > 0
    }
}

#[derive(Clone)]
pub(crate) struct ClientDeadline<S> {
    inner: S,
    policies: PolicyTable,
}

pub(crate) fn client_deadline<S>(policies: PolicyTable) -> impl Layer<S, Service = ClientDeadline<S>> + Clone {
    layer_fn(move |inner| ClientDeadline { inner, policies })
}

impl<S> Service<Request> for ClientDeadline<S>
where
    S: Service<Request, Response = Response, Error = Status>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let now = Instant::now();
        let Ok(requested) = requested_timeout(request.headers()) else {
            let message = "grpc-timeout must be at most 8 digits and one of H M S m u n";
            return reject(mesh_status(Code::InvalidArgument, "MALFORMED_TIMEOUT", message));
        };
        let policy = find(self.policies, &request);
        let own = effective(requested, policy).and_then(|timeout| now.checked_add(timeout));
        let Some(deadline) = earlier(own, current()) else { return Box::pin(self.inner.call(request)) };
        let full = policy.and_then(|policy| policy.timeout);
        let is_full = full.is_some_and(|full| deadline.saturating_duration_since(now) >= full);
        let until = Until { deadline, is_full };
        if !until.stamp(now, request.headers_mut()) {
            return reject(exceeded());
        }
        request.extensions_mut().insert(until);
        let work = self.inner.call(request);
        Box::pin(async move {
            let response = timeout_at(deadline, work).await.map_err(|_elapsed| exceeded())??;
            Ok(response.map(|body| TimedBody::wrap(body, Side::Client, deadline)))
        })
    }
}

fn reject(status: Status) -> BoxFuture<'static, Result<Response, Status>> {
    Box::pin(std::future::ready(Err(status)))
}
