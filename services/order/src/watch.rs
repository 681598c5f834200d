//! Who waits for the next step of which order. Commits of this instance wake them; one query per instance and interval
//! finds the steps that other instances have committed.

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

/// How often the versions of watched orders are read.
const INTERVAL: Duration = Duration::from_millis(250);

/// All who wait, of this instance. Clones are the same.
#[derive(Clone)]
pub struct Watchers {
    orders: Arc<Mutex<HashMap<OrderId, watch::Sender<i64>>>>,
    most_of_a_customer: usize,
    /// How many streams each customer has.
    customers: Arc<Mutex<HashMap<UserId, usize>>>,
}

/// One who waits.
#[derive(Debug)]
pub struct Watch {
    version: watch::Receiver<i64>,
    _counted: Option<Counted>,
}

/// A customer's stream.
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
    /// Waits until the order has a version that was not there at the last call.
    pub async fn changed(&mut self) {
        if self.version.changed().await.is_err() {
            // The sender lives as long as there are receivers.
            std::future::pending::<()>().await;
        }
    }
}

impl Watchers {
    /// Nobody waits; of each customer at most so many streams will. (How many there are of all is the mesh's matter.)
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

    /// Waits for an order from now on.
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

    /// The order has a version now.
    pub fn notify(&self, id: OrderId, version: i64) {
        if let Some(sender) = self.orders().get(&id) {
            sender.send_if_modified(|known| {
                let newer = version > *known;
                *known = version.max(*known);
                newer
            });
        }
    }

    /// Looks for steps that other instances have committed, until `shutdown`.
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
                Err(error) => tracing::debug!(target: "ordermesh", error = ?error, "versions cannot be read"),
            }
        }
    }
}

/// The steps of an order after a version, and then each as it is committed. Ends after a final state, at once when the
/// caller has seen it already; with
/// [`Error::Draining`] when this instance ends, with [`Error::TokenExpired`] when the caller's token does.
///
/// # Errors
/// There is no such order in the caller's scope, or the customer has as many streams as it may.
pub(crate) async fn follow(
    orders: &Orders,
    watchers: &Watchers,
    shutdown: &CancellationToken,
    caller: &Caller,
    id: OrderId,
    after: i64,
) -> Result<impl Stream<Item = Result<WatchOrderResponse, Status>> + Send + 'static, Error> {
    let scope = convert::scope(caller);
    // Waiting begins before the first look, so that no step falls in between.
    let watch = watchers.watch(scope, id)?;
    orders.store.exists(scope, id).await?.then_some(()).ok_or(Error::OrderNotFound)?;
    let token_ends = match caller {
        Caller::Person { token_expires, .. } => token_expires.since(orders.clock.now()),
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

    /// The caller begins behind the last step there will ever be: nothing would wake this.
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
