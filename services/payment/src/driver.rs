//! Performs the effect that a payment owes under its key, and records what came of it.
//!
//! A lease saves work; it never makes the result right: keys and versions do. Whoever changes a payment sees to it that it
//! goes on, so whoever loses its compare-and-set just stops. Clock, ids, store, peers and fault points are arguments.
//!
//! `effect` asks the gateway and decides by the table; `poll` finds what is due.

use std::sync::Arc;
use std::time::Duration;

use kernel::backoff::jitter;
use kernel::{Clock, FaultPoint, Faults, IdSource, OrderId, Place};
use mesh::Seldom;
use telemetry::{EventSink, Kind, Operation, Outcome, Parent};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::lifecycle::Observation;
use crate::payment::{EVENT_TYPE, Payment, event_of};
use crate::ports::{Confirmations, Gateway};
use crate::store::{Lease, Store};
use crate::waiters::Waiters;

mod effect;
mod poll;

/// A wait up to this is waited for where the try was made; a longer one lies in the table.
const SOON: Duration = Duration::from_secs(2);
/// How often a late result is told.
const CONFIRM_TRIES: u32 = 3;

/// How a driver behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The owner of its leases.
    pub instance: String,
    /// How long a payment is left to it.
    pub lease: Duration,
    /// How often to look for payments that are due, on average.
    pub poll_interval: Duration,
    /// Wait after the first try that came to nothing; it doubles with each, up to the cap.
    pub backoff: Duration,
    /// Longest wait between two tries.
    pub backoff_cap: Duration,
    /// How long a payment may be in doubt.
    pub doubt_limit: Duration,
    /// Most payments that are driven at a time.
    pub max_drives: usize,
}

/// What a driver is made of.
pub struct Parts {
    /// The payments.
    pub store: Store,
    /// The payment gateway.
    pub gateway: Arc<dyn Gateway>,
    /// Who is told of late results.
    pub confirmations: Arc<dyn Confirmations>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Ids, and the randomness of waits.
    pub ids: Arc<dyn IdSource>,
    /// Where events go.
    pub events: Arc<dyn EventSink>,
    /// Who waits for results.
    pub waiters: Waiters,
    /// Faults on purpose.
    pub faults: Arc<dyn Faults>,
    /// The tasks that are waited for when the service stops.
    pub tasks: TaskTracker,
    /// Told to stop: claim nothing more.
    pub shutdown: CancellationToken,
    /// How it behaves.
    pub options: Options,
}

/// What came of one try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// It owes nothing any more.
    Settled(Payment),
    /// It owes something else, at once; the lease is kept.
    GoesOn(Payment),
    /// It came to nothing; the lease is given back, and it is due after a while.
    Later(Payment, Duration),
    /// Somebody else has changed the payment, and sees to it.
    Lost,
    /// A fault on purpose stopped the driver.
    Stopped,
}

struct Inner {
    parts: Parts,
    permits: Arc<Semaphore>,
    /// Work was left lying for want of a permit, or one was given back: look at once.
    work: Notify,
}

/// Drives payments. Clones are the same driver.
#[derive(Clone)]
pub struct Driver(Arc<Inner>);

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("options", &self.0.parts.options).finish_non_exhaustive()
    }
}

