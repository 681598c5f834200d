//! Typed ids. Every id is a UUID; new ones are version 7 (RFC 9562), so that they sort by time.

use std::fmt;
use std::str::FromStr;

use uuid::{Builder, Uuid};

use crate::Timestamp;

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

impl OrderId {
    /// A new order's id in a cell: the last byte of the UUIDv7, which is otherwise random, is the cell's number. So a router
    /// knows an order's cell without a lookup.
    pub const fn in_cell(uuid: Uuid, cell: u8) -> Self {
        let mut bytes = *uuid.as_bytes();
        bytes[15] = cell;
        Self(Uuid::from_bytes(bytes))
    }

    /// The number of the order's cell. Random for an order of release 0.1.
    pub const fn cell(self) -> u8 {
        self.0.as_bytes()[15]
    }
}

/// The lowest UUIDv7 of an instant's millisecond; of 1970 for an earlier instant.
pub fn first_id_at(instant: Timestamp) -> Uuid {
    let millis = u64::try_from(instant.as_micros() / 1_000).unwrap_or(0);
    Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
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
    fn an_orders_id_has_its_cell_and_is_a_unique_uuid_v7_that_sorts_by_time() {
        let ids: Vec<OrderId> = (0..1_000).map(|_| OrderId::in_cell(SystemIds.uuid(), 200)).collect();
        assert!(ids.iter().all(|id| (id.cell(), id.as_uuid().get_version_num()) == (200, 7)), "{:?}", ids.first());
        assert!(ids.is_sorted_by(|one, next| one < next));
    }

    #[test]
    fn an_id_is_parsed_only_in_its_printed_form() {
        let id = OrderId::from_uuid(SystemIds.uuid());
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "42", "0190b5a07c3e7a6b9d1e3f2a4b5c6d7e", "{0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e}"] {
            assert_eq!(text.parse::<OrderId>(), Err(IdError), "{text}");
        }
    }
}
