//! Limits searches of the catalogue: a search reads all of it, and any client may request one. Searches use only part
//! of the database's connections, so that lookups never wait for them, and each address has a fair share of that part.
//!
//! When too many are waiting, the newest of the address with the most searches is evicted, rather than the new caller.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::error::Error;

/// The length of the queue.
const MAX_WAITING: usize = 64;

/// The client's network; `None`: unknown, and all unknown ones count as one.
pub(crate) type Address = Option<IpAddr>;

/// The running and waiting searches. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Searches(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max_running: usize,
    /// The limit per address, which leaves permits for others.
    max_running_per_address: usize,
    max_waiting: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    addresses: HashMap<Address, Held>,
    /// Oldest first.
    waiting: Vec<Waiting>,
    served: u64,
}

/// The searches of an address.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    running: usize,
    waiting: usize,
    /// The sequence number of the last search that it began.
    last_served: u64,
}

#[derive(Debug)]
struct Waiting {
    address: Address,
    grant: oneshot::Sender<SearchPermit>,
}

/// The permit of a running search.
#[derive(Debug)]
pub(crate) struct SearchPermit {
    shared: Arc<Shared>,
    address: Address,
}

impl Searches {
    /// Uses a quarter of the connections, at least one.
    pub(crate) fn new(connections: u32) -> Self {
        let quarter = usize::try_from(connections / 4).unwrap_or(usize::MAX).max(1);
        Self::with(quarter, MAX_WAITING)
    }

