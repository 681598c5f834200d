//! Permits for hashing passwords: one per processor, with a bounded queue. Permits and queue are shared fairly by client
//! address, and within an address by account.
//!
//! A free permit goes to the address with the fewest permits, and among those to the one served least recently; the
//! accounts of an address are served in the same way. So a single call is next, however many calls of another address
//! wait. When the queue is full, the newest call of the account with the most waiting, in the address with the most
//! waiting, is evicted: a burst displaces only its own calls.
//!
//! Each instance has its own permits. Callers behind an untrusted proxy share the proxy's address, and are separated by
//! account only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use kernel::client_network;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// The fair share that a permit is counted in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Share {
    network: IpAddr,
    /// An e-mail or a user id; `None`: no particular account.
    account: Option<String>,
}

impl Share {
    /// The share of an address without an account.
    pub(crate) fn of_address(address: IpAddr) -> Self {
        Self { network: client_network(address), account: None }
    }

    /// The share of an account that is used from an address.
    pub(crate) fn of_account(address: IpAddr, account: impl Into<String>) -> Self {
        Self { network: client_network(address), account: Some(account.into()) }
    }
}

/// The queue is full, and this call was rejected or evicted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QueueFull;

/// Why a call was rejected: the label of the metric.
#[derive(Clone, Copy)]
enum Cause {
    /// The queue is full, and no other share has more calls in it.
    Full,
    /// A waiting call was evicted in favour of one whose share has fewer calls in the queue.
    Displaced,
}

/// The permits. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct HashingPermits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_waiting: usize,
    state: Mutex<State>,
    rejected: Counter<u64>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// A logical clock: counts arrivals and grants.
    now: u64,
    waiting: Vec<Waiter>,
    addresses: HashMap<IpAddr, Usage>,
    accounts: HashMap<Share, Usage>,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    share: Share,
    granted: oneshot::Sender<Result<(), QueueFull>>,
}

/// What an address or an account uses. Entries without permits and waiting calls are removed.
#[derive(Clone, Copy, Default, Debug)]
struct Usage {
    held: usize,
    waiting: usize,
    /// When it last got a permit, or arrived.
    last_served: u64,
}

impl HashingPermits {
    pub(crate) fn new(permits: usize, max_waiting: usize) -> Self {
        let rejected = opentelemetry::global::meter("ordermesh")
            .u64_counter("ordermesh.passwords.refused")
            .with_description("Passwords rejected because too many are waiting to be hashed, by cause")
            .build();
        let state =
            State { free: permits, now: 0, waiting: Vec::new(), addresses: HashMap::new(), accounts: HashMap::new() };
        Self(Arc::new(Inner { max_waiting, state: Mutex::new(state), rejected }))
    }

    /// Waits for a permit.
    pub(crate) async fn take(&self, share: Share) -> Result<HashingPermit, QueueFull> {
        let mut waiting = match self.enter(share)? {
            Entered::Granted(permit) => return Ok(permit),
            Entered::Queued(waiting) => waiting,
        };
        // The sender is dropped together with the waiter, and only after it has sent.
        (&mut waiting.granted).await.unwrap_or(Err(QueueFull))?;
        waiting.is_settled = true;
        Ok(HashingPermit { permits: self.clone(), share: waiting.share.clone() })
    }

    fn enter(&self, share: Share) -> Result<Entered, QueueFull> {
        let mut state = self.0.state();
        let number = state.tick();
        if state.free > 0 {
            state.free -= 1;
            state.change(&share, |usage| (usage.held, usage.last_served) = (usage.held + 1, number));
            return Ok(Entered::Granted(HashingPermit { permits: self.clone(), share }));
        }
        let (sender, granted) = oneshot::channel();
        state.change(&share, |usage| {
            if usage.held + usage.waiting == 0 {
                usage.last_served = number;
            }
            usage.waiting += 1;
        });
        state.waiting.push(Waiter { number, share: share.clone(), granted: sender });
        if state.waiting.len() > self.0.max_waiting {
            let newest = state.newest_of_largest().map(|index| state.remove(index));
            if let Some(displaced) = newest.filter(|displaced| displaced.number != number) {
                self.0.count_rejection(Cause::Displaced);
                // If the receiver is gone, no result is needed.
                let _ = displaced.granted.send(Err(QueueFull));
            } else {
                self.0.count_rejection(Cause::Full);
                return Err(QueueFull);
            }
        }
        Ok(Entered::Queued(Waiting { permits: self.clone(), number, share, granted, is_settled: false }))
    }

