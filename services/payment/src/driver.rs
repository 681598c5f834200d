//! Performs the effect that a payment owes under its key, and records what came of it.
//!
//! A lease saves work; it never makes the result right: keys and versions do. Whoever changes a payment sees to it that it
//! goes on, so whoever loses its compare-and-set just stops. Clock, ids, store, peers and fault points are arguments.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kernel::backoff::full_jitter;
use kernel::{Clock, IdSource, OrderId, Timestamp};
use telemetry::{EventSink, Kind, Operation, Outcome, Parent};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::lifecycle::{Doubt, Effect, Observation, State, after};
use crate::payment::{Attempt, DeclineCode, EVENT_TYPE, Payment, charge_key, event_of, refund_key};
use crate::ports::{Charge, ChargeCommand, ChargeStatus, Confirmations, Gateway, NoAnswer, RefundAnswer};
use crate::store::{Lease, Schedule, Store};
use crate::waiters::Waiters;

/// A wait up to this is waited for where the try was made; a longer one lies in the table.
const SOON: Duration = Duration::from_secs(2);
/// The most payments that are claimed at a time.
const MAX_CLAIM: usize = 64;
/// How often a late result is told.
const CONFIRM_TRIES: u32 = 3;

/// Where a driver may be made to stop, as if its process had died there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Point {
    /// The payment is claimed; the gateway is not asked yet.
    BeforeEffect,
    /// The gateway has done what was asked; nothing is recorded of it.
    AfterEffect,
    /// It is recorded; nobody is told.
    AfterRecord,
}

/// Faults on purpose, for the crash suite. May also hold the driver up: it is awaited.
pub trait FaultPoint: Send + Sync + 'static {
    /// `Break`: the driver stops here, and leaves everything as it is.
    fn at<'a>(&'a self, point: Point, payment: &'a Payment) -> BoxFuture<'a, ControlFlow<()>>;
}

/// No faults: production.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFaults;

impl FaultPoint for NoFaults {
    fn at<'a>(&'a self, _point: Point, _payment: &'a Payment) -> BoxFuture<'a, ControlFlow<()>> {
        Box::pin(std::future::ready(ControlFlow::Continue(())))
    }
}

/// How a driver behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The owner of its leases.
    pub instance: String,
    /// How long a payment is left to it.
    pub lease: Duration,
    /// How often to look for payments that are due, on average.
    pub poll_interval: Duration,
    /// Wait after the first try that came to nothing; it doubles with each, up to the cap.
    pub backoff: Duration,
    /// Longest wait between two tries.
    pub backoff_cap: Duration,
    /// How long a payment may be in doubt.
    pub doubt_limit: Duration,
    /// Most payments that are driven at a time.
    pub max_drives: usize,
}

/// What a driver is made of.
pub struct Parts {
    /// The payments.
    pub store: Store,
    /// The payment gateway.
    pub gateway: Arc<dyn Gateway>,
    /// Who is told of late results.
    pub confirmations: Arc<dyn Confirmations>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Ids, and the randomness of waits.
    pub ids: Arc<dyn IdSource>,
    /// Where events go.
    pub events: Arc<dyn EventSink>,
    /// Who waits for results.
    pub waiters: Waiters,
    /// Faults on purpose.
    pub faults: Arc<dyn FaultPoint>,
    /// The tasks that are waited for when the service stops.
    pub tasks: TaskTracker,
    /// Told to stop: claim nothing more.
    pub shutdown: CancellationToken,
    /// How it behaves.
    pub options: Options,
}

/// What came of one try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// It owes nothing any more.
    Settled(Payment),
    /// It owes something else, at once; the lease is kept.
    GoesOn(Payment),
    /// It came to nothing; the lease is given back, and it is due after a while.
    Later(Payment, Duration),
    /// Somebody else has changed the payment, and sees to it.
    Lost,
    /// A fault on purpose stopped the driver.
    Stopped,
}

