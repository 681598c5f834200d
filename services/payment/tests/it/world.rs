//! One store in memory, drivers on it, and a manual clock.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use driver::AttemptOutcome;
use futures_util::future::BoxFuture;
use kernel::{
    Clock, FaultPoint, FaultSite, Faults, IdSource, ManualClock, Money, NoFaults, OrderId, SystemIds, Timestamp, UserId,
};
use parking_lot::Mutex;
use payment::driver::{Context, Driver, Options, Payments};
use payment::error::Error;
use payment::lifecycle::State;
use payment::payment::{Payment, PaymentMethod};
use payment::process::{CancelCommand, Limits, ProcessCommand, Processor};
use payment::reconcile::Reconciler;
use payment::store::Store;
use payment::subscriptions::Subscriptions;
use storage::Database;
use telemetry::{Disposition, Ended, EventSink, Kind, Operation, Parent, TraceEvent};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::scripted::{Confirmed, Scripted};

pub(crate) const LEASE: Duration = Duration::from_secs(10);
pub(crate) const DOUBT_LIMIT: Duration = Duration::from_secs(60);
/// Longer than any driver sleeps for a backoff in its task: tests decide when the next attempt is made.
const BACKOFF: Duration = Duration::from_secs(21);
/// Longer than any backoff.
pub(crate) const LONG: Duration = Duration::from_secs(61);

struct NoSink(String);

impl EventSink for NoSink {
    fn unclaimed(&self, _ended: Ended) -> Disposition {
        Disposition::NoEvent
    }
    fn put(&self, _event: TraceEvent) {}
    fn origin(&self) -> (&str, &str) {
        ("payment", &self.0)
    }
}

/// Stops the next driver at this fault point, once.
pub(crate) struct StopAt(pub(crate) Mutex<Option<(FaultPoint, State)>>);

impl Faults for StopAt {
    fn at<'a>(&'a self, site: FaultSite<'a>) -> BoxFuture<'a, ControlFlow<()>> {
        let mut next = self.0.lock();
        let stops = next.is_some_and(|(point, state)| point == site.point && state.name() == site.state);
        if stops {
            *next = None;
        }
        let flow = if stops { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        Box::pin(std::future::ready(flow))
    }
}

pub(crate) struct World {
    pub(crate) db: Database,
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) gateway: Arc<Scripted>,
    pub(crate) confirmed: Arc<Confirmed>,
    pub(crate) order_id: OrderId,
    user_id: UserId,
}

