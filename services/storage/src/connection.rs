//! Connections: sea-orm's for SQLite, our own for PostgreSQL.

use sea_orm::sqlx::postgres::{PgArguments, PgConnection, PgQueryResult, PgRow};
use sea_orm::sqlx::{self, AssertSqlSafe, Executor};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr,
    Statement, Values,
};
use sea_query_sqlx::SqlxValues;
use tokio::sync::Mutex;

use crate::error::breaks_connection;
use crate::postgres::{Pool, PooledConnection};

/// Connections for reads outside of transactions. A read on a broken connection is retried once on another.
#[derive(Debug)]
pub struct Reader(pub(crate) Readers);

#[derive(Debug)]
pub(crate) enum Readers {
    Sqlite(DatabaseConnection),
    Postgres(Pool),
}

/// The connection of a transaction.
#[derive(Debug)]
pub struct TxConnection(pub(crate) Open);

pub(crate) enum Open {
    Sqlite(DatabaseTransaction),
    // One statement at a time.
    Postgres(Mutex<PooledConnection>),
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sqlite(_) => "Sqlite",
            Self::Postgres(_) => "Postgres",
        })
    }
}

/// The limit of PostgreSQL's protocol (its appendix "PostgreSQL Limits").
const MAX_VALUES: usize = u16::MAX as usize;

/// sqlx reports too many values as a protocol error, which looks like a broken connection. Checked here, so that a
/// faulty statement does not cost a connection.
fn check_values(statement: &Statement) -> Result<(), sqlx::Error> {
    let count = statement.values.as_ref().map_or(0, |values| values.0.len());
    if count <= MAX_VALUES {
        return Ok(());
    }
    Err(sqlx::Error::InvalidArgument(format!(
        "a statement has {count} values, but PostgreSQL takes at most {MAX_VALUES}"
    )))
}

fn query(statement: Statement) -> sqlx::query::Query<'static, sqlx::Postgres, SqlxValues> {
    let values = statement.values.unwrap_or_else(|| Values(Vec::new()));
    sqlx::query_with(AssertSqlSafe(statement.sql), SqlxValues(values))
}

fn exec_error(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(error.into()))
}

fn query_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

async fn execute(pooled: &mut PooledConnection, statement: Statement) -> Result<PgQueryResult, sqlx::Error> {
    check_values(&statement)?;
    pooled.run(move |connection| Box::pin(query(statement).execute(connection))).await
}

async fn execute_unprepared(pooled: &mut PooledConnection, sql: &str) -> Result<PgQueryResult, sqlx::Error> {
    let sql = AssertSqlSafe(sql.to_owned());
    pooled.run(move |connection| Box::pin(connection.execute(sql))).await
}

async fn fetch(pooled: &mut PooledConnection, statement: Statement) -> Result<Vec<PgRow>, sqlx::Error> {
    check_values(&statement)?;
    pooled.run(move |connection: &mut PgConnection| Box::pin(query(statement).fetch_all(connection))).await
}

/// Executes a statement with arguments that are encoded already.
pub(crate) async fn fetch_with(
    pooled: &mut PooledConnection,
    sql: String,
    arguments: PgArguments,
) -> Result<Vec<PgRow>, DbErr> {
    let query = sqlx::query_with(AssertSqlSafe(sql), arguments);
    pooled.run(move |connection| Box::pin(query.fetch_all(connection))).await.map_err(query_error)
}

async fn fetch_one(pooled: &mut PooledConnection, statement: Statement) -> Result<Option<PgRow>, sqlx::Error> {
    check_values(&statement)?;
    pooled.run(move |connection: &mut PgConnection| Box::pin(query(statement).fetch_optional(connection))).await
}

fn results(rows: Vec<PgRow>) -> Vec<QueryResult> {
    rows.into_iter().map(QueryResult::from).collect()
}

