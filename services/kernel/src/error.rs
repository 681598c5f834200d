//! An error and its causes.

use std::error::Error;
use std::iter::successors;

/// The error and its causes, outermost first.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| error.source())
}

/// The error and its causes on one line, separated by `: `.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the store failed")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_names_every_cause_outermost_first() {
        assert_eq!(chain(&Outer(std::io::Error::other("disk full"))), "the store failed: disk full");
        assert_eq!(chain(&std::io::Error::other("alone")), "alone");
    }
}
