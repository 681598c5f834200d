use super::*;

#[test]
fn what_a_call_concerns_is_sent_in_reserved_headers() {
    let names: Vec<_> = ATTRIBUTE_HEADERS.iter().map(|(attribute, header)| (*attribute, header.as_str())).collect();
    assert_eq!(names, [("order_id", "x-ordermesh-order"), ("user_id", "x-ordermesh-user")]);
    assert!(names.iter().all(|(_, header)| header.starts_with(RESERVED_PREFIX)), "stripped from clients' requests");
}
