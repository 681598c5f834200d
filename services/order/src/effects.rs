//! The effects of an order's states: each is performed under a key derived from the order and the effect, and its result
//! is recorded by compare-and-set, together with the event and the history. The crate `driver` decides when.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub use driver::{Context, Options};
use driver::{Outcome, Stored};
use futures_util::future::BoxFuture;
use kernel::calendar::delivery_date;
use kernel::{Clock, FaultPoint, FulfillmentId, OrderId};
use opentelemetry::metrics::Histogram;
use opentelemetry::{KeyValue, global};
use telemetry::{ErrorClass, EventError, EventSink, Kind, Operation, Outcome as EventOutcome, Parent, TraceParent};
use tracing::Instrument;

use crate::lifecycle::{Effect, Input, Table, is_final, owes};
use crate::order::{Fulfillment, Order, PaymentFailure};
use crate::ports::{PaymentOutcome, Payments};
use crate::store::{Advance, NoTransition, Steps, Store};
use crate::subscriptions::Subscriptions;

static DURATION: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    global::meter("ordermesh")
        .f64_histogram("ordermesh.order.duration")
        .with_unit("s")
        .with_description("From an order's creation to its final state, by that state")
        .build()
});

/// Drives orders. Clones share one driver.
pub type Driver = driver::Driver<Effects>;

/// An order whose lease this instance holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Driven {
    pub order: Order,
    /// The trace that requested its transition: the next operations are linked to it.
    pub link: Option<TraceParent>,
}

impl From<Order> for Driven {
    fn from(order: Order) -> Self {
        Self { order, link: None }
    }
}

/// What the effects need: every dependency is an argument.
pub struct Effects {
    /// The state machine: [`crate::lifecycle::next`].
    pub table: Table,
    pub store: Store,
    pub payments: Arc<dyn Payments>,
    pub clock: Arc<dyn Clock>,
    /// The sink of the operations' events.
    pub events: Arc<dyn EventSink>,
    /// The subscriptions to notify of transitions.
    pub subscriptions: Subscriptions,
}

/// The result of an attempt at an effect.
enum Tried {
    /// It is recorded, or another instance recorded a transition first.
    Recorded(Advance),
    /// No definite result: it is retried.
    PutOff(String),
    Crashed,
}

impl Tried {
    /// The table forbids what the effect led to: a contradiction between the table and the effects.
    fn without(missing: NoTransition) -> Self {
        tracing::error!(target: "ordermesh", "{missing}");
        Self::PutOff(missing.to_string())
    }
}

/// Drives an order whose lease this instance holds, in a task of its own.
pub(crate) fn start(driver: &Driver, driven: Driven) {
    driver.work().subscriptions.notify(driven.order.id, driven.order.version);
    driver.start(driven);
}

/// Called when a result may be available: makes the order due now, and drives it if it is not leased.
pub async fn wake(driver: &Driver, id: OrderId) -> Result<(), storage::Error> {
    driver.work().store.make_due(id).await?;
    if let Some(driven) = driver.claim(id).await? {
        start(driver, driven);
    }
    Ok(())
}

impl driver::Work for Effects {
    type Item = Driven;

    const ITEMS: &'static str = "orders";
    /// An order's backoff is left to the polls.
    const LONGEST_SLEEP: Duration = Duration::ZERO;

    fn id(item: &Driven) -> OrderId {
        item.order.id
    }

    fn claim_due<'a>(&'a self, limit: usize, context: &'a Context) -> Stored<'a, Vec<Driven>> {
        Box::pin(async move {
            let limit = u64::try_from(limit).unwrap_or(u64::MAX);
            let orders = self.store.claim_due(limit, context.lease(), context.options.backoff_cap).await?;
            Ok(orders.into_iter().map(Driven::from).collect())
        })
    }

