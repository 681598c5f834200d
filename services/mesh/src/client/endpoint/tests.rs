use super::*;
use crate::call::wire::{SECRET_HEADER, never_indexed};
use http::HeaderValue;

#[test]
fn header_names_are_indexed_with_the_first_request_only_and_a_secret_never() {
    let is_primed = AtomicBool::new(false);
    let kept_out = || {
        let names = [TRACEPARENT, GRPC_TIMEOUT, SECRET_HEADER];
        let mut request = Request::new(Body::empty());
        for name in &names {
            request.headers_mut().insert(name, never_indexed(HeaderValue::from_static("x")));
        }
        prime_header_names(&is_primed, &mut request);
        names.map(|name| request.headers()[name].is_sensitive())
    };
    assert_eq!(kept_out(), [false, false, true]);
    assert_eq!(kept_out(), [true, true, true]);
}
