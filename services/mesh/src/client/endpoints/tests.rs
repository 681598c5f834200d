//! The choice among instances that appear connected, and waiting for connections that are not.

use super::*;
use crate::client::breaker::THRESHOLD;
use crate::client::connect::{Connect, Connected};
use crate::client::discovery::SystemResolver;
use crate::client::metrics::ClientMetrics;
use crate::client::rng::{Always, SystemChance};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::atomic::AtomicUsize;

const MS: Duration = Duration::from_millis(1);

/// Connects nowhere: fails immediately if `fails` is set, else never completes.
#[derive(Default)]
pub(crate) struct Nowhere {
    fails: AtomicBool,
    tries: AtomicUsize,
}

impl Connect for Nowhere {
    fn connect<'a>(&'a self, _address: &'a str) -> BoxFuture<'a, Result<Connected, String>> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) {
            return Box::pin(std::future::ready(Err("refused".to_owned())));
        }
        Box::pin(std::future::pending())
    }
}

pub(crate) fn fleet(addresses: &[&str]) -> Arc<Fleet> {
    fleet_by(addresses, Arc::new(Always(0.0)), Arc::default())
}

/// A fleet by name, `data`, port 7401.
pub(crate) fn dns(resolve: Arc<dyn Resolve>) -> Arc<Fleet> {
    let addresses = Addresses::Dns { host: "data".into(), port: 7401 };
    started(addresses, resolve, Arc::new(Always(0.0)), Arc::default())
}

fn fleet_by(addresses: &[&str], chance: Arc<dyn Chance>, connect: Arc<Nowhere>) -> Arc<Fleet> {
    let addresses = Addresses::Fixed(addresses.iter().map(ToString::to_string).collect());
    started(addresses, Arc::new(SystemResolver), chance, connect)
}

fn started(
    addresses: Addresses,
    resolve: Arc<dyn Resolve>,
    chance: Arc<dyn Chance>,
    connect: Arc<Nowhere>,
) -> Arc<Fleet> {
    let metrics = Arc::new(ClientMetrics::new("test"));
    let config = EndpointConfig { connections: 1, has_tls: false, is_bounded: true, chance: chance.clone(), metrics };
    let keeping = Keeping { connect, chance, changed: Arc::default(), failures: Arc::default() };
    let fleet = Arc::new(Fleet::new("test", addresses, resolve, config, keeping));
    fleet.start();
    fleet
}

fn connected(addresses: &[&str]) -> Arc<Fleet> {
    let fleet = fleet(addresses);
    fleet.endpoints().iter().for_each(|endpoint| endpoint.pretend_ready(true));
    fleet
}

async fn picked(fleet: &Arc<Fleet>, visited: &[Arc<Endpoint>]) -> String {
    fleet.pick(visited).await.expect("an instance").0.address().to_owned()
}

fn shut(endpoint: &Endpoint) {
    for _ in 0..THRESHOLD {
        endpoint.breaker.failed(endpoint.breaker.permit(), Instant::now());
    }
}

#[tokio::test(start_paused = true)]
async fn the_less_busy_of_two_is_chosen() {
    let fleet = connected(&["a:1", "b:1"]);
    let endpoints = fleet.endpoints();
    endpoints[0].load.took(Instant::now(), 200 * MS);
    assert_eq!(picked(&fleet, &[]).await, "b:1");
    // Calls in flight eventually make the faster one busier.
    (0..200).for_each(|_| endpoints[1].load.begin(Instant::now()));
    assert_eq!(picked(&fleet, &[]).await, "a:1");
}

