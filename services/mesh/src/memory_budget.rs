//! The bytes that calls may hold at once, and each caller's share of them: a caller may take more for as long as it holds no
//! more than what is free. So one caller gets half of the budget at most, two a third each, and a newcomer always finds room
//! (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). The platform's own services
//! have no share: what they ask for was asked of them by somebody who has one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::rate_limit::Key;

/// The bytes that calls may hold at once.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) limit_bytes: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    bytes: usize,
    /// Of callers that hold some.
    by_caller: HashMap<Key, usize>,
}

/// Why there is no more memory for a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Full {
    /// The budget is used up.
    Budget,
    /// The caller holds as much as it may while the rest is in use.
    Share,
}

impl Budget {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, taken: Mutex::default() }
    }

    pub(crate) fn used_bytes(&self) -> usize {
        self.taken().bytes
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, caller: Option<&Key>, bytes: usize) -> Result<(), Full> {
        let mut taken = self.taken();
        let free = self.limit_bytes.saturating_sub(taken.bytes);
        if bytes > free {
            return Err(Full::Budget);
        }
        if let Some(caller) = caller {
            let held = taken.by_caller.get(caller).copied().unwrap_or(0);
            if held + bytes > free {
                return Err(Full::Share);
            }
            taken.by_caller.insert(caller.clone(), held + bytes);
        }
        taken.bytes += bytes;
        Ok(())
    }

    /// Would so many bytes more be beyond the share of a caller that holds some?
    fn is_beyond_share(&self, caller: &Key, bytes: usize) -> bool {
        let taken = self.taken();
        let free = self.limit_bytes.saturating_sub(taken.bytes);
        taken.by_caller.get(caller).is_some_and(|held| held + bytes > free)
    }

    fn give_back(&self, caller: Option<&Key>, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let mut taken = self.taken();
        taken.bytes -= bytes;
        let Some(caller) = caller else { return };
        if let Entry::Occupied(mut held) = taken.by_caller.entry(caller.clone()) {
            *held.get_mut() -= bytes;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

/// What a call takes of its budget, in its caller's name. What its request took is given back in drop, if not before.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Arc<Budget>,
    /// `None`: a service of the platform.
    caller: Option<Key>,
    request_bytes: AtomicUsize,
}

impl Account {
    pub(crate) fn new(budget: Arc<Budget>, caller: Option<Key>) -> Self {
        Self { budget, caller, request_bytes: AtomicUsize::new(0) }
    }

    /// For the request: so many bytes more, for as long as the call is there.
    pub(crate) fn take_for_request(&self, bytes: usize) -> Result<(), Full> {
        self.budget.take(self.caller.as_ref(), bytes)?;
        self.request_bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Would an answer of so many bytes be refused to a caller that has not taken others yet?
    pub(crate) fn is_beyond_share(&self, bytes: usize) -> bool {
        self.caller.as_ref().is_some_and(|caller| self.budget.is_beyond_share(caller, bytes))
    }

    /// The request is no longer there.
    pub(crate) fn give_back_request(&self) {
        let bytes = self.request_bytes.swap(0, Ordering::AcqRel);
        self.budget.give_back(self.caller.as_ref(), bytes);
    }

    /// So many bytes, until they are dropped.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Held, Full> {
        self.budget.take(self.caller.as_ref(), bytes)?;
        Ok(Held { account: self.clone(), bytes })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.give_back_request();
    }
}

/// Bytes of a budget; given back in drop.
#[derive(Debug)]
pub(crate) struct Held {
    account: Arc<Account>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.account.budget.give_back(self.account.caller.as_ref(), self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn accounts(limit_bytes: usize) -> (Arc<Budget>, impl Fn(u128) -> Arc<Account>) {
        let budget = Arc::new(Budget::new(limit_bytes));
        let of = budget.clone();
        (budget, move |person| Arc::new(Account::new(of.clone(), Some(Key::Person(Uuid::from_u128(person))))))
    }

    /// As many pieces as it gets.
    fn all_of(account: &Arc<Account>, piece: usize) -> Vec<Held> {
        std::iter::from_fn(|| account.take(piece).ok()).collect()
    }

    #[test]
    fn what_is_held_is_given_back() {
        let budget = Arc::new(Budget::new(100));
        let service = Arc::new(Account::new(budget.clone(), None));
        service.take_for_request(60).expect("free");
        let answer = service.take(40).expect("free");
        assert_eq!(service.take_for_request(1), Err(Full::Budget));
        service.give_back_request();
        assert_eq!((budget.used_bytes(), service.take_for_request(60)), (40, Ok(())));
        drop(answer);
        drop(service);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn one_caller_gets_half_two_a_third_each_and_a_newcomer_finds_room() {
        let (budget, account) = accounts(1_200);
        let first = all_of(&account(1), 10);
        assert_eq!((budget.used_bytes(), account(1).take(10).expect_err("its share")), (600, Full::Share));
        let second = all_of(&account(2), 10);
        assert_eq!((budget.used_bytes(), account(2).take(10).expect_err("its share")), (900, Full::Share));
        assert!(account(2).is_beyond_share(10) && !account(3).is_beyond_share(10_000), "a newcomer may try");
        let newcomer = account(3).take(300).expect("a newcomer finds room");
        drop((first, newcomer));
        assert_eq!(all_of(&account(2), 10).len(), 30, "there is more free, and it may have half");
        drop(second);
        assert_eq!(budget.used_bytes(), 0);
        assert!(budget.taken().by_caller.is_empty(), "who holds nothing is forgotten");
    }

    #[test]
    fn the_platforms_services_have_the_whole_budget() {
        let (budget, _) = accounts(1_000);
        assert_eq!(all_of(&Arc::new(Account::new(budget, None)), 10).len(), 100);
    }
}
