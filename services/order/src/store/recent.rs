//! The newest orders of this instance, in memory, so that reading them costs no query.
//!
//! Only what cannot change is read from here: an order's owner, the transitions that were committed, and an order in a
//! final state. Another instance may have added transitions since: a reader that needs those asks the database.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use kernel::OrderId;
use parking_lot::Mutex;

use super::MAX_HISTORY;
use crate::lifecycle::is_final;
use crate::order::{HistoryEntry, Order, Scope};

/// The most orders that are kept: the oldest are dropped for new ones.
const MAX_ORDERS: usize = 1_024;
/// The most lines of an order that is kept: some kilobytes.
const MAX_LINES: usize = 20;

/// Orders created by this instance, with all their transitions. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Recent(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    orders: HashMap<OrderId, Entry>,
    /// By age, with orders that were dropped since.
    ages: VecDeque<OrderId>,
}

struct Entry {
    order: Order,
    history: Vec<HistoryEntry>,
}

impl Recent {
    /// Keeps an order that was created, unless it is a large one.
    pub(super) fn created(&self, order: &Order, first: HistoryEntry) {
        if order.lines.len() > MAX_LINES {
            return;
        }
        let mut kept = self.0.lock();
        kept.ages.push_back(order.id);
        kept.orders.insert(order.id, Entry { order: order.clone(), history: vec![first] });
        while kept.ages.len() > MAX_ORDERS
            && let Some(oldest) = kept.ages.pop_front()
        {
            kept.orders.remove(&oldest);
        }
    }

    /// Keeps the transitions that were committed of an order. One that another instance has advanced in between, or that
    /// has a long history, is dropped.
    pub(super) fn advanced(&self, before: &Order, after: &Order, transitions: impl IntoIterator<Item = HistoryEntry>) {
        let mut kept = self.0.lock();
        let Some(entry) = kept.orders.get_mut(&after.id) else { return };
        entry.history.extend(transitions);
        let has_all = entry.order.version == before.version
            && i64::try_from(entry.history.len()).is_ok_and(|count| count == after.version);
        if has_all && after.version <= i64::try_from(MAX_HISTORY).unwrap_or(i64::MAX) {
            entry.order = after.clone();
        } else {
            kept.orders.remove(&after.id);
        }
    }

    /// Drops an order that another instance has advanced.
    pub(super) fn forget(&self, id: OrderId) {
        self.0.lock().orders.remove(&id);
    }

    /// Whether the order is kept and belongs to the scope. `None`: it is not kept.
    pub(super) fn is_in(&self, scope: Scope, id: OrderId) -> Option<bool> {
        self.read(id, |entry| scope.contains(&entry.order))
    }

    /// The transitions after a version, oldest first. `None`: the order is not kept up to the version `known`, which is
    /// known to be committed.
    pub(super) fn history_after(&self, id: OrderId, version: i64, known: i64) -> Option<Vec<HistoryEntry>> {
        let after = |entry: &Entry| {
            let newer = entry.history.iter().filter(|entry| entry.version > version);
            (entry.order.version >= known).then(|| newer.cloned().collect())
        };
        self.read(id, after).flatten()
    }

    /// The order with all its transitions, if it is in a final state.
    pub(super) fn finished(&self, id: OrderId) -> Option<(Order, Vec<HistoryEntry>)> {
        let finished =
            |entry: &Entry| is_final(entry.order.state).then(|| (entry.order.clone(), entry.history.clone()));
        self.read(id, finished).flatten()
    }

    fn read<T>(&self, id: OrderId, read: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.0.lock().orders.get(&id).map(read)
    }
}

#[cfg(test)]
mod tests {
    use kernel::{Timestamp, UserId};

    use super::*;
    use crate::convert::tests::largest;
    use crate::lifecycle::State;

    fn at(id: u128, state: State, version: i64) -> Order {
        let mut order = Order { state, version, ..largest(id) };
        order.lines.truncate(MAX_LINES);
        order
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
    fn an_order_is_read_as_whole_only_when_it_is_final() {
        let recent = Recent::default();
        let (created, cancelling, cancelled) =
            (at(1, State::Created, 1), at(1, State::Cancelling, 2), at(1, State::Cancelled, 3));
        recent.created(&created, entry(&created));
        assert_eq!(recent.is_in(Scope::Of(created.user), created.id), Some(true));
        assert_eq!(recent.is_in(Scope::Of(UserId::from_uuid(uuid::Uuid::nil())), created.id), Some(false));
        recent.advanced(&created, &cancelling, [entry(&cancelling)]);
        assert_eq!(recent.finished(created.id), None, "another instance may cancel it");
        recent.advanced(&cancelling, &cancelled, [entry(&cancelled)]);
        assert_eq!(versions(&recent, created.id, 1, 3), Some(vec![2, 3]));
        let history = [&created, &cancelling, &cancelled].map(entry).to_vec();
        assert_eq!(recent.finished(created.id), Some((cancelled, history)));
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
        assert_eq!(recent.0.lock().ages.len(), MAX_ORDERS);
        let large = largest(0);
        recent.created(&large, entry(&large));
        assert_eq!(recent.is_in(Scope::All, large.id), None);
    }
}
