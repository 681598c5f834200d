//! The effects of an order's states: each is performed under a key derived from the order and the effect, and its result
//! is recorded by compare-and-set, together with the event and the history. [`Driver`] decides when; see the crate
//! `driver`.

use std::sync::Arc;
use std::time::Duration;

use driver::Outcome as Attempted;
use futures_util::future::BoxFuture;
use kernel::backoff::{backoff, jitter};
use kernel::calendar::delivery_date;
use kernel::{Clock, FaultPoint, Faults, FulfillmentId, IdSource, OrderId};
use opentelemetry::metrics::Histogram;
use opentelemetry::{KeyValue, global};
use telemetry::{ErrorClass, EventError, EventSink, Kind, Operation, Outcome, Parent, TraceParent};
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

/// Drives orders. Clones share one driver.
#[derive(Clone, Debug)]
pub struct Driver(driver::Driver<Effects>);

/// An order whose lease this instance holds.
struct Driven {
    order: Order,
    /// The trace that requested its transition: the next operations are linked to it.
    link: Option<TraceParent>,
}

/// What orders need to be driven.
struct Effects {
    store: Store,
    payments: Arc<dyn Payments>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    events: Arc<dyn EventSink>,
    watchers: Watchers,
    faults: Arc<dyn Faults>,
    table: Table,
    options: Options,
    durations: Histogram<f64>,
}

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
    /// The table forbids what the effect led to: a contradiction between the table and the effects.
    fn without(missing: NoTransition) -> Self {
        tracing::error!(target: "ordermesh", "{missing}");
        Self::PutOff(missing.to_string())
    }
}

impl Driver {
    /// A driver made of `parts`.
    pub fn new(parts: Parts) -> Self {
        let durations = global::meter("ordermesh")
            .f64_histogram("ordermesh.order.duration")
            .with_unit("s")
            .with_description("From an order's creation to its final state, by that state")
            .build();
        let Parts { store, payments, clock, ids, events, watchers, faults, tasks, shutdown, table, options } = parts;
        let driven = driver::Options {
            lease: options.lease,
            poll_interval: options.poll_interval,
            max_drives: options.max_drives,
            // An order's backoff is left to the polls.
            longest_sleep: Duration::ZERO,
        };
        let work =
            Effects { store, payments, clock, ids: ids.clone(), events, watchers, faults, table, options, durations };
        Self(driver::Driver::new(driver::Parts { work, options: driven, ids, tasks, shutdown }))
    }

    /// The number of orders being driven.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    pub(crate) fn table(&self) -> Table {
        self.0.work().table
    }

    /// A lease of this instance.
    pub(crate) fn lease(&self) -> Lease {
        self.0.work().lease()
    }

    /// Drives an order whose lease this instance holds.
    pub(crate) fn start(&self, order: Order) {
        self.start_driven(order, None);
    }

    /// The same; the next operations are linked to the trace that requested the transition.
    pub(crate) fn start_linked(&self, order: Order, link: TraceParent) {
        self.start_driven(order, Some(link));
    }

    fn start_driven(&self, order: Order, link: Option<TraceParent>) {
        self.0.work().watchers.notify(order.id, order.version);
        self.0.start(Driven { order, link });
    }

    /// Runs work to completion even if the caller's future is dropped: a committed order is always started.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.0.tasks().spawn(work.in_current_span()).await;
        done.unwrap_or(Err(Error::Storage(storage::Error::Panicked)))
    }

    /// Claims due orders that are not leased: the lease becomes this instance's.
    ///
    /// # Errors
    /// The database.
    pub async fn claim_due(&self, most: u64) -> Result<Vec<Order>, storage::Error> {
        self.0.work().claim(most).await
    }

    /// Claims due orders and drives them sequentially; returns their number. For tests, which need to know when the
    /// work is complete; the service calls [`Driver::poll`].
    ///
    /// # Errors
    /// The database.
    pub async fn drive_due(&self) -> Result<usize, storage::Error> {
        self.0.run_due().await
    }

    /// Called when a result may be available: makes the order due now, and drives it if it is not leased.
    ///
    /// # Errors
    /// The database.
    pub async fn wake(&self, id: OrderId) -> Result<(), Error> {
        let Effects { store, .. } = self.0.work();
        store.make_due(id).await?;
        if let Some(order) = store.claim_one(id, self.lease()).await? {
            self.start(order);
        }
        Ok(())
    }

    /// Frees the leases left by an earlier process with this instance's name. Called before anything is driven.
    ///
    /// # Errors
    /// The database.
    pub async fn recover(&self) -> Result<(), storage::Error> {
        self.0.recover().await.map(drop)
    }

    /// Polls for due orders and drives them: retries, and the orders of crashed instances. On shutdown it frees the
    /// leases.
    pub async fn poll(self) {
        self.0.poll().await;
    }

    /// Drives an order until it has no pending effect, another instance holds the lease, or an attempt has no definite
    /// result. Called directly by tests; otherwise each order has a task of its own.
    pub async fn drive(&self, order: Order, link: Option<TraceParent>) {
        self.0.run(Driven { order, link }).await;
    }
}

impl driver::Work for Effects {
    type Item = Driven;

    const ITEMS: &'static str = "orders";

    fn id(item: &Driven) -> OrderId {
        item.order.id
    }

