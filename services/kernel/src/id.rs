//! Typed ids. Every id is a UUID; new ones are version 7 (RFC 9562), so that they sort by time.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// The text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID in its hyphenated form, for example 0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e")]
pub struct IdError;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(Uuid);

        impl $name {
            /// The id with this UUID.
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
                // The hyphenated form only, so that an id has one spelling on the wire.
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
    /// A session.
    SessionId;
    /// A client's id of a command, for idempotency.
    RequestId;
    /// The fulfilment of an order.
    FulfillmentId;
}

/// A source of new ids: an argument, so that tests are deterministic.
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
    fn an_id_is_parsed_only_in_its_printed_form() {
        let id = OrderId::from_uuid(SystemIds.uuid());
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "42", "0190b5a07c3e7a6b9d1e3f2a4b5c6d7e", "{0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e}"] {
            assert_eq!(text.parse::<OrderId>(), Err(IdError), "{text}");
        }
    }
}
