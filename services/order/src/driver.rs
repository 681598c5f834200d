//! Drives orders: a state's effect is performed under a key derived from the order and the effect, and its result is
//! recorded by compare-and-set, together with the event and the history. The crate `driver` decides when.
//!
//! `effect` calls the Payment Service, and takes the transitions of the table.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use driver::{AttemptOutcome, Stored};
pub use driver::{Context, Options};
use futures_util::future::BoxFuture;
use kernel::{Clock, FaultPoint, OrderId};
use opentelemetry::metrics::Histogram;
use opentelemetry::{KeyValue, global};
use telemetry::{EventSink, TraceParent};

use crate::lifecycle::{Table, is_final, pending_effect};
use crate::order::Order;
use crate::ports::Payments;
use crate::store::{Advance, Store};
use crate::subscriptions::Subscriptions;

mod effect;

use effect::Performed;

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

/// Drives an order whose lease this instance holds, in a task of its own.
pub(crate) fn start(driver: &Driver, driven: Driven) {
    driver.work().subscriptions.committed(driven.order.id, driven.order.version);
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
        Box::pin(async move { Ok(self.store.claim(id, context.lease()).await?.map(Driven::from)) })
    }

    fn free_leases<'a>(&'a self, context: &'a Context) -> Stored<'a, u64> {
        Box::pin(self.store.free_leases(&context.options.instance))
    }

    fn attempt<'a>(&'a self, item: Driven, context: &'a Context) -> Stored<'a, AttemptOutcome<Driven>> {
        Box::pin(self.attempt_and_record(item, context))
    }

    /// The history is the notification: it was sent with the last transition.
    fn completed<'a>(&'a self, _item: Driven, _context: &'a Context) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Effects {
    async fn attempt_and_record(
        &self,
        item: Driven,
        context: &Context,
    ) -> Result<AttemptOutcome<Driven>, storage::Error> {
        let Driven { order, link } = item;
        let Some(effect) = pending_effect(order.state) else {
            return Ok(AttemptOutcome::Completed(Driven { order, link }));
        };
        match self.perform(&order, effect, link, context).await? {
            Performed::Recorded(Advance::Done(after)) => {
                self.subscriptions.committed(after.id, after.version);
                if is_final(after.state) {
                    let took = self.clock.now().since(after.create_time).as_secs_f64();
                    DURATION.record(took, &[KeyValue::new("state", after.state.name())]);
                }
                if crashes(context, FaultPoint::AfterRecord, &after).await {
                    return Ok(AttemptOutcome::Crashed);
                }
                let has_more = pending_effect(after.state).is_some();
                let item = Driven { order: *after, link };
                Ok(if has_more { AttemptOutcome::Advanced(item) } else { AttemptOutcome::Completed(item) })
            }
            // Another instance or request has moved it. If that one holds no lease any more, this instance claims the
            // order.
            Performed::Recorded(Advance::VersionConflict | Advance::StockWrittenOff) => {
                let claimed = self.store.claim(order.id, context.lease()).await.ok().flatten();
                Ok(claimed.map_or(AttemptOutcome::Lost, |order| AttemptOutcome::Advanced(Driven { order, link })))
            }
            Performed::Undecided(why) => {
                let wait = context.backoff(u32::try_from(order.attempt).unwrap_or(0).saturating_add(1));
                tracing::debug!(target: "ordermesh", order_id = %order.id, why, "effect has no definite result; rescheduled with backoff");
                self.store.schedule_retry(&order, &context.options.instance, wait, &why).await?;
                Ok(AttemptOutcome::RetryLater(wait))
            }
            Performed::Crashed => Ok(AttemptOutcome::Crashed),
        }
    }
}

async fn crashes(context: &Context, point: FaultPoint, order: &Order) -> bool {
    context.crashes(point, order.state.name(), order.id).await
}
