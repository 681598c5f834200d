use super::*;
use crate::server::call_state::CallState;
use uuid::Uuid;

fn user(number: u128) -> Option<CallerKey> {
    Some(CallerKey::User(Uuid::from_u128(number)))
}

fn over(resets: &Resets, caller: Option<CallerKey>) -> Option<Duration> {
    CallState { caller, ..CallState::default() }.around(|| resets.over()).0
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_cancels_endlessly_exceeds_its_quota_and_others_do_not() {
    let resets = Arc::new(Resets::new());
    let connection = ConnectionResets::new(resets.clone());
    for number in 0..PER_CALLER.calls {
        assert_eq!(over(&resets, user(1)), None, "after {number}");
        connection.count(user(1));
    }
    let wait = over(&resets, user(1)).expect("over its quota");
    assert_eq!(wait, PER_CALLER.per / PER_CALLER.calls);
    assert_eq!((over(&resets, user(2)), over(&resets, None)), (None, None));
    assert!(timeout_now(connection.exceeded()).await.is_none(), "the connection is within its quota");
    tokio::time::advance(wait).await;
    assert_eq!(over(&resets, user(1)), None, "there is room for one call");
    assert!(!resets.is_any_over.load(Ordering::Acquire), "no caller is over its quota: calls take no lock");
    connection.count(user(1));
    assert_eq!(over(&resets, user(1)), Some(wait));
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_reset_in_bursts_and_at_a_rate_and_is_closed_far_beyond_them() {
    let connection = ConnectionResets::new(Arc::new(Resets::new()));
    // 250 a second, for a minute; and a burst of the whole quota.
    for _ in 0..60 {
        for _ in 0..250 {
            connection.count(None);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    for _ in 0..PER_CONNECTION.calls {
        connection.count(None);
    }
    assert_eq!(timeout_now(connection.exceeded()).await, None);
    connection.count(None);
    assert_eq!(timeout_now(connection.exceeded()).await, Some(Excess::Quota));
    assert_eq!(timeout_now(connection.exceeded()).await, None, "reported once for each");
    for _ in 0..MAX_RESETS_AFTER_GOAWAY {
        connection.count(None);
    }
    assert_eq!(timeout_now(connection.exceeded()).await, Some(Excess::Limit));
}

async fn timeout_now<T>(work: impl Future<Output = T>) -> Option<T> {
    futures_util::FutureExt::now_or_never(work)
}
