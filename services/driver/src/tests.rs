//! The driver with items that do as the test says, in paused time.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use kernel::SystemIds;
use tokio::sync::Semaphore as Gate;

use super::*;

const LEASE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_secs(1);

/// What the next attempt comes to.
enum Next {
    Is(Outcome<u32>),
    Fails,
    /// It waits for the gate.
    Hangs,
}

struct Items {
    due: Mutex<VecDeque<u32>>,
    next: Mutex<VecDeque<Next>>,
    /// Items attempted and completed, in this order.
    seen: Mutex<Vec<(&'static str, u32)>>,
    claims: AtomicU64,
    freed: AtomicU64,
    gate: Gate,
}

fn order(item: u32) -> OrderId {
    OrderId::from_uuid(uuid::Uuid::from_u128(item.into()))
}

#[derive(Clone)]
struct Shared(Arc<Items>);

impl Work for Shared {
    type Item = u32;
    const ITEMS: &'static str = "items";

    fn id(item: &u32) -> OrderId {
        order(*item)
    }

    fn claim_due(&self, limit: usize) -> BoxFuture<'_, Result<Vec<u32>, storage::Error>> {
        self.0.claims.fetch_add(1, Ordering::Relaxed);
        let mut due = self.0.due.lock().expect("not poisoned");
        let count = limit.min(due.len());
        let claimed = due.drain(..count).collect();
        Box::pin(async { Ok(claimed) })
    }

    fn claim(&self, id: OrderId) -> BoxFuture<'_, Result<Option<u32>, storage::Error>> {
        let mut due = self.0.due.lock().expect("not poisoned");
        let at = due.iter().position(|item| order(*item) == id);
        let claimed = at.and_then(|at| due.remove(at));
        Box::pin(async move { Ok(claimed) })
    }

    fn free_leases(&self) -> BoxFuture<'_, Result<u64, storage::Error>> {
        Box::pin(async { Ok(self.0.freed.fetch_add(1, Ordering::Relaxed)) })
    }

    fn attempt(&self, item: u32) -> BoxFuture<'_, Result<Outcome<u32>, storage::Error>> {
        self.0.seen.lock().expect("not poisoned").push(("attempt", item));
        let next = self.0.next.lock().expect("not poisoned").pop_front();
        Box::pin(async move {
            match next.unwrap_or(Next::Is(Outcome::Completed(item))) {
                Next::Is(outcome) => {
                    if let Outcome::RetryLater(_) = outcome {
                        self.0.due.lock().expect("not poisoned").push_back(item);
                    }
                    Ok(outcome)
                }
                Next::Fails => Err(storage::Error::Closed),
                Next::Hangs => {
                    self.0.gate.acquire().await.expect("open").forget();
                    Ok(Outcome::Completed(item))
                }
            }
        })
    }

    fn completed(&self, item: u32) -> BoxFuture<'_, ()> {
        self.0.seen.lock().expect("not poisoned").push(("completed", item));
        Box::pin(std::future::ready(()))
    }
}

