use super::*;
use uuid::Uuid;

const QUOTA: Quota = Quota { calls: 3, per: Duration::from_secs(3) };

fn user(number: u128) -> CallerKey {
    CallerKey::User(Uuid::from_u128(number))
}

#[test]
fn callers_are_bounded_and_new_ones_share_a_quota_when_the_table_is_full() {
    let (mut callers, start) = (Callers::new(QUOTA, 2), Instant::now());
    for number in 1..=2 {
        assert_eq!(callers.count(user(number), start), Ok(()));
    }
    let arrivals: Vec<_> = (3..9).map(|number| callers.count(user(number), start).is_ok()).collect();
    assert_eq!(arrivals, [true, true, true, false, false, false], "one quota for all of them");
    assert_eq!(callers.0.len(), 3);
    // Later the first two are removed, and there is room again.
    assert_eq!(callers.count(user(9), start + Duration::from_secs(9)), Ok(()));
    assert_eq!(callers.0.len(), 1);
}
