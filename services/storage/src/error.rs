//! Database errors, and whether a retry can help.

use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, SqlErr};
use telemetry::ErrorType;

/// An error of the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is of an unknown kind.
    #[error(
        "the database URL must begin with sqlite: or postgres:, as in sqlite://data/order.db or postgres://user@host/name"
    )]
    Url,
    /// The URL cannot be parsed. The parser's own error is dropped: it quotes the URL, which may carry a password.
    #[error(
        "the database URL cannot be parsed: in the user's name and password, characters such as # / ? @ : % are percent-encoded (# is %23); \
         several hosts are separated by commas, and a port is a number; sslmode is disable, allow, prefer, require, verify-ca or verify-full"
    )]
    UrlMalformed,
    /// The URL's `target_session_attrs` leads to servers that accept no writes, or is none of libpq's.
    #[error(
        "target_session_attrs in the database URL must be read-write or primary, or with a single host any: a service writes"
    )]
    TargetSessionAttrs,
    /// The URL has an unknown parameter, which is not quoted: it may be a part of a password.
    #[error(
        "the database URL has an unknown parameter: there are sslmode, sslrootcert, sslcert, sslkey, application_name, options, host, port, dbname, user, \
         password, statement-cache-capacity and target_session_attrs; in a password, ? is %3F and & is %26"
    )]
    UrlParameter,
    /// A connection pooler changes the server's session between transactions.
    #[error(
        "the database URL leads to a connection pooler in transaction or statement mode: two connections share a session of the server, but \
         settings, prepared statements and LISTEN belong to one; use session mode (PgBouncer: pool_mode = session), or the server itself"
    )]
    TransactionPooling,
    /// The database could not be opened.
    #[error("the database could not be opened")]
    Connect(#[source] DbErr),
    /// The folder of the SQLite file could not be created.
    #[error("the database's folder {folder} could not be created")]
    Folder {
        /// The folder.
        folder: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The SQLite file belongs to another user or is accessible to others.
    #[error("the database's file cannot be used")]
    Exposed(#[from] crate::ownership::Exposed),
    /// The permissions of the SQLite file could not be set.
    #[error("the permissions of the database's file {file} could not be set")]
    Permissions {
        /// The file.
        file: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A statement failed.
    #[error("the database rejected a statement")]
    Statement(#[source] DbErr),
    /// No transaction could be begun: nothing was changed.
    #[error("a transaction could not be begun")]
    Begin(#[source] DbErr),
    /// The database answers, but is read-only: a standby, or a primary that is set so.
    #[error("the database takes no writes")]
    ReadOnly,
    /// A stored value cannot be decoded.
    #[error("a stored {what} cannot be read: {value:?}")]
    Corrupt {
        /// The kind of value.
        what: &'static str,
        /// The stored value.
        value: String,
    },
    /// The transaction's work panicked; nothing was committed.
    #[error("the transaction's work panicked")]
    Panicked,
    /// Too many changes of one kind wait for the database.
    #[error("too many changes wait for the database")]
    QueueFull,
    /// The task that writes has ended, because the process is shutting down, or a batcher panicked with the command.
    #[error("the database is closed")]
    Closed,
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        Self::Statement(error)
    }
}

impl Error {
    /// SQLITE_BUSY and SQLITE_LOCKED, serialization failures (40001) and deadlocks (40P01): the same work may succeed
    /// in a new transaction.
    pub fn is_transient(&self) -> bool {
        self.database().and_then(code).is_some_and(|code| match code.as_str() {
            "40001" | "40P01" => true,
            sqlite => is_busy_or_locked(sqlite),
        })
    }

    /// A row stayed locked for longer than `lock_timeout` (55P03): nothing was changed.
    pub(crate) fn is_lock_timeout(&self) -> bool {
        self.database().and_then(code).is_some_and(|code| code == "55P03")
    }

    /// Whether the configuration is wrong, which no retry can cure: the URL, a file that it names (of root
    /// certificates, for example), or the server's answer to it: a wrong password (28P01), a user without access
    /// (28000), no such database (3D000). Or the file is not SQLite's.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Url
            | Self::UrlMalformed
            | Self::TargetSessionAttrs
            | Self::UrlParameter
            | Self::TransactionPooling
            | Self::Exposed(_) => true,
            Self::Connect(error) => {
                matches!(sqlx(error), Some(sea_orm::sqlx::Error::Configuration(_)))
                    || code(error)
                        .is_some_and(|code| matches!(code.as_str(), "28P01" | "28000" | "3D000" | NOT_A_DATABASE))
            }
            Self::Folder { .. }
            | Self::Permissions { .. }
            | Self::Statement(_)
            | Self::ReadOnly
            | Self::Begin(_)
            | Self::Corrupt { .. }
            | Self::Panicked
            | Self::QueueFull
            | Self::Closed => false,
        }
    }

    /// The SQLite file was locked by another process when it was opened.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Connect(error) if code(error).is_some_and(|code| is_busy_or_locked(&code)))
    }

    /// Whether the database is unavailable: no connection, a broken one, a read-only server, or one that lacks
    /// resources. Unless the configuration is wrong ([`Error::is_configuration`]), the same work may succeed later.
    pub fn is_unavailable(&self) -> bool {
        let no_connection = matches!(self, Self::Connect(_) | Self::ReadOnly | Self::QueueFull | Self::Closed)
            || matches!(self.database(), Some(DbErr::ConnectionAcquire(_) | DbErr::Conn(_)));
        no_connection
            || self.is_transient()
            || self.is_broken_connection()
            || self.database().and_then(sqlx).is_some_and(|error| {
                matches!(error, sea_orm::sqlx::Error::PoolTimedOut | sea_orm::sqlx::Error::PoolClosed)
            })
            || self.database().and_then(code).is_some_and(|code| is_temporarily_unavailable(&code))
    }

    /// The error type of a failure whose cause is this one; `None`: the fault is ours, and waiting does not cure it.
    pub fn error_type(&self) -> Option<ErrorType> {
        if !self.is_unavailable() {
            return None;
        }
        if self.has_timed_out() {
            return Some(ErrorType::Timeout);
        }
        let is_connection_failure = matches!(self, Self::Connect(_))
            || matches!(self.database(), Some(DbErr::ConnectionAcquire(_) | DbErr::Conn(_)))
            || self.is_broken_connection();
        Some(if is_connection_failure { ErrorType::ConnectionError } else { ErrorType::Unavailable })
    }

    fn has_timed_out(&self) -> bool {
        if matches!(self.database(), Some(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout))) {
            return true;
        }
        let Some(error) = self.database().and_then(sqlx) else { return false };
        if let sea_orm::sqlx::Error::Io(error) = error {
            return error.kind() == std::io::ErrorKind::TimedOut;
        }
        // A statement timeout or a lock timeout.
        let code = error.as_database_error().and_then(|error| error.code());
        matches!(error, sea_orm::sqlx::Error::PoolTimedOut)
            || code.is_some_and(|code| matches!(&*code, "57014" | "55P03") || code.parse() == Ok(SQLITE_INTERRUPT))
    }

    /// Whether the database may still be starting: nothing listens yet, or it answers that it starts. Not for a wrong
    /// password, a missing database, or a file that is not a database.
    pub fn may_come_up(&self) -> bool {
        if self.is_configuration() {
            return false;
        }
        let Self::Connect(error) = self else { return self.is_broken_connection() || self.is_transient() };
        code(error).is_none_or(|code| {
            matches!(code.as_str(), "57P01" | "57P02" | "57P03" | "53300") || is_busy_or_locked(&code)
        })
    }

    /// Whether the connection is unusable: PostgreSQL or the network has closed it, or it leads to a read-only server.
    /// Without a commit nothing has changed, and the work may run again on another connection.
    pub(crate) fn is_broken_connection(&self) -> bool {
        self.database().and_then(sqlx).is_some_and(breaks_connection)
    }

    fn database(&self) -> Option<&DbErr> {
        match self {
            Self::Statement(error) | Self::Begin(error) => Some(error),
            Self::Url
            | Self::UrlMalformed
            | Self::TargetSessionAttrs
            | Self::UrlParameter
            | Self::TransactionPooling
            | Self::Connect(_)
            | Self::Folder { .. }
            | Self::Exposed(_)
            | Self::Permissions { .. }
            | Self::ReadOnly
            | Self::Corrupt { .. }
            | Self::Panicked
            | Self::QueueFull
            | Self::Closed => None,
        }
    }

    /// Whether a row with the same key exists.
    pub fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Statement(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))))
    }
}

