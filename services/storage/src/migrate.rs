//! Migrates the schema at start-up, under a lock, so that any number of instances may start concurrently.
//!
//! Migrations are additive; what the previous release reads is removed one release later. A schema that is newer than the
//! program is left as it is: instances of the previous release must start beside newer ones.

use std::time::Duration;

use kernel::{Clock, SystemClock};
use sea_orm::{ConnectionTrait, FromQueryResult, Statement};

use crate::connect::{Backend, Database};
use crate::connection::{Open, TxConnection};
use crate::error::Error;
use crate::outbox;
use crate::store_id;
use crate::transact::{BEGIN, begin_alone};

/// A migration. All its statements run in one transaction.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Counts from 1.
    pub version: i32,
    /// What it does, in a few words.
    pub name: &'static str,
    /// SQL that SQLite and PostgreSQL both understand.
    pub statements: &'static [&'static str],
    /// Run after them, on PostgreSQL only.
    pub postgres: &'static [&'static str],
}

/// PostgreSQL: timeout of a migration's statement. Without a response by then, the connection counts as broken.
const STEP_TIMEOUT: Duration = Duration::from_secs(3_600);

/// The lock of migrations: an arbitrary number that no other program uses.
const POSTGRES_LOCK: &str = "pg_try_advisory_xact_lock(7251011620)";
/// Polled rather than awaited: each answer shows that the server is alive.
const LOCK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(FromQueryResult)]
struct Applied {
    version: i32,
}

#[derive(FromQueryResult)]
struct Found {
    is_there: bool,
}

impl Database {
    /// Applies the pending migrations in one transaction, under a lock.
    ///
    /// # Errors
    /// A statement failed: nothing was changed.
    pub async fn migrate(&self, migrations: &[Migration]) -> Result<(), Error> {
        let mut attempt = 0;
        loop {
            match self.try_migrate(migrations).await {
                Err(error) if error.is_transient() && attempt < 20 => attempt += 1,
                done => return done,
            }
        }
    }

    /// PostgreSQL: changes the schema of a running system, in a transaction of its own. A lock is awaited no longer than
    /// `lock_timeout`, because the statements of others queue behind it; the statements themselves may take long.
    ///
    /// # Errors
    /// A statement failed: nothing was changed.
    pub async fn alter(&self, sql: &str, lock_timeout: Duration) -> Result<(), Error> {
        let tx = self.begin_long().await?;
        tx.execute_unprepared(&format!("SET LOCAL lock_timeout = {}; {sql}", lock_timeout.as_millis())).await?;
        Ok(tx.commit().await?)
    }

    /// A transaction whose statements may take as long as a migration's.
    async fn begin_long(&self) -> Result<TxConnection, Error> {
        let mut tx = begin_alone(self, BEGIN).await?;
        if let Open::Postgres(lease) = &mut tx.0 {
            lease.get_mut().set_limit(STEP_TIMEOUT);
            tx.execute_unprepared("SET LOCAL statement_timeout = 0").await?;
        }
        Ok(tx)
    }

    async fn try_migrate(&self, migrations: &[Migration]) -> Result<(), Error> {
        // Without the lock at first: an instance with nothing to do does not wait for another's long migration, and
        // needs read permission only.
        if self.backend() == Backend::Postgres
            && is_there(self.read(), "to_regclass('schema_version')").await?
            && missing(self.read(), migrations).await?.is_empty()
        {
            return Ok(());
        }
        let tx = self.begin_long().await?;
        if self.backend() == Backend::Postgres {
            while !is_so(&tx, POSTGRES_LOCK).await? {
                tokio::time::sleep(LOCK_INTERVAL).await;
            }
            if let Some(schema) = &self.0.schema {
                let schema = schema.replace(['"', '\''], "");
                // IF NOT EXISTS would first require the permission to create schemas, which the owner of its schema may
                // lack.
                if !is_there(&tx, &format!("to_regnamespace('\"{schema}\"')")).await? {
                    tx.execute_unprepared(&format!("CREATE SCHEMA \"{schema}\"")).await?;
                }
            }
        }
        tx.execute_unprepared(
            "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_time BIGINT NOT NULL)",
        )
        .await?;
        for migration in missing(&tx, migrations).await? {
            apply(&tx, self.backend(), migration).await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

/// PostgreSQL: whether the named object exists.
async fn is_there(conn: &impl ConnectionTrait, name: &str) -> Result<bool, Error> {
    is_so(conn, &format!("{name} IS NOT NULL")).await
}

async fn is_so(conn: &impl ConnectionTrait, condition: &str) -> Result<bool, Error> {
    let select = Statement::from_string(conn.get_database_backend(), format!("SELECT {condition} AS is_there"));
    Ok(Found::find_by_statement(select).one(conn).await?.is_some_and(|found| found.is_there))
}

/// The pending migrations; none if the schema is newer than the program.
async fn missing<'a>(conn: &impl ConnectionTrait, migrations: &'a [Migration]) -> Result<Vec<&'a Migration>, Error> {
    let select = Statement::from_string(conn.get_database_backend(), "SELECT version FROM schema_version");
    let applied: Vec<i32> =
        Applied::find_by_statement(select).all(conn).await?.into_iter().map(|row| row.version).collect();
    let newest = migrations.iter().map(|migration| migration.version).max().unwrap_or(0);
    if let Some(version) = applied.iter().find(|version| **version > newest) {
        tracing::warn!(target: "ordermesh", version, newest, "the schema is newer than this program, and is left as it is; releases older than its predecessor need another database");
        return Ok(vec![]);
    }
    let all = [&store_id::MIGRATION, &outbox::MIGRATION].into_iter().chain(migrations);
    Ok(all.filter(|migration| !applied.contains(&migration.version)).collect())
}

async fn apply(tx: &TxConnection, backend: Backend, migration: &Migration) -> Result<(), Error> {
    let of_the_backend = match backend {
        Backend::Postgres => migration.postgres,
        Backend::Sqlite => &[],
    };
    for statement in migration.statements.iter().chain(of_the_backend) {
        tx.execute_unprepared(statement).await?;
    }
    let insert = Statement::from_sql_and_values(
        tx.get_database_backend(),
        "INSERT INTO schema_version (version, name, applied_time) VALUES ($1, $2, $3)",
        [migration.version.into(), migration.name.into(), SystemClock.now().as_micros().into()],
    );
    tx.execute_raw(insert).await?;
    Ok(())
}
