//! Performs the pending effect of a payment under its key, and records the result. [`Driver`] decides when; see the crate
//! `driver`. Every writer of a payment takes care of its next step, so one that loses its compare-and-set just stops.
//!
//! `effect` calls the gateway and applies the state table.

use std::sync::Arc;
use std::time::Duration;

use driver::{Outcome as Attempted, Work};
use futures_util::future::BoxFuture;
use kernel::backoff::jitter;
use kernel::{Clock, FaultPoint, Faults, IdSource, OrderId};
use telemetry::{EventSink, Kind, LogLimit, Operation, Outcome, Parent};
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

/// A backoff up to this is slept in the task, for a call may be waiting for the result.
const LONGEST_SLEEP: Duration = Duration::from_secs(2);
/// The number of payments that [`Driver::tick`] claims.
const TICK_CLAIM: u32 = 64;
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

/// Drives payments. Clones share one driver.
#[derive(Clone, Debug)]
pub struct Driver(driver::Driver<Payments>);

/// The permit to drive one payment.
pub type Permit = driver::Permit;

/// What payments need to be driven.
pub(crate) struct Payments {
    parts: Parts,
}

impl Driver {
    /// A driver made of `parts`.
    pub fn new(parts: Parts) -> Self {
        let options = driver::Options {
            lease: parts.options.lease,
            poll_interval: parts.options.poll_interval,
            max_drives: parts.options.max_drives,
            longest_sleep: LONGEST_SLEEP,
        };
        let (ids, tasks, shutdown) = (parts.ids.clone(), parts.tasks.clone(), parts.shutdown.clone());
        Self(driver::Driver::new(driver::Parts { work: Payments { parts }, options, ids, tasks, shutdown }))
    }

    /// A permit to drive a payment; `None` at the limit, and after the drain. A payment without one stays due in the
    /// table.
    pub fn permit(&self) -> Option<Permit> {
        self.0.permit()
    }

    /// A lease of this instance.
    pub fn lease(&self) -> Lease {
        self.0.work().lease()
    }

    /// The number of payments being driven.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    /// Drives a claimed payment until it has no pending effect, is lost, or has to wait for longer; then announces the
    /// result.
    pub async fn drive(&self, payment: Payment, permit: Permit) {
        self.0.drive(payment, permit).await;
    }

    /// One attempt: performs the pending effect of a claimed payment, and records the result.
    ///
    /// # Errors
    /// The result could not be recorded.
    pub async fn step(&self, before: Payment) -> Result<Step, storage::Error> {
        self.0.work().step(before).await
    }

    /// Claims due payments and makes one attempt at each, sequentially: for tests that move the clock themselves.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tick(&self) -> Result<Vec<Step>, storage::Error> {
        let (work, mut steps) = (self.0.work(), vec![]);
        for payment in work.claim_due(TICK_CLAIM).await? {
            let step = work.step(payment).await?;
            if let Step::Settled(settled) = &step {
                work.announce(settled).await;
            }
            steps.push(step);
        }
        Ok(steps)
    }

    /// Frees the leases of an earlier, crashed process of this name. To be called before anything is driven.
    ///
    /// # Errors
    /// The database failed.
    pub async fn recover(&self) -> Result<u64, storage::Error> {
        self.0.recover().await
    }

    /// Claims due payments and drives them until shutdown; then waits for the drives in flight and frees the leases.
    pub async fn poll(self) {
        self.0.poll().await;
    }

    /// Notifies the calls that wait for a payment's result; if there are none, the Order Service: a wake-up, best
    /// effort.
    pub async fn announce(&self, payment: &Payment) {
        self.0.work().announce(payment).await;
    }
}

impl Work for Payments {
    type Item = Payment;

    const ITEMS: &'static str = "payments";

    fn id(payment: &Payment) -> OrderId {
        payment.order_id
    }

    fn claim_due(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Payment>, storage::Error>> {
        Box::pin(Self::claim_due(self, u32::try_from(limit).unwrap_or(u32::MAX)))
    }

    fn claim(&self, id: OrderId) -> BoxFuture<'_, Result<Option<Payment>, storage::Error>> {
        Box::pin(self.parts.store.claim(id, self.lease()))
    }

    fn free_leases(&self) -> BoxFuture<'_, Result<u64, storage::Error>> {
        Box::pin(self.parts.store.free(&self.parts.options.instance))
    }

    fn attempt(&self, payment: Payment) -> BoxFuture<'_, Result<Attempted<Payment>, storage::Error>> {
        Box::pin(async move {
            Ok(match self.step(payment).await? {
                Step::Settled(payment) => Attempted::Completed(payment),
                Step::GoesOn(payment) => Attempted::Advanced(payment),
                Step::Later(_, wait) => Attempted::RetryLater(wait),
                Step::Lost => Attempted::Lost,
                Step::Stopped => Attempted::Crashed,
            })
        })
    }

    fn completed(&self, payment: Payment) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.announce(&payment).await })
    }
}

impl Payments {
    fn lease(&self) -> Lease {
        let Options { instance, lease, .. } = &self.parts.options;
        Lease { owner: instance.clone(), length: *lease }
    }

    /// The maximum backoff is the longer one: a payment in doubt waits until its doubt limit at most.
    async fn claim_due(&self, count: u32) -> Result<Vec<Payment>, storage::Error> {
        let Options { backoff_cap, doubt_limit, .. } = self.parts.options;
        self.parts.store.claim_due(count, self.lease(), backoff_cap.max(doubt_limit)).await
    }

    fn jitter(&self) -> f64 {
        jitter(self.parts.ids.as_ref())
    }

    async fn stops(&self, point: FaultPoint, payment: &Payment) -> bool {
        let Parts { faults, options, .. } = &self.parts;
        driver::crashes(faults.as_ref(), &options.instance, point, payment.state.name(), payment.order_id).await
    }

    async fn step(&self, before: Payment) -> Result<Step, storage::Error> {
        let parts = &self.parts;
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
        let events = Some(self.parts.events.clone());
        let operation = Operation::open(Kind::Internal, name, parent, Some(EVENT_TYPE), events);
        operation.set_order(payment.order_id.as_uuid());
        if let Some(user_id) = payment.user_id {
            operation.set_user(user_id.as_uuid());
        }
        operation
    }

    async fn announce(&self, payment: &Payment) {
        let parts = &self.parts;
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
                        static LOG_LIMIT: LogLimit = LogLimit::new();
                        if let Some(since_last_line) = LOG_LIMIT.count(Instant::now()) {
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