/// Whether a connection to PostgreSQL is unusable after this error.
pub(crate) fn breaks_connection(error: &sea_orm::sqlx::Error) -> bool {
    use sea_orm::sqlx::Error as Sqlx;
    if matches!(error, Sqlx::Io(_) | Sqlx::Tls(_) | Sqlx::Protocol(_) | Sqlx::WorkerCrashed) {
        return true;
    }
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| is_end_of_connection(&code))
}

/// PostgreSQL's appendix "Error Codes": class 08 connection exceptions, 57P01 to 57P05 the server ends the session,
/// 25P03 and 25P04 it ended the session because of its transaction, 25006 the session is read-only (a standby, or a
/// former primary).
fn is_end_of_connection(code: &str) -> bool {
    code.len() == 5
        && (code.starts_with("08") || code.starts_with("57P0") || matches!(code, "25006" | "25P03" | "25P04"))
}

const SQLITE_INTERRUPT: u32 = 9;
const NOT_A_DATABASE: &str = "26";

/// The statement is correct, but the server cannot run it at present. PostgreSQL: class 53 insufficient resources (disk
/// full, out of memory, too many connections), class 57 operator intervention (57014: statement timeout), 58000
/// system error, 58030 input/output error, 55P03 lock not available, 55006 object in use. SQLite: NOMEM, READONLY,
/// INTERRUPT (the time limit), IOERR, FULL, CANTOPEN.
fn is_temporarily_unavailable(code: &str) -> bool {
    if code.len() == 5 {
        return ["53", "57"].iter().any(|class| code.starts_with(class))
            || matches!(code, "55P03" | "55006" | "58000" | "58030");
    }
    code.parse::<u32>()
        .is_ok_and(|code| code < 10_000 && matches!(code & 0xff, 7 | 8 | SQLITE_INTERRUPT | 10 | 13 | 14))
}

