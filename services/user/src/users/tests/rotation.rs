//! Concurrent refreshes with one token, on two instances that share a database.

use futures_util::future::join_all;

use super::*;

async fn concurrent_refreshes_are_one_rotation(test_database: &testkit::TestDatabase) {
    let (one, other) = (World::on(test_database).await, World::on(test_database).await);
    one.ada().await;
    let first = one.ada_logs_in().await;
    let at_once = (0..10).flat_map(|_| [one.refresh(&first), other.refresh(&first)]);
    let given: Vec<Tokens> =
        join_all(at_once).await.into_iter().map(|rotated| rotated.expect("a token of the same rotation")).collect();
    let last = given.last().expect("twenty").clone();
    one.refresh(&last).await.expect("a newest token");
    for tokens in &given {
        other.refresh(tokens).await.expect("a token of the same rotation");
    }
    // Control: after the grace period, one of them counts as stolen.
    other.clock.advance(Duration::from_secs(60));
    assert!(matches!(other.refresh(&last).await, Err(Error::SessionEnded)));
    assert!(matches!(one.refresh(&last).await, Err(Error::SessionEnded)), "ended on both instances");
}

#[tokio::test]
async fn concurrent_refreshes_on_sqlite_are_one_rotation() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}", folder.path().join("user.db").display());
    concurrent_refreshes_are_one_rotation(&testkit::TestDatabase { url, schema: None }).await;
}

#[tokio::test]
async fn concurrent_refreshes_on_postgresql_are_one_rotation() {
    let Some(test_database) = testkit::postgres() else { return };
    concurrent_refreshes_are_one_rotation(&test_database).await;
}
