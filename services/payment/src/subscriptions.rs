//! Subscriptions to payments' results.

use std::collections::HashMap;
use std::sync::Arc;

use kernel::OrderId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::payment::Payment;

#[derive(Default)]
struct Inner {
    next: u64,
    by_order: HashMap<OrderId, Vec<(u64, oneshot::Sender<Payment>)>>,
}

/// The subscriptions of this instance's calls to payments' results. Clones share them.
#[derive(Clone, Default)]
pub struct Subscriptions(Arc<Mutex<Inner>>);

impl std::fmt::Debug for Subscriptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscriptions").finish_non_exhaustive()
    }
}

impl Subscriptions {
    /// Subscribes to the result of an order's payment.
    pub fn subscribe(&self, order_id: OrderId) -> Subscription {
        let (sender, result) = oneshot::channel();
        let mut inner = self.0.lock();
        inner.next += 1;
        let id = inner.next;
        inner.by_order.entry(order_id).or_default().push((id, sender));
        drop(inner);
        Subscription { order_id, id, result, subscriptions: self.clone() }
    }

    /// Notifies the subscribers of this payment; returns whether there was any.
    pub fn notify(&self, payment: &Payment) -> bool {
        let subscribed = self.0.lock().by_order.remove(&payment.order_id).unwrap_or_default();
        let delivered = subscribed.into_iter().map(|(_, sender)| sender.send(payment.clone()).is_ok());
        delivered.fold(false, |any, this| any | this)
    }
}

/// A subscription to a payment's result; ends when it is dropped. Without one the order is woken by ConfirmPayment.
#[derive(Debug)]
pub struct Subscription {
    order_id: OrderId,
    id: u64,
    result: oneshot::Receiver<Payment>,
    subscriptions: Subscriptions,
}

impl Subscription {
    /// Completes with the payment's result; cancel-safe.
    pub async fn result(&mut self) -> Option<Payment> {
        (&mut self.result).await.ok()
    }

    /// Unsubscribes. Returns a result that has just been delivered: no confirmation is sent for it.
    pub fn close(&mut self) -> Option<Payment> {
        self.unsubscribe();
        self.result.try_recv().ok()
    }

    fn unsubscribe(&self) {
        let mut inner = self.subscriptions.0.lock();
        if let Some(subscribed) = inner.by_order.get_mut(&self.order_id) {
            subscribed.retain(|(id, _)| *id != self.id);
            if subscribed.is_empty() {
                inner.by_order.remove(&self.order_id);
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.unsubscribe();
    }
}
