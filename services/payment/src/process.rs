//! Starting, joining and cancelling a payment, and waiting for it: the response is what is known by the deadline.

use std::sync::Arc;
use std::time::Duration;

use kernel::{AmountLimits, Money, OrderId, UserId};
use telemetry::{EventSink, Kind, Operation, Parent};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::driver::Driver;
use crate::error::Error;
use crate::payment::{DeclineCode, EVENT_TYPE, Payment, PaymentMethod};
use crate::store::{Draft, Joined, OpenOperation, Store};
use crate::subscriptions::{Subscription, Subscriptions};

/// Reserved from a call's remaining time for sending the response.
const RESPONSE_MARGIN: Duration = Duration::from_millis(250);
/// The interval between reads of a payment that another instance may be driving.
const READ_INTERVAL: Duration = Duration::from_millis(250);

/// A request to charge for an order.
#[derive(Clone, Debug)]
pub struct ProcessCommand {
    /// The order's id, the payment's key.
    pub order_id: OrderId,
    pub user_id: UserId,
    /// None if the currency is unknown.
    pub amount: Option<Money>,
    /// The payment method's token.
    pub payment_method: PaymentMethod,
    /// The address for the receipt.
    pub contact_email: String,
    /// Whether the method is a well-formed token, and the e-mail a well-formed address.
    pub are_details_valid: bool,
    /// The fingerprint of the command as received.
    pub fingerprint: String,
}

/// A request to make certain that nothing stays charged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CancelCommand {
    /// The order's id, the payment's key.
    pub order_id: OrderId,
    /// The number of the refund, from 1.
    pub refund_n: i32,
}

/// The service's limits on amounts and waits.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The maximum charge for an order.
    pub amount: AmountLimits,
    /// The maximum time a call waits for its payment's result.
    pub max_wait: Duration,
}

/// Starts, joins and cancels payments.
#[derive(Clone)]
pub struct Processor {
    pub store: Store,
    pub driver: Driver,
    /// The calls that wait for results.
    pub subscriptions: Subscriptions,
    /// The sink of events.
    pub events: Arc<dyn EventSink>,
    pub limits: Limits,
}

impl std::fmt::Debug for Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processor").field("limits", &self.limits).finish_non_exhaustive()
    }
}

struct Started {
    joined: Joined,
    subscription: Subscription,
}

impl Processor {
    /// Starts or joins the payment of an order, and returns what is known when it has a result or the time is up. The
    /// driver runs in a separate task, which outlives the call.
    ///
    /// # Errors
    /// The order has a payment with another command; the database failed.
    pub async fn process(&self, command: ProcessCommand, call: &Operation) -> Result<Payment, Error> {
        call.set_order(command.order_id.as_uuid());
        call.set_user(command.user_id.as_uuid());
        let declined = self.check(&command);
        if let Some(amount) = command.amount.filter(|_| declined == Some(DeclineCode::InvalidAmount)) {
            call.set("amount", amount.to_string());
            call.set("amount.limit", self.limits.amount.of(amount.currency()).to_string());
        }
        let draft = Draft {
            order_id: command.order_id,
            user_id: command.user_id,
            amount: command.amount,
            payment_method: command.payment_method,
            contact_email: command.contact_email,
            fingerprint: command.fingerprint.clone(),
            declined,
            parent: call.traceparent(),
        };
        let open = self.opener("process_payment", call, command.order_id, Some(command.user_id));
        let store = self.store.clone();
        let started = self
            .start(command.order_id, move |lease| async move { store.create_or_join(draft, lease, open).await })
            .await?;
        // A tombstone recorded first has no command to compare with: the response is CANCELLED.
        if started.joined.payment.fingerprint.as_ref().is_some_and(|stored| *stored != command.fingerprint) {
            return Err(Error::RequestIdReused);
        }
        Ok(self.wait(started).await)
    }

