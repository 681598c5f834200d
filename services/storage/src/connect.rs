//! A URL becomes a [`Database`].

use std::fmt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;
use sea_orm::sqlx::Connection;
use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, DatabaseConnection};
use tokio::sync::Notify;

use crate::connection::{Reader, Readers};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::ownership;
use crate::postgres::Pool;
use crate::probe::Probe;
use crate::transact::{Writer, pause};
use crate::url::SqliteUrl;

/// A statement that takes longer is logged.
pub(crate) const SLOW_STATEMENT: Duration = Duration::from_millis(500);

/// How often a file is opened that somebody else has locked.
const MOST_OPENS: u32 = 50;

/// The kind of database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// A file (or memory) of this machine; one writer at a time.
    Sqlite,
    /// A server.
    Postgres,
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most connections in the pool.
    pub max_connections: u32,
    /// How long to wait for a connection, a new one included.
    pub acquire_timeout: Duration,
    /// PostgreSQL: how long a statement may take before the server ends it. Without an answer 2 s later the connection is closed.
    pub statement_timeout: Duration,
    /// PostgreSQL: the schema that the tables live in; made when it is missing.
    pub schema: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_connections: 8,
            acquire_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(10),
            schema: None,
        }
    }
}

pub(crate) struct Inner {
    pub(crate) backend: Backend,
    pub(crate) reader: Reader,
    pub(crate) schema: Option<String>,
    pub(crate) writer: Option<Writer>,
    /// Woken after each commit that wrote events.
    pub(crate) events_written: Notify,
    pub(crate) metrics: Metrics,
}

/// A service's database. Clones share its connections.
#[derive(Clone)]
pub struct Database(pub(crate) Arc<Inner>);

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URL: it may carry a password.
        f.debug_struct("Database").field("backend", &self.0.backend).finish_non_exhaustive()
    }
}

impl Database {
    /// Opens the database of a URL: `sqlite://path/to/file.db` (made when it is missing, its folder too),
    /// `sqlite::memory:` or `postgres://…`.
    ///
    /// # Errors
    /// A URL of another kind, a folder that cannot be made, a database that does not answer.
    pub async fn connect(url: &str, options: &Options) -> Result<Self, Error> {
        match check_url(url)? {
            Backend::Sqlite => Self::sqlite(url, options).await,
            Backend::Postgres => Self::postgres(url, options).await,
        }
    }

    async fn sqlite(url: &str, options: &Options) -> Result<Self, Error> {
        let parsed = SqliteUrl::parse(url);
        let in_memory = parsed.file.is_none();
        if let Some(file) = &parsed.file {
            make_folder(file)?;
            keep_to_ourselves(file)?;
        }
        let encoded = parsed.encoded();
        let url = encoded.as_deref().unwrap_or(url);
        // In memory the connection is the database: there is exactly one, and it is never closed.
        let readers = if in_memory { 1 } else { options.max_connections };
        let pool = open_file(|| sqlite_options(url, options, readers)).await?;
        let write_pool = if in_memory { pool.clone() } else { open_file(|| writer_options(url, options)).await? };
        if let Some(file) = &parsed.file {
            keep_to_ourselves(file)?;
        }
        let metrics = Metrics::new(Backend::Sqlite);
        let writer = Writer::start(write_pool, metrics.clone());
        Ok(Self::new(Backend::Sqlite, Readers::Sqlite(pool), None, Some(writer), metrics))
    }

    async fn postgres(url: &str, options: &Options) -> Result<Self, Error> {
        let pool = Pool::connect(url, options).await?;
        let metrics = Metrics::new(Backend::Postgres);
        Ok(Self::new(Backend::Postgres, Readers::Postgres(pool), options.schema.clone(), None, metrics))
    }

    fn new(
        backend: Backend,
        readers: Readers,
        schema: Option<String>,
        writer: Option<Writer>,
        metrics: Metrics,
    ) -> Self {
        let reader = Reader(readers);
        Self(Arc::new(Inner { backend, reader, schema, writer, events_written: Notify::new(), metrics }))
    }

    /// Records how many connections are in use, and how many idle; closes those that were idle for long.
    pub fn record_connections(&self) {
        let (used, idle) = match &self.0.reader.0 {
            Readers::Sqlite(pool) => {
                let pool = pool.get_sqlite_connection_pool();
                let idle = u64::try_from(pool.num_idle()).unwrap_or(u64::MAX);
                (u64::from(pool.size()).saturating_sub(idle), idle)
            }
            Readers::Postgres(pool) => {
                pool.shrink();
                let (used, idle, _) = pool.counts();
                (used, idle)
            }
        };
        self.0.metrics.connections(used, idle);
    }

    /// The kind of database.
    pub fn backend(&self) -> Backend {
        self.0.backend
    }

    /// For reads outside of transactions.
    pub fn read(&self) -> &Reader {
        &self.0.reader
    }

    /// Looks whether the database can be written to, on a connection of its own.
    pub fn probe(&self) -> Probe {
        Probe::new(self.clone())
    }

    /// The events that wait to be sent.
    pub fn outbox(&self) -> Outbox {
        Outbox::new(self.clone())
    }
}