struct Inner {
    parts: Parts,
    permits: Arc<Semaphore>,
    /// Work was left lying for want of a permit, or one was given back: look at once.
    work: Notify,
}

/// Drives payments. Clones are the same driver.
#[derive(Clone)]
pub struct Driver(Arc<Inner>);

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("options", &self.0.parts.options).finish_non_exhaustive()
    }
}

/// The right to drive one payment.
#[derive(Debug)]
pub struct Permit(#[expect(dead_code, reason = "held, and given back when it is dropped")] OwnedSemaphorePermit);

/// What was seen of an effect.
struct Seen {
    observation: Observation,
    decline: Option<DeclineCode>,
    charge_id: Option<String>,
    /// For a person.
    outcome: String,
}

impl Driver {
    /// Of its parts.
    pub fn new(parts: Parts) -> Self {
        let permits = Arc::new(Semaphore::new(parts.options.max_drives));
        Self(Arc::new(Inner { parts, permits, work: Notify::new() }))
    }

    /// The right to drive a payment, unless as many are driven as may be, or the service stops. Without it a payment lies
    /// due in the table.
    pub fn permit(&self) -> Option<Permit> {
        self.0.permits.clone().try_acquire_owned().ok().map(Permit)
    }

    /// The lease that this instance takes.
    pub fn lease(&self) -> Lease {
        let options = &self.0.parts.options;
        Lease { owner: options.instance.clone(), length: options.lease }
    }

    /// How many payments are driven now.
    pub fn in_flight(&self) -> usize {
        self.0.parts.options.max_drives.saturating_sub(self.0.permits.available_permits())
    }

    /// Drives a claimed payment until it settles, is lost, or has to wait for long; then tells who has to know.
    pub async fn drive(&self, payment: Payment, permit: Permit) {
        let (mut payment, mut permit) = (payment, permit);
        loop {
            let order_id = payment.order_id;
            match self.step(payment).await {
                Ok(Step::Settled(settled)) => {
                    self.give_back(permit);
                    return self.announce(&settled).await;
                }
                Ok(Step::GoesOn(next)) => payment = next,
                Ok(Step::Later(_, wait)) => {
                    self.give_back(permit);
                    let Some((claimed, again)) = self.again_after(order_id, wait).await else { return };
                    (payment, permit) = (claimed, again);
                }
                Ok(Step::Lost | Step::Stopped) => return self.give_back(permit),
                Err(error) => {
                    self.give_back(permit);
                    // Whatever the gateway did is done under its key: whoever takes the lease next finds it.
                    tracing::warn!(target: "ordermesh", %order_id, error = %error, "a payment's try could not be recorded");
                    return;
                }
            }
        }
    }

    fn give_back(&self, permit: Permit) {
        let was_full = self.0.permits.available_permits() == 0;
        drop(permit);
        if was_full {
            self.0.work.notify_one();
        }
    }

    async fn again_after(&self, order_id: OrderId, wait: Duration) -> Option<(Payment, Permit)> {
        if wait > SOON {
            return None;
        }
        tokio::select! {
            () = self.0.parts.shutdown.cancelled() => return None,
            () = tokio::time::sleep(wait) => {}
        }
        let permit = self.permit()?;
        // Somebody else may have been faster, or the database away: then it is not ours.
        let claimed = self.0.parts.store.claim(order_id, self.lease()).await.ok().flatten();
        claimed.map(|payment| (payment, permit))
    }

    /// One try: performs what a claimed payment owes, and records what came of it.
    ///
    /// # Errors
    /// It could not be recorded.
    pub async fn step(&self, before: Payment) -> Result<Step, storage::Error> {
        let parts = &self.0.parts;
        let Some(effect) = before.owes() else { return Ok(Step::Settled(before)) };
        let operation = self.operation(effect.span_name(), &before);
        if parts.faults.at(Point::BeforeEffect, &before).await.is_break() {
            operation.dismiss();
            return Ok(Step::Stopped);
        }
        let began = parts.clock.now();
        let seen = self.perform(effect, &before).instrument(operation.span().clone()).await;
        if parts.faults.at(Point::AfterEffect, &before).await.is_break() {
            operation.dismiss();
            return Ok(Step::Stopped);
        }
        let (next, schedule, attempt) = self.decide(&before, effect, &seen, began, &operation);
        let step = |recorded: Payment| match (&schedule.lease, schedule.due_in) {
            (_, None) => Step::Settled(recorded),
            (Some(_), Some(_)) => Step::GoesOn(recorded),
            (None, Some(wait)) => Step::Later(recorded, wait),
        };
        let event = event_of(next.state, next.decline_code, &seen.outcome).map(|(name, outcome)| {
            operation.set("operation", name);
            (operation.clone(), outcome)
        });
        if seen.observation == Observation::Unknown {
            operation.mark_error(seen.outcome.clone());
        }
        operation.set_on_span("payment.state", next.state.name());
        operation.end(event.as_ref().map_or(Outcome::Success, |(_, outcome)| outcome.clone()));
        let recorded = parts.store.record(&before, next, attempt, schedule.clone(), event).await?;
        let Some(recorded) = recorded else {
            operation.dismiss();
            operation.set_on_span("payment.lost", true);
            return Ok(Step::Lost);
        };
        if parts.faults.at(Point::AfterRecord, &recorded).await.is_break() {
            return Ok(Step::Stopped);
        }
        Ok(step(recorded))
    }

    /// The operation of one try: a child of the call that asked for it, whatever has happened to that call since.
    pub(crate) fn operation(&self, name: &'static str, payment: &Payment) -> Operation {
        let parent = payment.parent().map_or(Parent::Root, Parent::Remote);
        let events = Some(self.0.parts.events.clone());
        let operation = Operation::open(Kind::Internal, name, parent, Some(EVENT_TYPE), events);
        operation.set_order(payment.order_id.as_uuid());
        if let Some(user_id) = payment.user_id {
            operation.set_user(user_id.as_uuid());
        }
        operation
    }

    async fn perform(&self, effect: Effect, payment: &Payment) -> Seen {
        let gateway = &self.0.parts.gateway;
        let key = charge_key(payment.order_id);
        match effect {
            Effect::CreateCharge => match command(payment) {
                Some(command) => Seen::charge(gateway.create_charge(command).await),
                // Cannot be: what is PENDING has both. Doubt, and a tombstone after a while, is the safe way out.
                None => Seen::charge(Err(NoAnswer::new("the payment has no amount or no method"))),
            },
            Effect::CancelCharge => Seen::charge(gateway.cancel_charge(key).await),
            Effect::RefundCharge { n } => {
                Seen::refund(gateway.refund_charge(key, refund_key(payment.order_id, n)).await)
            }
        }
    }

    /// By the table: the payment afterwards, when it is due, and the attempt.
    fn decide(
        &self,
        before: &Payment,
        effect: Effect,
        seen: &Seen,
        began: Timestamp,
        operation: &Operation,
    ) -> (Payment, Schedule, Attempt) {
        let now = self.0.parts.clock.now();
        let limit = self.0.parts.options.doubt_limit;
        let is_past = before.doubt_since.is_some_and(|since| now.since(since) >= limit);
        let doubt = if is_past { Doubt::PastLimit } else { Doubt::WithinLimit };
        let state = after(before.state, seen.observation, before.asked(), doubt);
        let may_charge = matches!(state, State::Pending | State::InDoubt);
        // Nothing was decided: the same question again, after a while.
        let asks_again = matches!(
            (before.state, state),
            (State::Pending | State::InDoubt, State::Pending | State::InDoubt)
                | (State::Cancelling, State::Cancelling)
                | (State::Refunding, State::Refunding)
        );
        let mut next = Payment {
            state,
            attempt: before.attempt + 1,
            tries: if asks_again { before.tries.saturating_add(1) } else { 0 },
            doubt_since: if state == State::InDoubt { before.doubt_since.or(Some(began)) } else { before.doubt_since },
            payment_method: before.payment_method.clone().filter(|_| may_charge),
            charge_id: seen.charge_id.clone().or_else(|| before.charge_id.clone()),
            last_error: (asks_again || seen.observation == Observation::Unknown || state == State::RefundRefused)
                .then(|| seen.outcome.clone()),
            ..before.clone()
        };
        next.decline_code = match state {
            State::Declined => Some(seen.decline.unwrap_or(DeclineCode::GenericDecline)),
            State::Failed => Some(DeclineCode::GatewayTimeout),
            State::Pending | State::InDoubt | State::Cancelling | State::Refunding => None,
            State::Succeeded | State::Cancelled | State::Refunded | State::RefundRefused => None,
        };
        let schedule = if next.owes().is_none() {
            Schedule::default()
        } else if asks_again {
            Schedule { due_in: Some(self.wait(&next, now)), lease: None }
        } else {
            Schedule { due_in: Some(Duration::ZERO), lease: Some(self.lease()) }
        };
        let attempt = Attempt {
            attempt: next.attempt,
            effect: effect.name().to_owned(),
            outcome: seen.outcome.clone(),
            state,
            time: now,
            trace_id: operation.place().trace_id(),
            span_id: operation.place().span_id(),
        };
        (next, schedule, attempt)
    }

    /// Until the next try: full jitter; doubt ends at its limit, not at some time after it.
    fn wait(&self, payment: &Payment, now: Timestamp) -> Duration {
        let options = &self.0.parts.options;
        // The last bits of a UUIDv7 are random.
        let jitter = f64::from(u32::try_from(self.0.parts.ids.uuid().as_u128() & 0xffff_ffff).unwrap_or(0))
            / f64::from(u32::MAX);
        let wait = full_jitter(payment.tries, options.backoff, options.backoff_cap, jitter);
        match (payment.state, payment.doubt_since) {
            (State::InDoubt, Some(since)) if now.since(since) < options.doubt_limit => {
                wait.min(since.plus(options.doubt_limit).since(now))
            }
            (_, _) => wait,
        }
    }

    /// Tells those who wait for a settled payment; when nobody does, the Order Service: a wake-up, best effort.
    pub async fn announce(&self, payment: &Payment) {
        let parts = &self.0.parts;
        if parts.waiters.settled(payment) {
            return;
        }
        let parent = payment.parent().map_or(Parent::Root, Parent::Remote);
        let operation = Operation::open(Kind::Internal, "confirm_payment", parent, None, None);
        operation.set_order(payment.order_id.as_uuid());
        let told = async {
            for attempt in 1..=CONFIRM_TRIES {
                match parts.confirmations.confirm(payment.order_id).await {
                    Ok(()) => return Outcome::Success,
                    Err(error) if attempt == CONFIRM_TRIES || parts.shutdown.is_cancelled() => {
                        // The order asks again by itself: this only makes it later.
                        tracing::info!(target: "ordermesh", order_id = %payment.order_id, error = %error, "nobody was told");
                        operation.mark_error(error.message);
                        break;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(100) * attempt).await,
                }
            }
            Outcome::Success
        };
        let outcome = told.instrument(operation.span().clone()).await;
        operation.end(outcome);
    }

    /// Claims what is due and makes one try at each, one after the other: for tests that move the clock themselves.
    ///
    /// # Errors
    /// The database refused.
    pub async fn tick(&self) -> Result<Vec<Step>, storage::Error> {
        let count = u32::try_from(MAX_CLAIM).unwrap_or(u32::MAX);
        let mut steps = vec![];
        for payment in self.0.parts.store.claim_due(count, self.lease()).await? {
            let step = self.step(payment).await?;
            if let Step::Settled(settled) = &step {
                self.announce(settled).await;
            }
            steps.push(step);
        }
        Ok(steps)
    }

    /// Claims due payments and drives them until told to stop; then waits for those that are driven, and gives back the
    /// leases, so that other instances go on at once.
    pub async fn poll(self) {
        let parts = &self.0.parts;
        // Those of an earlier process of this name: it is dead.
        if let Err(error) = parts.store.free(&parts.options.instance).await {
            tracing::warn!(target: "ordermesh", error = %error, "the leases of the last run could not be freed");
        }
        loop {
            if let Err(error) = self.claim_due().await {
                tracing::warn!(target: "ordermesh", error = %error, "due payments cannot be claimed");
            }
            // Half to one and a half times the interval: instances do not poll in step.
            let pause = full_jitter(1, parts.options.poll_interval, Duration::MAX, rand::random())
                + parts.options.poll_interval / 2;
            tokio::select! {
                () = parts.shutdown.cancelled() => break,
                () = self.0.work.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        let all = u32::try_from(parts.options.max_drives).unwrap_or(u32::MAX);
        let _drives = self.0.permits.clone().acquire_many_owned(all).await;
        self.0.permits.close();
        if let Err(error) = parts.store.free(&parts.options.instance).await {
            tracing::warn!(target: "ordermesh", error = %error, "leases could not be freed; they run out by themselves");
        }
    }

    async fn claim_due(&self) -> Result<(), storage::Error> {
        loop {
            let mut permits: Vec<Permit> = std::iter::from_fn(|| self.permit()).take(MAX_CLAIM).collect();
            let asked = permits.len();
            if asked == 0 {
                return Ok(());
            }
            let count = u32::try_from(asked).unwrap_or(u32::MAX);
            let claimed = self.0.parts.store.claim_due(count, self.lease()).await?;
            let is_all = claimed.len() < asked;
            for (payment, permit) in claimed.into_iter().zip(permits.drain(..)) {
                let driver = self.clone();
                self.0.parts.tasks.spawn(async move { driver.drive(payment, permit).await });
            }
            if is_all {
                return Ok(());
            }
        }
    }
}

fn command(payment: &Payment) -> Option<ChargeCommand> {
    Some(ChargeCommand {
        charge_key: charge_key(payment.order_id),
        amount: payment.amount?,
        payment_method: payment.payment_method.clone()?,
        receipt_email: payment.contact_email.clone().unwrap_or_default(),
    })
}

impl Seen {
    fn charge(answer: Result<Charge, NoAnswer>) -> Self {
        let charge = match answer {
            Ok(charge) => charge,
            Err(error) => return Self::nothing(&error),
        };
        let name = charge.status.name();
        let (observation, decline, outcome) = match charge.status {
            ChargeStatus::Succeeded => (Observation::Charged, None, name.to_owned()),
            ChargeStatus::Declined(code) => (Observation::Declined, Some(code), format!("{name} {}", code.name())),
            ChargeStatus::Cancelled => (Observation::Tombstone, None, name.to_owned()),
            ChargeStatus::Refunded => (Observation::GivenBack, None, name.to_owned()),
        };
        let is_charged = matches!(observation, Observation::Charged | Observation::GivenBack);
        Self { observation, decline, charge_id: is_charged.then_some(charge.charge_id), outcome }
    }

    fn refund(answer: Result<RefundAnswer, NoAnswer>) -> Self {
        let (observation, outcome) = match answer {
            Ok(RefundAnswer::Refunded) => (Observation::GivenBack, "REFUNDED".to_owned()),
            Ok(RefundAnswer::Refused(reason)) => (Observation::RefundRefused, format!("REFUND_REFUSED {reason}")),
            Err(error) => return Self::nothing(&error),
        };
        Self { observation, decline: None, charge_id: None, outcome }
    }

    fn nothing(error: &NoAnswer) -> Self {
        Self {
            observation: Observation::Unknown,
            decline: None,
            charge_id: None,
            outcome: format!("no answer: {error}"),
        }
    }
}
