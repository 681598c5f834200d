//! For tests: the database that a test runs on, networks that fail, messages that are malformed.
//!
//! A PostgreSQL server needs the machine's PostgreSQL programs, a NATS server `nats-server` in PATH. If there are none,
//! [`postgres`] and [`NatsServer::start`] return `None`, and a test that needs it ends early with the output "SKIPPED". If
//! the environment variable `CI` is set, that is a failure.
//!
//! # Layout
//! - here: the database that a test runs on
//! - [`proxy`]: a network that becomes unresponsive, breaks, or leads elsewhere
//! - `nats`: a NATS server
//! - `mutations`: malformed messages, by proptest
//! - `user_service`: a fake User Service

mod mutations;
mod nats;
pub mod proxy;
mod user_service;

use std::sync::OnceLock;

use parking_lot::Mutex;

pub use mutations::{mutations, text};
pub use nats::NatsServer;
pub use postgres_server::Server;
pub use proxy::{AtCommit, End, Proxy};
pub use user_service::FakeUserService;

/// The database of a test: for `storage::Database::connect`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestDatabase {
    /// The URL.
    pub url: String,
    /// On PostgreSQL: a schema of its own.
    pub schema: Option<String>,
}

/// SQLite in memory; or, with `ORDERMESH_TEST_DATABASE=postgres`, a schema of its own on the process's PostgreSQL
/// server.
///
/// # Panics
/// PostgreSQL is requested but not installed.
pub fn database() -> TestDatabase {
    match std::env::var("ORDERMESH_TEST_DATABASE").as_deref() {
        Ok("postgres") => postgres().expect("PostgreSQL is requested: install its server programs"),
        Ok(other) => panic!("ORDERMESH_TEST_DATABASE is {other}: the only supported value is postgres"),
        Err(_) => TestDatabase { url: "sqlite::memory:".to_owned(), schema: None },
    }
}

/// A schema of its own on the process's PostgreSQL server; `None` if PostgreSQL is not installed.
pub fn postgres() -> Option<TestDatabase> {
    let server = shared()?;
    Some(TestDatabase { url: server.url(), schema: Some(unique("test")) })
}

/// The process's server, started on first use; it ends with the process.
pub fn shared() -> Option<&'static Server> {
    static SHARED: OnceLock<Option<Server>> = OnceLock::new();
    // Serialized, so that tests that begin together do not run initdb twice.
    static STARTING: Mutex<()> = Mutex::new(());
    let _one = STARTING.lock();
    SHARED.get_or_init(|| Server::start(&[])).as_ref()
}

/// Writes a file that only its owner can read.
///
/// # Panics
/// It cannot be written.
pub fn write_secret(path: impl AsRef<std::path::Path>, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("own file");
}

/// A unique name.
pub fn unique(prefix: &str) -> String {
    #[expect(clippy::disallowed_methods, reason = "a name, not an id of the platform")]
    let id = uuid::Uuid::new_v4();
    format!("{prefix}_{}", id.simple())
}
