//! Subscriptions to an order's next transition. This instance's commits notify them directly; one query finds the
//! transitions of all watched orders after another instance's notification, or after an interval.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernel::{OrderId, UserId};
use parking_lot::Mutex;
use storage::{Listener, Notifier};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::order::Scope;
use crate::store::Store;

/// How long a notification is waited for before the watched orders' versions are read anyway: it may be lost.
const NOTIFICATION_TIMEOUT: Duration = Duration::from_millis(250);
/// The least pause after a read.
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// The most orders of a statement.
const MAX_READ: usize = 1_024;

/// The subscriptions of this instance. Clones share them.
#[derive(Clone)]
pub struct Subscriptions {
    orders: Arc<Mutex<HashMap<OrderId, watch::Sender<i64>>>>,
    /// Notified of each new subscription.
    subscribed: Arc<Notify>,
    notifier: Notifier,
    max_per_customer: usize,
    /// The number of streams per customer.
    customers: Arc<Mutex<HashMap<UserId, usize>>>,
}

/// A subscription to an order's next transition.
#[derive(Debug)]
pub struct Subscription {
    version: watch::Receiver<i64>,
    _counted: Option<CountedStream>,
}

/// A customer's stream, counted until it is dropped.
#[derive(Debug)]
struct CountedStream {
    customers: Arc<Mutex<HashMap<UserId, usize>>>,
    customer: UserId,
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        let mut customers = self.customers.lock();
        if let Entry::Occupied(mut streams) = customers.entry(self.customer) {
            *streams.get_mut() -= 1;
            if *streams.get() == 0 {
                streams.remove();
            }
        }
    }
}

impl Subscription {
    /// The newest version that this instance was notified of; 0: none.
    pub fn version(&self) -> i64 {
        *self.version.borrow()
    }

    /// Completes when the order has a newer version than at the last call.
    pub async fn changed(&mut self) {
        if self.version.changed().await.is_err() {
            // The sender outlives its receivers.
            std::future::pending::<()>().await;
        }
    }
}

impl Subscriptions {
    /// Without subscriptions; each customer may have `max_per_customer` streams. (The total number of streams is
    /// limited by the mesh.) `notifier` notifies the other instances of this one's transitions.
    pub fn new(max_per_customer: usize, notifier: Notifier) -> Self {
        Self {
            orders: Arc::default(),
            subscribed: Arc::default(),
            notifier,
            max_per_customer,
            customers: Arc::default(),
        }
    }

    fn count(&self, customer: UserId) -> Result<CountedStream, Error> {
        let mut customers = self.customers.lock();
        let streams = customers.entry(customer).or_default();
        if *streams >= self.max_per_customer {
            return Err(Error::TooManyWatchers);
        }
        *streams += 1;
        Ok(CountedStream { customers: self.customers.clone(), customer })
    }

    /// Subscribes to an order.
    ///
    /// # Errors
    /// The customer has as many streams as it may.
    pub fn subscribe(&self, scope: Scope, id: OrderId) -> Result<Subscription, Error> {
        let counted = match scope {
            Scope::Of(customer) => Some(self.count(customer)?),
            Scope::All => None,
        };
        let version = self.orders.lock().entry(id).or_insert_with(|| watch::channel(0).0).subscribe();
        self.subscribed.notify_one();
        Ok(Subscription { version, _counted: counted })
    }

    /// Notifies an order's subscribers of a version that this instance has committed.
    pub fn committed(&self, id: OrderId, version: i64) {
        self.notifier.notify();
        self.notify(id, version);
    }

    fn notify(&self, id: OrderId, version: i64) {
        if let Some(sender) = self.orders.lock().get(&id) {
            sender.send_if_modified(|known| {
                let newer = version > *known;
                *known = version.max(*known);
                newer
            });
        }
    }

    /// Reads the transitions committed by other instances, until `shutdown`.
    pub async fn follow(self, store: Store, mut notifications: Listener, shutdown: CancellationToken) {
        loop {
            let due = async {
                if self.watched().is_empty() {
                    self.subscribed.notified().await;
                }
                let _ = tokio::time::timeout(NOTIFICATION_TIMEOUT, notifications.notified()).await;
            };
            if shutdown.run_until_cancelled(due).await.is_none() {
                return;
            }
            let watched = self.watched();
            if watched.is_empty() {
                continue;
            }
            let began = Instant::now();
            for some in watched.chunks(MAX_READ) {
                match store.versions(some).await {
                    Ok(versions) => versions.into_iter().for_each(|(id, version)| self.notify(id, version)),
                    Err(error) => {
                        tracing::debug!(target: "ordermesh", error = ?error, "reading the versions of watched orders failed")
                    }
                }
            }
            // A notification does not say which order: with many watched orders they are read less often, so that this
            // takes a fifth of a connection's time at most.
            tokio::time::sleep(MIN_PAUSE.max(4 * began.elapsed())).await;
        }
    }

    fn watched(&self) -> Vec<OrderId> {
        let mut orders = self.orders.lock();
        orders.retain(|_, sender| sender.receiver_count() > 0);
        orders.keys().copied().collect()
    }
}
