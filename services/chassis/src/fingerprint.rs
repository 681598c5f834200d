//! Whether two requests say the same (idempotent replays, filters of page tokens, etags): SHA-256 over the decoded command in a canonical, versioned form,
//! with the length before each name and value, so that no two commands have the same encoding.

use sha2::{Digest, Sha256};

/// A fingerprint under construction.
#[derive(Clone, Debug)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// Starts with the command's name and the version of its form, for example `CreateOrder/1`.
    pub fn of(command: &str) -> Self {
        Self(Sha256::new()).part("command", command)
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
