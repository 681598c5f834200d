//! Slots of scarce resources that are held for long (connections, streams). A caller may have all of them while no other
//! requests one. When none is free, a new caller is admitted by evicting the idlest slot of the caller with the most
//! slots, as long as few evictions are pending; else it is rejected. The caller with the most slots itself can only evict
//! one of its own, if that is idle. Mesh services and trusted
//! proxies, which act for many callers, are never evicted, and their slots are counted for no caller.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::server::limits::caller_key::Key;

/// Evictions that are not complete: the limit may be exceeded by this number, and by as many again for mesh services.
const MAX_EVICTING: usize = 32;
/// Of these, evictions for one new caller: others must not wait for them. For a caller that has slots, only one.
const MAX_EVICTING_FOR_ONE: usize = 4;
/// Between callers with equally many slots, only a slot that has been idle for this long is evicted.
const IDLE: Duration = Duration::from_secs(1);

/// A limited number of slots.
#[derive(Debug)]
pub(crate) struct Slots {
    pub(crate) limit: usize,
    origin: Instant,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    next_number: u64,
    taken: HashMap<u64, Arc<Taken>>,
    by_key: HashMap<Key, usize>,
    /// Evicted and not yet released; with the caller that each makes room for.
    evicting: HashMap<u64, Option<Key>>,
}

#[derive(Debug)]
struct Taken {
    /// `None`: never evicted.
    key: Mutex<Option<Key>>,
    evicted: CancellationToken,
    /// Open uses of the slot.
    uses: AtomicUsize,
    /// Milliseconds since the origin.
    used_last: AtomicU64,
}

impl Slots {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, origin: Instant::now(), all: Mutex::default() })
    }

    /// Slots taken, including those being evicted.
    pub(crate) fn used(&self) -> usize {
        let all = self.all();
        all.taken.len() + all.evicting.len()
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A slot for this caller (`None`: one that is never evicted), possibly by evicting another.
    pub(crate) fn take(self: &Arc<Self>, key: Option<Key>) -> Option<Slot> {
        let mut all = self.all();
        if all.taken.len() + all.evicting.len() >= self.limit {
            let victim = all.victim(key.as_ref(), self.now())?;
            all.evict(victim, key.as_ref());
        }
        let number = all.next_number;
        all.next_number += 1;
        if let Some(key) = &key {
            *all.by_key.entry(key.clone()).or_default() += 1;
        }
        let taken = Arc::new(Taken {
            key: Mutex::new(key),
            evicted: CancellationToken::new(),
            uses: AtomicUsize::new(0),
            used_last: AtomicU64::new(self.now()),
        });
        all.taken.insert(number, taken.clone());
        Some(Slot { slots: self.clone(), number, taken })
    }
}

impl All {
    /// The slot to evict for a new caller.
    fn victim(&self, arrival: Option<&Key>, now: u64) -> Option<u64> {
        if self.evicting.len() >= if arrival.is_some() { MAX_EVICTING } else { 2 * MAX_EVICTING } {
            return None;
        }
        let for_it =
            arrival.map_or(0, |key| self.evicting.values().filter(|other| other.as_ref() == Some(key)).count());
        if for_it >= MAX_EVICTING_FOR_ONE {
            return None;
        }
        let (busiest, largest) = self.by_key.iter().max_by_key(|(_, held)| **held)?;
        let held = arrival.and_then(|key| self.by_key.get(key)).copied().unwrap_or(0);
        if arrival.is_none() || *largest > held + 1 {
            return self.idlest(|key| key == busiest).map(|(number, _)| number);
        }
        // No caller has clearly more: evict one of its own, or any slot if it has none.
        if for_it > 0 && held > 0 {
            return None;
        }
        let (number, idle_since) = self.idlest(|key| arrival == Some(key) || held == 0)?;
        let idle_since = idle_since?;
        (u128::from(now.saturating_sub(idle_since)) >= IDLE.as_millis()).then_some(number)
    }

    /// The least recently used slot, and since when it is idle; a slot in use only if there is no other.
    fn idlest(&self, is_of: impl Fn(&Key) -> bool) -> Option<(u64, Option<u64>)> {
        let of_them = self.taken.iter().filter(|(_, taken)| taken.key().as_ref().is_some_and(&is_of));
        let ranked = of_them.map(|(number, taken)| {
            (taken.uses.load(Ordering::Acquire) > 0, taken.used_last.load(Ordering::Acquire), *number)
        });
        ranked.min().map(|(in_use, last, number)| (number, (!in_use).then_some(last)))
    }

    fn evict(&mut self, number: u64, arrival: Option<&Key>) {
        if let Some(taken) = self.remove(number) {
            self.evicting.insert(number, arrival.cloned());
            taken.evicted.cancel();
        }
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Taken>> {
        let taken = self.taken.remove(&number)?;
        let key = taken.key().take();
        self.forget(key);
        Some(taken)
    }

    fn forget(&mut self, key: Option<Key>) {
        let Some(key) = key else { return };
        if let Some(held) = self.by_key.get_mut(&key) {
            *held -= 1;
            if *held == 0 {
                self.by_key.remove(&key);
            }
        }
    }
}

impl Taken {
    fn key(&self) -> MutexGuard<'_, Option<Key>> {
        self.key.lock()
    }
}

/// One slot; released on drop.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    number: u64,
    taken: Arc<Taken>,
}

impl Slot {
    /// Cancelled on eviction.
    pub(crate) fn evicted(&self) -> CancellationToken {
        self.taken.evicted.clone()
    }

    /// Exempts the slot from eviction: its caller turned out to be a mesh service.
    pub(crate) fn never_evict(&self) {
        if self.taken.key().is_none() {
            return;
        }
        let mut all = self.slots.all();
        let key = self.taken.key().take();
        all.forget(key);
    }

    /// One more use begins.
    pub(crate) fn begin_use(&self) {
        self.taken.uses.fetch_add(1, Ordering::AcqRel);
        self.taken.used_last.store(self.slots.now(), Ordering::Release);
    }

    /// One use ends.
    pub(crate) fn end_use(&self) {
        self.taken.used_last.store(self.slots.now(), Ordering::Release);
        self.taken.uses.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.taken.uses.load(Ordering::Acquire) > 0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut all = self.slots.all();
        if all.remove(self.number).is_none() {
            all.evicting.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests;
