//! The calls that wait for payments' results.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernel::OrderId;
use tokio::sync::oneshot;

use crate::payment::Payment;

#[derive(Default)]
struct Inner {
    next: u64,
    by_order: HashMap<OrderId, Vec<(u64, oneshot::Sender<Payment>)>>,
}

/// The calls of this instance that wait for payments' results. Clones share them.
#[derive(Clone, Default)]
pub struct Waiters(Arc<Mutex<Inner>>);

impl std::fmt::Debug for Waiters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiters").finish_non_exhaustive()
    }
}

impl Waiters {
    /// Registers a waiter for an order's payment.
    pub fn join(&self, order_id: OrderId) -> Waiter {
        let (sender, settled) = oneshot::channel();
        let mut inner = self.lock();
        inner.next += 1;
        let id = inner.next;
        inner.by_order.entry(order_id).or_default().push((id, sender));
        drop(inner);
        Waiter { order_id, id, settled, waiters: self.clone() }
    }

    /// Notifies the waiters of this payment; returns whether there was any.
    pub fn settled(&self, payment: &Payment) -> bool {
        let waiting = self.lock().by_order.remove(&payment.order_id).unwrap_or_default();
        let delivered = waiting.into_iter().map(|(_, sender)| sender.send(payment.clone()).is_ok());
        delivered.fold(false, |any, this| any | this)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A registered waiter; dropping it unregisters it. Without a waiter the order is woken by ConfirmPayment instead.
#[derive(Debug)]
pub struct Waiter {
    order_id: OrderId,
    id: u64,
    settled: oneshot::Receiver<Payment>,
    waiters: Waiters,
}

impl Waiter {
    /// Completes with the payment's result; cancel-safe.
    pub async fn settled(&mut self) -> Option<Payment> {
        (&mut self.settled).await.ok()
    }

    /// Unregisters. Returns a result that has just been delivered: no confirmation is sent for it.
    pub fn leave_if_settled(&mut self) -> Option<Payment> {
        self.strike();
        self.settled.try_recv().ok()
    }

    fn strike(&self) {
        let mut inner = self.waiters.lock();
        if let Some(waiting) = inner.by_order.get_mut(&self.order_id) {
            waiting.retain(|(id, _)| *id != self.id);
            if waiting.is_empty() {
                inner.by_order.remove(&self.order_id);
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.strike();
    }
}
