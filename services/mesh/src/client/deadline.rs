//! The client's deadline layer: the earliest of the method's own timeout, the call's requested one, and the deadline of
//! the call that is being served. It is sent as `grpc-timeout`, and enforced here as well: the peer may have crashed.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::body::ending::end_at;
use crate::call::deadline::{current, earlier, effective, exceeded, requested_timeout};
use crate::call::wire::{Request, Response, Side};
use crate::client::call::{CallDeadline, ClientCall};
use crate::status::mesh_status;

#[derive(Clone)]
pub(crate) struct ClientDeadline<S> {
    inner: S,
}

pub(crate) fn client_deadline<S>() -> impl Layer<S, Service = ClientDeadline<S>> + Clone {
    layer_fn(|inner| ClientDeadline { inner })
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
        let policy = ClientCall::policy_of(&request);
        let shortened = ClientCall::rule_of(&request).and_then(|rule| rule.timeout);
        let own = earlier(effective(requested, policy), shortened).and_then(|timeout| now.checked_add(timeout));
        let Some(deadline) = earlier(own, current()) else { return Box::pin(self.inner.call(request)) };
        let method_timeout = earlier(policy.and_then(|policy| policy.timeout), shortened);
        let is_method_timeout =
            method_timeout.is_some_and(|timeout| deadline.saturating_duration_since(now) >= timeout);
        let call_deadline = CallDeadline { at: deadline, is_method_timeout };
        if !call_deadline.write_to(now, request.headers_mut()) {
            return reject(exceeded());
        }
        if let Some(call) = request.extensions_mut().get_mut::<ClientCall>() {
            call.deadline = Some(call_deadline);
        }
        let work = self.inner.call(request);
        Box::pin(async move {
            let response = timeout_at(deadline, work).await.map_err(|_elapsed| exceeded())??;
            Ok(response.map(|body| end_at(body, Side::Client, deadline)))
        })
    }
}

fn reject(status: Status) -> BoxFuture<'static, Result<Response, Status>> {
    Box::pin(std::future::ready(Err(status)))
}
