//! Fair shares of scarce resources that are held briefly (the permits of calls, their bytes): a caller may take more as
//! long as it then holds no more than was free. So one caller gets at most half, two a third each, and a new caller
//! always finds some free (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). A
//! user is counted twice: by account and by address. Mesh services have no share limit, because their calls are made for
//! a caller that has one; a part is reserved for them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::call::Request;
use crate::server::layers::rate_limit::Key;
use parking_lot::{Mutex, MutexGuard};

/// The caller that holds something: an address, a user at an address, or a mesh service (no key).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Holder([Option<Key>; 2]);

impl Holder {
    /// A mesh service.
    pub(crate) const PLATFORM: Self = Self([None, None]);

    pub(crate) fn of(request: &Request) -> Self {
        match Key::of(request, false) {
            Key::Service(_) => Self::PLATFORM,
            person @ Key::User(_) => Self([Some(person), Some(Key::of(request, true))]),
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

/// A limited amount, shared fairly between callers.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) limit: usize,
    /// Reserved for mesh services.
    reserved: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// What each caller holds; callers without holdings have no entry.
    by_key: HashMap<Key, usize>,
}

/// Why nothing can be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Full {
    /// The limit is reached.
    All,
    /// The caller holds its fair share.
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
        self.taken.lock()
    }

    /// Takes an amount.
    pub(crate) fn charge(&self, holder: &Holder, amount: usize) -> Result<(), Full> {
        // A caller that holds nothing gets no entry.
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

    /// Whether `amount` more exceeds the fair share of a caller that already holds some.
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

/// One unit; returned on drop.
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
mod tests;
