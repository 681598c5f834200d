//! Refreshes with one token at once, on two instances that share a database.

use futures_util::future::join_all;

use super::*;

async fn refreshes_at_once_are_one_turn(place: &testdb::Place) {
    let (one, other) = (World::on(place).await, World::on(place).await);
    one.ada().await;
    let first = one.ada_logs_in().await;
    let at_once = (0..10).flat_map(|_| [one.refresh(&first), other.refresh(&first)]);
    let given: Vec<Tokens> = join_all(at_once).await.into_iter().map(|turned| turned.expect("the same turn")).collect();
    let last = given.last().expect("twenty").clone();
    one.refresh(&last).await.expect("the newest");
    for tokens in &given {
        other.refresh(tokens).await.expect("of the same turn as the newest");
    }
    // The twin: after the grace, one of them is a stolen one's.
    other.clock.advance(Duration::from_secs(60));
    assert!(matches!(other.refresh(&last).await, Err(Error::SessionEnded)));
    assert!(matches!(one.refresh(&last).await, Err(Error::SessionEnded)), "for good");
}

#[tokio::test]
async fn on_sqlite_refreshes_at_once_are_one_turn() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}", folder.path().join("user.db").display());
    refreshes_at_once_are_one_turn(&testdb::Place { url, schema: None }).await;
}

#[tokio::test]
async fn on_postgresql_refreshes_at_once_are_one_turn() {
    let Some(place) = testdb::postgres() else { return };
    refreshes_at_once_are_one_turn(&place).await;
}
