//! Scripted peers: a Payment Service with a ledger, a catalogue, faults, a sink of events.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use kernel::{FaultPoint, FaultSite, Faults, Money, OrderId};
use order::Error;
use order::lifecycle::State;
use order::order::{Order, PaymentFailure, Transit};
use order::ports::{Catalog, PaymentOutcome, Payments, Product};
use parking_lot::Mutex;
use telemetry::{Disposition, Ended, EventSink, TraceEvent};
use tokio::sync::{Notify, watch};

/// The fake Payment Service's behaviour on the next call.
pub(crate) enum Reply {
    /// Performs the call and responds.
    Regular,
    /// Does nothing, and does not respond.
    NoResponse,
    /// Performs the call, but the response is lost.
    Lost,
    /// Waits for the future, then performs the call and responds.
    After(BoxFuture<'static, ()>),
    /// Performs the call, waits for the future, then responds.
    ResponseAfter(BoxFuture<'static, ()>),
    /// Waits for the future; does nothing, and does not respond.
    NoResponseAfter(BoxFuture<'static, ()>),
}

impl Reply {
    /// Waits until released, then performs the call and responds.
    pub(crate) fn held(gate: &Arc<Notify>) -> Self {
        let gate = gate.clone();
        Self::After(Box::pin(async move { gate.notified().await }))
    }

    /// Performs the call; the response waits until released.
    pub(crate) fn response_held(gate: &Arc<Notify>) -> Self {
        let gate = gate.clone();
        Self::ResponseAfter(Box::pin(async move { gate.notified().await }))
    }

    /// Does nothing; fails without a response once released.
    pub(crate) fn no_response_held(gate: &Arc<Notify>) -> Self {
        let gate = gate.clone();
        Self::NoResponseAfter(Box::pin(async move { gate.notified().await }))
    }
}

/// The state of an order's charge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChargeState {
    Charged,
    Declined,
    /// Cancelled before the charge: a later charge is declined.
    Tombstone,
    Refunded,
    RefundRefused(i32),
}

/// A call to the fake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Process(OrderId),
    Cancel(OrderId, i32),
}

/// A Payment Service with a ledger: effects are idempotent by key.
pub(crate) struct FakePayments {
    replies: Mutex<VecDeque<Reply>>,
    pub(crate) ledger: Mutex<HashMap<OrderId, ChargeState>>,
    pub(crate) declines: AtomicBool,
    /// Refunds up to this attempt are refused.
    pub(crate) refused_refunds: Mutex<i32>,
    received: Mutex<Vec<Call>>,
    count: watch::Sender<usize>,
}

pub(crate) fn declined() -> PaymentFailure {
    PaymentFailure {
        reason: "PAYMENT_DECLINED".into(),
        decline_code: "GENERIC_DECLINE".into(),
        advice: "USE_OTHER_METHOD".into(),
        message: "the issuer declined the payment".into(),
    }
}

fn refused(reason: &str) -> PaymentOutcome {
    PaymentOutcome::Refused(PaymentFailure { reason: reason.into(), ..declined() })
}

impl FakePayments {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            replies: Mutex::default(),
            ledger: Mutex::default(),
            declines: AtomicBool::new(false),
            refused_refunds: Mutex::new(0),
            received: Mutex::default(),
            count: watch::Sender::new(0),
        })
    }

    /// Scripts its behaviour for the next calls; without a script it performs them and responds.
    pub(crate) fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        self.replies.lock().extend(replies);
    }

    /// Waits until it has been called this many times in total.
    pub(crate) async fn called(&self, times: usize) {
        let mut count = self.count.subscribe();
        count.wait_for(|count| *count >= times).await.expect("the sender exists");
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.received.lock().clone()
    }

    pub(crate) fn of(&self, order: OrderId) -> Option<ChargeState> {
        self.ledger.lock().get(&order).copied()
    }

    fn charge(&self, order: OrderId) -> PaymentOutcome {
        let mut ledger = self.ledger.lock();
        let charge = || if self.declines.load(Ordering::SeqCst) { ChargeState::Declined } else { ChargeState::Charged };
        match *ledger.entry(order).or_insert_with(charge) {
            ChargeState::Charged => PaymentOutcome::Done,
            ChargeState::Declined => PaymentOutcome::Refused(declined()),
            ChargeState::Tombstone => refused("PAYMENT_CANCELLED"),
            ChargeState::Refunded | ChargeState::RefundRefused(_) => PaymentOutcome::Undecided("refunded".into()),
        }
    }

    fn cancel(&self, order: OrderId, attempt: i32) -> PaymentOutcome {
        let refuses = attempt <= *self.refused_refunds.lock();
        let mut ledger = self.ledger.lock();
        let entry = ledger.entry(order).or_insert(ChargeState::Tombstone);
        match *entry {
            ChargeState::Charged if refuses => *entry = ChargeState::RefundRefused(attempt),
            ChargeState::RefundRefused(last) if attempt > last && refuses => {
                *entry = ChargeState::RefundRefused(attempt)
            }
            ChargeState::RefundRefused(last) if attempt <= last => {}
            ChargeState::Charged | ChargeState::RefundRefused(_) => *entry = ChargeState::Refunded,
            ChargeState::Declined | ChargeState::Tombstone | ChargeState::Refunded => {}
        }
        match *entry {
            ChargeState::RefundRefused(_) => refused("REFUND_REFUSED"),
            ChargeState::Charged => PaymentOutcome::Undecided("charged".into()),
            ChargeState::Declined | ChargeState::Tombstone | ChargeState::Refunded => PaymentOutcome::Done,
        }
    }

    async fn reply(&self, call: Call, perform: impl Fn() -> PaymentOutcome) -> PaymentOutcome {
        self.received.lock().push(call);
        self.count.send_modify(|count| *count += 1);
        let reply = self.replies.lock().pop_front().unwrap_or(Reply::Regular);
        match reply {
            Reply::Regular => perform(),
            Reply::NoResponse => PaymentOutcome::Undecided("no response".into()),
            Reply::Lost => {
                perform();
                PaymentOutcome::Undecided("no response".into())
            }
            Reply::After(first) => {
                first.await;
                perform()
            }
            Reply::ResponseAfter(then) => {
                let response = perform();
                then.await;
                response
            }
            Reply::NoResponseAfter(then) => {
                then.await;
                PaymentOutcome::Undecided("no response".into())
            }
        }
    }
}

