//! Plain vocabulary: typed ids, money, time, dates of delivery. No I/O, no async.
//!
//! # Layout
//! - [`id`]: newtypes over UUIDv7, and where ids come from
//! - [`money`]: an amount and its currency, with checked arithmetic
//! - [`clock`]: instants, and where they come from
//! - [`calendar`]: business days and the date of delivery
//! - [`backoff`]: how long to wait before the next try

pub mod backoff;
pub mod calendar;
pub mod clock;
pub mod id;
pub mod money;

pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use id::{FulfillmentId, IdSource, OrderId, RequestId, SessionId, SystemIds, UserId};
pub use money::{Currency, Money, MoneyError};
