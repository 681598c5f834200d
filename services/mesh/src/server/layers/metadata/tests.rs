use super::*;
use http::HeaderValue;

#[test]
fn names_values_and_an_overhead_per_header_are_counted() {
    let mut headers = HeaderMap::new();
    assert_eq!(bytes_of(&headers), 0);
    headers.append("te", HeaderValue::from_static("trailers"));
    headers.append("te", HeaderValue::from_static(""));
    assert_eq!(bytes_of(&headers), 2 + 8 + 32 + 2 + 32);
}
