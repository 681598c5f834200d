//! An error and its causes.

use std::error::Error;
use std::iter::successors;

/// The error and its causes, outermost first.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| error.source())
}

/// The texts of the error and its causes, outermost first. Some libraries' errors end with the text of their cause: it is
/// not repeated.
pub fn texts(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for text in causes(error).map(ToString::to_string) {
        if !texts.last().is_some_and(|last| last.ends_with(&text)) {
            texts.push(text);
        }
    }
    texts
}

/// The error and its causes on one line, separated by `: `.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    texts(error).join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the store failed")]
    struct Outer(#[source] std::io::Error);

    /// As sqlx's errors do.
    #[derive(Debug, thiserror::Error)]
    #[error("sql: {0}")]
    struct Repeating(#[source] Outer);

    #[test]
    fn a_chain_names_every_cause_outermost_first() {
        assert_eq!(chain(&Outer(std::io::Error::other("disk full"))), "the store failed: disk full");
        assert_eq!(chain(&std::io::Error::other("alone")), "alone");
        let repeats = Outer(std::io::Error::other(Repeating(Outer(std::io::Error::other("disk full")))));
        assert_eq!(chain(&repeats), "the store failed: sql: the store failed: disk full");
    }
}
