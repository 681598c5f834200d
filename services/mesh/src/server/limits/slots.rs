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

use crate::server::limits::caller_key::CallerKey;

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
    table: Mutex<Table>,
}

/// The slots that are taken, and the number that each caller holds.
#[derive(Debug, Default)]
struct Table {
    next_number: u64,
    active: HashMap<u64, Arc<Entry>>,
    held_by_caller: HashMap<CallerKey, usize>,
    /// Evicted and not yet released; with the caller that each makes room for.
    evicting: HashMap<u64, Option<CallerKey>>,
}

#[derive(Debug)]
struct Entry {
    /// `None`: never evicted.
    key: Mutex<Option<CallerKey>>,
    evicted: CancellationToken,
    /// Open uses of the slot.
    uses: AtomicUsize,
    /// Milliseconds since the origin.
    used_last: AtomicU64,
}

impl Slots {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, origin: Instant::now(), table: Mutex::default() })
    }

    /// Slots taken, including those being evicted.
    pub(crate) fn used(&self) -> usize {
        let table = self.table();
        table.active.len() + table.evicting.len()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A slot for this caller (`None`: one that is never evicted), possibly by evicting another.
    pub(crate) fn take(self: &Arc<Self>, key: Option<CallerKey>) -> Option<Slot> {
        let mut table = self.table();
        if table.active.len() + table.evicting.len() >= self.limit {
            let victim = table.victim(key.as_ref(), self.now())?;
            table.evict(victim, key.as_ref());
        }
        let number = table.next_number;
        table.next_number += 1;
        if let Some(key) = &key {
            *table.held_by_caller.entry(key.clone()).or_default() += 1;
        }
        let entry = Arc::new(Entry {
            key: Mutex::new(key),
            evicted: CancellationToken::new(),
            uses: AtomicUsize::new(0),
            used_last: AtomicU64::new(self.now()),
        });
        table.active.insert(number, entry.clone());
        Some(Slot { slots: self.clone(), number, entry })
    }
}

impl Table {
    /// The slot to evict for a new caller.
    fn victim(&self, caller: Option<&CallerKey>, now: u64) -> Option<u64> {
        if self.evicting.len() >= if caller.is_some() { MAX_EVICTING } else { 2 * MAX_EVICTING } {
            return None;
        }
        let evicting_for_it =
            caller.map_or(0, |key| self.evicting.values().filter(|other| other.as_ref() == Some(key)).count());
        if evicting_for_it >= MAX_EVICTING_FOR_ONE {
            return None;
        }
        let (largest_holder, most) = self.held_by_caller.iter().max_by_key(|(_, held)| **held)?;
        let held = caller.and_then(|key| self.held_by_caller.get(key)).copied().unwrap_or(0);
        if caller.is_none() || *most > held + 1 {
            return self.idlest(|key| key == largest_holder).map(|(number, _)| number);
        }
        // No caller has clearly more: evict one of its own, or any slot if it has none.
        if evicting_for_it > 0 && held > 0 {
            return None;
        }
        let (number, idle_since) = self.idlest(|key| caller == Some(key) || held == 0)?;
        let idle_since = idle_since?;
        (u128::from(now.saturating_sub(idle_since)) >= IDLE.as_millis()).then_some(number)
    }

    /// The least recently used slot, and since when it is idle; a slot in use only if there is no other.
    fn idlest(&self, is_of: impl Fn(&CallerKey) -> bool) -> Option<(u64, Option<u64>)> {
        let candidates = self.active.iter().filter(|(_, entry)| entry.key().as_ref().is_some_and(&is_of));
        let ranked = candidates.map(|(number, entry)| {
            (entry.uses.load(Ordering::Acquire) > 0, entry.used_last.load(Ordering::Acquire), *number)
        });
        ranked.min().map(|(in_use, last, number)| (number, (!in_use).then_some(last)))
    }

    fn evict(&mut self, number: u64, caller: Option<&CallerKey>) {
        if let Some(entry) = self.remove(number) {
            self.evicting.insert(number, caller.cloned());
            entry.evicted.cancel();
        }
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Entry>> {
        let entry = self.active.remove(&number)?;
        let key = entry.key().take();
        self.uncount(key);
        Some(entry)
    }

    fn uncount(&mut self, key: Option<CallerKey>) {
        let Some(key) = key else { return };
        if let Some(held) = self.held_by_caller.get_mut(&key) {
            *held -= 1;
            if *held == 0 {
                self.held_by_caller.remove(&key);
            }
        }
    }
}

impl Entry {
    fn key(&self) -> MutexGuard<'_, Option<CallerKey>> {
        self.key.lock()
    }
}

/// One slot; released on drop.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    number: u64,
    entry: Arc<Entry>,
}

impl Slot {
    /// Cancelled on eviction.
    pub(crate) fn evicted(&self) -> CancellationToken {
        self.entry.evicted.clone()
    }

    /// Exempts the slot from eviction: its caller turned out to be a mesh service.
    pub(crate) fn never_evict(&self) {
        if self.entry.key().is_none() {
            return;
        }
        let mut table = self.slots.table();
        let key = self.entry.key().take();
        table.uncount(key);
    }

    /// One more use begins.
    pub(crate) fn begin_use(&self) {
        self.entry.uses.fetch_add(1, Ordering::AcqRel);
        self.entry.used_last.store(self.slots.now(), Ordering::Release);
    }

    /// One use ends.
    pub(crate) fn end_use(&self) {
        self.entry.used_last.store(self.slots.now(), Ordering::Release);
        self.entry.uses.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.entry.uses.load(Ordering::Acquire) > 0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        if table.remove(self.number).is_none() {
            table.evicting.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests;
