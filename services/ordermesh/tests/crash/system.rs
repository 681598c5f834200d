//! The Order and the Payment Service's domains on real stores, with a gateway in memory. One order; one thread of
//! control: nothing happens except as directed by the test.
//!
//! The public calls (create, cancel, retry) go to an instance that never drives: a process that crashes right after its
//! response. Everything after that is driven step by step by instances that the test starts and crashes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use contracts::payment::v1 as proto;
use futures_util::future::BoxFuture;
use kernel::{IdSource, ManualClock, Money, NoFaults, OrderId, RequestId, SystemIds, Timestamp, UserId};
use mesh::CallAttributes;
use order::inventory::{AdjustStock, Inventory};
use order::lifecycle::State;
use order::order::{Address, CreateOrder, Order, PaymentFailure, PaymentMethod, Scope, Transit};
use order::orders::Orders;
use order::ports::{Catalog, PaymentOutcome, Payments, Product};
use ordermesh::promises::{Report, Sources};
use parking_lot::Mutex;
use payment::payment::Payment;
use payment::ports::{Confirmations, NoResponse};
use payment::process::{CancelCommand, Limits, ProcessCommand, Processor};
use payment::subscriptions::Subscriptions;
use sea_orm::ConnectionTrait;
use storage::Database;
use telemetry::{Disposition, Ended, EventSink, Kind, Operation, Parent, TraceEvent};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::faults::InjectionPlan;
use crate::gateway::Ledger;

pub(crate) const LEASE: Duration = Duration::from_secs(10);
/// Longer than any driver sleeps for a backoff in its task: the test decides when the next attempt is made.
const BACKOFF: Duration = Duration::from_secs(21);
const BACKOFF_CAP: Duration = Duration::from_secs(60);
const DOUBT_LIMIT: Duration = Duration::from_secs(200);
/// Longer than anything takes unless it hangs.
const GUARD: Duration = Duration::from_secs(30);
/// Rounds after which an order that is still not completed counts as stuck.
const MAX_ROUNDS: usize = 60;
/// Monday, 2026-03-02, 10:00 UTC.
const MONDAY: i64 = 1_772_445_600_000_000;
const SKU: &str = "MUG";

/// The kind of the stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum On {
    Memory,
    File,
    Postgres,
}

/// The origin of events: service and instance.
struct Origin(&'static str, String);

impl EventSink for Origin {
    fn unclaimed(&self, _ended: Ended) -> Disposition {
        Disposition::NoEvent
    }
    fn put(&self, _event: TraceEvent) {}
    fn origin(&self) -> (&str, &str) {
        (self.0, &self.1)
    }
}

struct FakeCatalog;

impl Catalog for FakeCatalog {
    fn products(&self, _: CallAttributes, skus: Vec<String>) -> BoxFuture<'_, Result<Vec<Product>, order::Error>> {
        let price = Money::new("EUR".parse().expect("a currency"), 1_250);
        let product = |sku: String| Product { name: sku.clone(), sku, price };
        Box::pin(std::future::ready(Ok(skus.into_iter().map(product).collect())))
    }
    fn transit(&self, _: CallAttributes, _: String, _: String) -> BoxFuture<'_, Result<Transit, order::Error>> {
        Box::pin(std::future::ready(Ok(Transit { business_days: 2, cutoff_hour: 14 })))
    }
}

/// The calls of customers and operators, and the verification of the promises.
#[derive(Clone)]
pub(crate) struct Api {
    orders: Orders,
    inventory: Inventory,
    sources: Sources,
    order: Arc<OnceLock<OrderId>>,
    /// Set if a cancellation was accepted.
    pub(crate) cancelled: Arc<OnceLock<()>>,
    checks: Arc<AtomicUsize>,
    pub(crate) broken: Arc<Mutex<Vec<String>>>,
}

impl Api {
    /// Verifies all promises now. Violations are collected: a panic inside a driver's task would count as a crash.
    pub(crate) async fn check(&self, when: &str) {
        self.checks.fetch_add(1, Ordering::Relaxed);
        let report = self.sources.check().await.expect("the stores are readable");
        for violation in report.violations {
            self.broken.lock().push(format!("{when}: {violation}"));
        }
    }

