//! Performs the pending effect of a payment under its key, and records the result.
//!
//! A lease saves duplicate work; correctness does not depend on it but on keys and versions. Every writer of a payment
//! takes care of its next step, so a driver that loses its compare-and-set just stops. Clock, ids, store, peers and
//! fault points are arguments.
//!
//! `effect` calls the gateway and applies the state table; `poll` finds due payments.

use std::sync::Arc;
use std::time::Duration;

use kernel::backoff::jitter;
use kernel::{Clock, FaultPoint, FaultSite, Faults, IdSource, OrderId};
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

/// A backoff up to this is slept in the task; for a longer one the payment is rescheduled in the table.
const SOON: Duration = Duration::from_secs(2);
/// Attempts at confirming a result to the Order Service.
const CONFIRM_TRIES: u32 = 3;

/// The driver's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// The owner of its leases.
    pub instance: String,
    /// How long a lease lasts.
    pub lease: Duration,
    /// The average interval between polls for due payments.
    pub poll_interval: Duration,
    /// The backoff after the first failed attempt; doubles with each attempt, up to the cap.
    pub backoff: Duration,
    /// The maximum backoff between two attempts.
    pub backoff_cap: Duration,
    /// How long a payment may be in doubt.
    pub doubt_limit: Duration,
    /// The maximum number of payments driven concurrently.
    pub max_drives: usize,
}

/// What a driver is made of: every dependency is an argument.
pub struct Parts {
    /// The payment tables.
    pub store: Store,
    /// The payment gateway.
    pub gateway: Arc<dyn Gateway>,
    /// Wakes the Order Service after late results.
    pub confirmations: Arc<dyn Confirmations>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// The source of ids and of the jitter.
    pub ids: Arc<dyn IdSource>,
    /// The sink of events.
    pub events: Arc<dyn EventSink>,
    /// The calls that wait for results.
    pub waiters: Waiters,
    /// The injected faults.
    pub faults: Arc<dyn Faults>,
    /// Tracks the tasks to finish before the service stops.
    pub tasks: TaskTracker,
    /// Shutdown requested: claim nothing more.
    pub shutdown: CancellationToken,
    /// The settings.
    pub options: Options,
}

/// The result of one attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// It has no pending effect any more.
    Settled(Payment),
    /// It has another pending effect, due immediately; the lease is kept.
    GoesOn(Payment),
    /// No definite result: the lease is freed, and it is due again after the backoff.
    Later(Payment, Duration),
    /// Another writer has changed the payment, and takes care of its next step.
    Lost,
    /// An injected fault stopped the driver.
    Stopped,
}

struct Inner {
    parts: Parts,
    permits: Arc<Semaphore>,
    /// Signals that a permit became free when none was: poll immediately.
    work: Notify,
}

/// Drives payments. Clones share one driver.
#[derive(Clone)]
pub struct Driver(Arc<Inner>);

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("options", &self.0.parts.options).finish_non_exhaustive()
    }
}

/// The permit to drive one payment.
#[derive(Debug)]
pub struct Permit(#[expect(dead_code, reason = "held, and released when it is dropped")] OwnedSemaphorePermit);

impl Driver {
    /// A driver made of `parts`.
    pub fn new(parts: Parts) -> Self {
        let permits = Arc::new(Semaphore::new(parts.options.max_drives));
        Self(Arc::new(Inner { parts, permits, work: Notify::new() }))
    }

    /// A permit to drive a payment; `None` at the limit, or after the drain. A payment without one stays due in the
    /// table.
    pub fn permit(&self) -> Option<Permit> {
        self.0.permits.clone().try_acquire_owned().ok().map(Permit)
    }

    /// A lease of this instance.
    pub fn lease(&self) -> Lease {
        let options = &self.0.parts.options;
        Lease { owner: options.instance.clone(), length: options.lease }
    }

    /// The number of payments being driven.
    pub fn in_flight(&self) -> usize {
        self.0.parts.options.max_drives.saturating_sub(self.0.permits.available_permits())
    }

    /// Drives a claimed payment until it has no pending effect, is lost, or has to wait for longer; then announces the
    /// result.
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
                    // Whatever the gateway did was done under the payment's key: the next owner of the lease finds it.
                    static SELDOM: Seldom = Seldom::new();
                    if let Some(since_last_line) = SELDOM.count(Instant::now()) {
                        tracing::warn!(target: "ordermesh", %order_id, error = ?error, since_last_line, "a payment attempt could not be recorded; lease expiry will hand it over");
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
        let site = FaultSite { instance, point, state: payment.state.name(), order: payment.order_id };
        self.0.parts.faults.at(site).await.is_break()
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
        // Another instance may have claimed it, or the database may be unavailable: then this one stops.
        let claimed = self.0.parts.store.claim(order_id, self.lease()).await.ok().flatten();
        claimed.map(|payment| (payment, permit))
    }

    /// One attempt: performs the pending effect of a claimed payment, and records the result.
    ///
    /// # Errors
    /// The result could not be recorded.
    pub async fn step(&self, before: Payment) -> Result<Step, storage::Error> {
        let parts = &self.0.parts;
        let Some(effect) = before.owes() else { return Ok(Step::Settled(before)) };
        let operation = self.operation(effect.span_name(), &before);
        if self.stops(FaultPoint::BeforeEffect, &before).await {
            operation.discard();
            return Ok(Step::Stopped);
        }
        let began = parts.clock.now();
        let seen = self.perform(effect, &before).instrument(operation.span().clone()).await;
        if self.stops(FaultPoint::AfterEffect, &before).await {
            operation.discard();
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
            operation.discard();
            operation.set_on_span("payment.lost", true);
            return Ok(Step::Lost);
        };
        if self.stops(FaultPoint::AfterRecord, &recorded).await {
            return Ok(Step::Stopped);
        }
        Ok(step(recorded))
    }

    /// The operation of one attempt: a child of the call that requested the payment, even after that call has ended.
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

    /// Notifies the calls that wait for a payment's result; if there are none, the Order Service: a wake-up, best
    /// effort.
    pub async fn announce(&self, payment: &Payment) {
        let parts = &self.0.parts;
        if parts.waiters.settled(payment) {
            return;
        }
        let parent = payment.parent().map_or(Parent::Root, Parent::Remote);
        let operation = Operation::open(Kind::Internal, "confirm_payment", parent, None, None);
        operation.set_order(payment.order_id.as_uuid());
        let confirmation = async {
            for attempt in 1..=CONFIRM_TRIES {
                match parts.confirmations.confirm(payment.order_id).await {
                    Ok(()) => return Outcome::Success,
                    Err(error) if attempt == CONFIRM_TRIES || parts.shutdown.is_cancelled() => {
                        // The order's driver retries on its own: a failure here only delays it.
                        static SELDOM: Seldom = Seldom::new();
                        if let Some(since_last_line) = SELDOM.count(Instant::now()) {
                            tracing::info!(target: "ordermesh", order_id = %payment.order_id, error = %error, since_last_line, "payment confirmation not delivered");
                        }
                        operation.mark_error(error.message);
                        break;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(100) * attempt).await,
                }
            }
            Outcome::Success
        };
        let outcome = confirmation.instrument(operation.span().clone()).await;
        operation.end(outcome);
    }
}
