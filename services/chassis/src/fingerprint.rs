//! Fingerprints tell whether two commands, two sets of filters or two versions of a product are the same: SHA-256 over
//! named parts in a fixed order. The length precedes each name and value, so different parts have different encodings.

use sha2::{Digest, Sha256};

/// A fingerprint under construction.
#[derive(Clone, Debug)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// Starts with the name of what it is of and the version of its parts, for example `CreateOrder/1`.
    pub fn of(kind: &str) -> Self {
        Self(Sha256::new()).part("command", kind)
    }

    /// Adds a part. Leave passwords out.
    #[must_use]
    pub fn part(mut self, name: &str, value: impl ToString) -> Self {
        for text in [name, &value.to_string()] {
            self.0.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            self.0.update(text.as_bytes());
        }
        self
    }

    /// The fingerprint: 64 lower-case hex digits.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_run_into_each_other() {
        let one = Fingerprint::of("C/1").part("a", "bc").part("d", "").finish();
        let two = Fingerprint::of("C/1").part("a", "b").part("cd", "").finish();
        assert_ne!(one, two);
        assert_eq!(one, Fingerprint::of("C/1").part("a", "bc").part("d", "").finish());
    }
}
