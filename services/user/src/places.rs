//! Places for work on passwords: a few processors, and a bounded queue before them. Both are shared by address, and within
//! an address by account.
//!
//! A free place goes to the address that holds the fewest, and of those to the one whose last turn is longest ago; the
//! accounts of an address take turns in the same way. So whoever comes alone is next, however many of another's wait. When
//! the queue is full, the account with the most waiting of the address with the most waiting loses its newest: a stranger's
//! burst displaces itself and nobody else.
//!
//! Each instance has its own. Callers behind an untrusted proxy share the proxy's address, and have their accounts only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh::network;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use tokio::sync::oneshot;

/// Whose share a place counts in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Share {
    network: IpAddr,
    /// An e-mail or a user id; `None`: of nobody in particular.
    account: Option<String>,
}

impl Share {
    /// Of an address alone.
    pub(crate) fn of_address(address: IpAddr) -> Self {
        Self { network: network(address), account: None }
    }

    /// Of an account that is used from an address.
    pub(crate) fn of_account(address: IpAddr, account: impl Into<String>) -> Self {
        Self { network: network(address), account: Some(account.into()) }
    }
}

/// The queue is full, and this one had to give way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QueueFull;

/// Why one was refused: the label of the metric.
#[derive(Clone, Copy)]
enum Cause {
    /// The queue is full, and nobody has more in it.
    Full,
    /// It waited, and gave way to one with less in the queue.
    Displaced,
}

/// The places. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_waiting: usize,
    state: Mutex<State>,
    refused: Counter<u64>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Counts arrivals and turns.
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

/// What an address or an account uses. One that uses nothing is not kept.
#[derive(Clone, Copy, Default, Debug)]
struct Usage {
    held: usize,
    waiting: usize,
    /// When it last got a place, or came.
    turn: u64,
}

impl Places {
    pub(crate) fn new(places: usize, max_waiting: usize) -> Self {
        let refused = opentelemetry::global::meter("ordermesh")
            .u64_counter("ordermesh.passwords.refused")
            .with_description("Passwords refused because too many wait to be hashed, by cause")
            .build();
        let state =
            State { free: places, now: 0, waiting: Vec::new(), addresses: HashMap::new(), accounts: HashMap::new() };
        Self(Arc::new(Inner { max_waiting, state: Mutex::new(state), refused }))
    }

    /// Waits for a place.
    pub(crate) async fn take(&self, share: Share) -> Result<Place, QueueFull> {
        let mut waiting = match self.enter(share)? {
            Entered::Place(place) => return Ok(place),
            Entered::Queue(waiting) => waiting,
        };
        // The sender is dropped with the waiter, and only after it has sent.
        (&mut waiting.granted).await.unwrap_or(Err(QueueFull))?;
        waiting.is_settled = true;
        Ok(Place { places: self.clone(), share: waiting.share.clone() })
    }

    fn enter(&self, share: Share) -> Result<Entered, QueueFull> {
        let mut state = self.0.state();
        let number = state.tick();
        if state.free > 0 {
            state.free -= 1;
            state.change(&share, |usage| (usage.held, usage.turn) = (usage.held + 1, number));
            return Ok(Entered::Place(Place { places: self.clone(), share }));
        }
        let (sender, granted) = oneshot::channel();
        state.change(&share, |usage| {
            usage.turn = if usage.held + usage.waiting == 0 { number } else { usage.turn };
            usage.waiting += 1;
        });
        state.waiting.push(Waiter { number, share: share.clone(), granted: sender });
        if state.waiting.len() > self.0.max_waiting {
            let newest_of_most = state.newest_of_most().map(|index| state.remove(index));
            if let Some(displaced) = newest_of_most.filter(|displaced| displaced.number != number) {
                self.0.refuse(Cause::Displaced);
                // One that is gone needs no answer.
                let _ = displaced.granted.send(Err(QueueFull));
            } else {
                self.0.refuse(Cause::Full);
                return Err(QueueFull);
            }
        }
        Ok(Entered::Queue(Waiting { places: self.clone(), number, share, granted, is_settled: false }))
    }

    fn give_back(&self, share: &Share) {
        self.0.state().give_back(share);
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, cause: Cause) {
        let cause = match cause {
            Cause::Full => "queue_full",
            Cause::Displaced => "displaced",
        };
        self.refused.add(1, &[KeyValue::new("cause", cause)]);
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
        let in_turn = |waiter: &Waiter| {
            let (address, account) = self.usage(&waiter.share);
            (address.held, address.turn, account.held, account.turn, waiter.number)
        };
        self.waiting.iter().enumerate().min_by_key(|(_, waiter)| in_turn(waiter)).map(|(index, _)| index)
    }

    fn newest_of_most(&self) -> Option<usize> {
        // Of two addresses with as many, the one that came later: two must not take turns in losing their newest.
        let most = |waiter: &Waiter| {
            let (address, account) = self.usage(&waiter.share);
            (address.waiting, address.turn, account.waiting, waiter.number)
        };
        self.waiting.iter().enumerate().max_by_key(|(_, waiter)| most(waiter)).map(|(index, _)| index)
    }

    fn remove(&mut self, index: usize) -> Waiter {
        let waiter = self.waiting.remove(index);
        self.change(&waiter.share, |usage| usage.waiting -= 1);
        waiter
    }

    fn give_back(&mut self, share: &Share) {
        // The next is chosen while the place still counts: who gives one back is not the next while others wait.
        let next = self.next().map(|index| self.remove(index));
        self.change(share, |usage| usage.held -= 1);
        let Some(Waiter { share, granted, .. }) = next else {
            self.free += 1;
            return;
        };
        let turn = self.tick();
        self.change(&share, |usage| (usage.held, usage.turn) = (usage.held + 1, turn));
        // One that goes away takes itself from the queue, or gives the place back: see `Waiting`.
        let _ = granted.send(Ok(()));
    }
}

enum Entered {
    Place(Place),
    Queue(Waiting),
}

/// One that waits: leaves the queue when it is dropped.
struct Waiting {
    places: Places,
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
        let mut state = self.places.0.state();
        if let Some(index) = state.waiting.iter().position(|waiter| waiter.number == self.number) {
            state.remove(index);
        } else if let Ok(Ok(())) = self.granted.try_recv() {
            state.give_back(&self.share);
        }
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    share: Share,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.give_back(&self.share);
    }
}

#[cfg(test)]
mod tests;
