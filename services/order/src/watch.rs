//! Subscriptions to an order's next transition. This instance's commits notify them directly; one query per instance
//! and interval finds the transitions committed by other instances.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contracts::order::v1::WatchOrderResponse;
use futures_util::Stream;
use kernel::{OrderId, UserId};
use mesh::Caller;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::convert;
use crate::error::Error;
use crate::lifecycle::{State, is_final};
use crate::order::{HistoryEntry, Scope};
use crate::orders::Orders;
use crate::store::Store;

/// The interval between reads of the watched orders' versions.
const INTERVAL: Duration = Duration::from_millis(250);

/// The subscriptions of this instance. Clones share them.
#[derive(Clone)]
pub struct Watchers {
    orders: Arc<Mutex<HashMap<OrderId, watch::Sender<i64>>>>,
    most_of_a_customer: usize,
    /// The number of streams per customer.
    customers: Arc<Mutex<HashMap<UserId, usize>>>,
}

/// A subscription to an order's next transition.
#[derive(Debug)]
pub struct Watch {
    version: watch::Receiver<i64>,
    _counted: Option<Counted>,
}

/// A customer's stream, counted until it is dropped.
#[derive(Debug)]
struct Counted {
    customers: Arc<Mutex<HashMap<UserId, usize>>>,
    customer: UserId,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut customers = self.customers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut streams) = customers.entry(self.customer) {
            *streams.get_mut() -= 1;
            if *streams.get() == 0 {
                streams.remove();
            }
        }
    }
}

impl Watch {
    /// Completes when the order has a newer version than at the last call.
    pub async fn changed(&mut self) {
        if self.version.changed().await.is_err() {
            // The sender outlives its receivers.
            std::future::pending::<()>().await;
        }
    }
}

impl Watchers {
    /// Without subscriptions; each customer may have `most_of_a_customer` streams. (The total number of streams is
    /// limited by the mesh.)
    pub fn new(most_of_a_customer: usize) -> Self {
        Self { orders: Arc::default(), most_of_a_customer, customers: Arc::default() }
    }

    fn count(&self, customer: UserId) -> Result<Counted, Error> {
        let mut customers = self.customers.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = customers.entry(customer).or_default();
        if *streams >= self.most_of_a_customer {
            return Err(Error::TooManyWatchers);
        }
        *streams += 1;
        Ok(Counted { customers: self.customers.clone(), customer })
    }

    fn orders(&self) -> MutexGuard<'_, HashMap<OrderId, watch::Sender<i64>>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes to an order.
    ///
    /// # Errors
    /// The customer has as many streams as it may.
    pub fn watch(&self, scope: Scope, id: OrderId) -> Result<Watch, Error> {
        let counted = match scope {
            Scope::Of(customer) => Some(self.count(customer)?),
            Scope::All => None,
        };
        let version = self.orders().entry(id).or_insert_with(|| watch::channel(0).0).subscribe();
        Ok(Watch { version, _counted: counted })
    }

    /// Notifies an order's subscribers of a version.
    pub fn notify(&self, id: OrderId, version: i64) {
        if let Some(sender) = self.orders().get(&id) {
            sender.send_if_modified(|known| {
                let newer = version > *known;
                *known = version.max(*known);
                newer
            });
        }
    }

    /// Polls for transitions committed by other instances, until `shutdown`.
    pub async fn poll(self, store: Store, shutdown: CancellationToken) {
        while tokio::time::timeout(INTERVAL, shutdown.cancelled()).await.is_err() {
            let watched: Vec<OrderId> = {
                let mut orders = self.orders();
                orders.retain(|_, sender| sender.receiver_count() > 0);
                orders.keys().copied().collect()
            };
            if watched.is_empty() {
                continue;
            }
            match store.versions(&watched).await {
                Ok(versions) => versions.into_iter().for_each(|(id, version)| self.notify(id, version)),
                Err(error) => {
                    tracing::debug!(target: "ordermesh", error = ?error, "reading the versions of watched orders failed")
                }
            }
        }
    }
}

