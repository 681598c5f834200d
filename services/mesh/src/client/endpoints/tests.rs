//! The choice among instances that appear connected, and waiting for connections that are not.

use super::*;
use crate::client::breaker::THRESHOLD;
use crate::client::connect::{Connect, Connected};
use crate::client::discovery::SystemResolver;
use crate::client::metrics::ClientMetrics;
use crate::client::rng::{FixedRng, SystemRng};
use crate::client::subset::Subset;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::num::NonZeroUsize;
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
            return Box::pin(std::future::ready(Err("rejected".to_owned())));
        }
        Box::pin(std::future::pending())
    }
}

pub(crate) fn endpoints_of(addresses: &[&str]) -> Arc<Endpoints> {
    endpoints_by(addresses, Arc::new(FixedRng(0.0)), Arc::default())
}

/// A target by name, `data`, port 7401.
pub(crate) fn dns(resolve: Arc<dyn Resolve>) -> Arc<Endpoints> {
    let addresses = Addresses::Dns { host: "data".into(), port: 7401 };
    started(addresses, resolve, Arc::new(FixedRng(0.0)), Arc::default())
}

fn endpoints_by(addresses: &[&str], rng: Arc<dyn Rng>, connect: Arc<Nowhere>) -> Arc<Endpoints> {
    let addresses = Addresses::Fixed(addresses.iter().map(ToString::to_string).collect());
    started(addresses, Arc::new(SystemResolver), rng, connect)
}

fn started(
    addresses: Addresses,
    resolve: Arc<dyn Resolve>,
    rng: Arc<dyn Rng>,
    connect: Arc<Nowhere>,
) -> Arc<Endpoints> {
    started_with(addresses, None, resolve, rng, connect)
}

fn started_with(
    addresses: Addresses,
    subset_size: Option<NonZeroUsize>,
    resolve: Arc<dyn Resolve>,
    rng: Arc<dyn Rng>,
    connect: Arc<Nowhere>,
) -> Arc<Endpoints> {
    let metrics = Arc::new(ClientMetrics::new("test"));
    let config = EndpointConfig {
        connections: 1,
        subset: Subset::new(subset_size, &*rng),
        has_tls: false,
        created: Instant::now(),
        has_address_attributes: true,
        rng: rng.clone(),
        metrics,
    };
    let reconnect = Reconnect { connect, rng, changed: Arc::default(), failures: Arc::default() };
    let target = Arc::new(Endpoints::new("test", addresses, resolve, config, reconnect));
    target.start();
    target
}

fn connected(addresses: &[&str]) -> Arc<Endpoints> {
    let target = endpoints_of(addresses);
    target.list().iter().for_each(|endpoint| endpoint.pretend_ready(true));
    target
}

async fn picked(target: &Arc<Endpoints>, attempted: &[Arc<Endpoint>]) -> String {
    target.pick(attempted).await.expect("an instance").0.address().to_owned()
}

