//! PostgreSQL: a connection pool in which every wait has a limit.
//!
//! sqlx's own pool (0.9.0) pings a returned connection without a timeout, so that each unresponsive connection costs a
//! slot for ever. This pool does not ping returned connections; one whose statement was cancelled is drained within
//! [`CLEANUP_TIMEOUT`] or closed. sqlx has no option for TCP keepalive either: it is replaced by a limit on each
//! statement, the probe's evidence ([`crate::probe`]), and the server's own keepalive and `tcp_user_timeout`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use futures_util::future::BoxFuture;
use log::LevelFilter;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection};
use sea_orm::sqlx::{self, AssertSqlSafe, ConnectOptions, Connection, Executor, Row};
use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::connect::{Options, SLOW_STATEMENT};
use crate::error::{self, Error};
use crate::hosts::Hosts;

/// Added to the server's `statement_timeout`: a response that has not arrived by then is lost.
const RESPONSE_GRACE: Duration = Duration::from_secs(2);
/// Timeout of a statement on an invalidated connection: others of its generation are unresponsive.
const INVALIDATED_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of finishing a cancelled statement, before the connection is reused.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(2);
/// The age at which a connection is closed, and the idle time after which it is.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);
const MAX_IDLE: Duration = Duration::from_secs(10 * 60);
const MAX_CONNECT_BACKOFF: Duration = Duration::from_millis(400);

/// How long the second connection at start may take.
const SHARED_TIMEOUT: Duration = Duration::from_secs(2);

/// The session's settings. Not as startup parameters: poolers reject those that they do not know.
fn session_settings(options: &Options) -> String {
    let schema = options.schema.as_ref();
    let search_path = schema.map(|schema| format!("; SET search_path = \"{}\"", schema.replace('"', "")));
    format!(
        "SET statement_timeout = {}; SET idle_in_transaction_session_timeout = {}; SET tcp_keepalives_idle = 30; \
         SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 30000{}",
        options.statement_timeout.as_millis(),
        // A crashed client holds no lock: its transaction is ended.
        (options.statement_timeout + RESPONSE_GRACE).as_millis(),
        search_path.unwrap_or_default()
    )
}

async fn backend_pid(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    connection.fetch_one("SELECT pg_backend_pid()").await?.try_get(0)
}

/// A connection with its generation.
#[derive(Debug)]
pub(crate) struct Made {
    connection: PgConnection,
    generation: u64,
}

/// The state of the connections as a whole.
#[derive(Debug)]
struct PoolState {
    /// Connections of an earlier generation are not reused.
    generation: AtomicU64,
    /// Statements still running on connections of an earlier generation are given up.
    invalid_before: watch::Sender<u64>,
    /// No statement is begun on connections of an earlier generation: they lead to an earlier primary.
    fenced_before: AtomicU64,
    /// The fences of the hosts that are in effect.
    fences: AtomicU64,
    acquired: AtomicU64,
    committed: AtomicU64,
}

/// Opens connections.
#[derive(Debug)]
pub(crate) struct Connector {
    hosts: Hosts,
    /// SET statements.
    session: String,
    state: Arc<PoolState>,
}

impl Connector {
    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        self.prepare(self.hosts.connect().await?).await
    }

    /// If another primary was found, connections of before get no statement any more; the generation that begins.
    fn fence(&self) -> Option<u64> {
        let fences = self.hosts.fences();
        if self.state.fences.fetch_max(fences, Ordering::AcqRel) >= fences {
            return None;
        }
        let generation = self.state.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.state.fenced_before.fetch_max(generation, Ordering::AcqRel);
        self.state.invalid_before.send_replace(generation);
        Some(generation)
    }

    async fn prepare(&self, mut connection: PgConnection) -> Result<PgConnection, sqlx::Error> {
        connection.execute(AssertSqlSafe(self.session.clone())).await?;
        Ok(connection)
    }
}

impl managed::Manager for Connector {
    type Type = Made;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Made, sqlx::Error> {
        // Read first: an invalidation while it connects applies to it too.
        let generation = self.state.generation.load(Ordering::Acquire);
        let connected = self.connect().await;
        // Its own discovery may have found another primary: then it is of the generation that begins with it.
        let generation = self.fence().unwrap_or(generation);
        Ok(Made { connection: connected?, generation })
    }

    async fn recycle(&self, made: &mut Made, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        let is_valid = made.generation >= self.state.generation.load(Ordering::Acquire);
        if is_valid && metrics.age() < MAX_LIFETIME { Ok(()) } else { Err(RecycleError::message("to be replaced")) }
    }
}

/// The connections to one database, at whichever of its hosts accepts writes. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pool: managed::Pool<Connector>,
    state: Arc<PoolState>,
    acquire_timeout: Duration,
    statement_limit: Duration,
}

