//! Places of what is scarce and held for long (connections, streams). Whoever comes may have all of them while nobody else
//! wants one. When none is free, it is not the newcomer that goes: of the caller that has most places, the idlest gives way.
//! Whoever has most itself gets one of its own places, if that is idle. The platform's own services and trusted proxies, who
//! come for many, never give way, and their places count for nobody.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::rate_limit::Key;

/// Those that were asked to give way and are not gone yet: for so many the limit may be exceeded, and by the platform's own
/// newcomers for as many again.
const MAX_LEAVING: usize = 32;
/// Of them, for one newcomer's sake: others must not wait until its are gone. One that gets a place of its own waits for that.
const MAX_LEAVING_FOR_ONE: usize = 4;
/// Among places of callers that have equally many, only one that was idle for so long gives way.
const IDLE: Duration = Duration::from_secs(1);

/// So many at once.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) limit: usize,
    origin: Instant,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    next_number: u64,
    taken: HashMap<u64, Arc<Taken>>,
    by_key: HashMap<Key, usize>,
    /// Asked to leave, and still there; for whom.
    leaving: HashMap<u64, Option<Key>>,
}

#[derive(Debug)]
struct Taken {
    /// `None`: never gives way.
    key: Mutex<Option<Key>>,
    leave: CancellationToken,
    /// What it is used for right now.
    uses: AtomicUsize,
    /// Milliseconds after the origin.
    used_last: AtomicU64,
}

impl Places {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, origin: Instant::now(), all: Mutex::default() })
    }

    /// Places that are taken, those of whom we wait to leave too.
    pub(crate) fn used(&self) -> usize {
        let all = self.all();
        all.taken.len() + all.leaving.len()
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A place for this caller (`None`: one that never gives way), which another may have had to leave.
    pub(crate) fn take(self: &Arc<Self>, key: Option<Key>) -> Option<Place> {
        let mut all = self.all();
        if all.taken.len() + all.leaving.len() >= self.limit {
            let leaver = all.leaver(key.as_ref(), self.now())?;
            all.ask_to_leave(leaver, key.as_ref());
        }
        let number = all.next_number;
        all.next_number += 1;
        if let Some(key) = &key {
            *all.by_key.entry(key.clone()).or_default() += 1;
        }
        let taken = Arc::new(Taken {
            key: Mutex::new(key),
            leave: CancellationToken::new(),
            uses: AtomicUsize::new(0),
            used_last: AtomicU64::new(self.now()),
        });
        all.taken.insert(number, taken.clone());
        Some(Place { places: self.clone(), number, taken })
    }
}

impl All {
    /// Whose place the newcomer gets.
    fn leaver(&self, newcomer: Option<&Key>, now: u64) -> Option<u64> {
        if self.leaving.len() >= if newcomer.is_some() { MAX_LEAVING } else { 2 * MAX_LEAVING } {
            return None;
        }
        let for_it = newcomer.map_or(0, |key| self.leaving.values().filter(|whom| whom.as_ref() == Some(key)).count());
        if for_it >= MAX_LEAVING_FOR_ONE {
            return None;
        }
        let (busiest, most) = self.by_key.iter().max_by_key(|(_, held)| **held)?;
        let held = newcomer.and_then(|key| self.by_key.get(key)).copied().unwrap_or(0);
        if newcomer.is_none() || *most > held + 1 {
            return self.idlest(|key| key == busiest).map(|(number, _)| number);
        }
        // It has as many as anybody has: one of its own, or of anybody while it has none.
        if for_it > 0 && held > 0 {
            return None;
        }
        let (number, idle_since) = self.idlest(|key| newcomer == Some(key) || held == 0)?;
        let idle_since = idle_since?;
        (u128::from(now.saturating_sub(idle_since)) >= IDLE.as_millis()).then_some(number)
    }

    /// The one that was used longest ago, and since when it is idle; of those in use only when there is no other.
    fn idlest(&self, is_of: impl Fn(&Key) -> bool) -> Option<(u64, Option<u64>)> {
        let of_them = self.taken.iter().filter(|(_, taken)| taken.key().as_ref().is_some_and(&is_of));
        let ranked = of_them.map(|(number, taken)| {
            (taken.uses.load(Ordering::Acquire) > 0, taken.used_last.load(Ordering::Acquire), *number)
        });
        ranked.min().map(|(in_use, last, number)| (number, (!in_use).then_some(last)))
    }