    /// Makes certain that nothing stays charged for an order, and returns what is known when that is done or the time
    /// is up.
    pub async fn cancel(&self, command: CancelCommand, call: &Operation) -> Result<Payment, Error> {
        call.set_order(command.order_id.as_uuid());
        let open = self.opener("cancel_payment", call, command.order_id, None);
        let (store, parent) = (self.store.clone(), call.traceparent());
        let CancelCommand { order_id, refund_n } = command;
        let started = self
            .start(order_id, move |lease| async move { store.cancel(order_id, refund_n, parent, lease, open).await })
            .await?;
        Ok(self.wait(started).await)
    }

    /// The service's own checks: a payment that fails them is recorded DECLINED, and the gateway is never called.
    fn check(&self, command: &ProcessCommand) -> Option<DeclineCode> {
        let is_amount_valid = command
            .amount
            .is_some_and(|amount| amount.minor_units() > 0 && !self.limits.amount.are_exceeded_by(amount));
        if !is_amount_valid {
            Some(DeclineCode::InvalidAmount)
        } else if !command.are_details_valid {
            Some(DeclineCode::InvalidPaymentDetails)
        } else {
            None
        }
    }

    /// Records (or cancels) and drives the payment in a separate task, so that a client that disconnects in between
    /// leaves no lease without a driver.
    async fn start<W, F>(&self, order_id: OrderId, open: W) -> Result<Started, Error>
    where
        W: FnOnce(Option<crate::store::Lease>) -> F + Send + 'static,
        F: Future<Output = Result<Joined, storage::Error>> + Send,
    {
        let (sender, started) = oneshot::channel();
        let (driver, subscriptions) = (self.driver.clone(), self.subscriptions.clone());
        self.driver.context().tasks.spawn(async move {
            let permit = driver.permit();
            let lease = permit.as_ref().map(|_| driver.context().lease());
            let joined = match open(lease).await {
                Ok(joined) => joined,
                Err(error) => return drop(sender.send(Err(error))),
            };
            let to_drive = joined.is_ours.then(|| joined.payment.clone()).zip(permit);
            // Subscribe before the driver starts, but after the change: an earlier result does not count.
            let subscription = subscriptions.subscribe(order_id);
            let _ = sender.send(Ok(Started { joined, subscription }));
            if let Some((payment, permit)) = to_drive {
                driver.drive(payment, permit).await;
            }
        });
        Ok(started.await.unwrap_or(Err(storage::Error::Panicked))?)
    }

    async fn wait(&self, started: Started) -> Payment {
        let Started { joined: Joined { payment, is_ours }, mut subscription } = started;
        if !payment.state.has_pending_effect() {
            return payment;
        }
        let left = mesh::time_left().map_or(Duration::MAX, |left| left.saturating_sub(RESPONSE_MARGIN));
        let end = Instant::now() + left.min(self.limits.max_wait);
        loop {
            // This instance's driver notifies the subscription; another instance's does not.
            let next_read = if is_ours { end } else { end.min(Instant::now() + READ_INTERVAL) };
            tokio::select! {
                Some(result) = subscription.result() => return result,
                () = sleep_until(next_read) => {}
            }
            let is_over = Instant::now() >= end;
            if is_over && let Some(result) = subscription.close() {
                return result;
            }
            // If the database is unavailable for this read, the payment as known before is the response.
            let read = self.store.find(payment.order_id).await.ok().flatten();
            match read {
                Some(read) if is_over || !read.state.has_pending_effect() => return read,
                None if is_over => return payment,
                Some(_) | None => {}
            }
        }
    }

    /// Opens the operation of a change that needs no call of the gateway: a child of the call's operation, which may
    /// end first.
    fn opener(
        &self,
        name: &'static str,
        call: &Operation,
        order_id: OrderId,
        user_id: Option<UserId>,
    ) -> OpenOperation {
        let (events, traceparent) = (self.events.clone(), call.traceparent());
        Arc::new(move || {
            let operation = Operation::open(
                Kind::Internal,
                name,
                Parent::Remote(traceparent),
                Some(EVENT_TYPE),
                Some(events.clone()),
            );
            operation.set_order(order_id.as_uuid());
            if let Some(user_id) = user_id {
                operation.set_user(user_id.as_uuid());
            }
            operation
        })
    }
}
