//! Several instances of a service, of which one fails, crashes, or returns.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use mesh::{Addresses, ClientConfig, Credentials, client};
use tokio::runtime::Runtime;
use tonic::Code;

use crate::echo::{POLICIES, READ, SAY};
use crate::world::{World, WorldOptions, channel, say};

/// Consecutive failures that open the breaker.
const THRESHOLD: usize = 5;
/// Each failed probe doubles the wait for the next, from at least a tenth of a second: the test's duration allows no
/// more.
const PROBES_AT_MOST: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(20);

/// An instance in a runtime of its own: it can be killed with all its connections, like a process.
struct Process {
    runtime: Runtime,
    world: World,
}

impl Process {
    async fn start(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let world =
            runtime.spawn(World::with(WorldOptions { address, ..WorldOptions::default() })).await.expect("started");
        Self { runtime, world }
    }

    async fn any() -> Self {
        Self::start(WorldOptions::default().address).await
    }

    /// Its sockets are closed on return.
    async fn kill(self) {
        let killing = tokio::task::spawn_blocking(move || self.runtime.shutdown_timeout(TIMEOUT));
        killing.await.expect("no panic");
    }
}

fn addresses<'a>(worlds: impl IntoIterator<Item = &'a World>) -> Vec<String> {
    worlds.into_iter().map(|world| world.address.to_string()).collect()
}

async fn three() -> [World; 3] {
    [World::new().await, World::new().await, World::new().await]
}

#[tokio::test]
async fn all_instances_are_used() {
    let worlds = three().await;
    let channel = channel(addresses(&worlds), Credentials::None);
    let all = async {
        while worlds.iter().any(|world| world.handlers_started() == 0) {
            join_all((0..16).map(|_| say(&channel, SAY, "hello"))).await;
        }
    };
    tokio::time::timeout(TIMEOUT, all).await.expect("each of them gets calls");
}

#[tokio::test]
async fn when_one_of_three_instances_is_killed_no_retryable_call_fails() {
    let mut processes = vec![Process::any().await, Process::any().await, Process::any().await];
    let channel = channel(addresses(processes.iter().map(|process| &process.world)), Credentials::None);
    let round = |size: usize| join_all((0..size).map(|_| say(&channel, READ, "hello")));
    for _ in 0..20 {
        round(16).await.into_iter().for_each(|response| assert_eq!(response.expect("answered"), "hello"));
    }
    let (answers, ()) = tokio::join!(round(16), processes.remove(0).kill());
    for response in answers {
        assert_eq!(response.expect("answered by any instance"), "hello");
    }
    for _ in 0..20 {
        round(16).await.into_iter().for_each(|response| assert_eq!(response.expect("answered"), "hello"));
    }
    join_all(processes.into_iter().map(Process::kill)).await;
}

#[tokio::test]
async fn a_call_on_a_killed_instance_goes_to_another_if_it_is_retryable_and_fails_if_not() {
    for (path, is_repeated) in [(READ, true), (SAY, false)] {
        let mut processes = vec![Process::any().await, Process::any().await];
        let channel = channel(addresses(processes.iter().map(|process| &process.world)), Credentials::None);
        let call = tokio::spawn(async move { say(&channel, path, "hold").await });
        let holding: Vec<_> = processes.iter().map(|process| process.world.echo.holding.clone()).collect();
        let holder = tokio::select! {
            () = holding[0].notified() => 0,
            () = holding[1].notified() => 1,
        };
        processes.remove(holder).kill().await;
        let other = processes.remove(0);
        if is_repeated {
            other.world.echo.holding.notified().await;
            other.world.echo.release.add_permits(1);
        }
        match call.await.expect("no panic") {
            Ok(response) => assert!(is_repeated, "{path} was answered: {response}"),
            Err(status) => assert_eq!((status.code(), is_repeated), (Code::Unavailable, false), "{status}"),
        }
        assert_eq!(other.world.handlers_started(), usize::from(is_repeated));
        other.kill().await;
    }
}

