//! The stream of WatchOrder: an order's transitions, each once.

use std::collections::VecDeque;
use std::time::Duration;

use contracts::order::v1::WatchOrderResponse;
use futures_util::Stream;
use kernel::OrderId;
use mesh::Caller;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::convert::{self, WatchOrder};
use crate::error::Error;
use crate::lifecycle::{State, is_final};
use crate::order::{HistoryEntry, Scope};
use crate::orders::Orders;
use crate::store::Store;
use crate::subscriptions::{Subscription, Subscriptions};

/// The transitions of an order after a version, and then each as it is committed. The stream ends after a final state,
/// immediately if the caller has it already; with [`Error::Draining`] when this instance shuts down, with
/// [`Error::TokenExpired`] when the caller's token expires.
///
/// # Errors
/// The order does not exist in the caller's scope, or the customer has as many streams as it may.
pub(crate) async fn follow(
    orders: &Orders,
    subscriptions: &Subscriptions,
    shutdown: &CancellationToken,
    caller: &Caller,
    command: WatchOrder,
) -> Result<impl Stream<Item = Result<WatchOrderResponse, Status>> + Send + 'static, Error> {
    let WatchOrder { order_id: id, after } = command;
    let scope = Scope::from(caller);
    // Subscribe before the first read, so that no transition is missed in between.
    let subscription = subscriptions.subscribe(scope, id)?;
    orders.store.exists(scope, id).await?.then_some(()).ok_or(Error::OrderNotFound)?;
    let token_ends = match caller {
        Caller::User { token_expires, .. } => token_expires.since(orders.clock.now()),
        Caller::Anonymous | Caller::Service { .. } => Duration::ZERO,
    };
    let follower = Follower {
        store: orders.store.clone(),
        subscription,
        shutdown: shutdown.clone(),
        token_ends: Box::pin(tokio::time::sleep(token_ends)),
        id,
        after,
        pending: VecDeque::new(),
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
    subscription: Subscription,
    shutdown: CancellationToken,
    token_ends: std::pin::Pin<Box<tokio::time::Sleep>>,
    id: OrderId,
    after: i64,
    pending: VecDeque<HistoryEntry>,
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
        while self.pending.is_empty() {
            let known = self.subscription.version();
            self.pending = self.store.history_after(self.id, self.after, known).await?.into();
            if self.pending.is_empty() {
                if self.nothing_sent && self.has_sent_all().await? {
                    return Ok(None);
                }
                tokio::select! {
                    () = self.subscription.changed() => {}
                    () = self.shutdown.cancelled() => return Err(Error::Draining),
                    () = &mut self.token_ends => return Err(Error::TokenExpired),
                }
            }
        }
        let Some(entry) = self.pending.pop_front() else { return Err(Error::Draining) };
        self.nothing_sent = false;
        self.after = entry.version;
        self.ended = is_final(entry.state);
        self.describe(entry).await.map(Some)
    }

    /// Whether the caller has the final transition already: nothing would wake this stream.
    async fn has_sent_all(&self) -> Result<bool, Error> {
        let (state, version) = self.store.state_and_version(self.id).await?.ok_or(Error::OrderNotFound)?;
        Ok(is_final(state) && version <= self.after)
    }

    async fn describe(&self, entry: HistoryEntry) -> Result<WatchOrderResponse, Error> {
        let state = entry.state;
        let mut response = WatchOrderResponse { entry: Some(entry.into()), ..Default::default() };
        match state {
            State::FulfillmentStarted => {
                let started = self.store.fulfillment(self.id).await?;
                response.delivery_date = started.and_then(|started| convert::date(&started.delivery_date));
            }
            State::PaymentFailed | State::Cancelled | State::NeedsAttention => {
                let order = self.store.get(Scope::All, self.id).await?.ok_or(Error::OrderNotFound)?;
                response.payment_failure = order.payment_failure.as_ref().map(Into::into);
            }
            State::Created | State::Paid | State::Allocated | State::Cancelling => {}
        }
        Ok(response)
    }
}
