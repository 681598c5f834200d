//! The shape of a call in the stacks: HTTP/2 requests and responses with tonic's body.

use std::convert::Infallible;

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Status;
use tonic::body::Body;

use crate::policy::{MethodPolicy, PolicyTable};

pub(crate) type Request = http::Request<Body>;
pub(crate) type Response = http::Response<Body>;

/// What a server's layers give: a refusal is a response too.
pub(crate) type Answer = Result<Response, Infallible>;

/// How far an attempt came that got no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// No instance could be reached.
    NotSent,
    /// The instance says that it has not begun.
    NotBegun,
    /// It may have been served.
    Unknown,
}

/// An attempt without an answer.
#[derive(Clone, Debug)]
pub(crate) struct NoAnswer {
    pub(crate) status: Status,
    pub(crate) reach: Reach,
}

/// Metadata that only the mesh may set.
pub(crate) const RESERVED_PREFIX: &str = "x-ordermesh-";
pub(crate) const SECRET_HEADER: HeaderName = HeaderName::from_static("x-ordermesh-secret");
pub(crate) const SERVICE_HEADER: HeaderName = HeaderName::from_static("x-ordermesh-service");
/// Which order a service's call is about: a UUID. Only services are believed.
pub(crate) const ORDER_HEADER: HeaderName = HeaderName::from_static("x-ordermesh-order");
/// Which user a service's call is about: a UUID. Only services are believed.
pub(crate) const USER_HEADER: HeaderName = HeaderName::from_static("x-ordermesh-user");
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
pub(crate) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// How many attempts were made before this one (gRFC A6).
pub(crate) const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
/// When the server wants the next attempt, in milliseconds; negative: never (gRFC A6).
pub(crate) const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Methods that are not in the contract have one name, or strangers would fill the metrics' store with names.
pub(crate) const OTHER_METHOD: &str = "_OTHER";

/// The infrastructure's own methods: no policy, no span, no limits, open to all.
pub(crate) fn is_infrastructure(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.Health/") || is_reflection(path)
}

/// Its requests stream.
pub(crate) fn is_reflection(path: &str) -> bool {
    path.starts_with("/grpc.reflection.v1")
}

pub(crate) fn method_name(policy: Option<&'static MethodPolicy>) -> &'static str {
    policy.map_or(OTHER_METHOD, MethodPolicy::name)
}

pub(crate) fn find(policies: PolicyTable, request: &Request) -> Option<&'static MethodPolicy> {
    policies.find(request.uri().path())
}

/// A header's value that is another for each call: marked so that HPACK leaves it out of its table, where it would only push
/// out what comes again. (Its name is another matter: see `endpoint`.)
pub(crate) fn once_only(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Do headers or trailers say that the call went well? tonic's `Status` would be a copy of all of them.
pub(crate) fn says_ok(headers: &HeaderMap) -> bool {
    headers.get(Status::GRPC_STATUS).is_some_and(|code| code.as_bytes() == b"0")
}

/// A Trailers-Only response.
pub(crate) fn respond(status: Status) -> Response {
    status.into_http()
}
