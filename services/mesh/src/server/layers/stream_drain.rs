//! Ends streams: an endless response must not delay a server's shutdown. Health's and reflection's streams end at the
//! GOAWAY; the services' own, which their service ends at its shutdown, shortly after it. An evicted stream ends in the
//! same way, and so does one whose caller's session ends.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::call::{Request, Response, ServerResult, find, is_infrastructure, respond};
use crate::identity::caller::Caller;
use crate::identity::token::Tokens;
use crate::policy::PolicyTable;
use crate::status::mesh_status_retry;

/// An ended stream's caller retries on another instance after this.
const RETRY_AFTER: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub(crate) struct StreamEnd<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// Behind one `Arc`: cloning a token takes a lock that all calls would share.
struct Shared {
    policies: PolicyTable,
    tokens: Option<Arc<Tokens>>,
    goaway: CancellationToken,
    grace: Duration,
}

pub(crate) fn stream_end<S>(
    policies: PolicyTable,
    tokens: Option<Arc<Tokens>>,
    goaway: CancellationToken,
    grace: Duration,
) -> impl Layer<S, Service = StreamEnd<S>> + Clone {
    let shared = Arc::new(Shared { policies, tokens, goaway, grace });
    layer_fn(move |inner| StreamEnd { inner, shared: shared.clone() })
}

impl<S> Service<Request> for StreamEnd<S>
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
        let Shared { policies, tokens, goaway, grace } = &*self.shared;
        let grace = if is_infrastructure(request.uri().path()) {
            Duration::ZERO
        } else if find(*policies, &request).is_some_and(|policy| policy.streaming) {
            *grace
        } else {
            return Box::pin(self.inner.call(request));
        };
        let session = match request.extensions().get() {
            Some(Caller::User { session_id: Some(session), .. }) => tokens.clone().map(|tokens| tokens.ended(*session)),
            Some(Caller::User { .. } | Caller::Service { .. } | Caller::Anonymous) | None => None,
        };
        let (work, goaway) = (self.inner.call(request), goaway.clone());
        let drained = async move {
            goaway.cancelled_owned().await;
            tokio::time::sleep(grace).await;
            draining()
        };
        Box::pin(end_when(
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
pub(crate) async fn end_when(
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
    Ok(response.map(|inner| Body::new(EndingBody { inner, end, over: false })))
}

fn draining() -> Status {
    let message = "this instance is shutting down: continue on another one";
    mesh_status_retry(Code::Unavailable, "DRAINING", message, Some(RETRY_AFTER))
}

struct EndingBody {
    inner: Body,
    end: BoxFuture<'static, Status>,
    over: bool,
}

impl http_body::Body for EndingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let Poll::Ready(status) = this.end.as_mut().poll(cx) else { return Poll::Pending };
        this.over = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
