//! A secret: never printed, compared in constant time.

use std::fmt;

use sha2::{Digest, Sha256};

/// A secret that services share. Its `Debug` form does not contain it.
#[derive(Clone)]
pub struct Secret {
    text: String,
    digest: [u8; 32],
}

impl Secret {
    /// A secret from its text, without surrounding white space (a file's last newline). An empty one matches nothing.
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into().trim().to_owned();
        let digest = Sha256::digest(text.as_bytes()).into();
        Self { text, digest }
    }

    pub(crate) fn expose(&self) -> &str {
        &self.text
    }

    /// Compares in constant time: digests are compared, and all of their bytes.
    pub(crate) fn matches(&self, offered: &[u8]) -> bool {
        let offered: [u8; 32] = Sha256::digest(offered).into();
        let difference = self.digest.iter().zip(offered).fold(0u8, |seen, (ours, theirs)| seen | (ours ^ theirs));
        difference == 0 && !self.text.is_empty()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.text.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests;
