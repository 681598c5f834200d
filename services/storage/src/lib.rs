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
//! - [`notifications`]: of commits of other processes
//! - `store_id`: the identity of a database
//! - [`leases`]: leases and due times of a table's rows
//! - [`outbox`]: events waiting to be sent
//! - [`ownership`]: checks of files' owners and permissions
//! - `file_lock`: taken by processes that write one SQLite file
//! - `hosts`: PostgreSQL URLs with several hosts; `url`: the URLs of SQLite files

pub mod batches;
pub mod connect;
pub mod connection;
pub mod error;
mod file_lock;
mod hosts;
pub mod leases;
mod metrics;
pub mod migrate;
pub mod notifications;
mod opening;
pub mod outbox;
pub mod ownership;
mod postgres;
pub mod probe;
pub mod rows;
mod store_id;
pub mod transact;
mod url;

pub use batches::{Batched, Batcher};
pub use connect::{Backend, Database, Options, check_url};
pub use error::{Error, Failure};
pub use leases::{Lease, Leases};
pub use migrate::Migration;
pub use notifications::{Listener, Notifier};
pub use opening::retry_until_reachable;
pub use probe::Probe;
pub use rows::Rows;
pub use transact::Tx;
pub use url::sqlite_url;
