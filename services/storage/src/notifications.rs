//! Commits of other processes on the same database, for callers that would otherwise poll.
//!
//! PostgreSQL: each process sends a NOTIFY after its commits, and listens on a connection of its own. It is a statement
//! of its own: inside a transaction it would serialize the commits of all processes. SQLite: `PRAGMA data_version` on the
//! writer's connection changes with the commits of other connections only.
//!
//! Nothing rests on it: a notification may be lost with a connection, so callers poll as well, less often.

use std::convert::Infallible;
use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::sqlx::postgres::{PgListener, PgPoolOptions};
use sea_orm::sqlx::{self, AssertSqlSafe, Executor};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::connect::Database;
use crate::connection::Readers;
use crate::postgres::{MAX_LIFETIME, Pool};
use crate::transact::Writer;

/// The least time between two notifications of a process.
const INTERVAL: Duration = Duration::from_millis(5);
/// The time between two reads of SQLite's `data_version`.
const VERSION_INTERVAL: Duration = Duration::from_millis(10);
/// After this time without a notification the listener's connection is tested.
const IDLE: Duration = Duration::from_secs(30);
/// The time limit of that test, and of a connection attempt.
const LIMIT: Duration = Duration::from_secs(2);
/// The time between two connection attempts.
const RECONNECT: Duration = Duration::from_secs(1);

/// Notifies other processes of this one's commits. Clones share it; the default one does nothing.
#[derive(Clone, Default, Debug)]
pub struct Notifier(Option<mpsc::Sender<()>>);

impl Notifier {
    /// After a commit. Does not wait; what follows within a few milliseconds is sent with it.
    pub fn notify(&self) {
        if let Some(pending) = &self.0 {
            // If it is full, one is about to be sent.
            let _ = pending.try_send(());
        }
    }
}

/// The commits of other processes.
pub struct Listener(Source);

enum Source {
    Sqlite { writer: Option<Writer>, version: Option<i64> },
    Postgres(watch::Receiver<u64>),
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Listener {
    /// Completes when another process may have committed since the last call.
    pub async fn notified(&mut self) {
        match &mut self.0 {
            Source::Sqlite { writer, version } => loop {
                sleep(VERSION_INTERVAL).await;
                let Some(now) = data_version(writer.as_ref()).await else { continue };
                if version.replace(now) != Some(now) {
                    return;
                }
            },
            Source::Postgres(received) => {
                if received.changed().await.is_err() {
                    // The listener outlives its receivers.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

impl Database {
    /// The commits of other processes that notify under the same name in the same schema; on SQLite all of other
    /// processes. Must be called in a tokio runtime.
    pub fn notifications(&self, name: &str) -> (Notifier, Listener) {
        match (&self.0.reader.0, &self.0.writer) {
            (Readers::Postgres(pool), _) => self.postgres_notifications(name, pool.clone()),
            (Readers::Sqlite(_), writer) => {
                (Notifier(None), Listener(Source::Sqlite { writer: writer.clone(), version: None }))
            }
        }
    }

    fn postgres_notifications(&self, name: &str, pool: Pool) -> (Notifier, Listener) {
        let channel = format!("{}.{name}", self.0.schema.as_deref().unwrap_or("public")).replace('"', "");
        #[expect(clippy::disallowed_methods, reason = "identifies this process to itself; not an id of the platform")]
        let process = Uuid::new_v4().to_string();
        let (pending, requested) = mpsc::channel(1);
        tokio::spawn(notify(self.clone(), format!("NOTIFY \"{channel}\", '{process}'"), requested));
        let (received, notifications) = watch::channel(0);
        tokio::spawn(listen(pool, channel, process, received));
        (Notifier(Some(pending)), Listener(Source::Postgres(notifications)))
    }
}

/// `None` if it cannot be read now.
async fn data_version(writer: Option<&Writer>) -> Option<i64> {
    writer?.data_version().await
}

/// Until the last [`Notifier`] is dropped.
async fn notify(db: Database, statement: String, mut requested: mpsc::Receiver<()>) {
    while requested.recv().await.is_some() {
        if let Err(error) = db.read().execute_unprepared(&statement).await {
            tracing::debug!(target: "ordermesh", error = ?error, "other instances were not notified of a commit");
        }
        sleep(INTERVAL).await;
    }
}

/// Until the last receiver is dropped.
async fn listen(pool: Pool, channel: String, process: String, received: watch::Sender<u64>) {
    loop {
        tokio::select! {
            () = received.closed() => return,
            () = pool.invalidated() => {}
            () = sleep(MAX_LIFETIME) => {}
            Err(error) = receive(&pool, &channel, &process, &received) => {
                tracing::debug!(target: "ordermesh", error = ?error, "the listener for other instances' commits reconnects");
            }
        }
        tokio::select! {
            () = received.closed() => return,
            () = sleep(RECONNECT) => {}
        }
    }
}

/// Until the connection breaks.
async fn receive(
    pool: &Pool,
    channel: &str,
    process: &str,
    received: &watch::Sender<u64>,
) -> Result<Infallible, sqlx::Error> {
    let session = pool.session();
    // sqlx's listener cannot be given a connection.
    let primary = pool.primary_options().await?;
    let one = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(LIMIT)
        .after_connect(move |connection, _| {
            let session = AssertSqlSafe(session.clone());
            Box::pin(async move { connection.execute(session).await.map(drop) })
        })
        .connect_lazy_with(primary);
    let mut listener = PgListener::connect_with(&one).await?;
    listener.eager_reconnect(false);
    limited(listener.listen(channel)).await?;
    // What was sent before it listened is missing.
    received.send_modify(|count| *count += 1);
    loop {
        match timeout(IDLE, listener.try_recv()).await {
            Ok(notification) => match notification? {
                Some(notification) if notification.payload() == process => {}
                Some(_) => received.send_modify(|count| *count += 1),
                None => return Err(sqlx::Error::PoolClosed),
            },
            Err(_) => {
                limited((&mut listener).execute("SELECT 1")).await?;
            }
        }
    }
}

async fn limited<T>(statement: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(LIMIT, statement).await.map_err(|_| sqlx::Error::PoolTimedOut)?
}
