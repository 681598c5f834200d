//! What can go wrong with a database, and whether it is worth another try.

use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, SqlErr};
use telemetry::ErrorClass;

/// What went wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL cannot be used.
    #[error(
        "the database URL must begin with sqlite: or postgres:, as in sqlite://data/order.db or postgres://user@host/name"
    )]
    Url,
    /// The URL cannot be parsed. The parser's own error quotes it, and it may carry a password.
    #[error(
        "the database URL cannot be parsed: in the user's name and password, characters such as # / ? @ : % are percent-encoded (# is %23); \
         it names one host, and the port is a number; sslmode is disable, allow, prefer, require, verify-ca or verify-full"
    )]
    UrlMalformed,
    /// The database could not be opened.
    #[error("the database could not be opened")]
    Connect(#[source] DbErr),
    /// The folder of the SQLite file could not be made.
    #[error("the database's folder {folder} could not be made")]
    Folder {
        /// The folder.
        folder: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The SQLite file is another user's.
    #[error("the database's file cannot be used")]
    Exposed(#[from] crate::ownership::Exposed),
    /// The permissions of the SQLite file could not be set.
    #[error("the permissions of the database's file {file} could not be set")]
    Permissions {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A statement failed.
    #[error("the database refused a statement")]
    Statement(#[source] DbErr),
    /// No transaction could be begun: nothing has happened.
    #[error("the database began no transaction")]
    Begin(#[source] DbErr),
    /// It answers, and takes no writes: a standby, or a primary that was told so.
    #[error("the database takes no writes")]
    ReadOnly,
    /// A stored value cannot be read.
    #[error("a stored {what} cannot be read: {value:?}")]
    Corrupt {
        /// What should be there.
        what: &'static str,
        /// What is there.
        value: String,
    },
    /// The transaction's work panicked; nothing was committed.
    #[error("the transaction's work panicked")]
    Panicked,
    /// The database's writer has ended, because the process is ending.
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

    /// The configuration is wrong: no waiting and no other try cures it. The URL, what it says (a file of roots that is
    /// not there), or whom it names: a wrong password (28P01), a user who may not connect (28000), no such database (3D000).
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Url | Self::UrlMalformed | Self::Exposed(_) => true,
            Self::Connect(error) => {
                matches!(sqlx(error), Some(sea_orm::sqlx::Error::Configuration(_)))
                    || code(error).is_some_and(|code| matches!(code.as_str(), "28P01" | "28000" | "3D000"))
            }
            Self::Folder { .. }
            | Self::Permissions { .. }
            | Self::Statement(_)
            | Self::ReadOnly
            | Self::Begin(_)
            | Self::Corrupt { .. }
            | Self::Panicked
            | Self::Closed => false,
        }
    }

    /// SQLite was locked by somebody else as the file was opened.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Connect(error) if code(error).is_some_and(|code| is_busy_or_locked(&code)))
    }

    /// Not here, not now: no connection, one that broke, a server that takes no writes, or one that lacks what it needs. The
    /// same may succeed later.
    pub fn is_unavailable(&self) -> bool {
        let no_connection = matches!(self, Self::Connect(_) | Self::ReadOnly | Self::Closed)
            || matches!(self.database(), Some(DbErr::ConnectionAcquire(_) | DbErr::Conn(_)));
        no_connection
            || self.is_transient()
            || self.is_broken_connection()
            || self.database().and_then(sqlx).is_some_and(|error| {
                matches!(error, sea_orm::sqlx::Error::PoolTimedOut | sea_orm::sqlx::Error::PoolClosed)
            })
            || self.database().and_then(code).is_some_and(|code| is_not_now(&code))
    }

    /// The class that it is as what is behind a refusal; `None`: it is our own fault, and waiting does not cure it.
    pub fn class(&self) -> Option<ErrorClass> {
        if !self.is_unavailable() {
            return None;
        }
        if self.has_timed_out() {
            return Some(ErrorClass::Timeout);
        }
        let is_away = matches!(self, Self::Connect(_))
            || matches!(self.database(), Some(DbErr::ConnectionAcquire(_) | DbErr::Conn(_)))
            || self.is_broken_connection();
        Some(if is_away { ErrorClass::ConnectionError } else { ErrorClass::Unavailable })
    }

    fn has_timed_out(&self) -> bool {
        if matches!(self.database(), Some(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout))) {
            return true;
        }
        let Some(error) = self.database().and_then(sqlx) else { return false };
        if let sea_orm::sqlx::Error::Io(error) = error {
            return error.kind() == std::io::ErrorKind::TimedOut;
        }
        // A statement's time, or a lock's.
        let code = error.as_database_error().and_then(|error| error.code());
        matches!(error, sea_orm::sqlx::Error::PoolTimedOut)
            || code.is_some_and(|code| matches!(&*code, "57014" | "55P03"))
    }

    /// The database is not there yet, and may come up: nobody listens, or it says that it starts. Not a wrong password, a database
    /// that does not exist, or a file that is none.
    pub fn may_come_up(&self) -> bool {
        if self.is_configuration() {
            return false;
        }
        let Self::Connect(error) = self else { return self.is_broken_connection() || self.is_transient() };
        code(error).is_none_or(|code| {
            matches!(code.as_str(), "57P01" | "57P02" | "57P03" | "53300") || is_busy_or_locked(&code)
        })
    }

    /// The connection is of no more use: PostgreSQL ended it, the network did, or it leads to a server that takes no writes.
    /// What was not committed has not happened, and may be run again on another connection.
    pub(crate) fn is_broken_connection(&self) -> bool {
        self.database().and_then(sqlx).is_some_and(breaks_connection)
    }

    fn database(&self) -> Option<&DbErr> {
        match self {
            Self::Statement(error) | Self::Begin(error) => Some(error),
            Self::Url
            | Self::UrlMalformed
            | Self::Connect(_)
            | Self::Folder { .. }
            | Self::Exposed(_)
            | Self::Permissions { .. }
            | Self::ReadOnly
            | Self::Corrupt { .. }
            | Self::Panicked
            | Self::Closed => None,
        }
    }

    /// A row with the same key is there already.
    pub fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Statement(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))))
    }
}

