//! Authentication and authorization: credentials, tokens, callers, and the access decision.

pub(crate) mod authorizer;
pub(crate) mod caller;
pub(crate) mod credentials;
pub(crate) mod secret;
pub(crate) mod token;
