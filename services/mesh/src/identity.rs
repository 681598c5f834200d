//! Who calls: credentials, tokens, and the decision whether a call is allowed.

pub(crate) mod authorizer;
pub(crate) mod caller;
pub(crate) mod credentials;
pub(crate) mod secret;
pub(crate) mod token;
