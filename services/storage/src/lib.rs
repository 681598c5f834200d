//! Persistence: one database per service, SQLite embedded by default, PostgreSQL by URL.
//!
//! # Layout
//! - [`connect`]: a URL becomes a [`Database`]
//! - [`connection`]: what statements run on
//! - `postgres`: a pool whose every wait has a limit
//! - [`probe`]: can the database be written to?
//! - [`migrate`]: the schema is brought up to date under a lock
//! - [`transact`]: a change and its events are committed together, or not at all
//! - [`outbox`]: events that wait to be sent
//! - [`ownership`]: whose files these are
//! - `url`: the URLs of SQLite files

pub mod connect;
pub mod connection;
pub mod error;
mod metrics;
pub mod migrate;
pub mod outbox;
pub mod ownership;
mod patience;
mod postgres;
pub mod probe;
pub mod transact;
mod url;

pub use connect::{Backend, Database, Options, check_url};
pub use error::{Error, Failure};
pub use migrate::Migration;
pub use patience::patiently;
pub use probe::Probe;
pub use transact::Tx;
pub use url::sqlite_url;
