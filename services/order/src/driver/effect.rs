//! What each effect does: calling the Payment Service, allocating, starting fulfilment.

use driver::Context;
use kernel::calendar::delivery_date;
use kernel::{FaultPoint, FulfillmentId};
use telemetry::{ErrorType, EventError, Kind, Operation, Outcome, Parent, TraceParent};
use tracing::Instrument;

use super::{Effects, crashes};
use crate::lifecycle::{Effect, Input, pending_effect};
use crate::order::{Fulfillment, Order, PaymentFailure};
use crate::ports::PaymentOutcome;
use crate::store::{Advance, NoTransition, Transitions};

/// What came of performing an effect.
pub(super) enum Performed {
    /// It is recorded, or another instance recorded a transition first.
    Recorded(Advance),
    /// No definite result: it is retried.
    Undecided(String),
    Crashed,
}

impl Performed {
    /// The table forbids what the effect led to: a contradiction between the table and the effects.
    fn without(missing: NoTransition) -> Self {
        tracing::error!(target: "ordermesh", "{missing}");
        Self::Undecided(missing.to_string())
    }
}

impl Effects {
    fn transitions(&self, order: &Order) -> Transitions {
        Transitions::of(self.table, order)
    }

    pub(super) async fn perform(
        &self,
        order: &Order,
        effect: Effect,
        link: Option<TraceParent>,
        context: &Context,
    ) -> Result<Performed, storage::Error> {
        if crashes(context, FaultPoint::BeforeEffect, order).await {
            return Ok(Performed::Crashed);
        }
        match effect {
            Effect::ProcessPayment => self.process_payment(order, context).await,
            Effect::AllocateInventory | Effect::StartFulfillment => {
                self.fulfill(order, self.transitions(order), context).await
            }
            Effect::CancelPayment => self.cancel_payment(order, link, context).await,
        }
    }

    async fn process_payment(&self, order: &Order, context: &Context) -> Result<Performed, storage::Error> {
        // Without an event of this service: the Payment Service writes the payment's events.
        let operation =
            Operation::open(Kind::Internal, "process_payment", Parent::Remote(order.traceparent), None, None);
        operation.set_order(order.id.as_uuid());
        let outcome = self.payments.process(order).instrument(operation.span().clone()).await;
        if crashes(context, FaultPoint::AfterEffect, order).await {
            return Ok(Performed::Crashed);
        }
        let mut transitions = self.transitions(order);
        match outcome {
            PaymentOutcome::Done => match transitions.apply(Input::Done, "payment succeeded", &operation) {
                Ok(()) => self.fulfill(order, transitions, context).await,
                Err(missing) => Ok(Performed::without(missing)),
            },
            PaymentOutcome::Refused(failure) => {
                let reason = format!("payment refused: {}", failure.message);
                match transitions.apply(Input::Refused, reason, &operation) {
                    Ok(()) => {
                        Ok(Performed::Recorded(self.store.advance(order, transitions, Some(failure), None).await?))
                    }
                    Err(missing) => Ok(Performed::without(missing)),
                }
            }
            PaymentOutcome::Undecided(why) => Ok(Performed::Undecided(why)),
        }
    }

    /// Allocation and the start of fulfilment are local: they are recorded in the same transaction, each with its own
    /// history row and event. `paid` are the transitions that lead there.
    async fn fulfill(&self, order: &Order, paid: Transitions, context: &Context) -> Result<Performed, storage::Error> {
        let allocate = (pending_effect(order.state) != Some(Effect::StartFulfillment))
            .then(|| self.open_operation(order, Effect::AllocateInventory));
        let start = self.open_operation(order, Effect::StartFulfillment);
        let discard = || {
            start.discard();
            allocate.as_ref().inspect(|allocate| allocate.discard());
        };
        let Some(date) = delivery_date(self.clock.now(), order.transit.business_days, order.transit.cutoff_hour) else {
            discard();
            return Ok(Performed::Undecided("the calendar has no delivery date".into()));
        };
        let fulfillment =
            Fulfillment { id: FulfillmentId::from_uuid(context.ids.uuid()), delivery_date: date.to_string() };
        start.set("fulfillment.id", fulfillment.id.to_string());
        start.set("delivery.date", fulfillment.delivery_date.clone());
        let mut transitions = paid.clone();
        let allocated = allocate.as_ref().map_or(Ok(()), |allocate| {
            transitions.apply_with_event(Input::Done, "stock allocated", allocate, Outcome::Success)
        });
        let started = allocated
            .and_then(|()| transitions.apply_with_event(Input::Done, "fulfilment started", &start, Outcome::Success));
        if let Err(missing) = started {
            discard();
            return Ok(Performed::without(missing));
        }
        let advance = self.store.advance(order, transitions, None, Some(fulfillment)).await?;
        match (&advance, &allocate) {
            (Advance::StockWrittenOff, Some(allocate)) => {
                start.discard();
                self.refuse_allocation(order, paid, allocate).await
            }
            (Advance::Done(_) | Advance::VersionConflict | Advance::StockWrittenOff, _) => {
                if advance == Advance::VersionConflict {
                    discard();
                }
                Ok(Performed::Recorded(advance))
            }
        }
    }