/// The transitions of an order after a version, and then each as it is committed. The stream ends after a final state,
/// immediately if the caller has seen it already; with [`Error::Draining`] when this instance shuts down, with
/// [`Error::TokenExpired`] when the caller's token expires.
///
/// # Errors
/// The order does not exist in the caller's scope, or the customer has as many streams as it may.
pub(crate) async fn follow(
    orders: &Orders,
    watchers: &Watchers,
    shutdown: &CancellationToken,
    caller: &Caller,
    id: OrderId,
    after: i64,
) -> Result<impl Stream<Item = Result<WatchOrderResponse, Status>> + Send + 'static, Error> {
    let scope = convert::scope(caller);
    // Subscribe before the first read, so that no transition is missed in between.
    let watch = watchers.watch(scope, id)?;
    orders.store.exists(scope, id).await?.then_some(()).ok_or(Error::OrderNotFound)?;
    let token_ends = match caller {
        Caller::User { token_expires, .. } => token_expires.since(orders.clock.now()),
        Caller::Anonymous | Caller::Service { .. } => Duration::ZERO,
    };
    let follower = Follower {
        store: orders.store.clone(),
        watch,
        shutdown: shutdown.clone(),
        token_ends: Box::pin(tokio::time::sleep(token_ends)),
        id,
        after,
        waiting: VecDeque::new(),
        nothing_sent: true,
        ended: false,
    };
    Ok(futures_util::stream::unfold(follower, |mut follower| async move {
        let step = follower.next().await?;
        Some((step.map_err(crate::error::status), follower))
    }))
}

struct Follower {
    store: Store,
    watch: Watch,
    shutdown: CancellationToken,
    token_ends: std::pin::Pin<Box<tokio::time::Sleep>>,
    id: OrderId,
    after: i64,
    waiting: VecDeque<HistoryEntry>,
    nothing_sent: bool,
    ended: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<Result<WatchOrderResponse, Error>> {
        if self.ended {
            return None;
        }
        let step = self.step().await.transpose();
        if !matches!(step, Some(Ok(_))) {
            self.ended = true;
        }
        step
    }

    async fn step(&mut self) -> Result<Option<WatchOrderResponse>, Error> {
        while self.waiting.is_empty() {
            self.waiting = self.store.history_after(self.id, self.after).await?.into();
            if self.waiting.is_empty() {
                if self.nothing_sent && self.has_seen_all().await? {
                    return Ok(None);
                }
                tokio::select! {
                    () = self.watch.changed() => {}
                    () = self.shutdown.cancelled() => return Err(Error::Draining),
                    () = &mut self.token_ends => return Err(Error::TokenExpired),
                }
            }
        }
        let Some(entry) = self.waiting.pop_front() else { return Err(Error::Draining) };
        self.nothing_sent = false;
        self.after = entry.version;
        self.ended = is_final(entry.state);
        self.describe(&entry).await.map(Some)
    }

    /// Whether the caller has seen the final transition already: nothing would wake this stream.
    async fn has_seen_all(&self) -> Result<bool, Error> {
        let (state, version) = self.store.position(self.id).await?.ok_or(Error::OrderNotFound)?;
        Ok(is_final(state) && version <= self.after)
    }

    async fn describe(&self, entry: &HistoryEntry) -> Result<WatchOrderResponse, Error> {
        let mut response = WatchOrderResponse { entry: Some(convert::history(entry)), ..Default::default() };
        match entry.state {
            State::FulfillmentStarted => {
                let started = self.store.fulfillment(self.id).await?;
                response.delivery_date = started.and_then(|started| convert::date(&started.delivery_date));
            }
            State::PaymentFailed | State::Cancelled | State::NeedsAttention => {
                let order = self.store.get(Scope::All, self.id).await?.ok_or(Error::OrderNotFound)?;
                response.payment_failure = order.payment_failure.as_ref().map(convert::payment_failure);
            }
            State::Created | State::Paid | State::Allocated | State::Cancelling => {}
        }
        Ok(response)
    }
}