    fn ask_to_leave(&mut self, number: u64, newcomer: Option<&Key>) {
        if let Some(taken) = self.remove(number) {
            self.leaving.insert(number, newcomer.cloned());
            taken.leave.cancel();
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
        self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them; free again in drop.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    taken: Arc<Taken>,
}

impl Place {
    /// Cancelled when it is to give way.
    pub(crate) fn leave(&self) -> CancellationToken {
        self.taken.leave.clone()
    }

    /// It turned out to be one of the platform's services.
    pub(crate) fn never_gives_way(&self) {
        if self.taken.key().is_none() {
            return;
        }
        let mut all = self.places.all();
        let key = self.taken.key().take();
        all.forget(key);
    }

    /// It is used from now on, by one more.
    pub(crate) fn begin_use(&self) {
        self.taken.uses.fetch_add(1, Ordering::AcqRel);
        self.taken.used_last.store(self.places.now(), Ordering::Release);
    }

    /// It is used by one less.
    pub(crate) fn end_use(&self) {
        self.taken.used_last.store(self.places.now(), Ordering::Release);
        self.taken.uses.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.taken.uses.load(Ordering::Acquire) > 0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.places.all();
        if all.remove(self.number).is_none() {
            all.leaving.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<Key> {
        Some(Key::Peer([192, 0, 2, last].into()))
    }

    fn has_left(place: &Place) -> bool {
        place.leave().is_cancelled()
    }

    fn leavers(places: &[Place]) -> Vec<usize> {
        (0..places.len()).filter(|at| has_left(&places[*at])).collect()
    }

    async fn take_in_turn(places: &Arc<Places>, last: u8, count: usize) -> Vec<Place> {
        let mut taken = vec![];
        for _ in 0..count {
            taken.push(places.take(address(last)).expect("a place"));
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn the_idlest_of_whoever_has_most_gives_way_to_a_newcomer() {
        let places = Places::new(6);
        let few = take_in_turn(&places, 1, 2).await;
        let many = take_in_turn(&places, 2, 4).await;
        // The first is in use, and the third was: the second is the idlest.
        many[0].begin_use();
        many[2].begin_use();
        many[2].end_use();
        let newcomer = places.take(address(3)).expect("a place");
        assert_eq!((leavers(&few), leavers(&many), has_left(&newcomer)), (vec![], vec![1], false));
        assert_eq!(places.used(), 7, "until the other has left");
        drop(many);
        assert_eq!(places.used(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn of_places_that_are_all_in_use_one_gives_way_to_whoever_has_fewer() {
        let places = Places::new(4);
        let many = take_in_turn(&places, 1, 4).await;
        many.iter().for_each(Place::begin_use);
        let _newcomer = places.take(address(2)).expect("a place");
        assert_eq!(leavers(&many), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_most_itself_gets_an_idle_place_of_its_own_or_none() {
        let places = Places::new(4);
        let few = take_in_turn(&places, 1, 1).await;
        let many = take_in_turn(&places, 2, 3).await;
        assert!(places.take(address(2)).is_none(), "none of its own is idle for long enough");
        tokio::time::advance(IDLE).await;
        many[0].begin_use();
        let _more = places.take(address(2)).expect("its own");
        assert_eq!((leavers(&few), leavers(&many)), (vec![], vec![1]));
    }

    #[tokio::test(start_paused = true)]
    async fn where_each_has_one_only_an_idle_one_gives_way() {
        let places = Places::new(3);
        let mut taken = vec![];
        for last in 1..=3 {
            taken.extend(take_in_turn(&places, last, 1).await);
        }
        assert!(places.take(address(4)).is_none());
        tokio::time::advance(IDLE).await;
        let _fourth = places.take(address(4)).expect("the idlest one's");
        assert_eq!(leavers(&taken), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_never_gives_way_takes_anothers_place_and_counts_for_nobody() {
        let places = Places::new(3);
        let strangers = take_in_turn(&places, 1, 2).await;
        let peer = places.take(address(1)).expect("a place");
        peer.never_gives_way();
        let _second = places.take(None).expect("a stranger's");
        let _third = places.take(None).expect("a stranger's");
        assert_eq!((leavers(&strangers), has_left(&peer)), (vec![0, 1], false));
        drop(strangers);
        assert!(places.take(address(1)).is_none(), "nobody is left who gives way");
        assert!(places.all().by_key.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_is_exceeded_by_few_only() {
        let places = Places::new(100);
        let many = take_in_turn(&places, 1, 100).await;
        let newcomers: Vec<Place> = (2..).map_while(|last| places.take(address(last))).collect();
        assert_eq!(
            (newcomers.len(), leavers(&many).len(), places.used()),
            (MAX_LEAVING, MAX_LEAVING, 100 + MAX_LEAVING)
        );
        let peers: Vec<Place> = std::iter::from_fn(|| places.take(None)).collect();
        assert_eq!(peers.len(), MAX_LEAVING, "the platform's own find some still");
        drop(many);
        assert_eq!(places.used(), 2 * MAX_LEAVING);
    }

    #[tokio::test(start_paused = true)]
    async fn one_newcomer_that_comes_and_comes_leaves_room_for_others_to_come() {
        let places = Places::new(100);
        let many = take_in_turn(&places, 1, 100).await;
        tokio::time::advance(IDLE).await;
        let own: Vec<Place> = std::iter::from_fn(|| places.take(address(1))).collect();
        assert_eq!(own.len(), 1, "whoever has most gets its places one by one");
        let other: Vec<Place> = std::iter::from_fn(|| places.take(address(2))).collect();
        assert_eq!(other.len(), MAX_LEAVING_FOR_ONE);
        assert!(places.take(address(3)).is_some());
        let gone = leavers(&many);
        drop(many.into_iter().enumerate().filter(|(at, _)| gone.contains(at)).collect::<Vec<_>>());
        assert!(places.take(address(2)).is_some(), "they have left");
    }
}
