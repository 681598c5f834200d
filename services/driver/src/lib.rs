//! The driver: claims items that are due, performs their pending effects one after the other, and hands them over.
//!
//! An item (an order, a payment) is a row with a state, a due time and a lease. Its effects run under idempotency keys
//! and are recorded by compare-and-set, so a lease only saves duplicate work: an instance may crash at any point, and
//! another one repeats the effect under the same key when the lease expires. An effect without a definite result is
//! retried, with backoff that survives crashes because it is a column.
//!
//! What the items and their effects are is [`Work`]; it is implemented by the services. Of an item this crate knows only
//! its key, the id of the order that it belongs to. Start reading at [`Driver::drive`] and [`Driver::poll`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kernel::OrderId;
use kernel::backoff::jitter;
use telemetry::LogLimit;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::Instrument;

mod context;

pub use context::{Context, Options};

/// The maximum number of items claimed by one statement.
const MAX_CLAIM: usize = 64;
/// How long the drain waits for drives in flight. The leases are freed either way, and the next owner repeats the
/// effect under its key.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Items with pending effects.
pub trait Work: Sized + Send + Sync + 'static {
    /// An item that this instance has claimed.
    type Item: Send + 'static;

    /// The items' name in log lines, in the plural.
    const ITEMS: &'static str;
    /// A backoff up to this is slept in the item's task; after a longer one a poll finds the item.
    const LONGEST_SLEEP: Duration;

    /// The order that the item belongs to: its key.
    fn id(item: &Self::Item) -> OrderId;

    /// Takes the leases of at most `limit` items that are due and not leased.
    fn claim_due<'a>(&'a self, limit: usize, context: &'a Context) -> Stored<'a, Vec<Self::Item>>;

    /// Takes the lease of one item, if it is due and not leased.
    fn claim<'a>(&'a self, id: OrderId, context: &'a Context) -> Stored<'a, Option<Self::Item>>;

    /// Frees all leases of this instance; returns their number.
    fn free_leases<'a>(&'a self, context: &'a Context) -> Stored<'a, u64>;

    /// Performs the pending effect of a claimed item once, and records the result.
    ///
    /// # Errors
    /// The result could not be recorded. The lease expires, and another instance repeats the effect under its key.
    fn attempt<'a>(&'a self, item: Self::Item, context: &'a Context) -> Stored<'a, AttemptOutcome<Self::Item>>;

    /// Called when an item has no pending effect any more, after its permit was released.
    fn completed<'a>(&'a self, item: Self::Item, context: &'a Context) -> BoxFuture<'a, ()>;
}

/// The result of a call to the items' store.
pub type Stored<'a, T> = BoxFuture<'a, Result<T, storage::Error>>;

/// The result of an attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttemptOutcome<T> {
    /// Recorded; the item has another pending effect, due immediately, and its lease is kept.
    Advanced(T),
    /// Recorded; the item has no pending effect.
    Completed(T),
    /// No definite result: the lease is freed, and the item is due again after this backoff.
    RetryLater(Duration),
    /// Another writer has changed the item, and takes care of its next effect.
    Lost,
    /// An injected crash: everything stays as it is.
    Crashed,
}

/// The permit to drive one item; released when it is dropped.
#[derive(Debug)]
pub struct DrivePermit(OwnedSemaphorePermit);

struct Inner<W> {
    work: W,
    context: Context,
    permits: Arc<Semaphore>,
    /// Signals that a permit was released while none was free: items may have been left due.
    freed: Notify,
    /// The drain is over: an item without a lease is left to other instances.
    is_drained: AtomicBool,
}

/// Drives items. Clones share one driver.
pub struct Driver<W>(Arc<Inner<W>>);

impl<W> Clone for Driver<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<W> std::fmt::Debug for Driver<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("options", &self.0.context.options).finish_non_exhaustive()
    }
}

impl<W: Work> Driver<W> {
    /// A driver of these items.
    pub fn new(work: W, context: Context) -> Self {
        let permits = Arc::new(Semaphore::new(context.options.max_in_flight));
        Self(Arc::new(Inner { work, context, permits, freed: Notify::new(), is_drained: AtomicBool::new(false) }))
    }

