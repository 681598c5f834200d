//! What the mesh does for each method: a static table, sorted by path, that the contract's build makes.

use std::time::Duration;

/// Who may call a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Anybody, with or without credentials.
    Public,
    /// A person with an access token of role `customer`.
    Customer,
    /// A person with an access token of role `operator`.
    Operator,
    /// A service that is named in [`MethodPolicy::callers`].
    Service,
}

/// May the mesh repeat a call?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idempotency {
    /// No: it may do something twice.
    Unknown,
    /// Yes: the same effect, once.
    Idempotent,
    /// Yes: it changes nothing.
    NoSideEffects,
}

/// The policy of one method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MethodPolicy {
    /// As in HTTP/2's `:path`, for example `/order.v1.OrderService/CreateOrder`.
    pub path: &'static str,
    /// The type of trace event that the call is an event of.
    pub event: Option<&'static str>,
    /// Why the call is no event; empty when it is one.
    pub no_event: &'static str,
    /// Who may call it.
    pub allow: &'static [Access],
    /// For [`Access::Service`]: the names of the services that may call it.
    pub callers: &'static [&'static str],
    /// Default and greatest deadline; `None` for streams, which end with their token.
    pub timeout: Option<Duration>,
    /// May the mesh repeat it?
    pub idempotency: Idempotency,
    /// Does it answer with a stream?
    pub streaming: bool,
}

impl MethodPolicy {
    /// The path without its first slash: the span's name and `rpc.method`.
    pub fn name(&self) -> &'static str {
        self.path.trim_start_matches('/')
    }
}

/// For tests to alter: open to all, without a deadline, not to be repeated, no stream.
#[cfg(test)]
pub(crate) const METHOD: MethodPolicy = MethodPolicy {
    path: "",
    event: None,
    no_event: "a test",
    allow: &[Access::Public],
    callers: &[],
    timeout: None,
    idempotency: Idempotency::Unknown,
    streaming: false,
};

/// All methods, sorted by path.
#[derive(Clone, Copy, Debug)]
pub struct PolicyTable(pub &'static [MethodPolicy]);

impl PolicyTable {
    /// The policy of a path.
    pub fn find(&self, path: &str) -> Option<&'static MethodPolicy> {
        let methods = self.0;
        methods.binary_search_by(|method| method.path.cmp(path)).ok().map(|index| &methods[index])
    }
}
