use super::*;

#[test]
fn a_service_is_named_only_by_its_trust_domains_uri() {
    #[rustfmt::skip]
    let table = [
        ("spiffe://test.local/service/order",         Some("order")),
        ("spiffe://test.local/service/gateway-mock2", Some("gateway-mock2")),
        ("spiffe://test.local/service/",              None),
        ("spiffe://test.local/service/order/more",    None),
        ("spiffe://test.local/service/Order",         None),
        ("spiffe://test.local/order",                 None),
        ("spiffe://test.local.evil/service/order",    None),
        ("spiffe://evil/service/order",               None),
        ("spiffe://user@test.local/service/order",    None),
        ("https://test.local/service/order",          None),
        ("spiffe://test.local/service/order?x=1",     None),
        ("",                                          None),
    ];
    for (uri, name) in table {
        assert_eq!(service_in(uri, "test.local"), name, "{uri}");
    }
}

#[test]
fn bytes_that_are_not_a_certificate_have_no_name() {
    let nothing = CertificateDer::from(&b"\x30\x03\x02\x01\x00"[..]);
    assert_eq!(service_of(&nothing, "test.local"), Err(NameError::Unreadable));
}
