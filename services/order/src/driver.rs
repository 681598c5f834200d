//! The driver: performs the pending effect of an order's state, under a key derived from the order and the effect, then
//! records the result by compare-and-set, together with the event and the history.
//!
//! It may crash at any point: another instance takes the order over when the lease expires, and repeats the effect
//! under the same key. An effect without a definite result is retried, with backoff that survives crashes because it is
//! a column.

use std::sync::Arc;
use std::time::Duration;

use kernel::backoff::{full_jitter, jitter};
use kernel::calendar::delivery_date;
use kernel::{Clock, FaultPoint, FaultSite, Faults, FulfillmentId, IdSource, OrderId};
use mesh::Seldom;
use opentelemetry::metrics::Histogram;
use opentelemetry::{KeyValue, global};
use telemetry::{ErrorClass, EventError, EventSink, Kind, Operation, Outcome, Parent, TraceParent};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::error::Error;
use crate::lifecycle::{Effect, Input, Table, is_final, owes};
use crate::order::{Fulfillment, Order, PaymentFailure};
use crate::ports::{PaymentAnswer, Payments};
use crate::store::{Advance, Lease, NoTransition, Steps, Store};
use crate::watch::Watchers;

/// The driver's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// The instance's name: the owner of its leases.
    pub instance: String,
    /// How long a lease lasts.
    pub lease: Duration,
    /// The average interval between polls for due orders.
    pub poll_interval: Duration,
    /// The backoff after the first failed attempt.
    pub backoff: Duration,
    /// The maximum backoff.
    pub backoff_cap: Duration,
    /// The maximum number of orders driven concurrently.
    pub max_drives: usize,
}

/// What the driver is made of: every dependency is an argument.
pub struct Parts {
    /// The order tables.
    pub store: Store,
    /// The Payment Service.
    pub payments: Arc<dyn Payments>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// The source of ids and randomness.
    pub ids: Arc<dyn IdSource>,
    /// The sink of its operations' events.
    pub events: Arc<dyn EventSink>,
    /// The subscriptions to notify of transitions.
    pub watchers: Watchers,
    /// The injected crashes.
    pub faults: Arc<dyn Faults>,
    /// Tracks its tasks.
    pub tasks: TaskTracker,
    /// Cancelled when no new work may be started.
    pub shutdown: CancellationToken,
    /// The state machine: [`crate::lifecycle::next`].
    pub table: Table,
    /// The settings.
    pub options: Options,
}

struct Inner {
    parts: Parts,
    permits: Arc<Semaphore>,
    durations: Histogram<f64>,
}

/// Drives orders. Clones share one driver.
#[derive(Clone)]
pub struct Driver(Arc<Inner>);

/// The result of an attempt at an effect.
enum Tried {
    /// It is recorded, or another instance recorded a transition first.
    Recorded(Advance),
    /// No definite result: it is retried.
    PutOff(String),
    /// An injected crash.
    Died,
}

impl Tried {
    /// The table forbids what the effect led to: a contradiction between the table and the driver.
    fn without(missing: NoTransition) -> Self {
        tracing::error!(target: "ordermesh", "{missing}");
        Self::PutOff(missing.to_string())
    }
}

impl Driver {
    /// A driver made of `parts`.
    pub fn new(parts: Parts) -> Self {
        let permits = Arc::new(Semaphore::new(parts.options.max_drives));
        let durations = global::meter("ordermesh")
            .f64_histogram("ordermesh.order.duration")
            .with_unit("s")
            .with_description("From an order's creation to its final state, by that state")
            .build();
        Self(Arc::new(Inner { parts, permits, durations }))
    }

    /// The number of orders being driven.
    pub fn in_flight(&self) -> usize {
        self.0.parts.options.max_drives.saturating_sub(self.0.permits.available_permits())
    }

    fn jitter(&self) -> f64 {
        jitter(self.0.parts.ids.as_ref())
    }

    pub(crate) fn table(&self) -> Table {
        self.0.parts.table
    }

    fn steps(&self, order: &Order) -> Steps {
        Steps::of(self.table(), order)
    }

    /// A lease of this instance.
    pub(crate) fn lease(&self) -> Lease {
        let options = &self.0.parts.options;
        Lease { owner: options.instance.clone(), length: options.lease }
    }

    /// Drives an order whose lease this instance holds.
    pub(crate) fn start(&self, order: Order) {
        self.spawn(order, None);
    }