/// Can the URL be used? It is not connected to, and not quoted in the error: it may carry a password.
///
/// # Errors
/// [`Error::Url`] for a database of another kind, [`Error::UrlMalformed`] for a URL that cannot be parsed.
pub fn check_url(url: &str) -> Result<Backend, Error> {
    if url.starts_with("sqlite:") {
        return url.parse::<SqliteConnectOptions>().map(|_| Backend::Sqlite).map_err(|_| Error::UrlMalformed);
    }
    if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        return url.parse::<PgConnectOptions>().map(|_| Backend::Postgres).map_err(|_| Error::UrlMalformed);
    }
    Err(Error::Url)
}

/// Two that open a new file at once may be in each other's way while it becomes a WAL database: SQLite does not wait then.
async fn open_file(options: impl Fn() -> ConnectOptions) -> Result<DatabaseConnection, Error> {
    let mut attempt = 1;
    loop {
        match open(options()).await {
            Err(error) if error.is_busy() && attempt < MOST_OPENS => pause(attempt).await,
            done => return done,
        }
        attempt += 1;
    }
}

async fn open(options: ConnectOptions) -> Result<DatabaseConnection, Error> {
    sea_orm::Database::connect(options).await.map_err(Error::Connect)
}

fn sqlite_options(url: &str, options: &Options, max_connections: u32) -> ConnectOptions {
    let mut connect = ConnectOptions::new(url.to_owned());
    connect
        .max_connections(max_connections)
        .min_connections(1)
        .acquire_timeout(options.acquire_timeout)
        .connect_timeout(options.acquire_timeout)
        .test_before_acquire(false)
        // Statements are not logged, but for the slow ones; their parameters never are.
        .sqlx_logging(true)
        .sqlx_logging_level(LevelFilter::Off)
        .sqlx_slow_statements_logging_settings(LevelFilter::Warn, SLOW_STATEMENT);
    connect.idle_timeout(None::<Duration>).max_lifetime(None::<Duration>);
    connect.map_sqlx_sqlite_opts(|sqlite| {
        sqlite
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .foreign_keys(true)
            .statement_cache_capacity(200)
    });
    connect
}

/// The writer's one connection is closed when a transaction on it did not end as it should. On a full disk SQLite rolls
/// back by itself, which sqlx does not notice: it would take the next BEGIN for a savepoint, and commit nothing for ever.
fn writer_options(url: &str, options: &Options) -> ConnectOptions {
    let mut connect = sqlite_options(url, options, 1);
    connect.map_sqlx_sqlite_pool_opts(|pool| {
        pool.after_release(|connection, _| {
            Box::pin(async move {
                if !connection.is_in_transaction() {
                    return Ok(true);
                }
                // A rollback may be on its way still: the ping is answered after it.
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        })
    });
    connect
}

fn make_folder(file: &Path) -> Result<(), Error> {
    let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| Error::Folder { folder: folder.display().to_string(), source })
}

/// The file, its log and the log's index, which hold hashes of passwords and payment tokens. SQLite gives new ones the
/// file's permissions.
fn keep_to_ourselves(file: &Path) -> Result<(), Error> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        let tightened = ownership::tighten(Path::new(&name));
        tightened.map_err(|source| Error::Permissions { file: name.display().to_string(), source })??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite_url;

    #[tokio::test]
    async fn nobody_else_reads_a_databases_files_also_those_of_an_earlier_release() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let url = sqlite_url(&folder.path().join("new/user.db"));
        let modes = || {
            let mode =
                |name: &str| std::fs::metadata(folder.path().join(name)).expect(name).permissions().mode() & 0o777;
            ["new", "new/user.db", "new/user.db-wal", "new/user.db-shm"].map(mode)
        };
        let write = async || {
            let db = Database::connect(&url, &Options::default()).await.expect("a database");
            db.migrate(&[]).await.expect("a schema");
            db
        };
        let open = write().await;
        assert_eq!(modes(), [0o700, 0o600, 0o600, 0o600]);
        for name in ["user.db", "user.db-wal", "user.db-shm"] {
            let before = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(folder.path().join("new").join(name), before).expect("ours");
        }
        let again = write().await;
        assert_eq!(modes(), [0o700, 0o600, 0o600, 0o600]);
        drop((open, again));
    }

    #[test]
    fn a_url_that_cannot_be_parsed_is_refused_without_being_quoted() {
        for url in [
            "postgres://shop:s3cr3t#Pw@127.0.0.1:5432/shop",
            "postgres://shop:s3cr3t/Pw@127.0.0.1:5432/shop",
            "postgres://shop:s3cr3t@127.0.0.1:port/shop",
            "postgres://shop:s3cr3t@h1:5432,h2:5432/shop",
            "postgres://shop:s3cr3t@[::1:5432/shop",
            "postgres://shop:s3cr3t@127.0.0.1/shop?sslmode=bogus",
            "sqlite://data/order.db?mode=s3cr3t",
            "mysql://shop:s3cr3t@127.0.0.1/shop",
            "s3cr3t",
        ] {
            let error = check_url(url).expect_err(url);
            assert!(error.is_configuration() && !error.may_come_up(), "{url}");
            let mut text = format!("{error} {error:?}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(&format!(" {cause} {cause:?}"));
                source = cause.source();
            }
            assert!(!text.contains("s3cr3t"), "{text}");
        }
        assert_eq!(check_url("postgres://shop:s3cr3t%23Pw@127.0.0.1:5432/shop").expect("it is one"), Backend::Postgres);
        assert_eq!(check_url("sqlite::memory:").expect("it is one"), Backend::Sqlite);
    }
}
