//! What each caller holds of a server's limits: one set of counters for each address and each account, shared by all of
//! its connections and calls. A connection keeps those of its last callers, so that a call usually looks nothing up.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::call::wire::Request;
use crate::server::limits::caller_key::CallerKey;

/// A limit that callers share fairly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resource {
    /// Permits of unary calls.
    Calls,
    /// Permits of health checks.
    Checks,
    /// Bytes of requests and responses.
    Memory,
    /// Bytes of calls that wait for their requests.
    WaitingMemory,
    /// Bytes of requests of health and reflection.
    InfrastructureMemory,
}

const RESOURCES: usize = 5;

/// One caller's counters. They change only under the lock of their resource's `Shares`.
#[derive(Debug)]
pub(crate) struct Usage {
    key: CallerKey,
    held: [AtomicUsize; RESOURCES],
    table: Arc<UsageTable>,
}

impl Usage {
    pub(crate) fn key(&self) -> &CallerKey {
        &self.key
    }

    pub(crate) fn held(&self, resource: Resource) -> usize {
        self.counter(resource).load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, resource: Resource, amount: usize) {
        self.counter(resource).fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, resource: Resource, amount: usize) {
        self.counter(resource).fetch_sub(amount, Ordering::Relaxed);
    }

    fn counter(&self, resource: Resource) -> &AtomicUsize {
        &self.held[resource as usize]
    }
}

impl Drop for Usage {
    fn drop(&mut self) {
        let mut by_key = self.table.by_key.lock();
        // Unless it has been replaced since its last reference was dropped.
        if by_key.get(&self.key).is_some_and(|usage| usage.strong_count() == 0) {
            by_key.remove(&self.key);
        }
    }
}

/// The counters of all callers that have a connection or hold something.
#[derive(Debug, Default)]
pub(crate) struct UsageTable {
    by_key: Mutex<HashMap<CallerKey, Weak<Usage>>>,
}

impl UsageTable {
    pub(crate) fn of(self: &Arc<Self>, key: &CallerKey) -> Arc<Usage> {
        let mut by_key = self.by_key.lock();
        if let Some(usage) = by_key.get(key).and_then(Weak::upgrade) {
            return usage;
        }
        let usage = Arc::new(Usage { key: key.clone(), held: Default::default(), table: self.clone() });
        by_key.insert(key.clone(), Arc::downgrade(&usage));
        usage
    }
}

/// The caller that holds something: an address, a user at an address, or a mesh service (no counters).
#[derive(Clone, Debug, Default)]
pub(crate) struct Holder([Option<Arc<Usage>>; 2]);

impl Holder {
    /// A mesh service.
    pub(crate) const PLATFORM: Self = Self([None, None]);

    pub(crate) fn address(address: Arc<Usage>) -> Self {
        Self([Some(address), None])
    }

    pub(crate) fn user(user: Arc<Usage>, address: Option<Arc<Usage>>) -> Self {
        Self([Some(user), address])
    }

    /// The holder for a request: its connection sets the address, and the identity layer the rest.
    pub(crate) fn of(request: &Request) -> Self {
        request.extensions().get::<Peer>().map_or(Self::PLATFORM, |peer| peer.holder.clone())
    }

    /// The account if there is one, else the address.
    pub(crate) fn narrowest(&self) -> Option<CallerKey> {
        self.usages().next().map(|usage| usage.key().clone())
    }

    pub(crate) fn usages(&self) -> impl Iterator<Item = &Usage> {
        self.0.iter().flatten().map(|usage| &**usage)
    }

    pub(crate) fn is_mesh_service(&self) -> bool {
        self.usages().next().is_none()
    }
}

/// The other end of a call. In the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The peer's address, or the one that a trusted proxy forwards.
    pub(crate) address: SocketAddr,
    holder: Holder,
    callers: Arc<ConnectionCallers>,
}

impl Peer {
    /// The caller is a user at this address.
    pub(crate) fn set_user(&mut self, user_id: Uuid) {
        let user = self.callers.users.of(&self.callers.table, CallerKey::User(user_id));
        let [address, _] = std::mem::take(&mut self.holder.0);
        self.holder = Holder::user(user, address);
    }

    /// The caller is a mesh service.
    pub(crate) fn set_mesh_service(&mut self) {
        self.holder = Holder::PLATFORM;
    }
}

/// The callers of one connection: behind a proxy or a gateway there may be many.
#[derive(Debug)]
pub(crate) struct ConnectionCallers {
    table: Arc<UsageTable>,
    addresses: LastUsage,
    users: LastUsage,
}

impl ConnectionCallers {
    pub(crate) fn new(table: Arc<UsageTable>) -> Arc<Self> {
        Arc::new(Self { table, addresses: LastUsage::default(), users: LastUsage::default() })
    }

    /// The peer of a call from this address.
    pub(crate) fn peer(self: &Arc<Self>, address: SocketAddr) -> Peer {
        let usage = self.addresses.of(&self.table, CallerKey::of_address(address.ip()));
        Peer { address, holder: Holder::address(usage), callers: self.clone() }
    }
}

/// The counters of the last caller.
#[derive(Debug, Default)]
struct LastUsage(Mutex<Option<Arc<Usage>>>);

impl LastUsage {
    fn of(&self, table: &Arc<UsageTable>, key: CallerKey) -> Arc<Usage> {
        let mut last = self.0.lock();
        if let Some(usage) = last.as_ref().filter(|usage| usage.key == key) {
            return usage.clone();
        }
        let usage = table.of(&key);
        let old = last.replace(usage.clone());
        drop(last);
        // Not under the lock: the last reference takes the table's.
        drop(old);
        usage
    }
}

/// The client's address: the peer's, or the one that a trusted proxy forwards.
pub fn peer(extensions: &tonic::Extensions) -> Option<SocketAddr> {
    extensions.get::<Peer>().map(|peer| peer.address)
}

#[cfg(test)]
mod tests;