fn open_breaker(endpoint: &Endpoint) {
    for _ in 0..THRESHOLD {
        endpoint.breaker.failed(endpoint.breaker.permit(), Instant::now());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_connects_to_its_subset_alone() {
    let connect = Arc::new(Nowhere::default());
    let addresses = Addresses::Fixed((0..50).map(|n| format!("a{n}:1")).collect());
    let resolve = Arc::new(SystemResolver);
    let target = started_with(addresses, NonZeroUsize::new(20), resolve, Arc::new(FixedRng(0.5)), connect.clone());
    assert_eq!(target.list().len(), 20);
    tokio::time::sleep(MS).await;
    assert_eq!(connect.tries.load(Ordering::SeqCst), 20);
}

#[tokio::test(start_paused = true)]
async fn the_less_busy_of_two_is_chosen() {
    let target = connected(&["a:1", "b:1"]);
    let endpoints = target.list();
    endpoints[0].load.took(Instant::now(), 200 * MS);
    assert_eq!(picked(&target, &[]).await, "b:1");
    // Calls in flight eventually make the faster one busier.
    (0..200).for_each(|_| endpoints[1].load.begin(Instant::now()));
    assert_eq!(picked(&target, &[]).await, "a:1");
}

#[tokio::test(start_paused = true)]
async fn idle_instances_share_the_calls() {
    let target = endpoints_by(&["a:1", "b:1", "c:1"], Arc::new(SystemRng), Arc::default());
    let endpoints = target.list();
    endpoints.iter().for_each(|endpoint| endpoint.pretend_ready(true));
    for _ in 0..3_000 {
        target.pick(&[]).await.expect("an instance").0.load.begin(Instant::now());
    }
    for endpoint in endpoints.iter() {
        let calls = endpoint.load.now(Instant::now()) / 0.001;
        assert!((950.0..1_051.0).contains(&calls), "{} has {calls} of 3000", endpoint.address());
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_with_an_open_breaker_gets_only_a_probe() {
    let target = connected(&["a:1", "b:1", "c:1"]);
    open_breaker(&target.list()[0]);
    for _ in 0..10 {
        assert_ne!(picked(&target, &[]).await, "a:1");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(picked(&target, &[]).await, "a:1", "the probe");
    for _ in 0..10 {
        assert_ne!(picked(&target, &[]).await, "a:1", "while the probe is in flight");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_instances_are_used_whatever_their_breakers_say() {
    let target = connected(&["a:1", "b:1"]);
    let endpoints = target.list();
    open_breaker(&endpoints[0]);
    endpoints[1].pretend_ready(false);
    assert_eq!(picked(&target, &[]).await, "a:1", "the other is not connected");
    endpoints[1].pretend_ready(true);
    assert_eq!(picked(&target, &[]).await, "b:1", "control: it is connected");
    open_breaker(&endpoints[1]);
    endpoints[1].load.took(Instant::now(), 200 * MS);
    assert_eq!(picked(&target, &[]).await, "a:1", "both breakers are open: by load");
}

#[tokio::test(start_paused = true)]
async fn another_attempt_goes_to_another_instance_if_there_is_one() {
    let target = connected(&["a:1", "b:1"]);
    let endpoints = target.list();
    endpoints[1].load.took(Instant::now(), 200 * MS);
    assert_eq!(picked(&target, &[]).await, "a:1");
    assert_eq!(picked(&target, &endpoints[..1]).await, "b:1", "although it is busier");
    assert_eq!(picked(&target, &endpoints).await, "a:1", "there is no other");
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_a_connection_that_is_being_made() {
    let target = endpoints_of(&["a:1"]);
    let mut waiting = std::pin::pin!(target.pick(&[]));
    assert!(waiting.as_mut().now_or_never().is_none());
    target.list()[0].pretend_ready(true);
    target.reconnect.changed.notify_waiters();
    assert_eq!(waiting.await.expect("an instance").0.address(), "a:1");
}

#[tokio::test(start_paused = true)]
async fn when_no_instance_connects_calls_fail_and_do_not_flood_the_instances() {
    let connect = Arc::new(Nowhere { fails: AtomicBool::new(true), ..Nowhere::default() });
    let target = endpoints_by(&["a:1", "b:1"], Arc::new(FixedRng(1.0)), connect.clone());
    let began = Instant::now();
    for _ in 0..20 {
        let Err(failure) = target.pick(&[]).await else { panic!("no instance") };
        assert_eq!(failure.reach, Reach::NotSent);
        assert!(failure.status.message().contains("a:1: rejected; b:1: rejected"), "{}", failure.status.message());
    }
    // The first call fails immediately; later calls wait for the next attempt, which they may hasten to one in 50 ms.
    assert_eq!(began.elapsed(), 19 * 50 * MS);
    assert_eq!(connect.tries.load(Ordering::SeqCst), 20 * 2);
}

#[tokio::test(start_paused = true)]
async fn without_addresses_calls_fail() {
    let Err(failure) = endpoints_of(&[]).pick(&[]).await else { panic!("no instance") };
    assert_eq!(failure.reach, Reach::NotSent);
}

#[tokio::test(start_paused = true)]
async fn retained_addresses_are_the_same_instances_and_removed_ones_are_notified() {
    let target = connected(&["a:1", "b:1"]);
    let old = target.list();
    target.replace(vec!["c:1".into(), "b:1".into(), "b:1".into()]);
    let new = target.list();
    let names: Vec<_> = new.iter().map(|endpoint| endpoint.address()).collect();
    assert_eq!(names, ["b:1", "c:1"]);
    assert!(Arc::ptr_eq(&old[1], &new[0]));
    assert_eq!((old[0].removed.is_cancelled(), new[0].removed.is_cancelled()), (true, false));
    assert_eq!(picked(&target, &[]).await, "b:1");
}
