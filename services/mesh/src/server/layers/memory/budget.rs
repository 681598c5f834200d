//! A call's part of the byte budget that all calls share ([`Shares`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tonic::{Code, Status};

use crate::server::limits::shares::{Full, Shares};
use crate::server::limits::usage::Holder;
use crate::status::{OUT_OF_MEMORY, mesh_status_retry};

const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The status of a call that exceeds the memory budget.
pub(crate) fn out_of_memory(full: Full) -> Status {
    let message = match full {
        Full::All => "the memory budget for requests and responses is used up",
        Full::Share => "this caller holds its share of the memory budget: read the pending responses first",
    };
    mesh_status_retry(Code::ResourceExhausted, OUT_OF_MEMORY, message, Some(RETRY_AFTER))
}

/// What a call charges to its caller's share. Its request's bytes are returned on drop, if not before.
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

    /// Charges bytes to the request, until they are released.
    pub(crate) fn take_for_request(&self, bytes: usize) -> Result<(), Full> {
        self.budget.charge(&self.caller, bytes)?;
        self.request_bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }

    /// Whether a response of this size exceeds the fair share of a caller that already holds some.
    pub(crate) fn is_beyond_share(&self, bytes: usize) -> bool {
        self.budget.is_beyond_share(&self.caller, bytes)
    }

    /// Returns the request's bytes.
    pub(crate) fn give_back_request(&self) {
        let bytes = self.request_bytes.swap(0, Ordering::AcqRel);
        self.budget.give_back(&self.caller, bytes);
    }

    /// Charges bytes until the guard is dropped.
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

/// Bytes of a budget; returned on drop.
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
mod tests;
