//! What a watcher needs of this instance's newest orders, in memory, so that following an order costs no query.
//!
//! Only what cannot change is kept: an order's customer, the transitions that were committed, and the fulfilment of an
//! order that has started. Another instance may have added transitions since: a reader that needs those asks the
//! database. Whole orders are not kept: their lines can be written off at any time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use kernel::{OrderId, UserId};
use parking_lot::Mutex;

use super::MAX_HISTORY;
use crate::lifecycle::{State, is_final};
use crate::order::{Fulfillment, HistoryEntry, Order, Scope};

/// The most orders that are kept: the oldest are dropped for new ones.
const MAX_ORDERS: usize = 1_024;

/// Orders created by this instance. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Recent(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    orders: HashMap<OrderId, RecentOrder>,
    /// Oldest first, with orders that were dropped since.
    by_age: VecDeque<OrderId>,
}

struct RecentOrder {
    user: UserId,
    /// All transitions, from the first.
    history: Vec<HistoryEntry>,
    fulfillment: Option<Fulfillment>,
}

impl RecentOrder {
    fn version(&self) -> i64 {
        self.history.last().map_or(0, |entry| entry.version)
    }
}

impl Recent {
    /// Keeps an order that was created.
    pub(super) fn created(&self, order: &Order, first: HistoryEntry) {
        let mut kept = self.0.lock();
        kept.by_age.push_back(order.id);
        kept.orders.insert(order.id, RecentOrder { user: order.user, history: vec![first], fulfillment: None });
        while kept.by_age.len() > MAX_ORDERS
            && let Some(oldest) = kept.by_age.pop_front()
        {
            kept.orders.remove(&oldest);
        }
    }

    /// Keeps the transitions that were committed of an order. One that another instance has advanced in between, or that
    /// has a long history, is dropped.
    pub(super) fn advanced(&self, before: &Order, after: &Order, transitions: impl IntoIterator<Item = HistoryEntry>) {
        let mut kept = self.0.lock();
        let Some(order) = kept.orders.get_mut(&after.id) else { return };
        let is_next = order.version() == before.version;
        order.history.extend(transitions);
        order.fulfillment.clone_from(&after.fulfillment);
        let is_short = u64::try_from(order.history.len()).is_ok_and(|count| count <= MAX_HISTORY);
        if !is_next || !is_short || order.version() != after.version {
            kept.orders.remove(&after.id);
        }
    }

    /// Drops an order that another instance has advanced.
    pub(super) fn forget(&self, id: OrderId) {
        self.0.lock().orders.remove(&id);
    }

    /// Whether the order belongs to the scope. `None`: it is not kept.
    pub(super) fn is_in(&self, scope: Scope, id: OrderId) -> Option<bool> {
        self.read(id, |order| scope.includes(order.user))
    }

    /// The transitions after a version, oldest first. `None`: the order is not kept up to the version `known`, which is
    /// known to be committed.
    pub(super) fn history_after(&self, id: OrderId, version: i64, known: i64) -> Option<Vec<HistoryEntry>> {
        let after = |order: &RecentOrder| {
            let newer = order.history.iter().filter(|entry| entry.version > version);
            (order.version() >= known).then(|| newer.cloned().collect())
        };
        self.read(id, after).flatten()
    }

    /// The state and the version of an order in a final state.
    pub(super) fn final_state_and_version(&self, id: OrderId) -> Option<(State, i64)> {
        let last = |order: &RecentOrder| order.history.last().map(|last| (last.state, last.version));
        self.read(id, last).flatten().filter(|(state, _)| is_final(*state))
    }

    /// The fulfilment of an order, if it has started.
    pub(super) fn fulfillment(&self, id: OrderId) -> Option<Fulfillment> {
        self.read(id, |order| order.fulfillment.clone()).flatten()
    }

    fn read<T>(&self, id: OrderId, read: impl FnOnce(&RecentOrder) -> T) -> Option<T> {
        self.0.lock().orders.get(&id).map(read)
    }
}

#[cfg(test)]
mod tests {
    use kernel::Timestamp;

    use super::*;
    use crate::convert::tests::largest;

    fn at(id: u128, state: State, version: i64) -> Order {
        Order { state, version, ..largest(id) }
    }

    fn entry(order: &Order) -> HistoryEntry {
        HistoryEntry {
            version: order.version,
            state: order.state,
            time: Timestamp::from_micros(order.version),
            reason: String::new(),
            trace_id: String::new(),
            span_id: String::new(),
        }
    }

    fn versions(recent: &Recent, id: OrderId, after: i64, known: i64) -> Option<Vec<i64>> {
        Some(recent.history_after(id, after, known)?.into_iter().map(|entry| entry.version).collect())
    }

    #[test]
    fn the_transitions_of_an_order_are_kept_to_its_final_state() {
        let recent = Recent::default();
        let (created, cancelling, cancelled) =
            (at(1, State::Created, 1), at(1, State::Cancelling, 2), at(1, State::Cancelled, 3));
        recent.created(&created, entry(&created));
        assert_eq!(recent.is_in(Scope::Of(created.user), created.id), Some(true));
        assert_eq!(recent.is_in(Scope::Of(UserId::from_uuid(uuid::Uuid::nil())), created.id), Some(false));
        recent.advanced(&created, &cancelling, [entry(&cancelling)]);
        assert_eq!(recent.final_state_and_version(created.id), None, "CANCELLING is not final");
        recent.advanced(&cancelling, &cancelled, [entry(&cancelled)]);
        assert_eq!(versions(&recent, created.id, 1, 3), Some(vec![2, 3]));
        assert_eq!(recent.final_state_and_version(created.id), Some((State::Cancelled, 3)));
        assert_eq!(recent.fulfillment(created.id), cancelled.fulfillment);
    }

    #[test]
    fn an_order_that_another_instance_has_advanced_is_read_from_the_database() {
        let recent = Recent::default();
        let [first, second, third] = [1, 2, 3].map(|version| at(1, State::Created, version));
        recent.created(&first, entry(&first));
        assert_eq!(versions(&recent, first.id, 1, 1), Some(vec![]));
        assert_eq!(versions(&recent, first.id, 1, 2), None, "the second is committed");
        recent.advanced(&second, &third, [entry(&third)]);
        assert_eq!(versions(&recent, first.id, 0, 0), None, "its history has a gap");
        recent.created(&first, entry(&first));
        recent.forget(first.id);
        assert_eq!(versions(&recent, first.id, 0, 0), None);
    }

    #[test]
    fn the_oldest_orders_are_dropped() {
        let recent = Recent::default();
        let ids: Vec<OrderId> = (0..=MAX_ORDERS)
            .map(|n| {
                let order = at(n.try_into().expect("few"), State::Created, 1);
                recent.created(&order, entry(&order));
                order.id
            })
            .collect();
        let kept = ids.iter().filter(|id| recent.is_in(Scope::All, **id).is_some()).count();
        assert_eq!((kept, recent.is_in(Scope::All, ids[0])), (MAX_ORDERS, None));
        assert_eq!(recent.0.lock().by_age.len(), MAX_ORDERS);
    }
}