    fn claim<'a>(&'a self, id: OrderId, context: &'a Context) -> Stored<'a, Option<Driven>> {
        Box::pin(async move { Ok(self.store.claim_one(id, context.lease()).await?.map(Driven::from)) })
    }

    fn free_leases<'a>(&'a self, context: &'a Context) -> Stored<'a, u64> {
        Box::pin(self.store.free_leases(&context.options.instance))
    }

    fn attempt<'a>(&'a self, item: Driven, context: &'a Context) -> Stored<'a, Outcome<Driven>> {
        Box::pin(self.attempt_and_record(item, context))
    }

    /// The history is the notification: it was sent with the last transition.
    fn completed<'a>(&'a self, _item: Driven, _context: &'a Context) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Effects {
    fn steps(&self, order: &Order) -> Steps {
        Steps::of(self.table, order)
    }

    async fn attempt_and_record(&self, item: Driven, context: &Context) -> Result<Outcome<Driven>, storage::Error> {
        let Driven { order, link } = item;
        let Some(effect) = owes(order.state) else { return Ok(Outcome::Completed(Driven { order, link })) };
        match self.perform(&order, effect, link, context).await? {
            Tried::Recorded(Advance::Done(after)) => {
                self.subscriptions.notify(after.id, after.version);
                if is_final(after.state) {
                    let took = self.clock.now().since(after.create_time).as_secs_f64();
                    DURATION.record(took, &[KeyValue::new("state", after.state.name())]);
                }
                if crashes(context, FaultPoint::AfterRecord, &after).await {
                    return Ok(Outcome::Crashed);
                }
                let has_more = owes(after.state).is_some();
                let item = Driven { order: *after, link };
                Ok(if has_more { Outcome::Advanced(item) } else { Outcome::Completed(item) })
            }
            // Another instance or request has moved it. If that one holds no lease any more, this instance claims the
            // order.
            Tried::Recorded(Advance::Lost | Advance::StockLost) => {
                let claimed = self.store.claim_one(order.id, context.lease()).await.ok().flatten();
                Ok(claimed.map_or(Outcome::Lost, |order| Outcome::Advanced(Driven { order, link })))
            }
            Tried::PutOff(why) => {
                let wait = context.backoff(u32::try_from(order.attempt).unwrap_or(0).saturating_add(1));
                tracing::debug!(target: "ordermesh", order_id = %order.id, why, "effect has no definite result; rescheduled with backoff");
                self.store.put_off(&order, &context.options.instance, wait, &why).await?;
                Ok(Outcome::RetryLater(wait))
            }
            Tried::Crashed => Ok(Outcome::Crashed),
        }
    }

    async fn perform(
        &self,
        order: &Order,
        effect: Effect,
        link: Option<TraceParent>,
        context: &Context,
    ) -> Result<Tried, storage::Error> {
        if crashes(context, FaultPoint::BeforeEffect, order).await {
            return Ok(Tried::Crashed);
        }
        match effect {
            Effect::ProcessPayment => self.process_payment(order, context).await,
            Effect::AllocateInventory | Effect::StartFulfillment => {
                self.fulfill(order, self.steps(order), context).await
            }
            Effect::CancelPayment => self.cancel_payment(order, link, context).await,
        }
    }

    async fn process_payment(&self, order: &Order, context: &Context) -> Result<Tried, storage::Error> {
        // Without an event of this service: the Payment Service writes the payment's events.
        let operation = Operation::open(Kind::Internal, "process_payment", Parent::Remote(order.span_ref), None, None);
        operation.set_order(order.id.as_uuid());
        let answer = self.payments.process(order).instrument(operation.span().clone()).await;
        if crashes(context, FaultPoint::AfterEffect, order).await {
            return Ok(Tried::Crashed);
        }
        let mut steps = self.steps(order);
        match answer {
            PaymentOutcome::Done => match steps.take(Input::Done, "payment succeeded", &operation) {
                Ok(()) => self.fulfill(order, steps, context).await,
                Err(missing) => Ok(Tried::without(missing)),
            },
            PaymentOutcome::Refused(failure) => {
                let reason = format!("payment refused: {}", failure.message);
                match steps.take(Input::Refused, reason, &operation) {
                    Ok(()) => Ok(Tried::Recorded(self.store.advance(order, steps, Some(failure), None).await?)),
                    Err(missing) => Ok(Tried::without(missing)),
                }
            }
            PaymentOutcome::Undecided(why) => Ok(Tried::PutOff(why)),
        }
    }

