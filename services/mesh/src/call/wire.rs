//! A call on the wire: HTTP/2 requests and responses with tonic's body, and the headers.

use std::convert::Infallible;
use std::sync::LazyLock;

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Status;
use tonic::body::Body;

pub(crate) type Request = http::Request<Body>;
pub(crate) type Response = http::Response<Body>;

/// The result of a server's layers: a rejection is a response too.
pub(crate) type ServerResult = Result<Response, Infallible>;

/// The future of a server's layers.
pub(crate) type ServerFuture = BoxFuture<'static, ServerResult>;

/// The side of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Server,
    Client,
}

/// How far an attempt without a response got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// No instance could be reached.
    NotSent,
    /// The instance reports that it has not processed it: REFUSED_STREAM, or beyond its GOAWAY.
    Refused,
    /// It may have been served.
    Unknown,
}

/// An attempt without a response.
#[derive(Clone, Debug)]
pub(crate) struct AttemptError {
    pub(crate) status: Status,
    pub(crate) reach: Reach,
}

/// Metadata that only the mesh may set.
pub(crate) const RESERVED_PREFIX: &str = "x-ordermesh-";
pub(crate) const SECRET_HEADER: HeaderName = HeaderName::from_static("x-ordermesh-secret");
pub(crate) const SERVICE_HEADER: HeaderName = HeaderName::from_static("x-ordermesh-service");
/// The headers for the order id and the user id of a call, by attribute ([`telemetry::COLUMNS`]). Trusted from mesh
/// services only.
pub(crate) static ATTRIBUTE_HEADERS: LazyLock<Vec<(&'static str, HeaderName)>> = LazyLock::new(|| {
    let header = |name| HeaderName::try_from(format!("{RESERVED_PREFIX}{name}")).ok();
    telemetry::COLUMNS.iter().filter_map(|(attribute, name)| Some((*attribute, header(name)?))).collect()
});
/// The id of the store that a server's instances share, in the response to a mesh service's health check.
pub(crate) const STORE_HEADER: HeaderName = HeaderName::from_static("x-ordermesh-store");
/// Marks a mirrored call. Trusted from mesh services only.
pub(crate) const MIRRORED_HEADER: HeaderName = HeaderName::from_static("x-ordermesh-mirrored");
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
pub(crate) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// The number of attempts before this one (gRFC A6).
pub(crate) const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
/// The server's delay for the next attempt, in milliseconds; negative: never (gRFC A6).
pub(crate) const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Marks a value that is unique per call as never-indexed for HPACK: in the dynamic table it would only evict values
/// that repeat. (Its name is indexed: see `endpoint`.)
pub(crate) fn never_indexed(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Whether headers or trailers report OK. tonic's `Status` would copy all of them.
pub(crate) fn is_ok(headers: &HeaderMap) -> bool {
    headers.get(Status::GRPC_STATUS).is_some_and(|code| code.as_bytes() == b"0")
}

/// A Trailers-Only response.
pub(crate) fn respond(status: Status) -> Response {
    status.into_http()
}

#[cfg(test)]
mod tests;
