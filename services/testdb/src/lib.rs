//! For tests: a PostgreSQL server of their own, in a temporary folder, on a socket that nobody else uses.
//!
//! It is made of the programs on the machine. Where there are none, [`server`] says so once and answers `None`, and a test
//! that needs it ends without having tested anything: it says "SKIPPED". With the environment variable `CI` that is a failure.
//!
//! # Layout
//! - here: which database a test runs on
//! - [`server`](mod@server): the server, and a standby of it
//! - [`proxy`]: a network that falls silent, breaks, or leads elsewhere

pub mod proxy;
pub mod server;

use std::sync::{Mutex, OnceLock, PoisonError};

pub use proxy::{End, Proxy};
pub use server::Server;

/// Where a test's tables are: for `storage::Database::connect`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The URL.
    pub url: String,
    /// On PostgreSQL: a schema that nobody else has.
    pub schema: Option<String>,
}

/// SQLite in memory; or, with `ORDERMESH_TEST_DATABASE=postgres`, a schema of its own on the process's PostgreSQL server.
///
/// # Panics
/// PostgreSQL is asked for and not there.
pub fn place() -> Place {
    match std::env::var("ORDERMESH_TEST_DATABASE").as_deref() {
        Ok("postgres") => postgres().expect("PostgreSQL is asked for: install its server programs"),
        Ok(other) => panic!("ORDERMESH_TEST_DATABASE is {other}: postgres is the only one that can be asked for"),
        Err(_) => Place { url: "sqlite::memory:".to_owned(), schema: None },
    }
}

/// A schema of its own on the process's PostgreSQL server; `None` where there is no PostgreSQL.
pub fn postgres() -> Option<Place> {
    let server = shared()?;
    Some(Place { url: server.url(), schema: Some(unique("test")) })
}

/// The process's server, started when it is first asked for; it ends with the process.
pub fn shared() -> Option<&'static Server> {
    static SHARED: OnceLock<Option<Server>> = OnceLock::new();
    // One at a time: initdb is not to be run twice by tests that begin together.
    static STARTING: Mutex<()> = Mutex::new(());
    let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    SHARED.get_or_init(|| Server::start(&[])).as_ref()
}

/// Writes a secret's file, which nobody else may read.
///
/// # Panics
/// It cannot be written.
pub fn write_secret(path: impl AsRef<std::path::Path>, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("ours");
}

/// A name that nobody else uses.
pub fn unique(prefix: &str) -> String {
    #[expect(clippy::disallowed_methods, reason = "a name, not an id of the platform's")]
    let id = uuid::Uuid::new_v4();
    format!("{prefix}_{}", id.simple())
}
