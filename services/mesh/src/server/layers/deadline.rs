//! The server's deadline layer: the call is dropped when its deadline passes. A stream may last forever, but its response
//! must begin in time: a request that never ends would hold its slot and its memory.

use std::sync::Arc;
use std::time::Duration;

use http_body::Body as _;
use tokio::time::Instant;
use tonic::Code;

use crate::body::ending::end_at;
use crate::call::deadline::{INBOUND_CALL, InboundCall, earlier, exceeded, within};
use crate::call::wire::{Request, Response, ServerFuture, Side, respond};
use crate::call::{Call, Class};
use crate::server::layer::{Next, ServerLayer, TowerLayer, layer, ready};
use crate::server::rejections::{Cause, Rejections};
use crate::status::mesh_status;

/// The response of a stream (also of health and reflection) must begin within this time, whatever its caller's timeout.
const RESPONSE_START_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct ServerDeadline {
    rejections: Arc<Rejections>,
}

pub(crate) fn server_deadline(rejections: Arc<Rejections>) -> TowerLayer<ServerDeadline> {
    layer(ServerDeadline { rejections })
}

impl ServerLayer for ServerDeadline {
    fn call<N: Next>(self: &Arc<Self>, request: Request, next: &mut N) -> ServerFuture {
        let call = Call::of(&request);
        let is_unary = call.class == Class::Unary;
        let Ok(deadline) = call.deadline else {
            self.rejections.count(Cause::Timeout);
            let message = "grpc-timeout must be at most 8 digits and one of H M S m u n";
            return ready(respond(mesh_status(Code::InvalidArgument, "MALFORMED_TIMEOUT", message)));
        };
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return ready(respond(exceeded()));
        }
        let inbound = InboundCall::new(deadline, request.headers());
        let work = INBOUND_CALL.scope(inbound, next.call(request));
        let Some(begin_by) = earlier(deadline, (!is_unary).then(|| now + RESPONSE_START_TIMEOUT)) else {
            return Box::pin(work);
        };
        Box::pin(async move {
            match within(begin_by, work).await {
                // A unary response is complete already.
                Some(Ok(response)) if is_unary => Ok(response),
                Some(Ok(response)) => Ok(bounded(response, deadline)),
                Some(Err(never)) => match never {},
                None => Ok(respond(exceeded())),
            }
        })
    }
}

/// A stream ends at the deadline too.
fn bounded(response: Response, deadline: Option<Instant>) -> Response {
    match deadline {
        Some(deadline) if !response.body().is_end_stream() => response.map(|body| end_at(body, Side::Server, deadline)),
        Some(_) | None => response,
    }
}

#[cfg(test)]
mod tests;