impl Items {
    fn seen(&self) -> Vec<(&'static str, u32)> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

/// A driver of two items at a time.
fn driver(next: impl IntoIterator<Item = Next>) -> (Driver<Shared>, Arc<Items>, CancellationToken) {
    let items = Arc::new(Items {
        due: Mutex::default(),
        next: Mutex::new(next.into_iter().collect()),
        seen: Mutex::default(),
        claims: AtomicU64::new(0),
        freed: AtomicU64::new(0),
        gate: Gate::new(0),
    });
    let shutdown = CancellationToken::new();
    let parts = Parts {
        work: Shared(items.clone()),
        options: Options { lease: LEASE, poll_interval: POLL, max_drives: 2, longest_sleep: Duration::from_secs(2) },
        ids: Arc::new(SystemIds),
        tasks: TaskTracker::new(),
        shutdown: shutdown.clone(),
    };
    (Driver::new(parts), items, shutdown)
}

#[tokio::test(start_paused = true)]
async fn an_item_is_driven_until_it_has_no_pending_effect() {
    let (driver, items, _) = driver([Next::Is(Outcome::Advanced(8)), Next::Is(Outcome::Completed(9))]);
    driver.drive(7, driver.permit().expect("free")).await;
    assert_eq!(items.seen(), [("attempt", 7), ("attempt", 8), ("completed", 9)]);
    assert_eq!(driver.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_a_crashed_and_an_unrecorded_attempt_end_a_drive_and_complete_nothing() {
    for next in [Next::Is(Outcome::Lost), Next::Is(Outcome::Crashed), Next::Fails] {
        let (driver, items, _) = driver([next]);
        driver.drive(7, driver.permit().expect("free")).await;
        assert_eq!((items.seen(), driver.in_flight()), (vec![("attempt", 7)], 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_backoff_is_slept_and_a_long_one_is_left_to_the_polls() {
    for (wait, is_slept) in [(2, true), (3, false)] {
        let wait = Duration::from_secs(wait);
        let (driver, items, _) = driver([Next::Is(Outcome::RetryLater(wait))]);
        let began = Instant::now();
        driver.drive(7, driver.permit().expect("free")).await;
        let completed = items.seen().contains(&("completed", 7));
        assert_eq!((completed, began.elapsed()), (is_slept, if is_slept { wait } else { Duration::ZERO }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_claims_what_permits_allow_and_continues_as_soon_as_one_is_free() {
    let (driver, items, shutdown) = driver([Next::Hangs, Next::Hangs]);
    items.due.lock().expect("not poisoned").extend([1, 2, 3]);
    let polling = tokio::spawn(driver.clone().poll());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((driver.in_flight(), items.seen()), (2, vec![("attempt", 1), ("attempt", 2)]));
    items.gate.add_permits(1);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(items.seen().contains(&("attempt", 3)), "no poll interval has passed");
    items.gate.add_permits(1);
    shutdown.cancel();
    polling.await.expect("no panic");
    assert_eq!(items.seen().iter().filter(|(what, _)| *what == "completed").count(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_drain_waits_for_drives_in_flight_but_not_forever_and_frees_the_leases() {
    let (driver, items, shutdown) = driver([Next::Hangs]);
    items.due.lock().expect("not poisoned").push_back(1);
    let polling = tokio::spawn(driver.clone().poll());
    tokio::time::sleep(Duration::from_millis(1)).await;
    shutdown.cancel();
    let began = Instant::now();
    polling.await.expect("no panic");
    assert_eq!((began.elapsed(), items.freed.load(Ordering::Relaxed)), (DRAIN_TIMEOUT, 1));
    assert!(driver.permit().is_none(), "nothing more is claimed after the drain");
    driver.start(7);
    driver.tasks().close();
    items.gate.add_permits(1);
    driver.tasks().wait().await;
    assert!(items.seen().contains(&("completed", 7)), "a call in flight created it with a lease of this instance");
    let claims = items.claims.load(Ordering::Relaxed);
    driver.poll().await;
    assert_eq!(items.claims.load(Ordering::Relaxed), claims, "nothing is claimed once shutdown is requested");
}

#[tokio::test(start_paused = true)]
async fn an_item_without_a_permit_for_half_its_lease_is_dropped() {
    let (driver, items, _) = driver([Next::Hangs, Next::Hangs]);
    for item in 1..=3 {
        driver.start(item);
    }
    tokio::time::sleep(LEASE / 2 - Duration::from_millis(1)).await;
    assert_eq!(driver.tasks().len(), 3, "it waits");
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(driver.tasks().len(), 2);
    items.gate.add_permits(2);
    driver.tasks().close();
    driver.tasks().wait().await;
    assert!(!items.seen().contains(&("attempt", 3)));
}
