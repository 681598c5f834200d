//! Refreshing and ending sessions. The 30 s of the previous token are tested in the domain's tests, with a manual
//! clock.

use tonic::Code;

use crate::world::{World, rejection};

#[tokio::test]
async fn a_refresh_returns_a_new_pair_of_tokens_of_the_same_session() {
    let world = World::start().await;
    world.ada_registers().await;
    let first = world.ada_logs_in().await;
    let second = world.refresh(&first).await.expect("refreshed");
    assert_eq!(second.session_id, first.session_id);
    assert_eq!(second.refresh_token_expire_time, first.refresh_token_expire_time);
    assert_ne!(second.refresh_token, first.refresh_token);
    world.profile(&second).await.expect("its access token works");
    world.refresh(&first).await.expect("the previous token works, since the response may have been lost");
    world.stop().await;
}

#[tokio::test]
async fn an_older_token_ends_the_session() {
    let world = World::start().await;
    world.ada_registers().await;
    let first = world.ada_logs_in().await;
    let second = world.refresh(&first).await.expect("refreshed");
    let third = world.refresh(&second).await.expect("refreshed");
    let rejected = rejection(world.refresh(&first).await);
    assert_eq!((rejected.code, rejected.reason.as_str()), (Code::Unauthenticated, "SESSION_ENDED"));
    assert_eq!(rejection(world.refresh(&third).await).reason, "SESSION_ENDED");
    world.stop().await;
}

#[tokio::test]
async fn without_a_grace_period_the_first_reuse_ends_the_session() {
    let world = World::start_with(tempfile::tempdir().expect("a folder"), &["--refresh-grace", "0s"]).await;
    world.ada_registers().await;
    let first = world.ada_logs_in().await;
    let second = world.refresh(&first).await.expect("refreshed");
    assert_eq!(rejection(world.refresh(&first).await).reason, "SESSION_ENDED");
    assert_eq!(rejection(world.refresh(&second).await).reason, "SESSION_ENDED");
    world.stop().await;
}

#[tokio::test]
async fn a_log_out_ends_the_session_and_can_be_repeated() {
    let world = World::start().await;
    world.ada_registers().await;
    let (session, other) = (world.ada_logs_in().await, world.ada_logs_in().await);
    world.logout(&session).await.expect("ended");
    world.logout(&session).await.expect("accepted again");
    assert_eq!(rejection(world.refresh(&session).await).reason, "SESSION_ENDED");
    world.refresh(&other).await.expect("the other session is open");
    world.stop().await;
}
