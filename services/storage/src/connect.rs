//! Opens the [`Database`] of a URL.

use std::fmt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::LevelFilter;
use sea_orm::sqlx::Connection;
use sea_orm::sqlx::SqliteConnection;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, DatabaseConnection};
use tokio::sync::Notify;

use crate::connection::{Reader, Readers};
use crate::error::Error;
use crate::file_lock::FileLock;
use crate::hosts::Hosts;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::ownership;
use crate::postgres::Pool;
use crate::probe::Probe;
use crate::transact::{Writer, pause};
use crate::url::SqliteUrl;

/// A statement that takes longer is logged.
pub(crate) const SLOW_STATEMENT: Duration = Duration::from_millis(500);

/// How often opening a locked file is tried.
const MAX_OPENS: u32 = 50;

/// The kind of database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// A file (or memory) of this machine; one writer at a time.
    Sqlite,
    /// A server.
    Postgres,
}

/// The options of a connection.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most connections in the pool.
    pub max_connections: u32,
    /// The acquire timeout, including the time to open a new connection.
    pub acquire_timeout: Duration,
    /// PostgreSQL: the server's statement timeout. Without an answer 2 s after it, the connection is closed. SQLite:
    /// the time limit of a [`Database::search`] statement.
    pub statement_timeout: Duration,
    /// PostgreSQL: the schema of the tables; created if it is missing.
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
    pub(crate) searcher: Reader,
    pub(crate) schema: Option<String>,
    pub(crate) writer: Option<Writer>,
    /// Notified after each commit that wrote events.
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
    /// Opens the database of a URL: `sqlite://path/to/file.db` (created if it is missing, with its folder),
    /// `sqlite::memory:` or `postgres://…`.
    ///
    /// # Errors
    /// The URL is of another kind, the folder cannot be created, or the database does not answer.
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
        // In memory, the connection is the database: there is exactly one, and it is never closed.
        let readers = if in_memory { 1 } else { options.max_connections };
        let pool = open_file(|| sqlite_options(url, options, readers)).await?;
        let write_pool = if in_memory { pool.clone() } else { open_file(|| writer_options(url, options)).await? };
        if let Some(file) = &parsed.file {
            keep_to_ourselves(file)?;
        }
        let search_pool = if in_memory { pool.clone() } else { open(search_options(url, options)).await? };
        let metrics = Metrics::new(Backend::Sqlite);
        let file_lock = parsed.file.as_deref().and_then(|file| match FileLock::open(file) {
            Ok(file_lock) => Some(file_lock),
            Err(error) => {
                let file = file.display();
                tracing::warn!(target: "ordermesh", "{file}.lock cannot be used, SQLite's own lock is: {error}");
                None
            }
        });
        let writer = Writer::start(write_pool, file_lock, metrics.clone());
        let readers = [Readers::Sqlite(pool), Readers::Sqlite(search_pool)];
        Ok(Self::new(Backend::Sqlite, readers, None, Some(writer), metrics))
    }

    async fn postgres(url: &str, options: &Options) -> Result<Self, Error> {
        let pool = Pool::connect(url, options).await?;
        let metrics = Metrics::new(Backend::Postgres);
        let readers = [Readers::Postgres(pool.clone()), Readers::Postgres(pool)];
        Ok(Self::new(Backend::Postgres, readers, options.schema.clone(), None, metrics))
    }

    fn new(
        backend: Backend,
        readers: [Readers; 2],
        schema: Option<String>,
        writer: Option<Writer>,
        metrics: Metrics,
    ) -> Self {
        let [reader, searcher] = readers.map(Reader);
        Self(Arc::new(Inner { backend, reader, searcher, schema, writer, events_written: Notify::new(), metrics }))
    }

    /// Records the numbers of used and idle connections; closes those that have been idle for long.
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

    /// For long reads outside of transactions. On SQLite they have their own connections, which interrupt a statement
    /// at its time limit. The caller bounds how many run concurrently.
    pub fn search(&self) -> &Reader {
        &self.0.searcher
    }

    /// A probe that checks whether the database accepts writes, on its own connection.
    pub fn probe(&self) -> Probe {
        Probe::new(self.clone())
    }

    /// The events waiting to be sent.
    pub fn outbox(&self) -> Outbox {
        Outbox::new(self.clone())
    }
}

/// Checks that the URL can be used. It does not connect, and the error does not quote the URL, which may carry a
/// password.
///
/// # Errors
/// [`Error::Url`] for a database of another kind, [`Error::UrlMalformed`] for a URL that cannot be parsed,
/// [`Error::TargetSessionAttrs`] for one that leads to servers without writes, [`Error::UrlParameter`] for an unknown parameter.
pub fn check_url(url: &str) -> Result<Backend, Error> {
    if url.starts_with("sqlite:") {
        return url.parse::<SqliteConnectOptions>().map(|_| Backend::Sqlite).map_err(|_| Error::UrlMalformed);
    }
    if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        return Hosts::parse(url).map(|_| Backend::Postgres);
    }
    Err(Error::Url)
}

