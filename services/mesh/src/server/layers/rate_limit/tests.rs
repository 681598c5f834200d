use super::*;

const QUOTA: Quota = Quota { calls: 3, per: Duration::from_secs(3) };

fn person(number: u128) -> Key {
    Key::User(Uuid::from_u128(number))
}

#[test]
fn public_methods_count_by_address_and_others_by_account() {
    let peer: SocketAddr = "192.0.2.7:4711".parse().expect("an address");
    let person = Caller::User {
        user_id: Uuid::from_u128(7),
        role: crate::identity::caller::Role::Customer,
        token_expires: kernel::Timestamp::from_micros(0),
        session_id: None,
    };
    let mut request = Request::new(tonic::body::Body::empty());
    request.extensions_mut().insert(peer);
    request.extensions_mut().insert(person);
    assert_eq!(Key::of(&request, true), Key::Peer(peer.ip()));
    assert_eq!(Key::of(&request, false), Key::User(Uuid::from_u128(7)));
}

#[test]
fn a_caller_may_use_its_quota_in_a_burst_and_then_one_call_per_interval() {
    let (mut callers, start) = (Callers::new(QUOTA, 10), Instant::now());
    let at = |millis: u64| start + Duration::from_millis(millis);
    for _ in 0..3 {
        assert_eq!(callers.count(person(1), at(0)), Ok(()));
    }
    assert_eq!(callers.count(person(1), at(0)), Err(Duration::from_secs(1)));
    assert_eq!(callers.count(person(1), at(400)), Err(Duration::from_millis(600)), "a rejected call costs nothing");
    assert_eq!(callers.count(person(2), at(400)), Ok(()), "other callers have their own");
    assert_eq!(callers.count(person(1), at(1_000)), Ok(()));
    assert!(callers.count(person(1), at(1_000)).is_err());
    for _ in 0..3 {
        assert_eq!(callers.count(person(1), at(9_000)), Ok(()), "a full quota again, and no more than that");
    }
    assert!(callers.count(person(1), at(9_000)).is_err());
}

#[test]
fn callers_are_bounded_and_new_ones_share_a_quota_when_the_table_is_full() {
    let (mut callers, start) = (Callers::new(QUOTA, 2), Instant::now());
    for number in 1..=2 {
        assert_eq!(callers.count(person(number), start), Ok(()));
    }
    let arrivals: Vec<_> = (3..9).map(|number| callers.count(person(number), start).is_ok()).collect();
    assert_eq!(arrivals, [true, true, true, false, false, false], "one quota for all of them");
    assert_eq!(callers.used_until.len(), 3);
    // Later the first two are removed, and there is room again.
    assert_eq!(callers.count(person(9), start + Duration::from_secs(9)), Ok(()));
    assert_eq!(callers.used_until.len(), 1);
}

#[test]
fn a_quota_of_zero_allows_one_call() {
    let (mut callers, start) = (Callers::new(Quota { calls: 0, per: Duration::from_secs(1) }, 2), Instant::now());
    assert_eq!(callers.count(person(1), start), Ok(()));
    assert_eq!(callers.count(person(1), start), Err(Duration::from_secs(1)));
}

#[test]
fn a_subscribers_ipv6_network_is_one_caller_and_a_mapped_address_is_ipv4() {
    let ip = |text: &str| network(text.parse().expect("an address"));
    assert_eq!(ip("2001:db8:1:2:3:4:5:6"), ip("2001:db8:1:2::"));
    assert_ne!(ip("2001:db8:1:2::1"), ip("2001:db8:1:3::1"));
    assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
    assert_ne!(ip("192.0.2.1"), ip("192.0.2.2"));
}