#[tokio::test]
async fn a_restarted_instance_is_found_immediately() {
    // An address of its own: on the usual one another test might get the port meanwhile.
    let process = Process::start(SocketAddr::from(([127, 0, 0, 2], 0))).await;
    let address = process.world.address;
    let channel = channel(vec![address.to_string()], Credentials::None);
    assert_eq!(say(&channel, SAY, "hello").await.expect("answered"), "hello");
    process.kill().await;
    let gone = async { while say(&channel, SAY, "hello").await.is_ok() {} };
    tokio::time::timeout(TIMEOUT, gone).await.expect("it is down");
    let process = Process::start(address).await;
    assert_eq!(say(&channel, SAY, "again").await.expect("answered"), "again");
    process.kill().await;
}

#[tokio::test]
async fn no_call_goes_to_an_instance_that_accepts_connections_and_sends_nothing() {
    // The kernel accepts connections; no process does.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let world = World::new().await;
    let addresses = vec![silent.local_addr().expect("an address").to_string(), world.address.to_string()];
    let channel = channel(addresses, Credentials::None);
    for response in join_all((0..100).map(|_| say(&channel, SAY, "hello"))).await {
        assert_eq!(response.expect("answered"), "hello");
    }
    assert_eq!(world.handlers_started(), 100);
}

#[tokio::test]
async fn a_failing_instance_is_out_of_rotation_within_the_threshold_and_back_after_it_recovers() {
    let worlds = three().await;
    let channel = channel(addresses(&worlds), Credentials::None);
    worlds[0].answer_with(Code::Internal);
    let mut failed = 0;
    for _ in 0..300 {
        failed += usize::from(say(&channel, SAY, "hello").await.is_err());
    }
    assert!(failed <= THRESHOLD + PROBES_AT_MOST, "{failed} calls failed");
    assert_eq!(worlds[0].handlers_started(), failed);
    worlds[0].answer_with(Code::Ok);
    let before = worlds[0].handlers_started();
    let back = async {
        // The probe, and more: it is in rotation again.
        while worlds[0].handlers_started() < before + 10 {
            join_all((0..16).map(|_| say(&channel, SAY, "hello"))).await;
        }
    };
    tokio::time::timeout(TIMEOUT, back).await.expect("back in rotation");
}

#[tokio::test]
async fn when_all_instances_fail_all_are_used() {
    let worlds = three().await;
    let channel = channel(addresses(&worlds), Credentials::None);
    worlds.iter().for_each(|world| world.answer_with(Code::Internal));
    for _ in 0..10 * THRESHOLD {
        let status = say(&channel, SAY, "hello").await.expect_err("as configured");
        assert_eq!(status.code(), Code::Internal, "the instance's error, and not the client's");
    }
    worlds.iter().for_each(|world| world.answer_with(Code::Ok));
    assert_eq!(say(&channel, SAY, "hello").await.expect("immediately"), "hello");
}

#[tokio::test]
async fn a_retry_storm_stays_within_the_budget() {
    let worlds = three().await;
    let channel = channel(addresses(&worlds), Credentials::None);
    worlds.iter().for_each(|world| world.answer_with(Code::Unavailable));
    let calls = 500;
    for _ in 0..calls / 20 {
        for response in join_all((0..20).map(|_| say(&channel, READ, "hello"))).await {
            assert_eq!(response.expect_err("as configured").code(), Code::Unavailable);
        }
    }
    let attempts: usize = worlds.iter().map(World::handlers_started).sum();
    let (least, most) = (calls + calls / 10, calls + calls / 5 + 10);
    assert!((least..=most).contains(&attempts), "{attempts} attempts of {calls} calls");
}

#[tokio::test]
async fn a_dns_name_is_looked_up() {
    let world = World::new().await;
    let addresses = Addresses::Dns { host: "localhost".into(), port: world.address.port() };
    let channel = client(ClientConfig::new("test", addresses, POLICIES));
    assert_eq!(say(&channel, SAY, "hello").await.expect("answered"), "hello");
}

#[tokio::test]
async fn several_connections_serve_one_instance() {
    let world = World::new().await;
    let addresses = addresses([&world]);
    let channel = client(ClientConfig { connections: 2, ..ClientConfig::new("test", addresses, POLICIES) });
    let answers = join_all((0..64).map(|_| say(&channel, SAY, "hello"))).await;
    answers.into_iter().for_each(|response| assert_eq!(response.expect("answered"), "hello"));
    assert_eq!(world.handlers_started(), 64);
}