impl Reader {
    /// The kind of database, as sea-orm's type.
    pub fn get_database_backend(&self) -> DbBackend {
        match &self.0 {
            Readers::Sqlite(_) => DbBackend::Sqlite,
            Readers::Postgres(_) => DbBackend::Postgres,
        }
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for Reader {
    fn get_database_backend(&self) -> DbBackend {
        self.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match &self.0 {
            Readers::Sqlite(pool) => pool.execute_raw(statement).await,
            Readers::Postgres(pool) => {
                let done = execute(&mut pool.acquire().await?, statement).await;
                done.map(ExecResult::from).map_err(exec_error)
            }
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        match &self.0 {
            Readers::Sqlite(pool) => pool.execute_unprepared(sql).await,
            Readers::Postgres(pool) => {
                let done = execute_unprepared(&mut pool.acquire().await?, sql).await;
                done.map(ExecResult::from).map_err(exec_error)
            }
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match &self.0 {
            Readers::Sqlite(pool) => pool.query_one_raw(statement).await,
            Readers::Postgres(pool) => {
                let mut row = fetch_one(&mut pool.acquire().await?, statement.clone()).await;
                if row.as_ref().is_err_and(breaks_connection) {
                    row = fetch_one(&mut pool.acquire().await?, statement).await;
                }
                Ok(row.map_err(query_error)?.map(QueryResult::from))
            }
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match &self.0 {
            Readers::Sqlite(pool) => pool.query_all_raw(statement).await,
            Readers::Postgres(pool) => {
                let mut rows = fetch(&mut pool.acquire().await?, statement.clone()).await;
                if rows.as_ref().is_err_and(breaks_connection) {
                    rows = fetch(&mut pool.acquire().await?, statement).await;
                }
                rows.map(results).map_err(query_error)
            }
        }
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for TxConnection {
    fn get_database_backend(&self) -> DbBackend {
        self.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match &self.0 {
            Open::Sqlite(tx) => tx.execute_raw(statement).await,
            Open::Postgres(pooled) => {
                execute(&mut *pooled.lock().await, statement).await.map(ExecResult::from).map_err(exec_error)
            }
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        match &self.0 {
            Open::Sqlite(tx) => tx.execute_unprepared(sql).await,
            Open::Postgres(pooled) => {
                execute_unprepared(&mut *pooled.lock().await, sql).await.map(ExecResult::from).map_err(exec_error)
            }
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match &self.0 {
            Open::Sqlite(tx) => tx.query_one_raw(statement).await,
            Open::Postgres(pooled) => {
                let row = fetch_one(&mut *pooled.lock().await, statement).await.map_err(query_error)?;
                Ok(row.map(QueryResult::from))
            }
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match &self.0 {
            Open::Sqlite(tx) => tx.query_all_raw(statement).await,
            Open::Postgres(pooled) => {
                fetch(&mut *pooled.lock().await, statement).await.map(results).map_err(query_error)
            }
        }
    }
}

impl TxConnection {
    /// The kind of database, as sea-orm's type.
    pub fn get_database_backend(&self) -> DbBackend {
        match &self.0 {
            Open::Sqlite(_) => DbBackend::Sqlite,
            Open::Postgres(_) => DbBackend::Postgres,
        }
    }

    pub(crate) async fn commit(self) -> Result<(), DbErr> {
        match self.0 {
            Open::Sqlite(tx) => tx.commit().await,
            Open::Postgres(pooled) => {
                let mut pooled = pooled.into_inner();
                if pooled.is_aborted() {
                    let message = "a statement of the transaction failed, so that it cannot be committed";
                    return Err(DbErr::Exec(RuntimeErr::Internal(message.to_owned())));
                }
                pooled.commit().await.map_err(exec_error)
            }
        }
    }

    /// If the rollback fails, the connection is broken and is closed: nothing is committed either way.
    pub(crate) async fn rollback(self) -> Result<(), DbErr> {
        match self.0 {
            Open::Sqlite(tx) => tx.rollback().await,
            Open::Postgres(pooled) => pooled.into_inner().rollback().await.map_err(exec_error),
        }
    }
}
