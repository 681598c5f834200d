//! The server's deadline layer: the deadline is computed on arrival, and the call is dropped when it passes. A stream
//! may last forever, but must begin in time: a request that never ends would hold its slot and its memory.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body::Body as _;
use tokio::time::Instant;
use tonic::Code;
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::call::deadline::{SERVED, Served, Side, TimedBody, earlier, effective, exceeded, requested_timeout, within};
use crate::call::{Request, Response, ServerResult, find, respond};
use crate::policy::{MethodPolicy, PolicyTable};
use crate::server::rejections::{Cause, Rejections};
use crate::status::mesh_status;

/// A stream (also of health and reflection) must begin to be answered within this time, whatever its caller's timeout.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct ServerDeadline<S> {
    inner: S,
    policies: PolicyTable,
    rejections: Arc<Rejections>,
}

pub(crate) fn server_deadline<S>(
    policies: PolicyTable,
    rejections: Arc<Rejections>,
) -> impl Layer<S, Service = ServerDeadline<S>> + Clone {
    layer_fn(move |inner| ServerDeadline { inner, policies, rejections: rejections.clone() })
}

impl<S> Service<Request> for ServerDeadline<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, ServerResult>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let now = Instant::now();
        let policy = find(self.policies, &request);
        let Ok(requested) = requested_timeout(request.headers()) else {
            self.rejections.count(Cause::Timeout);
            let message = "grpc-timeout must be at most 8 digits and one of H M S m u n";
            return ready(respond(mesh_status(Code::InvalidArgument, "MALFORMED_TIMEOUT", message)));
        };
        let deadline = effective(requested, policy).and_then(|timeout| now.checked_add(timeout));
        if deadline.is_some_and(|deadline| deadline <= now) {
            return ready(respond(exceeded()));
        }
        let served = Served::new(deadline, request.headers());
        let work = SERVED.scope(served, self.inner.call(request));
        let is_stream = policy.is_none_or(|policy| policy.streaming);
        let begin_by = earlier(deadline, is_stream.then(|| now + BEGIN_WITHIN));
        let Some(begin_by) = begin_by else { return Box::pin(work) };
        Box::pin(async move {
            match within(begin_by, work).await {
                Some(Ok(response)) => Ok(bounded(response, policy, deadline)),
                Some(Err(never)) => match never {},
                None => Ok(respond(exceeded())),
            }
        })
    }
}

/// A stream ends at the deadline too; a unary response is complete already.
fn bounded(response: Response, policy: Option<&MethodPolicy>, deadline: Option<Instant>) -> Response {
    let Some(deadline) = deadline else { return response };
    if response.body().is_end_stream() || policy.is_some_and(|policy| !policy.streaming) {
        return response;
    }
    response.map(|body| TimedBody::wrap(body, Side::Server, deadline))
}

fn ready(response: Response) -> BoxFuture<'static, ServerResult> {
    Box::pin(std::future::ready(Ok(response)))
}

#[cfg(test)]
mod tests;
