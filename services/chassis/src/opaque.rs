//! Tokens that a client keeps for the server, for example page tokens and cursors: a version, the hash of the filters
//! that the token belongs to, and a text. Opaque to the client; neither secret nor signed.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::fingerprint::Fingerprint;

const VERSION: &str = "1";

/// Why a token is rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpaqueError {
    /// Not a token of this version.
    Malformed,
    /// It belongs to other filters.
    FilterMismatch,
}

/// Makes and reads the tokens of one set of filters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opaque {
    filters: String,
}

impl Opaque {
    /// Tokens of these filters.
    pub fn of(filters: Fingerprint) -> Self {
        Self { filters: filters.finish()[..16].to_owned() }
    }

    /// A token that holds a text.
    pub fn encode(&self, text: &str) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(format!("{VERSION} {} {text}", self.filters))
    }

    /// The text that a token holds.
    ///
    /// # Errors
    /// The token is malformed or belongs to other filters.
    pub fn decode(&self, token: &str) -> Result<String, OpaqueError> {
        let text = BASE64_URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let mut parts = text.as_deref().unwrap_or_default().splitn(3, ' ');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(VERSION), Some(filters), Some(text)) if filters == self.filters => Ok(text.to_owned()),
            (Some(VERSION), Some(_), Some(_)) => Err(OpaqueError::FilterMismatch),
            _ => Err(OpaqueError::Malformed),
        }
    }
}
