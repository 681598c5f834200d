//! Basic types: typed ids, money, time, delivery dates, fault points. No I/O.
//!
//! # Layout
//! - [`id`]: newtypes over UUIDv7, and their source
//! - [`money`]: an amount and its currency, with checked arithmetic; limits by currency
//! - [`text`]: blank and misleading texts, and normal forms
//! - [`clock`]: instants and clocks
//! - [`calendar`]: business days and delivery dates
//! - [`backoff`]: the wait before a retry
//! - [`fault`]: fault points of drivers
//! - [`limiter`]: rate limits per key; [`network`]: the client that an address counts as
//! - [`error`]: an error's causes; [`secret`]: values that are never printed

pub mod backoff;
pub mod calendar;
pub mod clock;
pub mod error;
pub mod fault;
pub mod id;
pub mod limiter;
pub mod money;
pub mod network;
pub mod secret;
pub mod text;

pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use fault::{FAULT_POINTS, FaultPoint, FaultSite, Faults, NoFaults};
pub use id::{FulfillmentId, IdSource, OrderId, RequestId, SessionId, SystemIds, UserId, first_id_at};
pub use limiter::{Limiter, Rate};
pub use money::{AmountLimits, Currency, Money, MoneyError};
pub use network::client_network;
pub use secret::Secret;