    /// The items.
    pub fn work(&self) -> &W {
        &self.0.work
    }

    /// What the driver needs apart from the items.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// The number of items being driven.
    pub fn in_flight(&self) -> usize {
        self.0.context.options.max_in_flight.saturating_sub(self.0.permits.available_permits())
    }

    /// Runs a future to completion, even if the caller's is dropped, and before the service stops: an item that was
    /// committed is always started.
    ///
    /// # Errors
    /// It panicked.
    pub async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, storage::Error> {
        let done = self.0.context.tasks.spawn(work.in_current_span()).await;
        done.map_err(|_| storage::Error::Panicked)
    }

    /// A permit to drive an item; `None` at the limit, and after the drain. An item without one stays due.
    pub fn permit(&self) -> Option<DrivePermit> {
        if self.0.is_drained.load(Ordering::Acquire) {
            return None;
        }
        self.0.permits.clone().try_acquire_owned().ok().map(DrivePermit)
    }

    fn release(&self, permit: DrivePermit) {
        let was_full = self.0.permits.available_permits() == 0;
        drop(permit.0);
        if was_full {
            self.0.freed.notify_one();
        }
    }

    /// Drives a claimed item in a task of its own, also after the drain: a call in flight may have created the item with
    /// its lease. An item that has waited for a permit for half its lease is dropped: the lease expires, and a poll finds
    /// it.
    pub fn start(&self, item: W::Item) {
        let driver = self.clone();
        self.0.context.tasks.spawn(async move {
            let permit = driver.0.permits.clone().acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(driver.0.context.options.lease / 2, permit).await {
                driver.drive(item, DrivePermit(permit)).await;
            }
        });
    }

    /// Drives a claimed item until it has no pending effect, another writer has it, or its backoff is longer than
    /// [`Work::LONGEST_SLEEP`].
    pub async fn drive(&self, mut item: W::Item, mut permit: DrivePermit) {
        let Inner { work, context, .. } = &*self.0;
        loop {
            let id = W::id(&item);
            let wait = match self.attempts(item).await {
                Some(AttemptOutcome::RetryLater(wait)) => wait,
                Some(AttemptOutcome::Completed(item)) => {
                    self.release(permit);
                    return work.completed(item, context).await;
                }
                Some(AttemptOutcome::Advanced(_) | AttemptOutcome::Lost | AttemptOutcome::Crashed) | None => {
                    return self.release(permit);
                }
            };
            self.release(permit);
            if wait > W::LONGEST_SLEEP {
                return;
            }
            tokio::select! {
                () = context.shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            // Without a permit, with another owner, or without the database the item is left to the polls.
            let Some(again) = self.permit() else { return };
            let Ok(Some(claimed)) = work.claim(id, context).await else { return self.release(again) };
            (item, permit) = (claimed, again);
        }
    }

    /// Performs one effect after the other, as long as each has a result; `None`: one could not be recorded.
    async fn attempts(&self, mut item: W::Item) -> Option<AttemptOutcome<W::Item>> {
        loop {
            let id = W::id(&item);
            match self.attempt(item).await {
                Ok(AttemptOutcome::Advanced(next)) => item = next,
                Ok(outcome) => return Some(outcome),
                Err(error) => {
                    // At most one line a second: during a database outage every drive ends here.
                    static LOG_LIMIT: LogLimit = LogLimit::new();
                    if let Some(occurrences) = LOG_LIMIT.count(Instant::now()) {
                        tracing::warn!(target: "ordermesh", order_id = %id, error = ?error, occurrences, "a result could not be recorded; lease expiry will hand it over");
                    }
                    return None;
                }
            }
        }
    }

    /// Performs the pending effect of a claimed item once, and records the result.
    ///
    /// # Errors
    /// The result could not be recorded.
    pub async fn attempt(&self, item: W::Item) -> Result<AttemptOutcome<W::Item>, storage::Error> {
        self.0.work.attempt(item, &self.0.context).await
    }

    /// Claims an item, if it is due and not leased.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim(&self, id: OrderId) -> Result<Option<W::Item>, storage::Error> {
        self.0.work.claim(id, &self.0.context).await
    }

