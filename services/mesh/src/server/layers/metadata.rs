//! The limit on a call's metadata: HTTP/2's own limit is looser, and its errors have no gRPC status.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::HeaderMap;
use tonic::Code;
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::call::record::NoEvent;
use crate::call::{Request, Response, ServerResult, respond};
use crate::server::rejections::{Cause, Rejections};
use crate::status::mesh_status;

/// Names and values of all headers of a request, and 32 bytes for each (HTTP/2's formula). gRPC's default is 8 KiB.
pub(crate) const MAX_METADATA_BYTES: usize = 16 * 1_024;

#[derive(Clone)]
pub(crate) struct Metadata<S> {
    inner: S,
    rejections: Arc<Rejections>,
}

pub(crate) fn metadata<S>(rejections: Arc<Rejections>) -> impl Layer<S, Service = Metadata<S>> + Clone {
    layer_fn(move |inner| Metadata { inner, rejections: rejections.clone() })
}

impl<S> Service<Request> for Metadata<S>
where
    S: Service<Request, Response = Response, Error = Infallible, Future = BoxFuture<'static, ServerResult>>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, ServerResult>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let length = bytes_of(request.headers());
        if length <= MAX_METADATA_BYTES {
            return self.inner.call(request);
        }
        self.rejections.count(Cause::Metadata);
        let message = format!("{length} bytes of metadata exceed the limit of {MAX_METADATA_BYTES} bytes");
        let mut response = respond(mesh_status(Code::ResourceExhausted, "METADATA_TOO_LARGE", message));
        response.extensions_mut().insert(NoEvent);
        Box::pin(std::future::ready(Ok(response)))
    }
}

fn bytes_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

#[cfg(test)]
mod tests;
