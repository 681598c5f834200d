//! The limit on a call's metadata: HTTP/2's own limit is looser, and its errors have no gRPC status.

use std::sync::Arc;

use http::HeaderMap;
use tonic::Code;

use crate::call::wire::{Request, ServerFuture};
use crate::server::layer::{Next, ServerLayer, TowerLayer, layer, ready, rejected};
use crate::server::rejections::{Cause, Rejections};
use crate::status::mesh_status;

/// Names and values of all headers of a request, and 32 bytes for each (HTTP/2's formula). gRPC's default is 8 KiB.
pub(crate) const MAX_METADATA_BYTES: usize = 16 * 1_024;

pub(crate) struct Metadata {
    rejections: Arc<Rejections>,
}

pub(crate) fn metadata(rejections: Arc<Rejections>) -> TowerLayer<Metadata> {
    layer(Metadata { rejections })
}

impl ServerLayer for Metadata {
    fn call<N: Next>(self: &Arc<Self>, request: Request, next: &mut N) -> ServerFuture {
        let length = bytes_of(request.headers());
        if length <= MAX_METADATA_BYTES {
            return next.call(request);
        }
        self.rejections.count(Cause::Metadata);
        let message = format!("{length} bytes of metadata exceed the limit of {MAX_METADATA_BYTES} bytes");
        ready(rejected(mesh_status(Code::ResourceExhausted, "METADATA_TOO_LARGE", message)))
    }
}

fn bytes_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

#[cfg(test)]
mod tests;