    /// Stock that was written off cannot be allocated: the order is cancelled and the payment refunded.
    async fn refuse_allocation(
        &self,
        order: &Order,
        mut transitions: Transitions,
        allocate: &Operation,
    ) -> Result<Performed, storage::Error> {
        let message = "stock of the order was written off before it was allocated";
        let error = EventError::new(ErrorType::AllocationError, "STOCK_LOST", message);
        if let Err(missing) = transitions.apply_with_event(Input::Refused, message, allocate, Outcome::Failed(error)) {
            allocate.discard();
            return Ok(Performed::without(missing));
        }
        let failure = PaymentFailure {
            reason: "STOCK_LOST".into(),
            decline_code: String::new(),
            advice: "RETRY_LATER".into(),
            message: "the goods are no longer in stock; the payment is refunded".into(),
        };
        let advance = self.store.advance(order, transitions, Some(failure), None).await?;
        if advance == Advance::VersionConflict {
            allocate.discard();
        }
        Ok(Performed::Recorded(advance))
    }

    async fn cancel_payment(
        &self,
        order: &Order,
        link: Option<TraceParent>,
        context: &Context,
    ) -> Result<Performed, storage::Error> {
        let operation = self.open_operation(order, Effect::CancelPayment);
        // A later attempt, perhaps on another instance, reads from the history which trace requested the cancellation.
        let requested_by = match link {
            Some(link) => Some(link),
            None => self.store.span_of(order.id, order.state).await?,
        };
        if let Some(other) = requested_by.filter(|span| span.trace_id() != order.traceparent.trace_id()) {
            operation.link(other);
        }
        let outcome = self.payments.cancel(order).instrument(operation.span().clone()).await;
        if crashes(context, FaultPoint::AfterEffect, order).await {
            operation.discard();
            return Ok(Performed::Crashed);
        }
        let mut transitions = self.transitions(order);
        let (applied, failure) = match outcome {
            PaymentOutcome::Done => {
                let outcome = Outcome::Success;
                (transitions.apply_with_event(Input::Done, "nothing is charged", &operation, outcome), None)
            }
            PaymentOutcome::Refused(failure) => {
                let error = EventError::new(ErrorType::NeedsAttention, &failure.reason, &failure.message);
                let (reason, outcome) = (failure.message.clone(), Outcome::Failed(error));
                (transitions.apply_with_event(Input::Refused, reason, &operation, outcome), Some(failure))
            }
            PaymentOutcome::Undecided(why) => {
                operation.discard();
                return Ok(Performed::Undecided(why));
            }
        };
        if let Err(missing) = applied {
            operation.discard();
            return Ok(Performed::without(missing));
        }
        let advance = self.store.advance(order, transitions, failure, None).await?;
        if advance == Advance::VersionConflict {
            operation.discard();
        }
        Ok(Performed::Recorded(advance))
    }

    /// Opens the operation of an effect: a child of the order's creation, even after a crash and on another instance.
    fn open_operation(&self, order: &Order, effect: Effect) -> Operation {
        let sink = Some(self.events.clone());
        let parent = Parent::Remote(order.traceparent);
        let operation = Operation::open(Kind::Internal, effect.name(), parent, Some("order_fulfillment"), sink);
        operation.set_order(order.id.as_uuid());
        operation.set_user(order.user.as_uuid());
        operation.set("operation", effect.name());
        operation
    }
}
