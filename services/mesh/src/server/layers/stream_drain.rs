//! Ends streams: an endless response must not delay a server's shutdown. Health's and reflection's streams end at the
//! GOAWAY; the services' own, which their service ends at its shutdown, shortly after it. An evicted stream ends in the
//! same way, and so does one whose caller's session ends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body::Body as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::body::ending::end_when;
use crate::call::wire::{Request, ServerFuture, ServerResult, Side, respond};
use crate::call::{Call, Class};
use crate::identity::caller::Caller;
use crate::identity::token::Tokens;
use crate::server::layer::{Next, ServerLayer, TowerLayer, layer};
use crate::status::mesh_status_retry;

/// An ended stream's caller retries on another instance after this.
const RETRY_AFTER: Duration = Duration::from_millis(100);

pub(crate) struct StreamDrain {
    tokens: Option<Arc<Tokens>>,
    goaway: CancellationToken,
    grace: Duration,
}

pub(crate) fn stream_drain(
    tokens: Option<Arc<Tokens>>,
    goaway: CancellationToken,
    grace: Duration,
) -> TowerLayer<StreamDrain> {
    layer(StreamDrain { tokens, goaway, grace })
}

impl ServerLayer for StreamDrain {
    fn call<N: Next>(self: &Arc<Self>, request: Request, next: &mut N) -> ServerFuture {
        let grace = match Call::of(&request).class {
            Class::HealthCheck | Class::HealthWatch | Class::Reflection => Duration::ZERO,
            Class::Stream => self.grace,
            Class::Unary | Class::Unknown => return next.call(request),
        };
        let session = match request.extensions().get() {
            Some(Caller::User { session_id: Some(session), .. }) => {
                self.tokens.clone().map(|tokens| tokens.ended(*session))
            }
            Some(Caller::User { .. } | Caller::Service { .. } | Caller::Anonymous) | None => None,
        };
        let (work, goaway) = (next.call(request), self.goaway.clone());
        let drained = async move {
            goaway.cancelled_owned().await;
            tokio::time::sleep(grace).await;
            draining()
        };
        Box::pin(end_with(
            async move {
                let Some(session) = session else { return drained.await };
                tokio::select! {
                    status = session => status,
                    status = drained => status,
                }
            },
            work,
        ))
    }
}

/// Ends the response with `end`'s status.
pub(crate) async fn end_with(
    end: impl Future<Output = Status> + Send + 'static,
    work: impl Future<Output = ServerResult>,
) -> ServerResult {
    let mut end: BoxFuture<'static, Status> = Box::pin(end);
    let response = tokio::select! {
        biased;
        response = work => response?,
        // No response has begun: the request may never end.
        status = &mut end => return Ok(respond(status)),
    };
    if response.body().is_end_stream() {
        return Ok(response);
    }
    Ok(response.map(|inner| end_when(inner, Side::Server, end)))
}

fn draining() -> Status {
    let message = "this instance is shutting down: continue on another one";
    mesh_status_retry(Code::Unavailable, "DRAINING", message, Some(RETRY_AFTER))
}

#[cfg(test)]
mod tests;
