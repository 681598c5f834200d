//! Only a wrong password counts against an account.

use sea_orm::ConnectionTrait;

use super::*;

/// A store whose every query fails.
async fn broken_store() -> Store {
    Store::new(Database::connect("sqlite::memory:", &storage::Options::default()).await.expect("it opens"))
}

#[tokio::test]
async fn a_failing_store_locks_no_account() {
    let mut world = World::new().await;
    world.ada().await;
    let store = std::mem::replace(&mut world.users.store, broken_store().await);
    for _ in 0..20 {
        assert!(matches!(world.login("ada@example.com", PASSWORD).await, Err(Error::Storage(_))));
    }
    world.users.store = store;
    world.ada_logs_in().await;
}

#[tokio::test]
async fn a_store_failing_after_the_password_check_locks_no_account() {
    let world = World::new().await;
    world.ada().await;
    let session_table = "ALTER TABLE session RENAME TO gone";
    world.db.read().execute_unprepared(session_table).await.expect("renamed");
    for _ in 0..20 {
        assert!(matches!(world.login("ada@example.com", PASSWORD).await, Err(Error::Storage(_))));
    }
    world.db.read().execute_unprepared("ALTER TABLE gone RENAME TO session").await.expect("renamed back");
    world.ada_logs_in().await;
}

#[tokio::test]
async fn a_full_queue_locks_no_account() {
    let mut world = World::new().await;
    let registration = ada();
    world.register(registration.clone()).await.expect("registered");
    let tokens = world.ada_logs_in().await;
    let passwords = std::mem::replace(&mut world.users.passwords, Passwords::full());
    for _ in 0..20 {
        let busy = Duration::from_secs(1);
        let rejected = world.login("ada@example.com", PASSWORD).await;
        assert!(matches!(rejected, Err(Error::TooManyLogins { retry_after }) if retry_after == busy), "{rejected:?}");
        assert!(world.register(registration.clone()).await.is_err());
        assert!(world.change_password(&tokens, PASSWORD, "battery staple").await.is_err());
    }
    world.users.passwords = passwords;
    world.ada_logs_in().await;
}

#[tokio::test]
async fn a_cancelled_log_in_locks_no_account_and_a_wrong_password_counts() {
    let world = World::new().await;
    world.ada().await;
    for _ in 0..20 {
        let cut_off = futures_util::FutureExt::now_or_never(world.login("ada@example.com", PASSWORD));
        assert!(cut_off.is_none(), "in flight");
    }
    world.ada_logs_in().await;
    for _ in 0..3 {
        assert!(matches!(world.login("ada@example.com", "wrong horse").await, Err(Error::InvalidCredentials)));
    }
    assert!(matches!(world.login("ada@example.com", PASSWORD).await, Err(Error::TooManyLogins { .. })), "control");
}