    /// Allocation and the start of fulfilment are local: they are recorded in the same transaction, each with its own
    /// history row and event. `paid` are the transitions that lead there.
    async fn fulfill(&self, order: &Order, paid: Steps, context: &Context) -> Result<Tried, storage::Error> {
        let allocate =
            (owes(order.state) != Some(Effect::StartFulfillment)).then(|| self.step(order, Effect::AllocateInventory));
        let start = self.step(order, Effect::StartFulfillment);
        let discard = || {
            start.discard();
            allocate.as_ref().inspect(|allocate| allocate.discard());
        };
        let Some(date) = delivery_date(self.clock.now(), order.transit.business_days, order.transit.cutoff_hour) else {
            discard();
            return Ok(Tried::PutOff("the calendar has no delivery date".into()));
        };
        let fulfillment =
            Fulfillment { id: FulfillmentId::from_uuid(context.ids.uuid()), delivery_date: date.to_string() };
        start.set("fulfillment.id", fulfillment.id.to_string());
        start.set("delivery.date", fulfillment.delivery_date.clone());
        let mut steps = paid.clone();
        let allocated = allocate.as_ref().map_or(Ok(()), |allocate| {
            steps.take_with_event(Input::Done, "stock allocated", allocate, EventOutcome::Success)
        });
        let started = allocated
            .and_then(|()| steps.take_with_event(Input::Done, "fulfilment started", &start, EventOutcome::Success));
        if let Err(missing) = started {
            discard();
            return Ok(Tried::without(missing));
        }
        let advance = self.store.advance(order, steps, None, Some(fulfillment)).await?;
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
        if let Err(missing) = steps.take_with_event(Input::Refused, message, allocate, EventOutcome::Failed(error)) {
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

    async fn cancel_payment(
        &self,
        order: &Order,
        link: Option<TraceParent>,
        context: &Context,
    ) -> Result<Tried, storage::Error> {
        let operation = self.step(order, Effect::CancelPayment);
        // A later attempt, perhaps on another instance, reads from the history which trace requested the cancellation.
        let requested_by = match link {
            Some(link) => Some(link),
            None => self.store.span_of(order.id, order.state).await?,
        };
        if let Some(requested_by) =
            requested_by.filter(|requested_by| requested_by.trace_id() != order.span_ref.trace_id())
        {
            operation.link(requested_by);
        }
        let answer = self.payments.cancel(order).instrument(operation.span().clone()).await;
        if crashes(context, FaultPoint::AfterEffect, order).await {
            operation.discard();
            return Ok(Tried::Crashed);
        }
        let mut steps = self.steps(order);
        let (taken, failure) = match answer {
            PaymentOutcome::Done => {
                let outcome = EventOutcome::Success;
                (steps.take_with_event(Input::Done, "nothing is charged", &operation, outcome), None)
            }
            PaymentOutcome::Refused(failure) => {
                let error = EventError::new(ErrorClass::NeedsAttention, &failure.reason, &failure.message);
                let (reason, outcome) = (failure.message.clone(), EventOutcome::Failed(error));
                (steps.take_with_event(Input::Refused, reason, &operation, outcome), Some(failure))
            }
            PaymentOutcome::Undecided(why) => {
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

async fn crashes(context: &Context, point: FaultPoint, order: &Order) -> bool {
    context.crashes(point, order.state.name(), order.id).await
}
