//! Performs the pending effect of a payment under its key, and records the result. The crate `driver` decides when.
//! Every writer of a payment takes care of its next step, so one that loses its compare-and-set just stops.
//!
//! `effect` calls the gateway and applies the state table.

use std::sync::Arc;
use std::time::Duration;

use driver::{AttemptOutcome, Stored, Work};
pub use driver::{Context, Options};
use futures_util::future::BoxFuture;
use kernel::{Clock, FaultPoint, OrderId};
use telemetry::{EventSink, Kind, LogLimit, Operation, Outcome, Parent};
use tokio::time::Instant;
use tracing::Instrument;

use crate::lifecycle::Observation;
use crate::payment::{EVENT_TYPE, Payment, event_of};
use crate::ports::{Confirmations, Gateway};
use crate::store::Store;
use crate::subscriptions::Subscriptions;

mod effect;

use effect::Decision;

/// Attempts at confirming a result to the Order Service.
const CONFIRM_ATTEMPTS: u32 = 3;

/// Drives payments. Clones share one driver.
pub type Driver = driver::Driver<Payments>;

/// What payments need to be driven: every dependency is an argument.
pub struct Payments {
    pub store: Store,
    pub gateway: Arc<dyn Gateway>,
    /// Wakes the Order Service after late results.
    pub confirmations: Arc<dyn Confirmations>,
    pub clock: Arc<dyn Clock>,
    /// The sink of events.
    pub events: Arc<dyn EventSink>,
    /// The calls that wait for results.
    pub subscriptions: Subscriptions,
    /// How long a payment may be in doubt.
    pub doubt_limit: Duration,
}

impl Work for Payments {
    type Item = Payment;

    const ITEMS: &'static str = "payments";
    /// A call may be waiting for the result.
    const LONGEST_SLEEP: Duration = Duration::from_secs(2);

    fn id(payment: &Payment) -> OrderId {
        payment.order_id
    }

    /// The maximum backoff is the longer one: a payment in doubt waits until its doubt limit at most.
    fn claim_due<'a>(&'a self, limit: usize, context: &'a Context) -> Stored<'a, Vec<Payment>> {
        let longest_wait = context.options.backoff_cap.max(self.doubt_limit);
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        Box::pin(self.store.claim_due(limit, context.lease(), longest_wait))
    }

    fn claim<'a>(&'a self, id: OrderId, context: &'a Context) -> Stored<'a, Option<Payment>> {
        Box::pin(self.store.claim(id, context.lease()))
    }

    fn free_leases<'a>(&'a self, context: &'a Context) -> Stored<'a, u64> {
        Box::pin(self.store.free_leases(&context.options.instance))
    }

    fn attempt<'a>(&'a self, payment: Payment, context: &'a Context) -> Stored<'a, AttemptOutcome<Payment>> {
        Box::pin(self.perform_and_record(payment, context))
    }

    fn completed<'a>(&'a self, payment: Payment, context: &'a Context) -> BoxFuture<'a, ()> {
        Box::pin(self.announce(payment, context))
    }
}

impl Payments {
    async fn perform_and_record(
        &self,
        before: Payment,
        context: &Context,
    ) -> Result<AttemptOutcome<Payment>, storage::Error> {
        let Some(effect) = before.pending_effect() else { return Ok(AttemptOutcome::Completed(before)) };
        let operation = self.operation(effect.span_name(), &before);
        if crashes(context, FaultPoint::BeforeEffect, &before).await {
            operation.discard();
            return Ok(AttemptOutcome::Crashed);
        }
        let began = self.clock.now();
        let result = self.perform(effect, &before).instrument(operation.span().clone()).await;
        if crashes(context, FaultPoint::AfterEffect, &before).await {
            operation.discard();
            return Ok(AttemptOutcome::Crashed);
        }
        let Decision { next, schedule, attempt } = self.decide(&before, effect, &result, began, &operation, context);
        let event = event_of(next.state, next.decline_code, &result.outcome).map(|(name, outcome)| {
            operation.set("operation", name);
            (operation.clone(), outcome)
        });
        if result.observation == Observation::Unknown {
            operation.mark_error(result.outcome.clone());
        }
        operation.set_on_span("payment.state", next.state.name());
        operation.end(event.as_ref().map_or(Outcome::Success, |(_, outcome)| outcome.clone()));
        let recorded = self.store.record(&before, next, attempt, schedule.clone(), event).await?;
        let Some(recorded) = recorded else {
            operation.discard();
            operation.set_on_span("payment.lost", true);
            return Ok(AttemptOutcome::Lost);
        };
        if crashes(context, FaultPoint::AfterRecord, &recorded).await {
            return Ok(AttemptOutcome::Crashed);
        }
        Ok(match (&schedule.lease, schedule.due_in) {
            (_, None) => AttemptOutcome::Completed(recorded),
            (Some(_), Some(_)) => AttemptOutcome::Advanced(recorded),
            (None, Some(wait)) => AttemptOutcome::RetryLater(wait),
        })
    }

    /// The operation of one attempt: a child of the call that requested the payment, even after that call has ended.
    pub(crate) fn operation(&self, name: &'static str, payment: &Payment) -> Operation {
        let parent = payment.parent().map_or(Parent::Root, Parent::Remote);
        let events = Some(self.events.clone());
        let operation = Operation::open(Kind::Internal, name, parent, Some(EVENT_TYPE), events);
        operation.set_order(payment.order_id.as_uuid());
        if let Some(user_id) = payment.user_id {
            operation.set_user(user_id.as_uuid());
        }
        operation
    }

    /// Notifies the calls that wait for a payment's result; if there are none, the Order Service: a wake-up, best effort.
    async fn announce(&self, payment: Payment, context: &Context) {
        if self.subscriptions.notify(&payment) {
            return;
        }
        let parent = payment.parent().map_or(Parent::Root, Parent::Remote);
        let operation = Operation::open(Kind::Internal, "confirm_payment", parent, None, None);
        operation.set_order(payment.order_id.as_uuid());
        let confirmation = async {
            for attempt in 1..=CONFIRM_ATTEMPTS {
                match self.confirmations.confirm(payment.order_id).await {
                    Ok(()) => return Outcome::Success,
                    Err(error) if attempt == CONFIRM_ATTEMPTS || context.shutdown.is_cancelled() => {
                        // The order's driver retries on its own: a failure here only delays it.
                        static LOG_LIMIT: LogLimit = LogLimit::new();
                        if let Some(occurrences) = LOG_LIMIT.count(Instant::now()) {
                            tracing::info!(target: "ordermesh", order_id = %payment.order_id, error = %error, occurrences, "payment confirmation not delivered");
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

async fn crashes(context: &Context, point: FaultPoint, payment: &Payment) -> bool {
    context.crashes(point, payment.state.name(), payment.order_id).await
}
