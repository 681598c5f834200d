//! Fair shares of scarce resources that are held briefly (the permits of calls, their bytes): a caller may take more as
//! long as it then holds no more than was free. So one caller gets at most half, two a third each, and a new caller
//! always finds some free (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). A
//! user is counted twice: by account and by address. Mesh services have no share limit, because their calls are made for
//! a caller that has one; a part is reserved for them.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::server::limits::usage::{Holder, Resource};

/// A limited amount of a resource, shared fairly between callers.
#[derive(Debug)]
pub(crate) struct Shares {
    resource: Resource,
    pub(crate) limit: usize,
    /// Reserved for mesh services.
    reserved: usize,
    /// Taken by all callers. What each of them holds changes only under this lock.
    taken: Mutex<usize>,
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
    pub(crate) fn new(resource: Resource, limit: usize, reserved: usize) -> Arc<Self> {
        Arc::new(Self { resource, limit, reserved: reserved.min(limit), taken: Mutex::default() })
    }

    pub(crate) fn used(&self) -> usize {
        *self.taken.lock()
    }

    /// Takes an amount.
    pub(crate) fn charge(&self, holder: &Holder, amount: usize) -> Result<(), Full> {
        if amount == 0 {
            return Ok(());
        }
        let mut taken = self.taken.lock();
        let reserved = if holder.is_mesh_service() { 0 } else { self.reserved };
        let free = (self.limit - reserved).saturating_sub(*taken);
        if amount > free {
            return Err(Full::All);
        }
        if holder.usages().any(|usage| usage.held(self.resource) + amount > free) {
            return Err(Full::Share);
        }
        holder.usages().for_each(|usage| usage.add(self.resource, amount));
        *taken += amount;
        Ok(())
    }

    /// Whether `amount` more exceeds the fair share of a caller that already holds some.
    pub(crate) fn is_beyond_share(&self, holder: &Holder, amount: usize) -> bool {
        let held = || holder.usages().map(|usage| usage.held(self.resource)).filter(|held| *held > 0);
        // Usually the caller holds nothing, and the lock is not taken.
        if held().next().is_none() {
            return false;
        }
        let taken = self.taken.lock();
        let free = (self.limit - self.reserved).saturating_sub(*taken);
        held().any(|held| held + amount > free)
    }

    pub(crate) fn give_back(&self, holder: &Holder, amount: usize) {
        if amount == 0 {
            return;
        }
        let mut taken = self.taken.lock();
        *taken -= amount;
        holder.usages().for_each(|usage| usage.subtract(self.resource, amount));
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
