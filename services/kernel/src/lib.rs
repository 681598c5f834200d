//! Plain vocabulary: typed ids, money, time, dates of delivery, points to die at. No I/O.
//!
//! # Layout
//! - [`id`]: newtypes over UUIDv7, and where ids come from
//! - [`money`]: an amount and its currency, with checked arithmetic; limits by currency
//! - [`text`]: what a text shows, and when two are the same to the eye
//! - [`clock`]: instants, and where they come from
//! - [`calendar`]: business days and the date of delivery
//! - [`backoff`]: how long to wait before the next try
//! - [`fault`]: where a driver may be made to die on purpose

pub mod backoff;
pub mod calendar;
pub mod clock;
pub mod fault;
pub mod id;
pub mod money;
pub mod text;

pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use fault::{FAULT_POINTS, FaultPoint, Faults, NoFaults, Place};
pub use id::{FulfillmentId, IdSource, OrderId, RequestId, SessionId, SystemIds, UserId};
pub use money::{AmountLimits, Currency, Money, MoneyError};
