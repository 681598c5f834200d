use super::*;

#[test]
fn a_subscribers_ipv6_network_is_one_caller_and_a_mapped_address_is_ipv4() {
    let ip = |text: &str| network(text.parse().expect("an address"));
    assert_eq!(ip("2001:db8:1:2:3:4:5:6"), ip("2001:db8:1:2::"));
    assert_ne!(ip("2001:db8:1:2::1"), ip("2001:db8:1:3::1"));
    assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
    assert_ne!(ip("192.0.2.1"), ip("192.0.2.2"));
}
