use super::*;
use uuid::Uuid;

const QUOTA: Quota = Quota { calls: 3, per: Duration::from_secs(3) };

fn user(number: u128) -> Key {
    Key::User(Uuid::from_u128(number))
}

#[test]
fn a_caller_may_use_its_quota_in_a_burst_and_then_one_call_per_interval() {
    let (mut callers, start) = (Callers::new(QUOTA, 10), Instant::now());
    let at = |millis: u64| start + Duration::from_millis(millis);
    for _ in 0..3 {
        assert_eq!(callers.count(user(1), at(0)), Ok(()));
    }
    assert_eq!(callers.count(user(1), at(0)), Err(Duration::from_secs(1)));
    assert_eq!(callers.count(user(1), at(400)), Err(Duration::from_millis(600)), "a rejected call costs nothing");
    assert_eq!(callers.count(user(2), at(400)), Ok(()), "other callers have their own");
    assert_eq!(callers.count(user(1), at(1_000)), Ok(()));
    assert!(callers.count(user(1), at(1_000)).is_err());
    for _ in 0..3 {
        assert_eq!(callers.count(user(1), at(9_000)), Ok(()), "a full quota again, and no more than that");
    }
    assert!(callers.count(user(1), at(9_000)).is_err());
}

#[test]
fn callers_are_bounded_and_new_ones_share_a_quota_when_the_table_is_full() {
    let (mut callers, start) = (Callers::new(QUOTA, 2), Instant::now());
    for number in 1..=2 {
        assert_eq!(callers.count(user(number), start), Ok(()));
    }
    let arrivals: Vec<_> = (3..9).map(|number| callers.count(user(number), start).is_ok()).collect();
    assert_eq!(arrivals, [true, true, true, false, false, false], "one quota for all of them");
    assert_eq!(callers.used_until.len(), 3);
    // Later the first two are removed, and there is room again.
    assert_eq!(callers.count(user(9), start + Duration::from_secs(9)), Ok(()));
    assert_eq!(callers.used_until.len(), 1);
}

#[test]
fn a_quota_of_zero_allows_one_call() {
    let (mut callers, start) = (Callers::new(Quota { calls: 0, per: Duration::from_secs(1) }, 2), Instant::now());
    assert_eq!(callers.count(user(1), start), Ok(()));
    assert_eq!(callers.count(user(1), start), Err(Duration::from_secs(1)));
}
