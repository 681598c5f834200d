//! Requests that are not gRPC are rejected with HTTP status codes, before the stack: an HTTP client would take a gRPC
//! error, whose HTTP status is 200, for a success (gRPC over HTTP/2, "Responses").

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full};
use tonic::body::Body;

use crate::call::wire::{Request, Response};

const MEDIA_TYPE: &[u8] = b"application/grpc";
const WITH_PROTO: &[u8] = b"application/grpc+proto";

/// The response to a request that is not gRPC with protobuf messages.
pub(crate) fn not_grpc(request: &Request) -> Option<Response> {
    if request.method() != Method::POST {
        // A response to HEAD has no body, so this has none either.
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Some(response);
    }
    if is_grpc(request.headers()) {
        return None;
    }
    let text =
        Bytes::from_static(b"this is a gRPC server: content-type must be application/grpc or application/grpc+proto\n");
    let mut response = Response::new(Body::new(Full::new(text).map_err(|never| match never {})));
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // RFC 9110, section 15.5.16.
    response.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/grpc"));
    Some(response)
}

/// Media types have no case, and may have parameters (RFC 9110, section 8.3.1).
fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) else { return false };
    if value == MEDIA_TYPE {
        return true;
    }
    let media_type = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    media_type.eq_ignore_ascii_case(MEDIA_TYPE) || media_type.eq_ignore_ascii_case(WITH_PROTO)
}

#[cfg(test)]
mod tests;