/// The right to drive one payment.
#[derive(Debug)]
pub struct Permit(#[expect(dead_code, reason = "held, and given back when it is dropped")] OwnedSemaphorePermit);

impl Driver {
    /// Of its parts.
    pub fn new(parts: Parts) -> Self {
        let permits = Arc::new(Semaphore::new(parts.options.max_drives));
        Self(Arc::new(Inner { parts, permits, work: Notify::new() }))
    }

    /// The right to drive a payment, unless as many are driven as may be, or the service stops. Without it a payment lies
    /// due in the table.
    pub fn permit(&self) -> Option<Permit> {
        self.0.permits.clone().try_acquire_owned().ok().map(Permit)
    }

    /// The lease that this instance takes.
    pub fn lease(&self) -> Lease {
        let options = &self.0.parts.options;
        Lease { owner: options.instance.clone(), length: options.lease }
    }

    /// How many payments are driven now.
    pub fn in_flight(&self) -> usize {
        self.0.parts.options.max_drives.saturating_sub(self.0.permits.available_permits())
    }

    /// Drives a claimed payment until it settles, is lost, or has to wait for long; then tells who has to know.
    pub async fn drive(&self, payment: Payment, permit: Permit) {
        let (mut payment, mut permit) = (payment, permit);
        loop {
            let order_id = payment.order_id;
            match self.step(payment).await {
                Ok(Step::Settled(settled)) => {
                    self.give_back(permit);
                    return self.announce(&settled).await;
                }
                Ok(Step::GoesOn(next)) => payment = next,
                Ok(Step::Later(_, wait)) => {
                    self.give_back(permit);
                    let Some((claimed, again)) = self.again_after(order_id, wait).await else { return };
                    (payment, permit) = (claimed, again);
                }
                Ok(Step::Lost | Step::Stopped) => return self.give_back(permit),
                Err(error) => {
                    self.give_back(permit);
                    // Whatever the gateway did is done under its key: whoever takes the lease next finds it.
                    static SELDOM: Seldom = Seldom::new();
                    if let Some(since_last_line) = SELDOM.count(Instant::now()) {
                        tracing::warn!(target: "ordermesh", %order_id, error = ?error, since_last_line, "a payment's try could not be recorded");
                    }
                    return;
                }
            }
        }
    }

    fn give_back(&self, permit: Permit) {
        let was_full = self.0.permits.available_permits() == 0;
        drop(permit);
        if was_full {
            self.0.work.notify_one();
        }
    }

    fn jitter(&self) -> f64 {
        jitter(self.0.parts.ids.as_ref())
    }

    async fn stops(&self, point: FaultPoint, payment: &Payment) -> bool {
        let instance = &self.0.parts.options.instance;
        let place = Place { instance, point, state: payment.state.name(), order: payment.order_id };
        self.0.parts.faults.at(place).await.is_break()
    }

    async fn again_after(&self, order_id: OrderId, wait: Duration) -> Option<(Payment, Permit)> {
        if wait > SOON {
            return None;
        }
        tokio::select! {
            () = self.0.parts.shutdown.cancelled() => return None,
            () = tokio::time::sleep(wait) => {}
        }
        let permit = self.permit()?;
        // Somebody else may have been faster, or the database away: then it is not ours.
        let claimed = self.0.parts.store.claim(order_id, self.lease()).await.ok().flatten();
        claimed.map(|payment| (payment, permit))
    }

    /// One try: performs what a claimed payment owes, and records what came of it.
    ///
    /// # Errors
    /// It could not be recorded.
    pub async fn step(&self, before: Payment) -> Result<Step, storage::Error> {
        let parts = &self.0.parts;
        let Some(effect) = before.owes() else { return Ok(Step::Settled(before)) };
        let operation = self.operation(effect.span_name(), &before);
        if self.stops(FaultPoint::BeforeEffect, &before).await {
            operation.dismiss();
            return Ok(Step::Stopped);
        }
        let began = parts.clock.now();
        let seen = self.perform(effect, &before).instrument(operation.span().clone()).await;
        if self.stops(FaultPoint::AfterEffect, &before).await {
            operation.dismiss();
            return Ok(Step::Stopped);
        }
        let (next, schedule, attempt) = self.decide(&before, effect, &seen, began, &operation);
        let step = |recorded: Payment| match (&schedule.lease, schedule.due_in) {
            (_, None) => Step::Settled(recorded),
            (Some(_), Some(_)) => Step::GoesOn(recorded),
            (None, Some(wait)) => Step::Later(recorded, wait),
        };
        let event = event_of(next.state, next.decline_code, &seen.outcome).map(|(name, outcome)| {
            operation.set("operation", name);
            (operation.clone(), outcome)
        });
        if seen.observation == Observation::Unknown {
            operation.mark_error(seen.outcome.clone());
        }
        operation.set_on_span("payment.state", next.state.name());
        operation.end(event.as_ref().map_or(Outcome::Success, |(_, outcome)| outcome.clone()));
        let recorded = parts.store.record(&before, next, attempt, schedule.clone(), event).await?;
        let Some(recorded) = recorded else {
            operation.dismiss();
            operation.set_on_span("payment.lost", true);
            return Ok(Step::Lost);
        };
        if self.stops(FaultPoint::AfterRecord, &recorded).await {
            return Ok(Step::Stopped);
        }
        Ok(step(recorded))
    }

    /// The operation of one try: a child of the call that asked for it, whatever has happened to that call since.
    pub(crate) fn operation(&self, name: &'static str, payment: &Payment) -> Operation {
        let parent = payment.parent().map_or(Parent::Root, Parent::Remote);
        let events = Some(self.0.parts.events.clone());
        let operation = Operation::open(Kind::Internal, name, parent, Some(EVENT_TYPE), events);
        operation.set_order(payment.order_id.as_uuid());
        if let Some(user_id) = payment.user_id {
            operation.set_user(user_id.as_uuid());
        }
        operation
    }

    /// Tells those who wait for a settled payment; when nobody does, the Order Service: a wake-up, best effort.
    pub async fn announce(&self, payment: &Payment) {
        let parts = &self.0.parts;
        if parts.waiters.settled(payment) {
            return;
        }
        let parent = payment.parent().map_or(Parent::Root, Parent::Remote);
        let operation = Operation::open(Kind::Internal, "confirm_payment", parent, None, None);
        operation.set_order(payment.order_id.as_uuid());
        let told = async {
            for attempt in 1..=CONFIRM_TRIES {
                match parts.confirmations.confirm(payment.order_id).await {
                    Ok(()) => return Outcome::Success,
                    Err(error) if attempt == CONFIRM_TRIES || parts.shutdown.is_cancelled() => {
                        // The order asks again by itself: this only makes it later.
                        static SELDOM: Seldom = Seldom::new();
                        if let Some(since_last_line) = SELDOM.count(Instant::now()) {
                            tracing::info!(target: "ordermesh", order_id = %payment.order_id, error = %error, since_last_line, "nobody was told");
                        }
                        operation.mark_error(error.message);
                        break;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(100) * attempt).await,
                }
            }
            Outcome::Success
        };
        let outcome = told.instrument(operation.span().clone()).await;
        operation.end(outcome);
    }
}