    /// Claims at most `limit` due items.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim_due(&self, limit: usize) -> Result<Vec<W::Item>, storage::Error> {
        self.0.work.claim_due(limit, &self.0.context).await
    }

    /// Drives an item like [`Driver::drive`], without permit and sleep: for tests that move the clock themselves.
    pub async fn run(&self, item: W::Item) {
        if let Some(AttemptOutcome::Completed(item)) = self.attempts(item).await {
            self.0.work.completed(item, &self.0.context).await;
        }
    }

    /// Claims due items and drives them sequentially; returns their number. For tests, which need to know when the work
    /// is complete; a service calls [`Driver::poll`].
    ///
    /// # Errors
    /// The database failed.
    pub async fn run_due(&self) -> Result<usize, storage::Error> {
        let items = self.claim_due(MAX_CLAIM).await?;
        let count = items.len();
        for item in items {
            self.run(item).await;
        }
        Ok(count)
    }

    /// Claims due items and makes one attempt at each, sequentially; returns the outcomes. For tests.
    ///
    /// # Errors
    /// The database failed.
    pub async fn attempt_due(&self) -> Result<Vec<AttemptOutcome<W::Item>>, storage::Error>
    where
        W::Item: Clone,
    {
        let mut outcomes = vec![];
        for item in self.claim_due(MAX_CLAIM).await? {
            let outcome = self.attempt(item).await?;
            if let AttemptOutcome::Completed(item) = &outcome {
                self.0.work.completed(item.clone(), &self.0.context).await;
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// Frees the leases that an earlier process with this instance's name left; returns their number. Called before
    /// anything is driven.
    ///
    /// # Errors
    /// The database failed.
    pub async fn recover(&self) -> Result<u64, storage::Error> {
        self.0.work.free_leases(&self.0.context).await
    }

    /// Polls for due items and drives them until shutdown: retries, items that found no permit, and those of crashed
    /// instances. Then waits for the drives in flight, for a bounded time, and frees the leases, so that other instances
    /// continue immediately.
    pub async fn poll(self) {
        let Inner { work, context, .. } = &*self.0;
        let Context { options, ids, shutdown, .. } = context;
        while !shutdown.is_cancelled() {
            if let Err(error) = self.drive_due().await {
                static LOG_LIMIT: LogLimit = LogLimit::new();
                if let Some(occurrences) = LOG_LIMIT.count(Instant::now()) {
                    tracing::warn!(target: "ordermesh", error = ?error, occurrences, "claiming due {} failed", W::ITEMS);
                }
            }
            // Half to one and a half times the interval: instances do not poll in step.
            let pause = options.poll_interval.mul_f64(0.5 + jitter(ids.as_ref()));
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.0.freed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        let all = u32::try_from(options.max_in_flight).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, self.0.permits.acquire_many(all)).await;
        self.0.is_drained.store(true, Ordering::Release);
        if let Err(error) = work.free_leases(context).await {
            tracing::warn!(target: "ordermesh", error = ?error, "leases of {} not freed; they will expire", W::ITEMS);
        }
    }

    /// Claims as many items as there are permits, and drives them, until there are no more.
    async fn drive_due(&self) -> Result<(), storage::Error> {
        loop {
            let permits: Vec<DrivePermit> = std::iter::from_fn(|| self.permit()).take(MAX_CLAIM).collect();
            let limit = permits.len();
            if limit == 0 {
                return Ok(());
            }
            let claimed = self.claim_due(limit).await?;
            let is_all = claimed.len() < limit;
            for (item, permit) in claimed.into_iter().zip(permits) {
                let driver = self.clone();
                self.0.context.tasks.spawn(async move { driver.drive(item, permit).await });
            }
            if is_all {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