#[tokio::test(start_paused = true)]
async fn idle_instances_share_the_calls() {
    let fleet = fleet_by(&["a:1", "b:1", "c:1"], Arc::new(SystemChance), Arc::default());
    let endpoints = fleet.endpoints();
    endpoints.iter().for_each(|endpoint| endpoint.pretend_ready(true));
    for _ in 0..3_000 {
        fleet.pick(&[]).await.expect("an instance").0.load.begin(Instant::now());
    }
    for endpoint in endpoints.iter() {
        let calls = endpoint.load.now(Instant::now()) / 0.001;
        assert!((950.0..1_051.0).contains(&calls), "{} has {calls} of 3000", endpoint.address());
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_with_an_open_breaker_gets_only_a_probe() {
    let fleet = connected(&["a:1", "b:1", "c:1"]);
    shut(&fleet.endpoints()[0]);
    for _ in 0..10 {
        assert_ne!(picked(&fleet, &[]).await, "a:1");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(picked(&fleet, &[]).await, "a:1", "the probe");
    for _ in 0..10 {
        assert_ne!(picked(&fleet, &[]).await, "a:1", "while the probe is in flight");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_instances_are_used_whatever_their_breakers_say() {
    let fleet = connected(&["a:1", "b:1"]);
    let endpoints = fleet.endpoints();
    shut(&endpoints[0]);
    endpoints[1].pretend_ready(false);
    assert_eq!(picked(&fleet, &[]).await, "a:1", "the other is not connected");
    endpoints[1].pretend_ready(true);
    assert_eq!(picked(&fleet, &[]).await, "b:1", "control: it is connected");
    shut(&endpoints[1]);
    endpoints[1].load.took(Instant::now(), 200 * MS);
    assert_eq!(picked(&fleet, &[]).await, "a:1", "both breakers are open: by load");
}

#[tokio::test(start_paused = true)]
async fn another_attempt_goes_to_another_instance_if_there_is_one() {
    let fleet = connected(&["a:1", "b:1"]);
    let endpoints = fleet.endpoints();
    endpoints[1].load.took(Instant::now(), 200 * MS);
    assert_eq!(picked(&fleet, &[]).await, "a:1");
    assert_eq!(picked(&fleet, &endpoints[..1]).await, "b:1", "although it is busier");
    assert_eq!(picked(&fleet, &endpoints).await, "a:1", "there is no other");
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_a_connection_that_is_being_made() {
    let fleet = fleet(&["a:1"]);
    let mut waiting = std::pin::pin!(fleet.pick(&[]));
    assert!(waiting.as_mut().now_or_never().is_none());
    fleet.endpoints()[0].pretend_ready(true);
    fleet.keeping.changed.notify_waiters();
    assert_eq!(waiting.await.expect("an instance").0.address(), "a:1");
}

#[tokio::test(start_paused = true)]
async fn when_no_instance_connects_calls_fail_and_do_not_flood_the_instances() {
    let connect = Arc::new(Nowhere { fails: AtomicBool::new(true), ..Nowhere::default() });
    let fleet = fleet_by(&["a:1", "b:1"], Arc::new(Always(1.0)), connect.clone());
    let began = Instant::now();
    for _ in 0..20 {
        let Err(failure) = fleet.pick(&[]).await else { panic!("no instance") };
        assert_eq!(failure.reach, Reach::NotSent);
        assert!(failure.status.message().contains("a:1: refused; b:1: refused"), "{}", failure.status.message());
    }
    // The first call fails immediately; later calls wait for the next attempt, which they may hasten to one in 50 ms.
    assert_eq!(began.elapsed(), 19 * 50 * MS);
    assert_eq!(connect.tries.load(Ordering::SeqCst), 20 * 2);
}

#[tokio::test(start_paused = true)]
async fn without_addresses_calls_fail() {
    let Err(failure) = fleet(&[]).pick(&[]).await else { panic!("no instance") };
    assert_eq!(failure.reach, Reach::NotSent);
}

#[tokio::test(start_paused = true)]
async fn retained_addresses_are_the_same_instances_and_removed_ones_are_notified() {
    let fleet = connected(&["a:1", "b:1"]);
    let old = fleet.endpoints();
    fleet.replace(vec!["c:1".into(), "b:1".into(), "b:1".into()]);
    let new = fleet.endpoints();
    let names: Vec<_> = new.iter().map(|endpoint| endpoint.address()).collect();
    assert_eq!(names, ["b:1", "c:1"]);
    assert!(Arc::ptr_eq(&old[1], &new[0]));
    assert_eq!((old[0].gone.is_cancelled(), new[0].gone.is_cancelled()), (true, false));
    assert_eq!(picked(&fleet, &[]).await, "b:1");
}