impl Pool {
    /// Opens one connection, so that wrong settings are found immediately.
    pub(crate) async fn connect(url: &str, options: &Options) -> Result<Self, Error> {
        let state = Arc::new(PoolState {
            generation: AtomicU64::new(0),
            invalid_before: watch::Sender::new(0),
            fenced_before: AtomicU64::new(0),
            fences: AtomicU64::new(0),
            acquired: AtomicU64::new(0),
            committed: AtomicU64::new(0),
        });
        let hosts = Hosts::parse(url)?.map(|connect| {
            connect
                // Only slow statements are logged, and never their parameters.
                .log_statements(LevelFilter::Off)
                .log_slow_statements(LevelFilter::Warn, SLOW_STATEMENT)
        });
        let connector = Connector { hosts, session: session_settings(options), state: state.clone() };
        let pool = managed::Pool::builder(connector)
            .max_size(usize::try_from(options.max_connections).unwrap_or(usize::MAX))
            .queue_mode(QueueMode::Lifo)
            .build()
            .map_err(|_| Error::Closed)?;
        let pool = Self {
            pool,
            state,
            acquire_timeout: options.acquire_timeout,
            statement_limit: options.statement_timeout + RESPONSE_GRACE,
        };
        let mut first = pool.acquire().await.map_err(Error::Connect)?;
        if pool.shares_session(&mut first).await {
            return Err(Error::TransactionPooling);
        }
        drop(first);
        Ok(pool)
    }

    /// Whether a second connection has the session of the first one: a connection pooler between client and server gives each
    /// transaction to any session, but settings, prepared statements and LISTEN belong to a session.
    async fn shares_session(&self, first: &mut PooledConnection) -> bool {
        let other = async {
            let mut other = self.connect_outside_pool().await?;
            let first = first.run(|connection| Box::pin(backend_pid(connection))).await?;
            Ok::<_, sqlx::Error>((first, backend_pid(&mut other).await?))
        };
        // A server with a single connection left is none of those.
        matches!(timeout(SHARED_TIMEOUT, other).await, Ok(Ok((one, other))) if one == other)
    }

    /// A connection, idle or new. While the server does not listen or is starting, it retries until the timeout.
    pub(crate) async fn acquire(&self) -> Result<PooledConnection, DbErr> {
        let end = Instant::now() + self.acquire_timeout;
        let mut backoff = Duration::from_millis(10);
        let mut last = None;
        loop {
            match timeout_at(end, self.pool.get()).await {
                Ok(Ok(object)) => {
                    self.state.acquired.fetch_add(1, Ordering::Relaxed);
                    return Ok(PooledConnection::new(object, self));
                }
                Ok(Err(PoolError::Backend(error))) if error::is_starting(&error) && Instant::now() + backoff < end => {
                    last = Some(error);
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_CONNECT_BACKOFF);
                }
                Ok(Err(PoolError::Backend(error))) => return Err(DbErr::Conn(RuntimeErr::SqlxError(error.into()))),
                Err(_) | Ok(Err(PoolError::Timeout(_))) => {
                    // Why the attempts before the last one failed says more than that the time is over.
                    let error = last.map(|error| DbErr::Conn(RuntimeErr::SqlxError(error.into())));
                    return Err(error.unwrap_or(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)));
                }
                Ok(Err(PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_))) => {
                    return Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed));
                }
            }
        }
    }

    /// Completes when the connections of now are no longer used: a new one works where an old one does not, or leads to
    /// a server that accepts writes.
    pub(crate) async fn invalidated(&self) {
        let mut invalid_before = self.state.invalid_before.subscribe();
        if invalid_before.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The SET statements of a connection outside the pool.
    pub(crate) fn session(&self) -> String {
        self.pool.manager().session.clone()
    }

    /// For a connection outside the pool, to the server that is the primary now.
    pub(crate) async fn primary_options(&self) -> Result<PgConnectOptions, sqlx::Error> {
        self.hosts().connect().await?.close().await?;
        Ok(self.hosts().last())
    }

    /// A connection outside the pool, for the probe: all hosts are asked which one is the primary.
    pub(crate) async fn connect_outside_pool(&self) -> Result<PgConnection, sqlx::Error> {
        let connector = self.pool.manager();
        let found = connector.hosts.discover().await;
        if let Some(generation) = connector.fence() {
            drop(self.pool.retain(|made, _| made.generation >= generation));
        }
        connector.prepare(found?).await
    }

    /// The hosts of the URL.
    pub(crate) fn hosts(&self) -> &Hosts {
        &self.pool.manager().hosts
    }

    /// A connection broke: idle ones of its generation are not reused, since they are most likely broken too.
    fn invalidate_generation(&self, generation: u64) {
        self.hosts().require_discovery();
        let next = generation + 1;
        // If it differs, a newer generation has begun already.
        let _ = self.state.generation.compare_exchange(generation, next, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The probe's connection broke: idle ones of the current generation are not reused.
    pub(crate) fn invalidate_idle(&self) {
        self.invalidate_generation(self.state.generation.load(Ordering::Acquire));
    }

    /// A new connection works where an old one is unresponsive or leads to a read-only server: older ones are
    /// closed, and statements still running on them are given up.
    pub(crate) fn invalidate_all(&self) {
        let generation = self.state.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.state.invalid_before.send_replace(generation);
        drop(self.pool.retain(|made, _| made.generation >= generation));
    }

    /// Closes connections that have been idle for long.
    pub(crate) fn shrink(&self) {
        drop(self.pool.retain(|_, metrics| metrics.last_used() < MAX_IDLE));
    }

    /// The numbers of used and idle connections, and of waiting callers.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let status = self.pool.status();
        let of = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        (of(status.size.saturating_sub(status.available)), of(status.available), of(status.waiting))
    }

    /// The total numbers of connections handed out and of transactions committed.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.state.acquired.load(Ordering::Relaxed), self.state.committed.load(Ordering::Relaxed))
    }
}

