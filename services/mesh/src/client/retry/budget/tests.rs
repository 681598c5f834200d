use super::*;

#[test]
fn a_fifth_of_the_calls_may_be_retried_plus_a_small_minimum() {
    let budget = RetryBudget::new();
    let mut retries = 0;
    for _ in 0..1_000 {
        budget.deposit();
        retries += i64::from(budget.withdraw());
        retries += i64::from(budget.withdraw());
    }
    assert_eq!(retries, 1_000 / 5 + MINIMUM_RETRIES);
    assert_eq!(budget.left(), 0);
}

#[test]
fn the_balance_grows_up_to_a_limit() {
    let budget = RetryBudget::new();
    for _ in 0..1_000_000 {
        budget.deposit();
    }
    assert_eq!(budget.left(), MAX_RETRIES);
    assert!((0..MAX_RETRIES).all(|_| budget.withdraw()));
    assert!(!budget.withdraw());
}
