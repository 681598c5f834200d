use super::*;
use uuid::Uuid;

fn address(last: u8) -> Holder {
    Holder([Some(Key::Peer([192, 0, 2, last].into())), None])
}

fn person(number: u128, at: u8) -> Holder {
    let [address, _] = address(at).0;
    Holder([Some(Key::User(Uuid::from_u128(number))), address])
}

/// As many as the caller gets.
fn all_of(shares: &Arc<Shares>, holder: &Holder) -> Vec<Share> {
    std::iter::from_fn(|| shares.take(holder.clone()).ok()).collect()
}

#[test]
fn one_caller_gets_half_two_get_a_third_each_and_a_new_caller_finds_some() {
    let shares = Shares::new(120, 0);
    let first = all_of(&shares, &address(1));
    assert_eq!((first.len(), shares.take(address(1)).expect_err("over its share")), (60, Full::Share));
    let second = all_of(&shares, &address(2));
    assert_eq!((second.len(), shares.used()), (30, 90));
    assert!(shares.is_beyond_share(&address(2), 1) && !shares.is_beyond_share(&address(3), 100));
    let arrival = all_of(&shares, &address(3));
    assert_eq!(arrival.len(), 15);
    drop((first, arrival));
    assert_eq!(all_of(&shares, &address(2)).len(), 30, "more is free, and it may have half");
    drop(second);
    assert_eq!(shares.used(), 0);
    assert!(shares.taken().by_key.is_empty(), "a caller that holds nothing is removed");
}

#[test]
fn a_user_is_counted_by_account_at_any_address_and_by_address_with_any_account() {
    let shares = Shares::new(120, 0);
    let first = all_of(&shares, &person(1, 1));
    assert_eq!(first.len(), 60);
    assert_eq!(shares.take(person(1, 2)).expect_err("the same account"), Full::Share);
    assert_eq!(shares.take(person(2, 1)).expect_err("the same address"), Full::Share);
    assert_eq!(shares.take(address(1)).expect_err("an anonymous caller at the same address"), Full::Share);
    assert_eq!(all_of(&shares, &person(2, 2)).len(), 30, "another user at another address");
}

#[test]
fn mesh_services_have_no_share_limit_and_a_reserve() {
    let shares = Shares::new(20, 4);
    let anonymous_clients: Vec<Share> = (0..16).map(|last| shares.take(address(last)).expect("one each")).collect();
    assert_eq!(shares.take(address(99)).expect_err("none is left for other callers"), Full::All);
    let services = all_of(&shares, &Holder::PLATFORM);
    assert_eq!((services.len(), shares.take(Holder::PLATFORM).expect_err("all are taken")), (4, Full::All));
    drop(anonymous_clients);
    assert_eq!(all_of(&shares, &Holder::PLATFORM).len(), 16, "all of them");
}

#[test]
fn a_single_permit_is_available_to_any_caller() {
    let shares = Shares::new(1, 0);
    let held = shares.take(address(1)).expect("free");
    assert_eq!(shares.take(address(2)).expect_err("taken"), Full::All);
    drop(held);
    shares.take(address(2)).expect("free again");
}