impl Payments for FakePayments {
    fn process<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentOutcome> {
        assert_eq!(order.state, State::Created);
        assert_eq!(order.payment_method.clone().expect("a payment method").into_inner(), "pm_card_visa");
        Box::pin(self.reply(Call::Process(order.id), || self.charge(order.id)))
    }

    fn cancel<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentOutcome> {
        assert_eq!(order.state, State::Cancelling);
        let attempt = order.refund_attempt;
        Box::pin(self.reply(Call::Cancel(order.id, attempt), move || self.cancel(order.id, attempt)))
    }
}

/// A catalogue.
pub(crate) struct FakeCatalog {
    pub(crate) prices: Mutex<BTreeMap<String, Money>>,
    pub(crate) is_down: AtomicBool,
    /// Notified of each lookup.
    pub(crate) looked_up: Notify,
}

impl FakeCatalog {
    pub(crate) fn new(prices: impl IntoIterator<Item = (&'static str, Money)>) -> Arc<Self> {
        let prices = prices.into_iter().map(|(sku, price)| (sku.to_owned(), price)).collect();
        Arc::new(Self { prices: Mutex::new(prices), is_down: AtomicBool::new(false), looked_up: Notify::new() })
    }
}

impl Catalog for FakeCatalog {
    fn products(
        &self,
        _attributes: mesh::CallAttributes,
        skus: Vec<String>,
    ) -> BoxFuture<'_, Result<Vec<Product>, Error>> {
        Box::pin(async move {
            self.looked_up.notify_one();
            if self.is_down.load(Ordering::SeqCst) {
                return Err(Error::LookupFailed { cause: telemetry::ErrorType::ConnectionError });
            }
            let prices = self.prices.lock();
            let product = |sku: String| prices.get(&sku).map(|price| Product { name: sku.clone(), sku, price: *price });
            Ok(skus.into_iter().filter_map(product).collect())
        })
    }

    fn transit(
        &self,
        _attributes: mesh::CallAttributes,
        country: String,
        _postal_code: String,
    ) -> BoxFuture<'_, Result<Transit, Error>> {
        Box::pin(async move {
            if country == "AQ" {
                return Err(Error::NoDeliveryZone { country });
            }
            Ok(Transit { business_days: 2, cutoff_hour: 14 })
        })
    }
}

/// Injects planned crashes, each once.
#[derive(Default)]
pub(crate) struct PlannedCrashes {
    crashes: Mutex<Vec<(FaultPoint, State)>>,
}

impl PlannedCrashes {
    pub(crate) fn die(&self, point: FaultPoint, state: State) {
        self.crashes.lock().push((point, state));
    }
}

impl Faults for PlannedCrashes {
    fn at<'a>(&'a self, site: FaultSite<'a>) -> BoxFuture<'a, ControlFlow<()>> {
        let here = (site.point, State::of(site.state).expect("a state of an order"));
        let mut crashes = self.crashes.lock();
        let planned = crashes.iter().position(|crash| *crash == here);
        if let Some(index) = planned {
            crashes.remove(index);
        }
        let flow = if planned.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        Box::pin(std::future::ready(flow))
    }
}

/// Keeps the ended operations whose events were not claimed.
#[derive(Default)]
pub(crate) struct Unclaimed(pub(crate) Mutex<Vec<Ended>>);

/// The instance name in events.
pub(crate) const INSTANCE: &str = "order-test";

impl EventSink for Unclaimed {
    fn unclaimed(&self, ended: Ended) -> Disposition {
        self.0.lock().push(ended);
        Disposition::NoEvent
    }
    fn put(&self, _event: TraceEvent) {}
    fn origin(&self) -> (&str, &str) {
        ("order", INSTANCE)
    }
}