/// An instance: a driver, and everything it needs.
pub(crate) struct Instance {
    pub(crate) name: &'static str,
    pub(crate) driver: Driver,
    pub(crate) processor: Processor,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl World {
    pub(crate) async fn new() -> Self {
        let testkit::TestDatabase { url, schema } = testkit::database();
        let options = storage::Options { schema, max_connections: 4, ..storage::Options::default() };
        let db = Database::connect(&url, &options).await.expect("a database");
        Store::migrate(&db).await.expect("a schema");
        let clock = Arc::new(ManualClock::at(Timestamp::from_micros(1_700_000_000_000_000)));
        Self {
            store: Store::new(db.clone(), clock.clone()).by_given_clock(),
            db,
            clock,
            gateway: Arc::default(),
            confirmed: Arc::default(),
            order_id: OrderId::from_uuid(SystemIds.uuid()),
            user_id: UserId::from_uuid(SystemIds.uuid()),
        }
    }

    pub(crate) fn another_order(&mut self) {
        self.order_id = OrderId::from_uuid(SystemIds.uuid());
    }

    pub(crate) fn instance(&self, name: &'static str) -> Instance {
        self.instance_with(name, Arc::new(NoFaults), 8)
    }

    pub(crate) fn instance_with(&self, name: &'static str, faults: Arc<dyn Faults>, max_in_flight: usize) -> Instance {
        let events: Arc<dyn EventSink> = Arc::new(NoSink(name.to_owned()));
        let (tasks, shutdown, subscriptions) = (TaskTracker::new(), CancellationToken::new(), Subscriptions::default());
        let payments = Payments {
            store: self.store.clone(),
            gateway: self.gateway.clone(),
            confirmations: self.confirmed.clone(),
            clock: self.clock.clone(),
            events: events.clone(),
            subscriptions: subscriptions.clone(),
            doubt_limit: DOUBT_LIMIT,
        };
        let options = Options {
            instance: name.to_owned(),
            lease: LEASE,
            poll_interval: Duration::from_millis(10),
            backoff: BACKOFF,
            backoff_cap: Duration::from_secs(60),
            max_in_flight,
        };
        let (ids, tracked, stop) = (Arc::new(SystemIds), tasks.clone(), shutdown.clone());
        let driver = Driver::new(payments, Context { options, ids, faults, tasks: tracked, shutdown: stop });
        let processor = Processor {
            store: self.store.clone(),
            driver: driver.clone(),
            subscriptions,
            events,
            limits: Limits { amount: "EUR=100".parse().expect("limits"), max_wait: Duration::from_millis(20) },
        };
        Instance { name, driver, processor, tasks, shutdown }
    }

    pub(crate) fn command(&self) -> ProcessCommand {
        ProcessCommand {
            order_id: self.order_id,
            user_id: self.user_id,
            amount: Some(Money::new("EUR".parse().expect("a currency"), 1_999)),
            payment_method: PaymentMethod::new("pm_card_visa".into()),
            contact_email: "ada@example.com".into(),
            are_details_valid: true,
            fingerprint: "one".into(),
        }
    }

    pub(crate) async fn process(&self, instance: &Instance) -> Payment {
        self.try_process(instance, self.command()).await.expect("a response")
    }

    pub(crate) async fn try_process(&self, instance: &Instance, command: ProcessCommand) -> Result<Payment, Error> {
        instance.processor.process(command, &call()).await
    }

    pub(crate) async fn cancel(&self, instance: &Instance, refund_n: i32) -> Payment {
        let command = CancelCommand { order_id: self.order_id, refund_n };
        instance.processor.cancel(command, &call()).await.expect("a response")
    }

    /// `times` times: advances the clock beyond every backoff and lease, and makes an instance's due attempts.
    pub(crate) async fn later(&self, instance: &Instance, times: u32) -> Vec<AttemptOutcome<Payment>> {
        let mut steps = vec![];
        for _ in 0..times {
            self.clock.advance(LONG);
            steps.extend(instance.driver.attempt_due().await.expect("attempts"));
        }
        steps
    }

    /// Advances the clock to the next due time, and makes the attempt.
    pub(crate) async fn when_due(&self, instance: &Instance) {
        let due = self.payment().await.next_attempt_time.expect("a pending effect");
        self.clock.advance(due.since(self.clock.now()));
        instance.driver.attempt_due().await.expect("an attempt");
    }

    pub(crate) async fn payment(&self) -> Payment {
        self.store.find(self.order_id).await.expect("a database").expect("a payment")
    }

    pub(crate) async fn state(&self) -> State {
        self.payment().await.state
    }

    /// The effect and the state of each attempt.
    pub(crate) async fn attempts(&self) -> Vec<(String, State)> {
        let attempts = self.store.attempts(self.order_id).await.expect("a database");
        attempts.into_iter().map(|attempt| (attempt.effect, attempt.state)).collect()
    }

    /// The events of all instances: operation, and the error's type and reason.
    pub(crate) async fn events(&self) -> Vec<(String, Option<String>)> {
        let mut events: Vec<TraceEvent> = vec![];
        for name in ["one", "two"] {
            events.extend(self.db.outbox().waiting(name, 100).await.expect("events"));
        }
        events.sort_by_key(|event| event.event_id);
        events
            .into_iter()
            .map(|event| {
                assert_eq!(event.event_type, "payment_processing");
                assert_eq!(event.order_id, Some(self.order_id.as_uuid()));
                let operation = event.attributes.get("operation").cloned().unwrap_or_default();
                (operation, event.error.map(|error| format!("{} {}", error.error_type, error.reason)))
            })
            .collect()
    }

    pub(crate) fn reconciler(&self) -> Reconciler {
        Reconciler { store: self.store.clone(), gateway: self.gateway.clone() }
    }
}

pub(crate) fn call() -> Operation {
    Operation::open(Kind::Server, "payment.v1.PaymentService/ProcessPayment", Parent::Root, None, None)
}