/// A connection of the pool. It is returned on drop, if its state allows.
pub(crate) struct PooledConnection {
    object: Option<Object<Connector>>,
    pool: Pool,
    limit: Duration,
    is_in_transaction: bool,
    /// A statement of the transaction failed: PostgreSQL answers its COMMIT with a rollback, and no error.
    is_aborted: bool,
    /// A statement is running, or was cancelled.
    is_busy: bool,
}

impl PooledConnection {
    fn new(object: Object<Connector>, pool: &Pool) -> Self {
        let limit = pool.statement_limit;
        Self {
            object: Some(object),
            pool: pool.clone(),
            limit,
            is_in_transaction: false,
            is_aborted: false,
            is_busy: false,
        }
    }

    /// Sets the limit, for statements that take longer than a regular one may.
    pub(crate) fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Runs a statement on the connection, within the limit. A connection that breaks or does not respond is closed
    /// immediately.
    pub(crate) async fn run<T, F>(&mut self, statement: F) -> Result<T, sqlx::Error>
    where
        F: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    {
        let Some(object) = self.object.as_mut() else { return Err(timed_out("the connection is closed")) };
        if object.generation < self.pool.state.fenced_before.load(Ordering::Acquire) {
            drop(self.object.take().map(Object::take));
            return Err(timed_out("the connection leads to an earlier primary"));
        }
        self.is_busy = true;
        let invalid_before = self.pool.state.invalid_before.subscribe();
        let generation = object.generation;
        let answer = tokio::select! {
            answer = timeout(self.limit, statement(&mut object.connection)) => {
                answer.unwrap_or_else(|_| Err(timed_out("the database did not answer in time")))
            }
            () = given_up(invalid_before, generation, Instant::now() + INVALIDATED_TIMEOUT) => Err(timed_out("the connection does not respond")),
        };
        self.is_aborted |= self.is_in_transaction && answer.is_err();
        match &answer {
            Err(error) if error::breaks_connection(error) => self.discard(generation),
            _ => self.is_busy = false,
        }
        answer
    }

    /// Begins a transaction by a statement, or by several in one message.
    pub(crate) async fn begin(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        self.is_in_transaction = true;
        self.simple(sql).await
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.is_aborted
    }

    pub(crate) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.simple("COMMIT").await?;
        self.is_in_transaction = false;
        self.pool.state.committed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) async fn rollback(&mut self) -> Result<(), sqlx::Error> {
        self.simple("ROLLBACK").await?;
        self.is_in_transaction = false;
        Ok(())
    }

    async fn simple(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        self.run(move |connection| Box::pin(async move { connection.execute(sql).await.map(drop) })).await
    }

    /// Closes the connection; its slot in the pool is freed immediately.
    fn discard(&mut self, generation: u64) {
        drop(self.object.take().map(Object::take));
        self.pool.invalidate_generation(generation);
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        if !self.is_busy && !self.is_in_transaction {
            return drop(object);
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(clean_up(object, self.is_in_transaction))),
            Err(_) => drop(Object::take(object)),
        }
    }
}

/// Reads the pending answers, ends an open transaction, and only then returns the connection to the pool.
async fn clean_up(mut object: Object<Connector>, is_in_transaction: bool) {
    let cleaned_up = timeout(CLEANUP_TIMEOUT, async {
        object.connection.ping().await?;
        if is_in_transaction {
            object.connection.execute("ROLLBACK").await?;
        }
        Ok::<_, sqlx::Error>(())
    });
    if !matches!(cleaned_up.await, Ok(Ok(()))) {
        drop(Object::take(object));
    }
}

/// Resolves when the connection is invalidated and the statement's time is over.
async fn given_up(mut invalid_before: watch::Receiver<u64>, generation: u64, end: Instant) {
    if invalid_before.wait_for(|before| generation < *before).await.map(drop).is_err() {
        return std::future::pending().await;
    }
    sleep_until(end).await;
}

fn timed_out(what: &str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, what.to_owned()))
}