    fn with(max_running: usize, max_waiting: usize) -> Self {
        let max_running_per_address = (max_running / 2).max(1);
        Self(Arc::new(Shared { max_running, max_running_per_address, max_waiting, queue: Mutex::default() }))
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// Too many searches are waiting, and this address has the most of them.
    pub(crate) async fn acquire(&self, address: Address) -> Result<SearchPermit, Error> {
        let (grant, granted) = oneshot::channel();
        self.0.queue().admit(Waiting { address, grant }, self.0.max_waiting)?;
        self.0.grant();
        granted.await.map_err(|_| Error::TooManySearches)
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Grants permits while any are free. Sending to a cancelled caller returns the permit, and dropping that
    /// takes the lock again: so it is sent without the lock.
    fn grant(self: &Arc<Self>) {
        loop {
            let Some(Waiting { address, grant }) = self.queue().next(self.max_running, self.max_running_per_address)
            else {
                return;
            };
            drop(grant.send(SearchPermit { shared: self.clone(), address }));
        }
    }
}

impl Queue {
    fn admit(&mut self, call: Waiting, max_waiting: usize) -> Result<(), Error> {
        self.remove_cancelled();
        if self.waiting.len() >= max_waiting {
            let new_total = self.held(call.address) + 1;
            let holds_more = |waiting: &Waiting| self.held(waiting.address) > new_total;
            let largest = self
                .waiting
                .iter()
                .filter(|waiting| holds_more(waiting))
                .map(|waiting| self.held(waiting.address))
                .max();
            let Some(largest) = largest else { return Err(Error::TooManySearches) };
            let newest = self.waiting.iter().rposition(|waiting| self.held(waiting.address) == largest);
            if let Some(newest) = newest {
                self.leave(newest);
            }
        }
        self.addresses.entry(call.address).or_default().waiting += 1;
        self.waiting.push(call);
        Ok(())
    }

    /// The next to begin: from the address with the fewest running searches, and among those the one served least
    /// recently.
    fn next(&mut self, max_running: usize, max_running_per_address: usize) -> Option<Waiting> {
        self.remove_cancelled();
        if self.addresses.values().map(|held| held.running).sum::<usize>() >= max_running {
            return None;
        }
        let of = |waiting: &Waiting| self.addresses.get(&waiting.address).copied().unwrap_or_default();
        let candidates = self.waiting.iter().enumerate().map(|(index, waiting)| (of(waiting), index));
        let (_, index) = candidates
            .filter(|(held, _)| held.running < max_running_per_address)
            .min_by_key(|(held, index)| (held.running, held.last_served, *index))?;
        self.served += 1;
        let next = self.waiting.get(index)?.address;
        let held = self.addresses.entry(next).or_default();
        held.running += 1;
        held.last_served = self.served;
        Some(self.leave(index))
    }

    fn held(&self, address: Address) -> usize {
        self.addresses.get(&address).map_or(0, |held| held.running + held.waiting)
    }

    fn leave(&mut self, index: usize) -> Waiting {
        let left = self.waiting.remove(index);
        self.change(left.address, |held| held.waiting = held.waiting.saturating_sub(1));
        left
    }

    fn remove_cancelled(&mut self) {
        while let Some(cancelled) = self.waiting.iter().position(|waiting| waiting.grant.is_closed()) {
            self.leave(cancelled);
        }
    }

    /// Removes the address if it has no searches.
    fn change(&mut self, address: Address, change: impl FnOnce(&mut Held)) {
        let held = self.addresses.entry(address).or_default();
        change(held);
        if held.running + held.waiting == 0 {
            self.addresses.remove(&address);
        }
    }
}

impl Drop for SearchPermit {
    fn drop(&mut self) {
        self.shared.queue().change(self.address, |held| held.running = held.running.saturating_sub(1));
        self.shared.grant();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Entering = Pin<Box<dyn Future<Output = Result<SearchPermit, Error>>>>;

    fn address(last: u8) -> Address {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    fn acquire(searches: &Searches, last: u8) -> Entering {
        let searches = searches.clone();
        let mut entering: Entering = Box::pin(async move { searches.acquire(address(last)).await });
        assert!(poll(&mut entering).is_none_or(|entered| entered.is_ok()), "rejected immediately");
        entering
    }

    /// `None`: it waits. A permit that it got is returned.
    fn poll(entering: &mut Entering) -> Option<Result<(), Error>> {
        match entering.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(entered) => Some(entered.map(drop)),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn an_address_has_a_fair_share_and_others_are_served_next() {
        let searches = Searches::with(2, 8);
        let first = searches.acquire(address(1)).await.expect("a free permit");
        let mut second = acquire(&searches, 1);
        assert!(poll(&mut second).is_none(), "the other permit is for other addresses");
        let other = searches.acquire(address(2)).await.expect("its permit");
        let mut third = acquire(&searches, 3);
        assert!(poll(&mut third).is_none(), "both permits are used");
        drop(first);
        assert!(matches!(poll(&mut third), Some(Ok(()))), "an address that was not served yet is next");
        assert!(matches!(poll(&mut second), Some(Ok(()))));
        drop(other);
        assert!(searches.0.queue().addresses.is_empty(), "addresses without searches are removed");
    }

    #[tokio::test]
    async fn a_full_queue_evicts_from_the_address_with_the_most_searches() {
        let searches = Searches::with(1, 3);
        let running = searches.acquire(address(1)).await.expect("a free permit");
        let mut attack: Vec<_> = (0..3).map(|_| acquire(&searches, 1)).collect();
        assert!(matches!(searches.acquire(address(1)).await, Err(Error::TooManySearches)));
        let mut regular = acquire(&searches, 2);
        assert!(matches!(poll(&mut attack[2]), Some(Err(Error::TooManySearches))), "its newest search is evicted");
        assert!(poll(&mut regular).is_none() && poll(&mut attack[0]).is_none() && poll(&mut attack[1]).is_none());
        drop(running);
        assert!(matches!(poll(&mut regular), Some(Ok(()))), "before earlier searches of the address with the most");
    }

    #[tokio::test]
    async fn a_cancelled_caller_returns_its_permit() {
        let searches = Searches::with(1, 2);
        let running = searches.acquire(address(1)).await.expect("a free permit");
        let gone = [acquire(&searches, 2), acquire(&searches, 3)];
        drop(gone);
        let mut waits = [acquire(&searches, 4), acquire(&searches, 5)];
        drop(running);
        assert!(waits.iter_mut().all(|waiting| matches!(poll(waiting), Some(Ok(())))));
        assert!(searches.0.queue().addresses.is_empty() && searches.0.queue().waiting.is_empty());
    }

    #[test]
    fn searches_use_a_quarter_of_the_connections_and_at_least_one() {
        assert_eq!([1, 4, 8, 40].map(|connections| Searches::new(connections).0.max_running), [1, 1, 2, 10]);
    }
}
