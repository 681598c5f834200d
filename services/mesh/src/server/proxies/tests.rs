use super::*;

#[test]
fn the_client_is_the_last_untrusted_address_that_a_trusted_proxy_forwards() {
    let networks = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("a network"));
    let proxies = Proxies::new(networks.to_vec());
    let proxy: SocketAddr = "10.1.2.3:4000".parse().expect("an address");
    assert!(proxies.trusts(proxy.ip()) && proxies.trusts("::ffff:10.1.2.3".parse().expect("an address")));
    assert!(!proxies.trusts("192.0.2.1".parse().expect("an address")));
    #[rustfmt::skip]
    let table: [(&[&str], &str); 10] = [
        (&["192.0.2.1"],                           "192.0.2.1"),
        (&["192.0.2.1:555"],                       "192.0.2.1"),
        (&["::ffff:192.0.2.1"],                    "192.0.2.1"),
        (&["[2001:db8::1]:555"],                   "2001:db8::1"),
        (&["192.0.2.1, 10.9.9.9, fd00::7"],        "192.0.2.1"),
        // The part that the client itself has sent is ignored.
        (&["198.51.100.9, 192.0.2.1"],             "192.0.2.1"),
        (&["198.51.100.9", "192.0.2.1, 10.9.9.9"], "192.0.2.1"),
        (&["192.0.2.1, unknown, 10.9.9.9"],        "10.9.9.9"),
        (&["unknown"],                             "10.1.2.3"),
        (&[],                                      "10.1.2.3"),
    ];
    for (values, expected) in table {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(FORWARDED_FOR, value.parse().expect("a value"));
        }
        let caller = proxies.caller_behind(proxy, &headers);
        assert_eq!(caller.ip(), expected.parse::<IpAddr>().expect("an address"), "{values:?}");
    }
}
