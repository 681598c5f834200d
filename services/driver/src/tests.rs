//! The driver with items whose outcomes the test scripts, in paused time.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;

use futures_util::FutureExt;
use kernel::{NoFaults, SystemIds};
use parking_lot::Mutex;
use tokio::sync::Semaphore as Gate;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;

const LEASE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_secs(1);

/// What the next attempt comes to.
enum Next {
    Is(AttemptOutcome<u32>),
    Fails,
    /// It waits for the gate.
    Hangs,
}

struct Items {
    due: Mutex<VecDeque<u32>>,
    next: Mutex<VecDeque<Next>>,
    /// Items attempted and completed, in this order.
    calls: Mutex<Vec<(&'static str, u32)>>,
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
    const LONGEST_SLEEP: Duration = Duration::from_secs(2);

    fn id(item: &u32) -> OrderId {
        order(*item)
    }

    fn claim_due<'a>(&'a self, limit: usize, _context: &'a Context) -> Stored<'a, Vec<u32>> {
        self.0.claims.fetch_add(1, Ordering::Relaxed);
        let mut due = self.0.due.lock();
        let count = limit.min(due.len());
        let claimed = due.drain(..count).collect();
        Box::pin(async { Ok(claimed) })
    }

    fn claim<'a>(&'a self, id: OrderId, _context: &'a Context) -> Stored<'a, Option<u32>> {
        let mut due = self.0.due.lock();
        let at = due.iter().position(|item| order(*item) == id);
        let claimed = at.and_then(|at| due.remove(at));
        Box::pin(async move { Ok(claimed) })
    }

    fn free_leases<'a>(&'a self, _context: &'a Context) -> Stored<'a, u64> {
        Box::pin(async { Ok(self.0.freed.fetch_add(1, Ordering::Relaxed)) })
    }

    fn attempt<'a>(&'a self, item: u32, _context: &'a Context) -> Stored<'a, AttemptOutcome<u32>> {
        self.0.calls.lock().push(("attempt", item));
        let next = self.0.next.lock().pop_front();
        Box::pin(async move {
            match next.unwrap_or(Next::Is(AttemptOutcome::Completed(item))) {
                Next::Is(outcome) => {
                    if let AttemptOutcome::RetryLater(_) = outcome {
                        self.0.due.lock().push_back(item);
                    }
                    Ok(outcome)
                }
                Next::Fails => Err(storage::Error::Closed),
                Next::Hangs => {
                    self.0.gate.acquire().await.expect("open").forget();
                    Ok(AttemptOutcome::Completed(item))
                }
            }
        })
    }

    fn completed<'a>(&'a self, item: u32, _context: &'a Context) -> BoxFuture<'a, ()> {
        self.0.calls.lock().push(("completed", item));
        Box::pin(std::future::ready(()))
    }
}

impl Items {
    fn calls(&self) -> Vec<(&'static str, u32)> {
        self.calls.lock().clone()
    }
}

/// A driver of two items at a time.
fn driver(next: impl IntoIterator<Item = Next>) -> (Driver<Shared>, Arc<Items>, CancellationToken) {
    let items = Arc::new(Items {
        due: Mutex::default(),
        next: Mutex::new(next.into_iter().collect()),
        calls: Mutex::default(),
        claims: AtomicU64::new(0),
        freed: AtomicU64::new(0),
        gate: Gate::new(0),
    });
    let shutdown = CancellationToken::new();
    let context = Context {
        options: Options {
            instance: "one".into(),
            lease: LEASE,
            poll_interval: POLL,
            backoff: POLL,
            backoff_cap: POLL,
            max_in_flight: 2,
        },
        ids: Arc::new(SystemIds),
        faults: Arc::new(NoFaults),
        tasks: TaskTracker::new(),
        shutdown: shutdown.clone(),
    };
    (Driver::new(Shared(items.clone()), context), items, shutdown)
}

#[tokio::test(start_paused = true)]
async fn an_item_is_driven_until_it_has_no_pending_effect() {
    let (driver, items, _) = driver([Next::Is(AttemptOutcome::Advanced(8)), Next::Is(AttemptOutcome::Completed(9))]);
    driver.drive(7, driver.permit().expect("free")).await;
    assert_eq!(items.calls(), [("attempt", 7), ("attempt", 8), ("completed", 9)]);
    assert_eq!(driver.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_a_crashed_and_an_unrecorded_attempt_end_a_drive_and_complete_nothing() {
    for next in [Next::Is(AttemptOutcome::Lost), Next::Is(AttemptOutcome::Crashed), Next::Fails] {
        let (driver, items, _) = driver([next]);
        driver.drive(7, driver.permit().expect("free")).await;
        assert_eq!((items.calls(), driver.in_flight()), (vec![("attempt", 7)], 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_backoff_is_slept_and_a_long_one_is_left_to_the_polls() {
    for (wait, is_slept) in [(2, true), (3, false)] {
        let wait = Duration::from_secs(wait);
        let (driver, items, _) = driver([Next::Is(AttemptOutcome::RetryLater(wait))]);
        let began = Instant::now();
        driver.drive(7, driver.permit().expect("free")).await;
        let completed = items.calls().contains(&("completed", 7));
        assert_eq!((completed, began.elapsed()), (is_slept, if is_slept { wait } else { Duration::ZERO }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_claims_what_permits_allow_and_continues_as_soon_as_one_is_free() {
    let (driver, items, shutdown) = driver([Next::Hangs, Next::Hangs]);
    items.due.lock().extend([1, 2, 3]);
    let polling = tokio::spawn(driver.clone().poll());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((driver.in_flight(), items.calls()), (2, vec![("attempt", 1), ("attempt", 2)]));
    items.gate.add_permits(1);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(items.calls().contains(&("attempt", 3)), "no poll interval has passed");
    items.gate.add_permits(1);
    shutdown.cancel();
    polling.await.expect("no panic");
    assert_eq!(items.calls().iter().filter(|(what, _)| *what == "completed").count(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_drain_waits_for_drives_in_flight_but_not_forever_and_frees_the_leases() {
    let (driver, items, shutdown) = driver([Next::Hangs]);
    items.due.lock().push_back(1);
    let polling = tokio::spawn(driver.clone().poll());
    tokio::time::sleep(Duration::from_millis(1)).await;
    shutdown.cancel();
    let began = Instant::now();
    polling.await.expect("no panic");
    assert_eq!((began.elapsed(), items.freed.load(Ordering::Relaxed)), (DRAIN_TIMEOUT, 1));
    assert!(driver.permit().is_none(), "nothing more is claimed after the drain");
    driver.start(7);
    driver.context().tasks.close();
    items.gate.add_permits(1);
    driver.context().tasks.wait().await;
    assert!(items.calls().contains(&("completed", 7)), "a call in flight created it with a lease of this instance");
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
    assert_eq!(driver.context().tasks.len(), 3, "it waits");
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(driver.context().tasks.len(), 2);
    items.gate.add_permits(2);
    driver.context().tasks.close();
    driver.context().tasks.wait().await;
    assert!(!items.calls().contains(&("attempt", 3)));
}

#[tokio::test(start_paused = true)]
async fn one_attempt_is_made_at_each_due_item_and_completed_ones_are_announced() {
    let wait = Duration::from_secs(1);
    let (driver, items, _) = driver([Next::Is(AttemptOutcome::RetryLater(wait))]);
    items.due.lock().extend([1, 2]);
    let outcomes = driver.attempt_due().await.expect("items are claimed");
    assert_eq!(outcomes, [AttemptOutcome::RetryLater(wait), AttemptOutcome::Completed(2)]);
    assert_eq!(items.calls(), [("attempt", 1), ("attempt", 2), ("completed", 2)]);
}

#[tokio::test(start_paused = true)]
async fn detached_work_is_completed_even_if_its_caller_is_gone() {
    let (driver, ..) = driver([]);
    let done = Arc::new(Notify::new());
    let signal = done.clone();
    let call = driver.detached(async move {
        tokio::task::yield_now().await;
        signal.notify_one();
    });
    assert_eq!(call.now_or_never().map(drop), None, "the caller is gone before the work is done");
    done.notified().await;
    let panicked = driver.detached(async { panic!("on purpose") }).await;
    assert!(matches!(panicked, Err::<(), _>(storage::Error::Panicked)));
}
