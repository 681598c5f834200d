//! One address sends far more log-ins than are served, next to a well-behaved customer; both are behind one proxy.

use std::time::Duration;

use contracts::user::v1 as proto;
use tokio::task::JoinSet;
use tonic::{Code, Request, Status};

use crate::world::{PASSWORD, World, as_user, rejection};

const OTHER: &str = "192.0.2.1";
const REGULAR: &str = "198.51.100.7";

async fn login(world: &World, from: &str, email: &str) -> Result<(), Status> {
    let mut request = Request::new(proto::LoginRequest { email: email.into(), password: PASSWORD.into() });
    request.metadata_mut().insert("x-forwarded-for", from.parse().expect("ASCII"));
    world.client().login(request).await.map(|_| ())
}

/// Log-ins to invented accounts, always more than the queue and the permits hold; returns once the queue has been full.
async fn burst(world: &World) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let (full, mut was_full) = tokio::sync::mpsc::channel(1);
    for number in 0..24 + std::thread::available_parallelism().expect("cores").get() {
        let (mut client, full) = (world.client(), full.clone());
        tasks.spawn(async move {
            for attempt in 0.. {
                let email = format!("x{number}-{attempt}@example.com");
                let mut request = Request::new(proto::LoginRequest { email, password: PASSWORD.into() });
                request.metadata_mut().insert("x-forwarded-for", OTHER.parse().expect("ASCII"));
                if client.login(request).await.is_err_and(|status| status.code() == Code::ResourceExhausted) {
                    let _ = full.try_send(());
                }
            }
        });
    }
    was_full.recv().await.expect("the queue is full");
    tasks
}

async fn world(more: &[&str]) -> World {
    let flags = [&["--bcrypt-cost", "7", "--bcrypt-queue", "6"][..], more].concat();
    let world = World::start_with(tempfile::tempdir().expect("a folder"), &flags).await;
    world.ada_registers().await;
    world
}

#[tokio::test]
async fn behind_a_trusted_proxy_a_burst_of_one_customer_blocks_no_other() {
    let world = world(&["--trusted-proxies", "127.0.0.0/8"]).await;
    let burst = burst(&world).await;
    for _ in 0..10 {
        login(&world, REGULAR, "ada@example.com").await.expect("logged in");
    }
    drop(burst);
    world.stop().await;
}

#[tokio::test]
async fn behind_an_untrusted_proxy_customers_share_one_address() {
    let world = world(&[]).await;
    let burst = burst(&world).await;
    let rejected = loop {
        let response = login(&world, REGULAR, "ada@example.com").await;
        if response.is_err() {
            break rejection(response);
        }
    };
    assert_eq!((rejected.reason.as_str(), rejected.retry_after), ("TOO_MANY_LOGINS", Some(Duration::from_secs(1))));
    drop(burst);
    world.stop().await;
}

#[tokio::test]
async fn password_changes_have_the_log_in_quota_per_customer() {
    let world = World::start_with(tempfile::tempdir().expect("a folder"), &["--login-quota", "2/m"]).await;
    world.ada_registers().await;
    let session = world.ada_logs_in().await;
    let change = async || {
        let request = proto::ChangePasswordRequest { current_password: PASSWORD.into(), new_password: PASSWORD.into() };
        world.client().change_password(as_user(&session, request)).await.map(|_| ())
    };
    assert!([change().await, change().await].iter().all(Result::is_ok), "a limit separate from that of Login");
    assert_eq!(rejection(change().await).code, Code::ResourceExhausted);
    world.profile(&session).await.expect("other calls are admitted");
    world.stop().await;
}
