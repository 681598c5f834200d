//! The domain on a real store, and helpers.

use std::sync::Arc;
use std::time::Duration;

use kernel::{Clock, FaultPoint, IdSource, ManualClock, Money, OrderId, RequestId, SystemIds, Timestamp, UserId};
use order::Error;
use order::driver::{Context, Driver, Effects, Options};
use order::inventory::{AdjustStock, Inventory, Stock};
use order::lifecycle::{State, Table};
use order::order::{Address, CreateOrder, Order, PaymentMethod, Scope};
use order::orders::Orders;
use order::store::{Adjustment, Store};
use order::subscriptions::Subscriptions;
use storage::Database;
use telemetry::{Kind, Operation, Outcome, Parent, TraceEvent};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fakes::{FakeCatalog, FakePayments, INSTANCE, PlannedCrashes, Reply, Unclaimed};
use crate::invariants::invariants;

pub(crate) const LEASE: Duration = Duration::from_secs(15);
pub(crate) const BACKOFF_CAP: Duration = Duration::from_secs(60);
/// Longer than anything takes unless it hangs: a timeout fails the test.
pub(crate) const GUARD: Duration = Duration::from_secs(10);
/// Monday, 2026-03-02, 10:00 UTC.
const MONDAY: i64 = 1_772_445_600_000_000;

pub(crate) fn eur(minor_units: i64) -> Money {
    Money::new("EUR".parse().expect("a currency"), minor_units)
}

pub(crate) fn usd(minor_units: i64) -> Money {
    Money::new("USD".parse().expect("a currency"), minor_units)
}

pub(crate) fn new_request() -> RequestId {
    RequestId::from_uuid(SystemIds.uuid())
}

pub(crate) fn new_user() -> UserId {
    UserId::from_uuid(SystemIds.uuid())
}

/// A CreateOrder command for these items.
pub(crate) fn order_of(items: &[(&str, u32)]) -> CreateOrder {
    CreateOrder {
        request_id: new_request(),
        items: items.iter().map(|(sku, quantity)| ((*sku).to_owned(), *quantity)).collect(),
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
    }
}

/// One store, with its instances and peers.
pub(crate) struct World {
    pub(crate) db: Database,
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) payments: Arc<FakePayments>,
    pub(crate) catalog: Arc<FakeCatalog>,
    pub(crate) faults: Arc<PlannedCrashes>,
    pub(crate) unclaimed: Arc<Unclaimed>,
    pub(crate) tasks: TaskTracker,
    /// Instance "order-1", with the planned crashes of `faults`.
    pub(crate) driver: Driver,
    pub(crate) orders: Orders,
    pub(crate) inventory: Inventory,
    pub(crate) user: UserId,
    shared: Shared,
    _folder: Option<tempfile::TempDir>,
}

impl World {
    /// Ten mugs, ten plates, one vase (in dollars), no spoons.
    pub(crate) async fn new() -> Self {
        Self::on(testkit::database(), None).await
    }

