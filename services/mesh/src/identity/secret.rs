//! The secret that services share: never printed, compared in constant time.

use kernel::Secret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// A secret that services share. Its `Debug` form does not contain it.
#[derive(Clone, Debug)]
pub struct SharedSecret {
    text: Secret<String>,
    digest: Secret<[u8; 32]>,
}

impl SharedSecret {
    /// A secret from its text, without surrounding white space (a file's last newline). An empty one matches nothing.
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into().trim().to_owned();
        let digest = Secret::new(Sha256::digest(text.as_bytes()).into());
        Self { text: Secret::new(text), digest }
    }

    pub(crate) fn expose(&self) -> &str {
        self.text.expose()
    }

    /// Compares in constant time: the digests, which hides the length too.
    pub(crate) fn matches(&self, presented: &[u8]) -> bool {
        let presented: [u8; 32] = Sha256::digest(presented).into();
        bool::from(self.digest.expose().ct_eq(&presented)) && !self.expose().is_empty()
    }
}

impl PartialEq for SharedSecret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.expose().as_bytes())
    }
}

#[cfg(test)]
mod tests;
