//! Persistence: one database per service, SQLite embedded by default, PostgreSQL by URL.
//!
//! # Layout
//! - [`connect`]: opens the [`Database`] of a URL
//! - [`connection`]: connections for reads and for transactions
//! - `postgres`: a connection pool in which every wait has a limit
//! - [`probe`]: whether the database accepts writes
//! - [`migrate`]: schema migrations, under a lock
//! - [`transact`]: transactions that commit a change together with its events
//! - [`batches`]: changes that are committed in batches; [`rows`]: many rows as one statement
//! - [`changes`]: commits of other processes
//! - [`leases`]: leases and due times of a table's rows
//! - [`outbox`]: events waiting to be sent
//! - [`ownership`]: checks of files' owners and permissions
//! - `turns`: processes that write one SQLite file take turns
//! - `url`: the URLs of SQLite files

pub mod batches;
pub mod changes;
pub mod connect;
pub mod connection;
pub mod error;
pub mod leases;
mod metrics;
pub mod migrate;
mod opening;
pub mod outbox;
pub mod ownership;
mod postgres;
pub mod probe;
pub mod rows;
pub mod transact;
mod turns;
mod url;

pub use batches::{Batched, Batcher};
pub use changes::{Announcer, Changes};
pub use connect::{Backend, Database, Options, check_url};
pub use error::{Error, Failure};
pub use leases::{Lease, Leases};
pub use migrate::Migration;
pub use opening::retry_until_reachable;
pub use probe::Probe;
pub use rows::Rows;
pub use transact::Tx;
pub use url::sqlite_url;