    /// The same; the next operations are linked to the trace that requested the transition.
    pub(crate) fn start_linked(&self, order: Order, link: TraceParent) {
        self.spawn(order, Some(link));
    }

    fn spawn(&self, order: Order, link: Option<TraceParent>) {
        let parts = &self.0.parts;
        parts.watchers.notify(order.id, order.version);
        let driver = self.clone();
        parts.tasks.spawn(async move {
            let waited_too_long = tokio::time::sleep(driver.0.parts.options.lease / 2);
            // An order that has waited for a permit for half its lease is dropped; another instance may claim it.
            tokio::select! {
                biased;
                permit = driver.0.permits.acquire() => {
                    let Ok(_permit) = permit else { return };
                    driver.drive(order, link).await;
                }
                () = waited_too_long => {}
            }
        });
    }

    /// Runs work to completion even if the caller's future is dropped: a committed order is always started.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.0.parts.tasks.spawn(work.in_current_span()).await;
        done.unwrap_or(Err(Error::Storage(storage::Error::Panicked)))
    }

    /// Claims due orders that are not leased: the lease becomes this instance's.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim_due(&self, most: u64) -> Result<Vec<Order>, storage::Error> {
        self.0.parts.store.claim_due(most, self.lease(), self.0.parts.options.backoff_cap).await
    }

    /// Claims due orders and drives them sequentially; returns their number. For tests, which need to know when the
    /// work is complete; the service calls [`Driver::poll`].
    ///
    /// # Errors
    /// The database failed.
    pub async fn drive_due(&self) -> Result<usize, storage::Error> {
        let orders = self.claim_due(64).await?;
        let count = orders.len();
        for order in orders {
            self.drive(order, None).await;
        }
        Ok(count)
    }

    /// Called when a result may be available: makes the order due now, and drives it if it is not leased.
    ///
    /// # Errors
    /// The database failed.
    pub async fn wake(&self, id: OrderId) -> Result<(), Error> {
        self.0.parts.store.make_due(id).await?;
        if let Some(order) = self.0.parts.store.claim_one(id, self.lease()).await? {
            self.start(order);
        }
        Ok(())
    }

    /// Frees the leases left by an earlier process with this instance's name. Called before anything is driven.
    ///
    /// # Errors
    /// The database failed.
    pub async fn recover(&self) -> Result<(), storage::Error> {
        self.0.parts.store.free_leases(&self.0.parts.options.instance).await
    }

    /// Polls for due orders and drives them: retries, and the orders of crashed instances. On shutdown it frees the
    /// leases.
    pub async fn poll(self) {
        let Parts { store, options, shutdown, .. } = &self.0.parts;
        loop {
            let pause = options.poll_interval.mul_f64(0.5 + self.jitter());
            if tokio::time::timeout(pause, shutdown.cancelled()).await.is_ok() {
                break;
            }
            let free = self.0.permits.available_permits().min(64);
            if free == 0 {
                continue;
            }
            match self.claim_due(u64::try_from(free).unwrap_or(1)).await {
                Ok(orders) => orders.into_iter().for_each(|order| self.start(order)),
                Err(error) => {
                    static SELDOM: Seldom = Seldom::new();
                    if let Some(since_last_line) = SELDOM.count(Instant::now()) {
                        tracing::warn!(target: "ordermesh", error = ?error, since_last_line, "claiming due orders failed");
                    }
                }
            }
        }
        let all = u32::try_from(options.max_drives).unwrap_or(u32::MAX);
        // Drives in flight finish first, for 5 s at most; the leases are freed either way.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.0.permits.acquire_many(all)).await;
        if let Err(error) = store.free_leases(&options.instance).await {
            tracing::info!(target: "ordermesh", error = ?error, "leases not freed; they will expire");
        }
    }

    /// Drives an order until it has no pending effect, another instance holds the lease, or an attempt has no definite
    /// result. Called directly by tests; otherwise each order has a task of its own.
    pub async fn drive(&self, mut order: Order, link: Option<TraceParent>) {
        let Parts { store, watchers, options, .. } = &self.0.parts;
        while let Some(effect) = owes(order.state) {
            match self.attempt(&order, effect, link).await {
                Ok(Tried::Recorded(Advance::Done(after))) => {
                    watchers.notify(after.id, after.version);
                    if is_final(after.state) {
                        let took = self.0.parts.clock.now().since(after.create_time).as_secs_f64();
                        self.0.durations.record(took, &[KeyValue::new("state", after.state.name())]);
                    }
                    if self.dies(FaultPoint::AfterRecord, &after).await {
                        return;
                    }
                    order = *after;
                }
                // Another instance or request has moved it. If that one holds no lease any more, this instance claims
                // the order.
                Ok(Tried::Recorded(Advance::Lost | Advance::StockLost)) => {
                    match store.claim_one(order.id, self.lease()).await {
                        Ok(Some(claimed)) => order = claimed,
                        Ok(None) | Err(_) => return,
                    }
                }
                Ok(Tried::PutOff(why)) => {
                    let attempt = u32::try_from(order.attempt).unwrap_or(0).saturating_add(1);
                    let wait = full_jitter(attempt, options.backoff, options.backoff_cap, self.jitter());
                    tracing::debug!(target: "ordermesh", order_id = %order.id, why, "effect has no definite result; rescheduled with backoff");
                    if let Err(error) = store.put_off(&order, &options.instance, wait, &why).await {
                        left_to_its_lease(&order, &error);
                    }
                    return;
                }
                Ok(Tried::Died) => return,
                Err(error) => return left_to_its_lease(&order, &error),
            }
        }
    }

    async fn dies(&self, point: FaultPoint, order: &Order) -> bool {
        let instance = &self.0.parts.options.instance;
        let site = FaultSite { instance, point, state: order.state.name(), order: order.id };
        self.0.parts.faults.at(site).await.is_break()
    }

    async fn attempt(&self, order: &Order, effect: Effect, link: Option<TraceParent>) -> Result<Tried, storage::Error> {
        if self.dies(FaultPoint::BeforeEffect, order).await {
            return Ok(Tried::Died);
        }
        match effect {
            Effect::ProcessPayment => self.process_payment(order).await,
            Effect::AllocateInventory | Effect::StartFulfillment => self.fulfill(order, self.steps(order)).await,
            Effect::CancelPayment => self.cancel_payment(order, link).await,
        }
    }

    async fn process_payment(&self, order: &Order) -> Result<Tried, storage::Error> {
        // Without an event of this service: the Payment Service writes the payment's events.
        let operation = Operation::open(Kind::Internal, "process_payment", Parent::Remote(order.span_ref), None, None);
        operation.set_order(order.id.as_uuid());
        let answer = self.0.parts.payments.process(order).instrument(operation.span().clone()).await;
        if self.dies(FaultPoint::AfterEffect, order).await {
            return Ok(Tried::Died);
        }
        let mut steps = self.steps(order);
        match answer {
            PaymentAnswer::Done => match steps.take(Input::Done, "payment succeeded", &operation) {
                Ok(()) => self.fulfill(order, steps).await,
                Err(missing) => Ok(Tried::without(missing)),
            },
            PaymentAnswer::Refused(failure) => {
                let reason = format!("payment refused: {}", failure.message);
                match steps.take(Input::Refused, reason, &operation) {
                    Ok(()) => Ok(Tried::Recorded(self.0.parts.store.advance(order, steps, Some(failure), None).await?)),
                    Err(missing) => Ok(Tried::without(missing)),
                }
            }
            PaymentAnswer::Undecided(why) => Ok(Tried::PutOff(why)),
        }
    }

    /// Allocation and the start of fulfilment are local: they are recorded in the same transaction, each with its own
    /// history row and event. `paid` are the transitions that lead there.
    async fn fulfill(&self, order: &Order, paid: Steps) -> Result<Tried, storage::Error> {
        let Parts { store, clock, ids, .. } = &self.0.parts;
        let allocate =
            (owes(order.state) != Some(Effect::StartFulfillment)).then(|| self.step(order, Effect::AllocateInventory));
        let start = self.step(order, Effect::StartFulfillment);
        let discard = || {
            start.discard();
            allocate.as_ref().inspect(|allocate| allocate.discard());
        };
        let Some(date) = delivery_date(clock.now(), order.transit.business_days, order.transit.cutoff_hour) else {
            discard();
            return Ok(Tried::PutOff("the calendar has no delivery date".into()));
        };
        let fulfillment = Fulfillment { id: FulfillmentId::from_uuid(ids.uuid()), delivery_date: date.to_string() };
        start.set("fulfillment.id", fulfillment.id.to_string());
        start.set("delivery.date", fulfillment.delivery_date.clone());
        let mut steps = paid.clone();
        let allocated = allocate.as_ref().map_or(Ok(()), |allocate| {
            steps.take_with_event(Input::Done, "stock allocated", allocate, Outcome::Success)
        });
        let started =
            allocated.and_then(|()| steps.take_with_event(Input::Done, "fulfilment started", &start, Outcome::Success));
        if let Err(missing) = started {
            discard();
            return Ok(Tried::without(missing));
        }
        let advance = store.advance(order, steps, None, Some(fulfillment)).await?;
        match (&advance, &allocate) {
            (Advance::StockLost, Some(allocate)) => {
                start.discard();
                self.refuse_allocation(order, paid, allocate).await
            }
            (Advance::Done(_) | Advance::Lost | Advance::StockLost, _) => {
                if advance == Advance::Lost {
                    discard();
                }
                Ok(Tried::Recorded(advance))
            }
        }
    }

    /// Stock that was written off cannot be allocated: the order is cancelled and the payment refunded.
    async fn refuse_allocation(
        &self,
        order: &Order,
        mut steps: Steps,
        allocate: &Operation,
    ) -> Result<Tried, storage::Error> {
        let message = "stock of the order was written off before it was allocated";
        let error = EventError::new(ErrorClass::AllocationError, "STOCK_LOST", message);
        if let Err(missing) = steps.take_with_event(Input::Refused, message, allocate, Outcome::Failed(error)) {
            allocate.discard();
            return Ok(Tried::without(missing));
        }
        let failure = PaymentFailure {
            reason: "STOCK_LOST".into(),
            decline_code: String::new(),
            advice: "RETRY_LATER".into(),
            message: "the goods are no longer in stock; the payment is given back".into(),
        };
        let advance = self.0.parts.store.advance(order, steps, Some(failure), None).await?;
        if advance == Advance::Lost {
            allocate.discard();
        }
        Ok(Tried::Recorded(advance))
    }

    async fn cancel_payment(&self, order: &Order, link: Option<TraceParent>) -> Result<Tried, storage::Error> {
        let operation = self.step(order, Effect::CancelPayment);
        // A later attempt, perhaps on another instance, reads from the history which trace requested the cancellation.
        let asked = match link {
            Some(link) => Some(link),
            None => self.0.parts.store.turned_to(order.id, order.state).await?,
        };
        if let Some(asked) = asked.filter(|asked| asked.trace_id() != order.span_ref.trace_id()) {
            operation.link(asked);
        }
        let answer = self.0.parts.payments.cancel(order).instrument(operation.span().clone()).await;
        if self.dies(FaultPoint::AfterEffect, order).await {
            operation.discard();
            return Ok(Tried::Died);
        }
        let mut steps = self.steps(order);
        let (taken, failure) = match answer {
            PaymentAnswer::Done => {
                let outcome = Outcome::Success;
                (steps.take_with_event(Input::Done, "nothing is charged", &operation, outcome), None)
            }
            PaymentAnswer::Refused(failure) => {
                let error = EventError::new(ErrorClass::NeedsAttention, &failure.reason, &failure.message);
                let (reason, outcome) = (failure.message.clone(), Outcome::Failed(error));
                (steps.take_with_event(Input::Refused, reason, &operation, outcome), Some(failure))
            }
            PaymentAnswer::Undecided(why) => {
                operation.discard();
                return Ok(Tried::PutOff(why));
            }
        };
        if let Err(missing) = taken {
            operation.discard();
            return Ok(Tried::without(missing));
        }
        let advance = self.0.parts.store.advance(order, steps, failure, None).await?;
        if advance == Advance::Lost {
            operation.discard();
        }
        Ok(Tried::Recorded(advance))
    }

    /// Opens the operation of an effect: a child of the order's creation, even after a crash and on another instance.
    fn step(&self, order: &Order, effect: Effect) -> Operation {
        let sink = Some(self.0.parts.events.clone());
        let parent = Parent::Remote(order.span_ref);
        let operation = Operation::open(Kind::Internal, effect.name(), parent, Some("order_fulfillment"), sink);
        operation.set_order(order.id.as_uuid());
        operation.set_user(order.user.as_uuid());
        operation.set("operation", effect.name());
        operation
    }
}

/// Logs at most one line a second: during a database outage every driven order ends here.
fn left_to_its_lease(order: &Order, error: &storage::Error) {
    static SELDOM: Seldom = Seldom::new();
    if let Some(since_last_line) = SELDOM.count(Instant::now()) {
        tracing::warn!(target: "ordermesh", error = ?error, order_id = %order.id, since_last_line, "giving up; lease expiry will hand it over");
    }
}
