//! What a call holds of the bytes that calls may hold at once ([`Shares`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::shares::{Full, Holder, Shares};

/// What a call takes of its budget, in its caller's name. What its request took is given back in drop, if not before.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Arc<Shares>,
    caller: Holder,
    request_bytes: AtomicUsize,
}

impl Account {
    pub(crate) fn new(budget: Arc<Shares>, caller: Holder) -> Self {
        Self { budget, caller, request_bytes: AtomicUsize::new(0) }
    }

    pub(crate) fn caller(&self) -> &Holder {
        &self.caller
    }

    /// For the request: so many bytes more, for as long as the call is there.
    pub(crate) fn take_for_request(&self, bytes: usize) -> Result<(), Full> {
        self.budget.charge(&self.caller, bytes)?;
        self.request_bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Would an answer of so many bytes be refused to a caller that has not taken others yet?
    pub(crate) fn is_beyond_share(&self, bytes: usize) -> bool {
        self.budget.is_beyond_share(&self.caller, bytes)
    }

    /// The request is no longer there.
    pub(crate) fn give_back_request(&self) {
        let bytes = self.request_bytes.swap(0, Ordering::AcqRel);
        self.budget.give_back(&self.caller, bytes);
    }

    /// So many bytes, until they are dropped.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Held, Full> {
        self.budget.charge(&self.caller, bytes)?;
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
        self.account.budget.give_back(&self.account.caller, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_back() {
        let budget = Shares::new(100, 0);
        let service = Arc::new(Account::new(budget.clone(), Holder::PLATFORM));
        service.take_for_request(60).expect("free");
        let answer = service.take(40).expect("free");
        assert_eq!(service.take_for_request(1), Err(Full::All));
        service.give_back_request();
        assert_eq!((budget.used(), service.take_for_request(60)), (40, Ok(())));
        drop(answer);
        drop(service);
        assert_eq!(budget.used(), 0);
    }
}
