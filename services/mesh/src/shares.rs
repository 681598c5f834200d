//! Shares of what is scarce and held briefly (the permits of calls, the bytes that they hold): a caller may take more for as
//! long as it then holds no more than was free. So one caller gets half at most, two a third each, and a newcomer always finds some (dynamic thresholds: Choudhury
//! and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). A person counts twice: by its account and by its address. The
//! platform's own services have no share, for what they ask was asked of them by somebody who has one; some are kept for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::rate_limit::Key;
use crate::wire::Request;

/// Who takes: an address, a person at an address, or a service of the platform (nobody).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Holder([Option<Key>; 2]);

impl Holder {
    /// A service of the platform.
    pub(crate) const PLATFORM: Self = Self([None, None]);

    pub(crate) fn of(request: &Request) -> Self {
        match Key::of(request, false) {
            Key::Service(_) => Self::PLATFORM,
            person @ Key::Person(_) => Self([Some(person), Some(Key::of(request, true))]),
            address @ (Key::Peer(_) | Key::Others) => Self([Some(address), None]),
        }
    }

    /// The account if there is one, else the address.
    pub(crate) fn narrowest(self) -> Option<Key> {
        let [narrowest, _] = self.0;
        narrowest
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.iter().flatten()
    }

    fn is_platform(&self) -> bool {
        *self == Self::PLATFORM
    }
}

/// So many at once.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) limit: usize,
    /// Of them, for the platform's services alone.
    reserved: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Of callers that hold some.
    by_key: HashMap<Key, usize>,
}

/// Why there is none to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Full {
    /// All are taken.
    All,
    /// The caller holds as many as it may while others hold theirs.
    Share,
}

impl Shares {
    pub(crate) fn new(limit: usize, reserved: usize) -> Arc<Self> {
        Arc::new(Self { limit, reserved: reserved.min(limit), taken: Mutex::default() })
    }

    pub(crate) fn used(&self) -> usize {
        self.taken().all
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes so much of it.
    pub(crate) fn charge(&self, holder: &Holder, amount: usize) -> Result<(), Full> {
        // Whoever holds nothing is not remembered.
        if amount == 0 {
            return Ok(());
        }
        let mut taken = self.taken();
        let reserved = if holder.is_platform() { 0 } else { self.reserved };
        let free = (self.limit - reserved).saturating_sub(taken.all);
        if amount > free {
            return Err(Full::All);
        }
        let held = |key: &Key| taken.by_key.get(key).copied().unwrap_or(0);
        if holder.keys().any(|key| held(key) + amount > free) {
            return Err(Full::Share);
        }
        for key in holder.keys() {
            *taken.by_key.entry(key.clone()).or_default() += amount;
        }
        taken.all += amount;
        Ok(())
    }

    /// Is so much more beyond the share of a caller that holds some?
    pub(crate) fn is_beyond_share(&self, holder: &Holder, amount: usize) -> bool {
        let taken = self.taken();
        let free = (self.limit - self.reserved).saturating_sub(taken.all);
        holder.keys().any(|key| taken.by_key.get(key).is_some_and(|held| held + amount > free))
    }

    pub(crate) fn give_back(&self, holder: &Holder, amount: usize) {
        if amount == 0 {
            return;
        }
        let mut taken = self.taken();
        taken.all -= amount;
        for key in holder.keys() {
            if let Some(held) = taken.by_key.get_mut(key) {
                *held -= amount;
                if *held == 0 {
                    taken.by_key.remove(key);
                }
            }
        }
    }

    /// Takes one, until it is dropped.
    pub(crate) fn take(self: &Arc<Self>, holder: Holder) -> Result<Share, Full> {
        self.charge(&holder, 1)?;
        Ok(Share { shares: self.clone(), holder })
    }
}

/// One of them; given back in drop.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    holder: Holder,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.give_back(&self.holder, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn address(last: u8) -> Holder {
        Holder([Some(Key::Peer([192, 0, 2, last].into())), None])
    }

    fn person(number: u128, at: u8) -> Holder {
        let [address, _] = address(at).0;
        Holder([Some(Key::Person(Uuid::from_u128(number))), address])
    }

    /// As many as it gets.
    fn all_of(shares: &Arc<Shares>, holder: &Holder) -> Vec<Share> {
        std::iter::from_fn(|| shares.take(holder.clone()).ok()).collect()
    }

    #[test]
    fn one_caller_gets_half_two_a_third_each_and_a_newcomer_finds_some() {
        let shares = Shares::new(120, 0);
        let first = all_of(&shares, &address(1));
        assert_eq!((first.len(), shares.take(address(1)).expect_err("its share")), (60, Full::Share));
        let second = all_of(&shares, &address(2));
        assert_eq!((second.len(), shares.used()), (30, 90));
        assert!(shares.is_beyond_share(&address(2), 1) && !shares.is_beyond_share(&address(3), 100));
        let newcomer = all_of(&shares, &address(3));
        assert_eq!(newcomer.len(), 15);
        drop((first, newcomer));
        assert_eq!(all_of(&shares, &address(2)).len(), 30, "there is more free, and it may have half");
        drop(second);
        assert_eq!(shares.used(), 0);
        assert!(shares.taken().by_key.is_empty(), "who holds nothing is forgotten");
    }

    #[test]
    fn a_person_counts_by_its_account_wherever_it_is_and_by_its_address_whoever_it_is() {
        let shares = Shares::new(120, 0);
        let first = all_of(&shares, &person(1, 1));
        assert_eq!(first.len(), 60);
        assert_eq!(shares.take(person(1, 2)).expect_err("the same account"), Full::Share);
        assert_eq!(shares.take(person(2, 1)).expect_err("the same address"), Full::Share);
        assert_eq!(shares.take(address(1)).expect_err("nobody at the same address"), Full::Share);
        assert_eq!(all_of(&shares, &person(2, 2)).len(), 30, "another person at another address");
    }

    #[test]
    fn the_platforms_services_have_no_share_and_some_are_kept_for_them() {
        let shares = Shares::new(20, 4);
        let strangers: Vec<Share> = (0..16).map(|last| shares.take(address(last)).expect("one each")).collect();
        assert_eq!(shares.take(address(99)).expect_err("none is left for strangers"), Full::All);
        let services = all_of(&shares, &Holder::PLATFORM);
        assert_eq!((services.len(), shares.take(Holder::PLATFORM).expect_err("none at all")), (4, Full::All));
        drop(strangers);
        assert_eq!(all_of(&shares, &Holder::PLATFORM).len(), 16, "all there are");
    }

    #[test]
    fn of_one_there_is_one_for_anybody() {
        let shares = Shares::new(1, 0);
        let held = shares.take(address(1)).expect("free");
        assert_eq!(shares.take(address(2)).expect_err("taken"), Full::All);
        drop(held);
        shares.take(address(2)).expect("free again");
    }
}