    fn release(&self, share: &Share) {
        self.0.state().release(share);
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn count_rejection(&self, cause: Cause) {
        let cause = match cause {
            Cause::Full => "queue_full",
            Cause::Displaced => "displaced",
        };
        self.rejected.add(1, &[KeyValue::new("cause", cause)]);
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn change(&mut self, share: &Share, change: impl Fn(&mut Usage)) {
        let address = self.addresses.entry(share.network).or_default();
        change(address);
        if address.held + address.waiting == 0 {
            self.addresses.remove(&share.network);
        }
        let account = self.accounts.entry(share.clone()).or_default();
        change(account);
        if account.held + account.waiting == 0 {
            self.accounts.remove(share);
        }
    }

    fn usage(&self, share: &Share) -> (Usage, Usage) {
        let address = self.addresses.get(&share.network).copied().unwrap_or_default();
        (address, self.accounts.get(share).copied().unwrap_or_default())
    }

    fn next(&self) -> Option<usize> {
        let rank = |waiter: &Waiter| {
            let (address, account) = self.usage(&waiter.share);
            (address.held, address.last_served, account.held, account.last_served, waiter.number)
        };
        self.waiting.iter().enumerate().min_by_key(|(_, waiter)| rank(waiter)).map(|(index, _)| index)
    }

    fn newest_of_largest(&self) -> Option<usize> {
        // If two addresses have equally many waiting, the one that came later: otherwise they would evict each other
        // alternately.
        let rank = |waiter: &Waiter| {
            let (address, account) = self.usage(&waiter.share);
            (address.waiting, address.last_served, account.waiting, waiter.number)
        };
        self.waiting.iter().enumerate().max_by_key(|(_, waiter)| rank(waiter)).map(|(index, _)| index)
    }

    fn remove(&mut self, index: usize) -> Waiter {
        let waiter = self.waiting.remove(index);
        self.change(&waiter.share, |usage| usage.waiting -= 1);
        waiter
    }

    fn release(&mut self, share: &Share) {
        // The next is chosen while the permit still counts: a returned permit does not go back to its own share while
        // others wait.
        let next = self.next().map(|index| self.remove(index));
        self.change(share, |usage| usage.held -= 1);
        let Some(Waiter { share, granted, .. }) = next else {
            self.free += 1;
            return;
        };
        let now = self.tick();
        self.change(&share, |usage| (usage.held, usage.last_served) = (usage.held + 1, now));
        // If the receiver is gone, it has left the queue or returns the permit: see `Waiting`.
        let _ = granted.send(Ok(()));
    }
}

enum Entered {
    Granted(HashingPermit),
    Queued(Waiting),
}

/// A waiting call; leaves the queue when it is dropped.
struct Waiting {
    permits: HashingPermits,
    number: u64,
    share: Share,
    granted: oneshot::Receiver<Result<(), QueueFull>>,
    is_settled: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        let mut state = self.permits.0.state();
        if let Some(index) = state.waiting.iter().position(|waiter| waiter.number == self.number) {
            state.remove(index);
        } else if let Ok(Ok(())) = self.granted.try_recv() {
            state.release(&self.share);
        }
    }
}

/// A permit, held until it is dropped.
#[derive(Debug)]
pub(crate) struct HashingPermit {
    permits: HashingPermits,
    share: Share,
}

impl Drop for HashingPermit {
    fn drop(&mut self) {
        self.permits.release(&self.share);
    }
}

#[cfg(test)]
mod tests;