    fn claim_due(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Driven>, storage::Error>> {
        Box::pin(async move {
            let orders = self.claim(u64::try_from(limit).unwrap_or(u64::MAX)).await?;
            Ok(orders.into_iter().map(|order| Driven { order, link: None }).collect())
        })
    }

    fn claim(&self, id: OrderId) -> BoxFuture<'_, Result<Option<Driven>, storage::Error>> {
        Box::pin(async move {
            let claimed = self.store.claim_one(id, self.lease()).await?;
            Ok(claimed.map(|order| Driven { order, link: None }))
        })
    }

    fn free_leases(&self) -> BoxFuture<'_, Result<u64, storage::Error>> {
        Box::pin(self.store.free_leases(&self.options.instance))
    }

    fn attempt(&self, item: Driven) -> BoxFuture<'_, Result<Attempted<Driven>, storage::Error>> {
        Box::pin(self.attempt_and_record(item))
    }

    /// The history is the notification: it was sent with the last transition.
    fn completed(&self, _item: Driven) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Effects {
    fn lease(&self) -> Lease {
        Lease { owner: self.options.instance.clone(), length: self.options.lease }
    }

    async fn claim(&self, most: u64) -> Result<Vec<Order>, storage::Error> {
        self.store.claim_due(most, self.lease(), self.options.backoff_cap).await
    }

    fn steps(&self, order: &Order) -> Steps {
        Steps::of(self.table, order)
    }

    async fn attempt_and_record(&self, item: Driven) -> Result<Attempted<Driven>, storage::Error> {
        let Driven { order, link } = item;
        let Some(effect) = owes(order.state) else { return Ok(Attempted::Completed(Driven { order, link })) };
        match self.attempt(&order, effect, link).await? {
            Tried::Recorded(Advance::Done(after)) => {
                self.watchers.notify(after.id, after.version);
                if is_final(after.state) {
                    let took = self.clock.now().since(after.create_time).as_secs_f64();
                    self.durations.record(took, &[KeyValue::new("state", after.state.name())]);
                }
                if self.dies(FaultPoint::AfterRecord, &after).await {
                    return Ok(Attempted::Crashed);
                }
                let has_more = owes(after.state).is_some();
                let item = Driven { order: *after, link };
                Ok(if has_more { Attempted::Advanced(item) } else { Attempted::Completed(item) })
            }
            // Another instance or request has moved it. If that one holds no lease any more, this instance claims the
            // order.
            Tried::Recorded(Advance::Lost | Advance::StockLost) => {
                let claimed = self.store.claim_one(order.id, self.lease()).await.ok().flatten();
                Ok(claimed.map_or(Attempted::Lost, |order| Attempted::Advanced(Driven { order, link })))
            }
            Tried::PutOff(why) => {
                let attempt = u32::try_from(order.attempt).unwrap_or(0).saturating_add(1);
                let Options { instance, backoff: base, backoff_cap, .. } = &self.options;
                let wait = backoff(attempt, *base, *backoff_cap, jitter(self.ids.as_ref()));
                tracing::debug!(target: "ordermesh", order_id = %order.id, why, "effect has no definite result; rescheduled with backoff");
                self.store.put_off(&order, instance, wait, &why).await?;
                Ok(Attempted::RetryLater(wait))
            }
            Tried::Died => Ok(Attempted::Crashed),
        }
    }

    async fn dies(&self, point: FaultPoint, order: &Order) -> bool {
        driver::crashes(self.faults.as_ref(), &self.options.instance, point, order.state.name(), order.id).await
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
        let answer = self.payments.process(order).instrument(operation.span().clone()).await;
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
                    Ok(()) => Ok(Tried::Recorded(self.store.advance(order, steps, Some(failure), None).await?)),
                    Err(missing) => Ok(Tried::without(missing)),
                }
            }
            PaymentAnswer::Undecided(why) => Ok(Tried::PutOff(why)),
        }
    }

    /// Allocation and the start of fulfilment are local: they are recorded in the same transaction, each with its own
    /// history row and event. `paid` are the transitions that lead there.
    async fn fulfill(&self, order: &Order, paid: Steps) -> Result<Tried, storage::Error> {
        let Self { store, clock, ids, .. } = self;
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
        let advance = self.store.advance(order, steps, Some(failure), None).await?;
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
            None => self.store.turned_to(order.id, order.state).await?,
        };
        if let Some(asked) = asked.filter(|asked| asked.trace_id() != order.span_ref.trace_id()) {
            operation.link(asked);
        }
        let answer = self.payments.cancel(order).instrument(operation.span().clone()).await;
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
        let advance = self.store.advance(order, steps, failure, None).await?;
        if advance == Advance::Lost {
            operation.discard();
        }
        Ok(Tried::Recorded(advance))
    }

    /// Opens the operation of an effect: a child of the order's creation, even after a crash and on another instance.
    fn step(&self, order: &Order, effect: Effect) -> Operation {
        let sink = Some(self.events.clone());
        let parent = Parent::Remote(order.span_ref);
        let operation = Operation::open(Kind::Internal, effect.name(), parent, Some("order_fulfillment"), sink);
        operation.set_order(order.id.as_uuid());
        operation.set_user(order.user.as_uuid());
        operation.set("operation", effect.name());
        operation
    }
}