/// The server does not listen yet, is starting, or has no free connection: worth an immediate retry.
pub(crate) fn is_starting(error: &sea_orm::sqlx::Error) -> bool {
    if let sea_orm::sqlx::Error::Io(error) = error {
        return error.kind() == std::io::ErrorKind::ConnectionRefused;
    }
    error.as_database_error().is_some_and(|error| error.is_transient_in_connect_phase())
}

/// SQLite's extended codes carry the primary code in the low byte: 5 is BUSY, 6 is LOCKED.
fn is_busy_or_locked(code: &str) -> bool {
    code.parse::<u32>().is_ok_and(|code| code < 10_000 && matches!(code & 0xff, 5 | 6))
}

fn sqlx(error: &DbErr) -> Option<&sea_orm::sqlx::Error> {
    let (DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error))
    | DbErr::Conn(RuntimeErr::SqlxError(error))) = error
    else {
        return None;
    };
    Some(error)
}

fn code(error: &DbErr) -> Option<String> {
    sqlx(error)?.as_database_error()?.code().map(|code| code.into_owned())
}

/// An error of a transaction's work, which may be a database error.
pub trait Failure: From<Error> + Send + 'static {
    /// The database error, if it is one.
    fn storage(&self) -> Option<&Error>;
}

impl Failure for Error {
    fn storage(&self) -> Option<&Error> {
        Some(self)
    }
}
