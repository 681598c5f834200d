//! The class of a call's caller, for statistics: bounded, and without any identifier of a user.

use std::fmt;
use std::sync::Arc;

/// Who calls, without naming a user.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum CallerClass {
    /// Not authenticated.
    #[default]
    Anonymous,
    /// A user with role `customer`.
    Customer,
    /// A user with role `operator`.
    Operator,
    /// A mesh service, by name.
    Service(Arc<str>),
}

impl CallerClass {
    /// `anonymous`, `customer`, `operator`, or the service's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Customer => "customer",
            Self::Operator => "operator",
            Self::Service(name) => name,
        }
    }
}

impl fmt::Display for CallerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
