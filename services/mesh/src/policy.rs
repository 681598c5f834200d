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
    /// The longest request; `None`: what the server allows for all methods.
    pub max_message_bytes: Option<usize>,
    /// How many elements the request's repeated fields may have.
    pub limits: &'static [FieldLimit],
}

/// How many elements a repeated field of a request may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FieldLimit {
    /// The field's number, after those of the messages that it is in.
    pub path: &'static [u32],
    /// The same in words, for example `update_mask.paths`.
    pub field: &'static str,
    /// The most elements; in a repeated message, of each of its elements.
    pub max_items: usize,
    /// The violation's reason when there are more.
    pub reason: &'static str,
}

impl MethodPolicy {
    /// The path without its first slash: the span's name and `rpc.method`.
    pub fn name(&self) -> &'static str {
        self.path.trim_start_matches('/')
    }

    /// The service that the method is of, for example `order.v1.OrderService`.
    pub(crate) fn service(&self) -> &'static str {
        self.name().split('/').next().unwrap_or_default()
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
    max_message_bytes: None,
    limits: &[],
};

/// All methods, sorted by path.
#[derive(Clone, Copy, Debug)]
pub struct PolicyTable(pub &'static [MethodPolicy]);

impl PolicyTable {
    /// The policy of a path.
    pub fn find(&self, path: &str) -> Option<&'static MethodPolicy> {
        self.index(path).map(|index| &self.0[index])
    }

    /// Where a path's policy is.
    pub(crate) fn index(&self, path: &str) -> Option<usize> {
        self.0.binary_search_by(|method| method.path.cmp(path)).ok()
    }

    /// The services that it has methods of.
    pub(crate) fn services(&self) -> Vec<&'static str> {
        let mut services: Vec<_> = self.0.iter().map(MethodPolicy::service).collect();
        services.dedup();
        services
    }

    /// The methods of these services alone. A server makes one when it is built, and the table stays for good.
    pub(crate) fn of(&self, services: &[&str]) -> Self {
        let of_them = |method: &&MethodPolicy| services.contains(&method.service());
        let methods: Vec<_> = self.0.iter().filter(of_them).copied().collect();
        if methods.len() == self.0.len() { *self } else { Self(methods.leak()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_table_has_the_methods_of_its_services_alone() {
        const fn method(path: &'static str) -> MethodPolicy {
            MethodPolicy { path, ..METHOD }
        }
        const ALL: PolicyTable =
            PolicyTable(&[method("/a.A/X"), method("/a.AB/X"), method("/b.B/X"), method("/b.B/Y"), method("/c.C/X")]);
        assert_eq!(ALL.services(), ["a.A", "a.AB", "b.B", "c.C"]);
        let some = ALL.of(&["a.A", "c.C"]);
        let paths: Vec<_> = some.0.iter().map(|method| method.path).collect();
        assert_eq!(paths, ["/a.A/X", "/c.C/X"]);
        assert_eq!((some.find("/b.B/X"), some.find("/c.C/X")), (None, ALL.find("/c.C/X")));
    }
}