    fn id(&self) -> OrderId {
        *self.order.get().expect("an order")
    }

    /// The customer cancels; being too late is a valid response.
    pub(crate) async fn cancel(&self) {
        let operation = self.operation("order.v1.OrderService/CancelOrder");
        match self.orders.cancel(&operation, Scope::All, self.id()).await {
            Ok(_) => drop(self.cancelled.set(())),
            Err(order::Error::OrderNotCancellable { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        self.check("a cancellation").await;
    }

    /// An operator retries; not being retryable is a valid response.
    pub(crate) async fn retry(&self) {
        let operation = self.operation("order.v1.OrderService/RetryOrder");
        match self.orders.retry(&operation, self.id()).await {
            Ok(_) | Err(order::Error::OrderNotRetryable { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        self.check("a retry").await;
    }

    /// Writes off all stock, except what is allocated to fulfilments.
    pub(crate) async fn write_off(&self) {
        let request_id = RequestId::from_uuid(SystemIds.uuid());
        match self
            .inventory
            .adjust(&self.operation("adjust"), AdjustStock { request_id, sku: SKU.into(), delta: -10, write_off: true })
            .await
        {
            Ok(_) | Err(order::Error::StockReserved { .. } | order::Error::StockNegative { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        self.check("a write-off").await;
    }

    fn operation(&self, name: &'static str) -> Operation {
        let sink: Arc<dyn EventSink> = Arc::new(Origin("order", "order-api".into()));
        Operation::open(Kind::Server, name, Parent::Root, Some("audit"), Some(sink))
    }
}

/// The behaviour of the wire between the services.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wire {
    Fine,
    /// The first response of each kind is lost.
    LosesFirst,
    /// Requests are duplicated: sequentially, and concurrently.
    Twice,
}

/// The Payment Service as the order's driver sees it: the current instance, through the contract's own messages.
struct Cable {
    system: Arc<Shared>,
    wire: Wire,
    lost: Mutex<Vec<&'static str>>,
}

impl Cable {
    /// Calls the instance: its response, or nothing if it crashes or stalls meanwhile. If all its tasks end without an
    /// response, the stored payment is the response, as at the deadline of a real call.
    async fn call<F>(&self, kind: &'static str, order: OrderId, request: impl Fn(Processor) -> F) -> Option<Payment>
    where
        F: Future<Output = Result<Payment, payment::Error>>,
    {
        let instance = self.system.payment_instance();
        let known = || async { self.system.payments.find(order).await.expect("the store is readable") };
        let idle = async {
            instance.tasks.close();
            instance.tasks.wait().await;
            known().await
        };
        let requested = async {
            if self.wire == Wire::Twice {
                let once = request(instance.processor.clone()).await;
                let both = tokio::join!(request(instance.processor.clone()), request(instance.processor.clone()));
                assert_eq!(both.0.is_ok(), once.is_ok());
            }
            request(instance.processor.clone()).await.ok()
        };
        let response = tokio::select! {
            biased;
            response = requested => response,
            () = self.system.plan.is_gone(&instance.name) => None,
            known = idle => known,
        };
        let is_gone = self.system.plan.has_crashed(&instance.name);
        let is_lost = self.wire == Wire::LosesFirst && !self.lost.lock().contains(&kind);
        if is_lost {
            self.lost.lock().push(kind);
        }
        response.filter(|_| !is_gone && !is_lost)
    }
}

fn decided(response: Option<Payment>, decide: impl Fn(Option<proto::Payment>) -> PaymentOutcome) -> PaymentOutcome {
    match response {
        Some(payment) => decide(Some(payment.into())),
        None => PaymentOutcome::Undecided("the connection was lost".into()),
    }
}

fn call_operation() -> Operation {
    Operation::open(Kind::Server, "payment.v1.PaymentService/ProcessPayment", Parent::Root, None, None)
}

impl Payments for Cable {
    fn process<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentOutcome> {
        Box::pin(async move {
            let command = ProcessCommand::try_from(order::ports::process_request(order)).expect("a valid request");
            let request = |processor: Processor| {
                let command = command.clone();
                async move { processor.process(command, &call_operation()).await }
            };
            decided(self.call("process", order.id, request).await, order::ports::processed)
        })
    }

    fn cancel<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentOutcome> {
        Box::pin(async move {
            let command = CancelCommand::try_from(order::ports::cancel_request(order)).expect("a valid request");
            let request = |processor: Processor| async move { processor.cancel(command, &call_operation()).await };
            let n = order.refund_attempt;
            decided(self.call("cancel", order.id, request).await, |payment| order::ports::cancelled(payment, n))
        })
    }
}

/// Confirms a payment's result to the Order Service: a wake-up, which decides nothing.
struct WakeUp(Arc<Shared>);

impl Confirmations for WakeUp {
    fn confirm(&self, order: OrderId) -> BoxFuture<'_, Result<(), NoResponse>> {
        Box::pin(async move {
            let woken = order::driver::wake(&self.0.api_driver(), order).await;
            woken.map_err(|error| NoResponse::new(error.to_string()))
        })
    }
}

struct Shared {
    plan: Arc<InjectionPlan>,
    orders: order::store::Store,
    payments: payment::store::Store,
    ledger: Arc<Ledger>,
    clock: Arc<ManualClock>,
    api_driver: Mutex<Option<order::driver::Driver>>,
    payment: Mutex<Option<PaymentInstance>>,
}

impl Shared {
    fn api_driver(&self) -> order::driver::Driver {
        self.api_driver.lock().clone().expect("an instance")
    }

    fn payment_instance(&self) -> PaymentInstance {
        self.payment.lock().clone().expect("an instance")
    }
}

#[derive(Clone)]
struct PaymentInstance {
    name: String,
    driver: payment::driver::Driver,
    processor: Processor,
    tasks: TaskTracker,
}

/// An instance of the Order Service with a driver.
#[derive(Clone)]
pub(crate) struct OrderInstance {
    pub(crate) name: String,
    pub(crate) driver: order::driver::Driver,
    tasks: TaskTracker,
}

/// One order, and its environment.
pub(crate) struct System {
    shared: Arc<Shared>,
    wire: Wire,
    pub(crate) plan: Arc<InjectionPlan>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) api: Api,
    payment_db: Database,
    generation: AtomicUsize,
    /// The drives of stalled instances, and the other tasks of these instances.
    standing: Mutex<Vec<JoinHandle<Result<(), storage::Error>>>>,
    left: Mutex<Vec<TaskTracker>>,
    _folder: Option<tempfile::TempDir>,
}

/// The parts reference each other: unless the cycles are broken, the connections stay open.
impl Drop for System {
    fn drop(&mut self) {
        *self.shared.api_driver.lock() = None;
        *self.shared.payment.lock() = None;
        *self.plan.api.lock() = None;
    }
}

async fn open(on: On, name: &str, folder: Option<&tempfile::TempDir>) -> Database {
    let database = match on {
        On::Memory => testkit::TestDatabase { url: "sqlite::memory:".into(), schema: None },
        On::File => {
            let folder = folder.expect("a folder").path().display();
            testkit::TestDatabase { url: format!("sqlite://{folder}/{name}.db"), schema: None }
        }
        On::Postgres => testkit::postgres().expect("its availability was checked before"),
    };
    let options = storage::Options {
        schema: database.schema,
        max_connections: 3,
        acquire_timeout: GUARD,
        statement_timeout: GUARD,
    };
    Database::connect(&database.url, &options).await.expect("a database")
}

impl System {
    pub(crate) async fn new(on: On, wire: Wire, ledger: Ledger, plan: Arc<InjectionPlan>) -> Self {
        let folder = (on == On::File).then(|| tempfile::tempdir().expect("a folder"));
        let clock = Arc::new(ManualClock::at(Timestamp::from_micros(MONDAY)));
        let order_db = open(on, "order", folder.as_ref()).await;
        order_db.migrate(order::MIGRATIONS).await.expect("a schema");
        let payment_db = open(on, "payment", folder.as_ref()).await;
        payment::store::Store::migrate(&payment_db).await.expect("a schema");
        let ledger = Arc::new(ledger);
        let shared = Arc::new(Shared {
            plan: plan.clone(),
            orders: order::store::Store::new(order_db.clone(), clock.clone()).by_given_clock(),
            payments: payment::store::Store::new(payment_db.clone(), clock.clone()).by_given_clock(),
            ledger: ledger.clone(),
            clock,
            api_driver: Mutex::new(None),
            payment: Mutex::new(None),
        });
        let sources = Sources {
            orders: shared.orders.clone(),
            payments: shared.payments.clone(),
            gateway: ledger.clone(),
            outboxes: vec![order_db.outbox(), payment_db.outbox()],
            events: None,
            sessions: None,
            patience: Duration::MAX,
            events_since: Timestamp::default(),
        };
        let idle = order_driver(&shared, "order-api", 0, wire, &TaskTracker::new());
        *shared.api_driver.lock() = Some(idle.clone());
        let api = Api {
            orders: Orders {
                store: shared.orders.clone(),
                catalog: Arc::new(FakeCatalog),
                driver: idle,
                amount_limits: kernel::AmountLimits::default(),
                clock: shared.clock.clone(),
                ids: Arc::new(SystemIds),
                cell: 0,
            },
            inventory: Inventory { store: shared.orders.clone() },
            sources,
            order: Arc::default(),
            cancelled: Arc::default(),
            checks: Arc::default(),
            broken: Arc::default(),
        };
        *plan.api.lock() = Some(api.clone());
        let system = Self {
            shared,
            wire,
            plan,
            ledger,
            api,
            payment_db,
            generation: AtomicUsize::new(1),
            standing: Mutex::default(),
            left: Mutex::default(),
            _folder: folder,
        };
        system.start_payment("payment-1");
        let stock = AdjustStock {
            request_id: RequestId::from_uuid(SystemIds.uuid()),
            sku: SKU.into(),
            delta: 10,
            write_off: false,
        };
        system.api.inventory.adjust(&system.api.operation("adjust"), stock).await.expect("stock");
        system.create().await;
        system
    }

    async fn create(&self) {
        let command = CreateOrder {
            request_id: RequestId::from_uuid(SystemIds.uuid()),
            items: vec![(SKU.to_owned(), 2)],
            payment_method: PaymentMethod::new("pm_card_visa".into()),
            address: Address {
                recipient: "Ada".into(),
                lines: vec!["Street 1".into()],
                city: "Berlin".into(),
                postal_code: "10115".into(),
                country_code: "DE".into(),
            },
            contact_email: "ada@example.com".into(),
            expected_total: None,
        };
        let sink: Arc<dyn EventSink> = Arc::new(Origin("order", "order-api".into()));
        let name = "order.v1.OrderService/CreateOrder";
        let operation = Operation::open(Kind::Server, name, Parent::Root, Some("order_creation"), Some(sink));
        let user = UserId::from_uuid(SystemIds.uuid());
        let id = self.api.orders.new_id(&operation, user);
        assert!(self.api.order.set(id).is_ok());
        self.api.orders.create(&operation, id, user, command).await.expect("an order");
        self.api.check("a creation").await;
    }

    /// A new instance of the Order Service.
    pub(crate) fn order_instance(&self, name: &str) -> OrderInstance {
        let tasks = TaskTracker::new();
        let driver = order_driver(&self.shared, name, 8, self.wire, &tasks);
        OrderInstance { name: name.to_owned(), driver, tasks }
    }

    /// Starts an instance of the Payment Service, and routes calls to it.
    pub(crate) fn start_payment(&self, name: &str) {
        let shared = &self.shared;
        let (tasks, subscriptions) = (TaskTracker::new(), Subscriptions::default());
        let events: Arc<dyn EventSink> = Arc::new(Origin("payment", name.to_owned()));
        let payments = payment::driver::Payments {
            store: shared.payments.clone(),
            gateway: shared.ledger.clone(),
            confirmations: Arc::new(WakeUp(shared.clone())),
            clock: shared.clock.clone(),
            events: events.clone(),
            subscriptions: subscriptions.clone(),
            doubt_limit: DOUBT_LIMIT,
        };
        let context = payment::driver::Context {
            ids: Arc::new(SystemIds),
            faults: shared.plan.clone(),
            tasks: tasks.clone(),
            shutdown: CancellationToken::new(),
            options: payment::driver::Options {
                instance: name.to_owned(),
                lease: LEASE,
                poll_interval: GUARD,
                backoff: BACKOFF,
                backoff_cap: BACKOFF_CAP,
                max_in_flight: 8,
            },
        };
        let driver = payment::driver::Driver::new(payments, context);
        let processor = Processor {
            store: shared.payments.clone(),
            driver: driver.clone(),
            subscriptions,
            events,
            limits: Limits { amount: kernel::AmountLimits::default(), max_wait: GUARD },
        };
        *shared.payment.lock() = Some(PaymentInstance { name: name.to_owned(), driver, processor, tasks });
    }

    /// Replaces a crashed or stalled instance by one with another name, or restarts it with its own name.
    pub(crate) async fn replace_crashed(&self, order: &mut OrderInstance, restarts: bool) {
        let n = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        if self.plan.has_crashed(&order.name) || self.plan.is_stalled(&order.name) {
            let name = if restarts { order.name.clone() } else { format!("order-{n}") };
            *order = self.order_instance(&name);
            if restarts {
                self.plan.restarted(&name);
                order.driver.recover().await.expect("leases are freed");
            }
        }
        let payment = self.shared.payment_instance();
        if self.plan.has_crashed(&payment.name) || self.plan.is_stalled(&payment.name) {
            let name = if restarts { payment.name.clone() } else { format!("payment-{n}") };
            self.start_payment(&name);
            if restarts {
                self.plan.restarted(&name);
                self.shared.payment_instance().driver.recover().await.expect("leases are freed");
            }
        }
    }

    /// Each driver polls once. Returns when nothing moves any more; stalled drivers stay stalled.
    pub(crate) async fn drive_once(&self, order: &OrderInstance) {
        let driver = order.driver.clone();
        self.run(&order.name, async move { driver.run_due().await.map(|_| ()) }).await;
        self.settle(&order.tasks, &order.name).await;
        let payment = self.shared.payment_instance();
        if !self.plan.has_crashed(&payment.name) && !self.plan.is_stalled(&payment.name) {
            let driver = payment.driver.clone();
            self.run(&payment.name, async move { driver.attempt_due().await.map(|_| ()) }).await;
        }
        self.settle(&payment.tasks, &payment.name).await;
        self.api.check("a round").await;
    }

    async fn run(&self, instance: &str, work: impl Future<Output = Result<(), storage::Error>> + Send + 'static) {
        let mut running = tokio::spawn(work);
        let ended = tokio::select! {
            biased;
            ended = &mut running => Some(ended),
            () = self.plan.is_stalled_now(instance) => None,
        };
        match ended {
            Some(ended) => ended.expect("no panic").expect("the stores are available"),
            None => self.standing.lock().push(running),
        }
    }

    async fn settle(&self, tasks: &TaskTracker, instance: &str) {
        tasks.close();
        let settled = async {
            tokio::select! {
                biased;
                () = tasks.wait() => {}
                () = self.plan.is_stalled_now(instance) => self.left.lock().push(tasks.clone()),
            }
        };
        tokio::time::timeout(GUARD, settled).await.expect("the tasks end");
    }

    /// Whether a driver is stalled.
    pub(crate) fn has_stalled(&self) -> bool {
        self.plan.is_any_stalled()
    }

    /// Resumes the stalled driver, and waits until it ends.
    pub(crate) async fn resume(&self) {
        self.plan.resume();
        let ended = async {
            let standing: Vec<_> = self.standing.lock().drain(..).collect();
            for running in standing {
                running.await.expect("no panic").expect("the stores are available");
            }
            let left: Vec<_> = self.left.lock().drain(..).collect();
            for tasks in left {
                tasks.wait().await;
            }
        };
        tokio::time::timeout(GUARD, ended).await.expect("the stalled driver ends");
        self.api.check("the end of the stalled driver").await;
    }

    /// Sends a confirmation to the Order Service: true or not, it decides nothing.
    pub(crate) async fn confirm(&self) {
        order::driver::wake(&self.shared.api_driver(), self.api.id()).await.expect("the order is woken");
        self.api.check("a confirmation").await;
    }

    /// Deletes the payment's row, as if none had been created.
    pub(crate) async fn takes_out_the_tombstone(&self) {
        for sql in ["DELETE FROM payment_attempt", "DELETE FROM payment"] {
            self.payment_db.read().execute_unprepared(sql).await.expect("the rows are deleted");
        }
    }

    /// Drives the payment once, whatever the order's state.
    pub(crate) async fn settle_payment(&self) {
        self.make_due();
        self.shared.payment_instance().driver.attempt_due().await.expect("payments are claimed");
    }

    /// Advances the clock beyond leases and backoff.
    pub(crate) fn make_due(&self) {
        self.shared.clock.advance(LEASE + BACKOFF_CAP);
    }

    pub(crate) fn advance(&self, duration: Duration) {
        self.shared.clock.advance(duration);
    }

    /// Drives until order and payment have no pending effects; an operator retries NEEDS_ATTENTION. Crashed instances
    /// are replaced.
    pub(crate) async fn drive_to_completion(&self, order: &mut OrderInstance, restarts: bool) {
        for _ in 0..MAX_ROUNDS {
            self.replace_crashed(order, restarts).await;
            self.drive_once(order).await;
            if self.is_at_rest().await {
                if self.state().await != State::NeedsAttention {
                    return;
                }
                self.api.retry().await;
            }
            self.make_due();
        }
        panic!("the order is {:?} after {MAX_ROUNDS} rounds: {:?}", self.state().await, self.payment().await);
    }

    async fn is_at_rest(&self) -> bool {
        let order = self.order().await;
        let payment = self.payment().await;
        order.next_attempt_time.is_none() && payment.is_none_or(|payment| payment.pending_effect().is_none())
    }

    pub(crate) async fn order(&self) -> Order {
        self.shared
            .orders
            .get(Scope::All, self.api.id())
            .await
            .expect("the store is readable")
            .expect("the order exists")
    }

    pub(crate) async fn state(&self) -> State {
        self.order().await.state
    }

    pub(crate) async fn failure(&self) -> Option<PaymentFailure> {
        self.order().await.payment_failure
    }

    pub(crate) async fn payment(&self) -> Option<Payment> {
        self.shared.payments.find(self.api.id()).await.expect("the store is readable")
    }

    pub(crate) async fn report(&self) -> Report {
        self.api.sources.check().await.expect("the stores are readable")
    }

    /// How often all promises were verified.
    pub(crate) fn checks(&self) -> usize {
        self.api.checks.load(Ordering::Relaxed)
    }

    /// The violations found during the run.
    pub(crate) fn broken(&self) -> Vec<String> {
        self.api.broken.lock().clone()
    }
}

fn order_driver(
    shared: &Arc<Shared>,
    name: &str,
    max_in_flight: usize,
    wire: Wire,
    tasks: &TaskTracker,
) -> order::driver::Driver {
    let faults: Arc<dyn kernel::Faults> = if max_in_flight == 0 { Arc::new(NoFaults) } else { shared.plan.clone() };
    let effects = order::driver::Effects {
        table: order::lifecycle::next,
        store: shared.orders.clone(),
        payments: Arc::new(Cable { system: shared.clone(), wire, lost: Mutex::default() }),
        clock: shared.clock.clone(),
        events: Arc::new(Origin("order", name.to_owned())),
        subscriptions: order::subscriptions::Subscriptions::new(1, storage::Notifier::default()),
    };
    let context = order::driver::Context {
        ids: Arc::new(SystemIds),
        faults,
        tasks: tasks.clone(),
        shutdown: CancellationToken::new(),
        options: order::driver::Options {
            instance: name.to_owned(),
            // An instance that never drives: its tasks give up immediately.
            lease: if max_in_flight == 0 { Duration::from_millis(2) } else { LEASE },
            poll_interval: GUARD,
            backoff: BACKOFF,
            backoff_cap: BACKOFF_CAP,
            max_in_flight,
        },
    };
    order::driver::Driver::new(effects, context)
}