/// Two processes that open a new file concurrently can conflict while it becomes a WAL database; SQLite's busy timeout
/// does not apply there.
async fn open_file(options: impl Fn() -> ConnectOptions) -> Result<DatabaseConnection, Error> {
    let mut attempt = 1;
    loop {
        match open(options()).await {
            Err(error) if error.is_busy() && attempt < MAX_OPENS => pause(attempt).await,
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
        // Only slow statements are logged, and never their parameters.
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

/// Limits the time of a statement: SQLite's progress handler is called after a fixed number of instructions. The time
/// starts when a connection is handed out, which happens for each statement.
fn search_options(url: &str, options: &Options) -> ConnectOptions {
    let mut connect = sqlite_options(url, options, options.max_connections);
    connect.connect_lazy(true).min_connections(0);
    let limit = options.statement_timeout;
    connect.map_sqlx_sqlite_pool_opts(move |pool| {
        pool.after_connect(move |connection, _| Box::pin(end_at(connection, limit))).before_acquire(
            move |connection, _| {
                Box::pin(async move {
                    end_at(connection, limit).await?;
                    Ok(true)
                })
            },
        )
    });
    connect
}

/// About ten milliseconds of work.
const INSTRUCTIONS: i32 = 1_000_000;

async fn end_at(connection: &mut SqliteConnection, limit: Duration) -> Result<(), sea_orm::sqlx::Error> {
    let end = Instant::now() + limit;
    connection.lock_handle().await?.set_progress_handler(INSTRUCTIONS, move || Instant::now() < end);
    Ok(())
}

/// The writer's connection is closed if a transaction on it did not end properly. On a full disk SQLite rolls back by
/// itself, which sqlx does not notice: it would use a savepoint for the next BEGIN, and never commit again.
fn writer_options(url: &str, options: &Options) -> ConnectOptions {
    let mut connect = sqlite_options(url, options, 1);
    connect.map_sqlx_sqlite_pool_opts(|pool| {
        pool.after_release(|connection, _| {
            Box::pin(async move {
                if !connection.is_in_transaction() {
                    return Ok(true);
                }
                // A rollback may still be queued: the ping is answered after it.
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

/// Restricts the file, its WAL and the WAL's index to their owner: they hold password hashes and payment tokens. SQLite
/// creates new ones with the file's permissions.
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
    async fn a_databases_files_are_private_even_those_of_an_earlier_release() {
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
            std::fs::set_permissions(folder.path().join("new").join(name), before).expect("own file");
        }
        let again = write().await;
        assert_eq!(modes(), [0o700, 0o600, 0o600, 0o600]);
        drop((open, again));
    }

    #[tokio::test]
    async fn an_endless_search_is_interrupted_and_its_connection_stays_usable() {
        use sea_orm::{ConnectionTrait, DbBackend, Statement};
        let folder = tempfile::tempdir().expect("a folder");
        let url = sqlite_url(&folder.path().join("data.db"));
        let options =
            Options { statement_timeout: Duration::from_millis(50), max_connections: 1, ..Options::default() };
        let db = Database::connect(&url, &options).await.expect("a database");
        let ask = async |sql: &str| db.search().query_one_raw(Statement::from_string(DbBackend::Sqlite, sql)).await;
        let endless = "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT COUNT(*) FROM c";
        for _ in 0..2 {
            let ended = Error::from(ask(endless).await.expect_err("an endless query"));
            assert!(ended.is_unavailable(), "{ended:?}");
            assert_eq!(ended.error_type(), Some(telemetry::ErrorType::Timeout));
            assert!(ask("SELECT 1").await.expect("a response").is_some());
        }
    }

    #[test]
    fn an_unparsable_url_is_rejected_without_being_quoted() {
        for url in [
            "postgres://shop:s3cr3t#Pw@127.0.0.1:5432/shop",
            "postgres://shop:s3cr3t/Pw@127.0.0.1:5432/shop",
            "postgres://shop:s3cr3t@127.0.0.1:port/shop",
            "postgres://shop:s3cr3t@h1:5432,h2:port/shop",
            "postgres://shop:s3cr3t?Pw@h1:5432,h2/shop",
            "postgres://shop:Pw@h1:5432/shop?s3cr3t=1",
            "postgres://shop:s3cr3t@[::1:5432/shop",
            "postgres://shop:s3cr3t@127.0.0.1/shop?sslmode=bogus",
            "sqlite://data/order.db?mode=s3cr3t",
            "mysql://shop:s3cr3t@127.0.0.1/shop",
            "s3cr3t",
        ] {
            let error = check_url(url).expect_err(url);
            assert!(error.is_configuration() && !error.may_come_up(), "{url}");
            let mut text = format!("{error} {error:?}");
            kernel::error::causes(&error).for_each(|cause| text.push_str(&format!(" {cause} {cause:?}")));
            assert!(!text.contains("s3cr3t"), "{text}");
        }
        assert_eq!(check_url("postgres://shop:s3cr3t%23Pw@127.0.0.1:5432/shop").expect("valid"), Backend::Postgres);
        assert_eq!(check_url("sqlite::memory:").expect("valid"), Backend::Sqlite);
    }
}
