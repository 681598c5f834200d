//! Wrong passwords: their responses and their costs.

use std::time::Duration;

use tonic::Code;

use crate::world::{PASSWORD, World, rejection};

#[tokio::test]
async fn an_unknown_account_and_a_wrong_password_get_the_same_response() {
    let world = World::start().await;
    world.ada_registers().await;
    let mismatch = rejection(world.login("ada@example.com", "wrong horse").await);
    let unknown = rejection(world.login("nobody@example.com", "wrong horse").await);
    assert_eq!(mismatch, unknown);
    assert_eq!((mismatch.code, mismatch.reason.as_str()), (Code::Unauthenticated, "INVALID_CREDENTIALS"));
    world.stop().await;
}

#[tokio::test]
async fn after_five_failures_only_this_accounts_log_ins_are_rejected_immediately() {
    let world = World::start_with(tempfile::tempdir().expect("a folder"), &["--login-failure-interval", "1h"]).await;
    world.ada_registers().await;
    for email in ["ada@example.com", "nobody@example.com"] {
        for _ in 0..5 {
            assert_eq!(rejection(world.login(email, "wrong horse").await).reason, "INVALID_CREDENTIALS");
        }
        let rejected = rejection(world.login(email, PASSWORD).await);
        assert_eq!((rejected.code, rejected.reason.as_str()), (Code::ResourceExhausted, "TOO_MANY_LOGINS"));
        let wait = rejected.retry_after.expect("RetryInfo");
        assert!(wait > Duration::from_secs(3_500) && wait <= Duration::from_secs(3_600), "{wait:?}");
    }
    assert_eq!(rejection(world.login("bob@example.com", "wrong horse").await).reason, "INVALID_CREDENTIALS");
    world.stop().await;
}

#[tokio::test]
async fn successful_log_ins_are_never_throttled() {
    let world = World::start().await;
    world.ada_registers().await;
    for _ in 0..12 {
        world.ada_logs_in().await;
    }
    world.stop().await;
}

#[tokio::test]
async fn a_changed_password_ends_the_other_sessions_but_not_the_callers() {
    let world = World::start().await;
    world.ada_registers().await;
    let (own, other) = (world.ada_logs_in().await, world.ada_logs_in().await);
    let rejected = rejection(world.change_password(&own, "wrong horse", "battery staple").await);
    assert_eq!((rejected.code, rejected.reason.as_str()), (Code::Unauthenticated, "INVALID_CREDENTIALS"));
    world.refresh(&other).await.expect("still open");
    assert_eq!(world.change_password(&own, PASSWORD, "battery staple").await.expect("changed"), 1);
    assert_eq!(rejection(world.refresh(&other).await).reason, "SESSION_ENDED");
    world.refresh(&own).await.expect("the caller's own session");
    assert_eq!(rejection(world.login("ada@example.com", PASSWORD).await).reason, "INVALID_CREDENTIALS");
    world.login("ada@example.com", "battery staple").await.expect("the new password");
    world.stop().await;
}

#[tokio::test]
async fn a_hash_of_another_cost_is_renewed_at_the_next_log_in() {
    let world = World::start().await;
    world.ada_registers().await;
    let folder = world.stop().await;
    let hash = async |folder: &tempfile::TempDir| {
        use sea_orm::{ConnectionTrait, Statement};
        let db = crate::world::database(folder.path()).await;
        let select = Statement::from_string(db.read().get_database_backend(), "SELECT password_hash FROM account");
        let row = db.read().query_one_raw(select).await.expect("read").expect("a row");
        row.try_get::<String>("", "password_hash").expect("a hash")
    };
    assert!(hash(&folder).await.starts_with("$2b$04$"));
    let world = World::start_with(folder, &["--bcrypt-cost", "5"]).await;
    assert_eq!(rejection(world.login("ada@example.com", "wrong horse").await).reason, "INVALID_CREDENTIALS");
    world.ada_logs_in().await;
    let folder = world.stop().await;
    assert!(hash(&folder).await.starts_with("$2b$05$"));
}
