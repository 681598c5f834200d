//! Typed ids. Every id is a UUID; new ones are version 7 (RFC 9562), so that they sort by time.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// What is wrong with a text that should be an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID in its hyphenated form, for example 0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e")]
pub struct IdError;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(Uuid);

        impl $name {
            /// The id that a UUID stands for.
            pub const fn from_uuid(uuid: Uuid) -> Self { Self(uuid) }
            /// The UUID.
            pub const fn as_uuid(self) -> Uuid { self.0 }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.hyphenated().fmt(f) }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                // Only the hyphenated form: one id has one spelling on the wire.
                if text.len() != 36 { return Err(IdError) }
                Uuid::try_parse(text).map(Self).map_err(|_| IdError)
            }
        }
    )*};
}

ids! {
    /// An order; also the key of its payment.
    OrderId;
    /// A person's account.
    UserId;
    /// A log-in's session.
    SessionId;
    /// A client's id of a command that must not happen twice.
    RequestId;
    /// The fulfilment of an order.
    FulfillmentId;
}

/// Where new ids come from: an argument, so that tests are exact.
pub trait IdSource: Send + Sync + 'static {
    /// A new UUIDv7.
    fn uuid(&self) -> Uuid;
}

/// Ids from the system's clock and random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemIds;

impl IdSource for SystemIds {
    #[expect(clippy::disallowed_methods, reason = "this is the id source that the rule points to")]
    fn uuid(&self) -> Uuid {
        Uuid::now_v7()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_what_it_prints_and_nothing_else() {
        let id = OrderId::from_uuid(SystemIds.uuid());
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "42", "0190b5a07c3e7a6b9d1e3f2a4b5c6d7e", "{0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e}"] {
            assert_eq!(text.parse::<OrderId>(), Err(IdError), "{text}");
        }
    }
}
