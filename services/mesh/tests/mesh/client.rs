//! The client: fails over to a live instance, and reconnects after a restart.

use std::net::SocketAddr;

use mesh::{Credentials, MethodPolicy, PolicyTable};
use tonic::Code;
use tonic_types::StatusExt;

use crate::echo::SAY;
use crate::world::{World, call, channel, dead_address, reason, say};

#[tokio::test]
async fn an_unreachable_address_is_skipped() {
    let world = World::new().await;
    // Whichever address is tried first: for half of twenty clients it is unreachable.
    for _ in 0..20 {
        let addresses = vec![dead_address().await, world.address.to_string(), dead_address().await];
        assert_eq!(say(&channel(addresses, Credentials::None), SAY, "hello").await.expect("answered"), "hello");
    }
}

#[tokio::test]
async fn when_all_addresses_are_unreachable_the_call_fails_with_unavailable() {
    let addresses = vec![dead_address().await, dead_address().await];
    let status = say(&channel(addresses, Credentials::None), SAY, "hello").await.expect_err("no instance");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "UNREACHABLE"));
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(mesh::event_error(&status).error_type, "CONNECTION_ERROR");
}

/// Speaks HTTP/2, accepts every call, and answers none.
async fn hanging() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                let mut calls = vec![];
                while let Some(Ok(call)) = connection.accept().await {
                    calls.push(call);
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn an_instance_that_hangs_is_avoided() {
    let world = World::new().await;
    let hung = hanging().await.to_string();
    for _ in 0..4 {
        let channel = channel(vec![hung.clone(), world.address.to_string()], Credentials::None);
        let mut answered = 0;
        for _ in 0..3 {
            let mut request = tonic::Request::new("hello".to_owned());
            // Long enough for a live instance on a machine that runs other tests.
            request.set_timeout(std::time::Duration::from_secs(1));
            answered += usize::from(call(&channel, SAY, request).await.is_ok());
        }
        assert!(answered >= 2, "expected at most one call to go to the hung instance: {answered} of 3 answered");
    }
}

#[tokio::test]
async fn a_client_without_addresses_fails_with_unreachable() {
    let status = say(&channel(vec![], Credentials::None), SAY, "hello").await.expect_err("no instance");
    assert_eq!(reason(&status), "UNREACHABLE");
}

#[tokio::test]
async fn the_client_switches_to_another_instance_when_its_own_drains() {
    let (first, second) = (World::new().await, World::new().await);
    let channel = channel(vec![first.address.to_string(), second.address.to_string()], Credentials::None);
    assert_eq!(say(&channel, SAY, "hello").await.expect("answered"), "hello");
    let used = if first.handlers_started() == 1 { first } else { second };
    used.shutdown.cancel();
    used.served.await.expect("no panic").expect("drained");
    assert_eq!(say(&channel, SAY, "hello again").await.expect("the other instance answers"), "hello again");
}

#[tokio::test]
async fn one_connection_serves_concurrent_calls() {
    let world = World::new().await;
    let channel = world.anonymous();
    let held = tokio::spawn({
        let channel = channel.clone();
        async move { say(&channel, SAY, "hold").await }
    });
    world.echo.holding.notified().await;
    assert_eq!(say(&channel, SAY, "meanwhile").await.expect("answered"), "meanwhile");
    world.echo.release.add_permits(1);
    held.await.expect("no panic").expect("answered");
}

#[test]
fn a_channel_can_be_shared_and_sent() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    shared::<mesh::Channel>();
    shared::<mesh::Authorizer>();
    shared::<PolicyTable>();
    shared::<MethodPolicy>();
}