/// Is a connection to PostgreSQL of no more use after this?
pub(crate) fn breaks_connection(error: &sea_orm::sqlx::Error) -> bool {
    use sea_orm::sqlx::Error as Sqlx;
    if matches!(error, Sqlx::Io(_) | Sqlx::Tls(_) | Sqlx::Protocol(_) | Sqlx::WorkerCrashed) {
        return true;
    }
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| is_end_of_connection(&code))
}

/// PostgreSQL's appendix "Error Codes": class 08 connection exceptions, 57P01 to 57P05 the server ends the session, 25P03 and
/// 25P04 it ended the session because of its transaction, 25006 the session takes no writes (a standby, or a primary of before).
fn is_end_of_connection(code: &str) -> bool {
    code.len() == 5
        && (code.starts_with("08") || code.starts_with("57P0") || matches!(code, "25006" | "25P03" | "25P04"))
}

/// Nothing is wrong with the statement; the server cannot run it here and now. PostgreSQL: class 53 insufficient resources
/// (disk full, out of memory, too many connections), class 57 operator intervention (57014: statement timeout), class 58 errors
/// outside of it (58030: input or output), 55P03 lock not available, 55006 object in use. SQLite: NOMEM, READONLY, IOERR,
/// FULL, CANTOPEN.
fn is_not_now(code: &str) -> bool {
    if code.len() == 5 {
        return ["53", "57"].iter().any(|class| code.starts_with(class))
            || matches!(code, "55P03" | "55006" | "58000" | "58030");
    }
    code.parse::<u32>().is_ok_and(|code| code < 10_000 && matches!(code & 0xff, 7 | 8 | 10 | 13 | 14))
}

/// The server does not listen yet, or says that it starts or has no place: worth asking again at once.
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

/// An error of a transaction's work: it holds a database error when that is what it is.
pub trait Failure: From<Error> + Send + 'static {
    /// The database error inside, if it is one.
    fn storage(&self) -> Option<&Error>;
}

impl Failure for Error {
    fn storage(&self) -> Option<&Error> {
        Some(self)
    }
}