    /// The same on an SQLite file.
    pub(crate) async fn on_file() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("order.db").display());
        Self::on(testkit::TestDatabase { url, schema: None }, Some(folder)).await
    }

    pub(crate) async fn on(test_database: testkit::TestDatabase, folder: Option<tempfile::TempDir>) -> Self {
        let options =
            storage::Options { schema: test_database.schema, max_connections: 4, ..storage::Options::default() };
        let db = Database::connect(&test_database.url, &options).await.expect("a database");
        db.migrate(order::MIGRATIONS).await.expect("a schema");
        let clock = Arc::new(ManualClock::at(Timestamp::from_micros(MONDAY)));
        let store = Store::new(db.clone(), clock.clone()).by_given_clock();
        let payments = FakePayments::new();
        let prices = [("MUG", eur(1_250)), ("PLATE", eur(800)), ("SPOON", eur(100)), ("VASE", usd(4_000))];
        let catalog = FakeCatalog::new(prices);
        let (faults, unclaimed) = (Arc::new(PlannedCrashes::default()), Arc::new(Unclaimed::default()));
        let tasks = TaskTracker::new();
        let shared = Shared {
            store: store.clone(),
            payments: payments.clone(),
            clock: clock.clone(),
            unclaimed: unclaimed.clone(),
            subscriptions: Subscriptions::new(10, db.notifications("transitions").0),
            tasks: tasks.clone(),
        };
        let driver = shared.driver("order-1", faults.clone());
        let orders = Orders {
            store: store.clone(),
            catalog: catalog.clone(),
            driver: driver.clone(),
            amount_limits: kernel::AmountLimits::default(),
            clock: clock.clone(),
            ids: Arc::new(SystemIds),
            cell: 0,
        };
        let inventory = Inventory { store: store.clone() };
        let user = new_user();
        let world = Self {
            db,
            store,
            clock,
            payments,
            catalog,
            faults,
            unclaimed,
            tasks,
            driver,
            orders,
            inventory,
            user,
            shared,
            _folder: folder,
        };
        for (sku, on_hand) in [("MUG", 10), ("PLATE", 10), ("VASE", 1)] {
            world.adjust(sku, on_hand, false).await.expect("stock");
        }
        world
    }

    /// What another instance has in common with this one: the database, but not what this one keeps in memory.
    fn another(&self) -> Shared {
        Shared { store: self.reader(), ..self.shared.clone() }
    }

    /// A store that keeps nothing in memory yet.
    pub(crate) fn reader(&self) -> Store {
        Store::new(self.db.clone(), self.clock.clone()).by_given_clock()
    }

    /// Another instance on the same database, with the same peers; it never crashes.
    pub(crate) fn instance(&self, name: &str) -> Driver {
        self.another().driver(name, Arc::default())
    }

    /// The same, with this shutdown token.
    pub(crate) fn instance_until(&self, name: &str, stop: &CancellationToken) -> Driver {
        self.another().driver_by(order::lifecycle::next, name, Arc::default(), stop.clone())
    }

    /// The same, with another state machine.
    pub(crate) fn instance_by(&self, table: Table) -> Driver {
        self.another().driver_by(table, "order-2", Arc::default(), CancellationToken::new())
    }

    /// Instance "order-2" drives the due order, and stalls in its call to the Payment Service.
    pub(crate) async fn stalled(&self, id: OrderId, reply: impl Fn(&Arc<Notify>) -> Reply) -> Stalled {
        let gate = Arc::new(Notify::new());
        let before = self.payments.calls().len();
        self.payments.script([reply(&gate)]);
        let driver = self.instance("order-2");
        let driven = driver.claim_due(1).await.expect("a poll").pop().expect("one is due");
        assert_eq!(driven.order.id, id);
        let driving = tokio::spawn(async move { driver.run(driven).await });
        tokio::time::timeout(GUARD, self.payments.called(before + 1)).await.expect("the payment is requested");
        Stalled { gate, driving }
    }

    pub(crate) async fn adjust_by(&self, command: AdjustStock) -> Result<Adjustment, Error> {
        let operation = self.operation("order.v1.InventoryService/AdjustStock", Some("audit"));
        let result = self.inventory.adjust(&operation, command).await;
        if let Err(error) = &result {
            operation.end(Outcome::Failed(mesh::event_error(&mesh::status("order", error))));
        }
        result
    }

    pub(crate) fn operation(&self, name: &'static str, event_type: Option<&'static str>) -> Operation {
        Operation::open(Kind::Server, name, Parent::Root, event_type, Some(self.unclaimed.clone()))
    }

    /// Does what a handler does around the domain's CreateOrder.
    pub(crate) async fn create_for(&self, user: UserId, command: CreateOrder) -> Result<Order, Error> {
        let operation = self.operation("order.v1.OrderService/CreateOrder", Some("order_creation"));
        let id = self.orders.new_id(&operation, user);
        let result = self.orders.create(&operation, id, user, command).await;
        operation.end(match &result {
            Ok(_) => Outcome::Success,
            Err(error) => Outcome::Failed(mesh::event_error(&mesh::status("order", error))),
        });
        result
    }

    pub(crate) async fn create(&self, command: CreateOrder) -> Result<Order, Error> {
        self.create_for(self.user, command).await
    }

    /// Creates an order of two mugs, which is then driven.
    pub(crate) async fn order_mugs(&self) -> OrderId {
        self.create(order_of(&[("MUG", 2)])).await.expect("an order").id
    }

    /// An order of two mugs whose instance crashed before the first effect: it stays in CREATED.
    pub(crate) async fn abandoned_order(&self) -> OrderId {
        self.faults.die(FaultPoint::BeforeEffect, State::Created);
        let id = self.order_mugs().await;
        self.settle().await;
        assert_eq!(self.state(id).await, State::Created);
        id
    }

    /// An order that was charged, then cancelled, and whose refund was refused.
    pub(crate) async fn order_that_needs_attention(&self) -> OrderId {
        let gate = Arc::new(Notify::new());
        let before = self.payments.calls().len();
        self.payments.script([Reply::response_held(&gate)]);
        let id = self.order_mugs().await;
        tokio::time::timeout(GUARD, self.payments.called(before + 1)).await.expect("driven");
        self.cancel(id).await.expect("it is not too late");
        gate.notify_one();
        self.settle().await;
        assert_eq!(self.state(id).await, State::NeedsAttention);
        id
    }

    pub(crate) async fn cancel(&self, id: OrderId) -> Result<Order, Error> {
        cancel(&self.orders, &self.unclaimed, id).await
    }

    pub(crate) async fn retry(&self, id: OrderId) -> Result<Order, Error> {
        let operation = self.operation("order.v1.OrderService/RetryOrder", Some("audit"));
        self.orders.retry(&operation, id).await
    }

    pub(crate) async fn adjust(&self, sku: &str, delta: i64, write_off: bool) -> Result<Adjustment, Error> {
        self.adjust_by(AdjustStock { request_id: new_request(), sku: sku.into(), delta, write_off }).await
    }

    pub(crate) async fn order(&self, id: OrderId) -> Order {
        self.store.get(Scope::All, id).await.expect("the store is readable").expect("the order exists")
    }

    pub(crate) async fn state(&self, id: OrderId) -> State {
        self.order(id).await.state
    }

    pub(crate) async fn history(&self, id: OrderId) -> Vec<(i64, State)> {
        let (_, history) = self.orders.get(Scope::All, id).await.expect("the order exists");
        history.into_iter().map(|entry| (entry.version, entry.state)).collect()
    }

    pub(crate) async fn states(&self, id: OrderId) -> Vec<State> {
        self.history(id).await.into_iter().map(|(_, state)| state).collect()
    }

    /// (on hand, reserved).
    pub(crate) async fn stock(&self, sku: &str) -> (i64, i64) {
        let stocks = self.inventory.stock(&[sku.to_owned()]).await.expect("the store is readable");
        let [Stock { on_hand, reserved, .. }] = &stocks[..] else { panic!("one SKU was requested") };
        (*on_hand, *reserved)
    }

    /// The events of orders; the audits of stock are [`World::stock_audits`].
    pub(crate) async fn events(&self) -> Vec<TraceEvent> {
        self.stored().await.into_iter().filter(|event| event.order_id.is_some()).collect()
    }

    pub(crate) async fn stock_audits(&self) -> Vec<TraceEvent> {
        self.stored().await.into_iter().filter(|event| event.order_id.is_none()).collect()
    }

    async fn stored(&self) -> Vec<TraceEvent> {
        self.db.outbox().waiting(INSTANCE, 100_000).await.expect("the outbox is readable")
    }

    /// Waits for all tasks, and checks the invariants.
    pub(crate) async fn settle(&self) {
        self.tasks.close();
        tokio::time::timeout(GUARD, self.tasks.wait()).await.expect("the tasks end");
        self.tasks.reopen();
        invariants(self).await;
    }

    /// Advances the clock beyond leases and backoff, and drives, until nothing is due or `max_rounds` are over.
    pub(crate) async fn drive_to_rest(&self, driver: &Driver, max_rounds: usize) {
        for _ in 0..max_rounds {
            self.clock.advance(LEASE + BACKOFF_CAP);
            if driver.run_due().await.expect("orders are claimed") == 0 {
                return;
            }
            // Other tasks (a cancellation's driver) must end first: the check does not read a snapshot.
            self.settle().await;
        }
        panic!("orders are still due after {max_rounds} rounds");
    }

    /// An order's id as an SQL literal.
    pub(crate) fn literal(&self, id: OrderId) -> String {
        match self.db.backend() {
            storage::Backend::Sqlite => format!("X'{}'", id.as_uuid().simple()),
            storage::Backend::Postgres => format!("'{id}'"),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// A stalled driver.
pub(crate) struct Stalled {
    gate: Arc<Notify>,
    driving: JoinHandle<()>,
}

impl Stalled {
    /// Resumes it, and waits until it ends.
    pub(crate) async fn let_go(self) {
        self.gate.notify_one();
        tokio::time::timeout(GUARD, self.driving).await.expect("it stops").expect("no panic");
    }
}

pub(crate) async fn cancel(orders: &Orders, unclaimed: &Arc<Unclaimed>, id: OrderId) -> Result<Order, Error> {
    let sink: Arc<dyn telemetry::EventSink> = unclaimed.clone();
    let name = "order.v1.OrderService/CancelOrder";
    let operation = Operation::open(Kind::Server, name, Parent::Root, Some("audit"), Some(sink));
    orders.cancel(&operation, Scope::All, id).await
}

/// What the drivers of all instances share.
#[derive(Clone)]
struct Shared {
    store: Store,
    payments: Arc<FakePayments>,
    clock: Arc<ManualClock>,
    unclaimed: Arc<Unclaimed>,
    subscriptions: Subscriptions,
    tasks: TaskTracker,
}

impl Shared {
    fn driver(&self, name: &str, faults: Arc<PlannedCrashes>) -> Driver {
        self.driver_by(order::lifecycle::next, name, faults, CancellationToken::new())
    }

    fn driver_by(&self, table: Table, name: &str, faults: Arc<PlannedCrashes>, shutdown: CancellationToken) -> Driver {
        let Self { store, payments, clock, unclaimed, subscriptions, tasks } = self.clone();
        let effects = Effects { table, store, payments, clock, events: unclaimed, subscriptions };
        let options = Options {
            instance: name.into(),
            lease: LEASE,
            poll_interval: Duration::from_millis(20),
            backoff: Duration::from_millis(200),
            backoff_cap: BACKOFF_CAP,
            max_in_flight: 16,
        };
        Driver::new(effects, Context { options, ids: Arc::new(SystemIds), faults, tasks, shutdown })
    }
}
