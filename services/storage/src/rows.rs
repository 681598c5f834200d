//! Many rows in few statements: a statement reads them from a common table expression, `WITH v (…) AS (…)`.
//!
//! PostgreSQL takes one array per column (`unnest`), so that the statement's text does not depend on the number of
//! rows, and is prepared once. SQLite takes a parameter per value (`VALUES`), in chunks whose sizes are powers of two,
//! so that few texts are prepared.

use futures_util::future::BoxFuture;
use sea_orm::sqlx::Arguments;
use sea_orm::sqlx::postgres::PgArguments;
use sea_orm::{ConnectionTrait, DbErr, QueryResult, RuntimeErr, Statement, Value};
use uuid::Uuid;

use crate::connection::{Open, TxConnection};
use crate::error::Error;

/// The most rows that SQLite takes in one statement: its limit is 32,766 parameters, and a longer text costs more to
/// prepare than it saves.
const MAX_CHUNK: usize = 64;

/// A column's values.
#[derive(Clone, Debug)]
pub enum Column {
    /// `UUID`.
    Uuid(Vec<Option<Uuid>>),
    /// `TEXT`.
    Text(Vec<Option<String>>),
    /// `BIGINT`.
    BigInt(Vec<Option<i64>>),
    /// `INTEGER`.
    Int(Vec<Option<i32>>),
    /// `BOOLEAN`.
    Bool(Vec<Option<bool>>),
}

/// A value that a column can hold.
pub trait Cell {
    /// A column of such values.
    fn column(values: Vec<Self>) -> Column
    where
        Self: Sized;
}

macro_rules! cells {
    ($($type:ty => $column:ident),*) => {$(
        impl Cell for $type {
            fn column(values: Vec<Self>) -> Column {
                Column::$column(values.into_iter().map(Some).collect())
            }
        }

        impl Cell for Option<$type> {
            fn column(values: Vec<Self>) -> Column {
                Column::$column(values)
            }
        }
    )*};
}

cells!(Uuid => Uuid, String => Text, i64 => BigInt, i32 => Int, bool => Bool);

impl Column {
    fn sql_type(&self) -> &'static str {
        match self {
            Self::Uuid(_) => "uuid[]",
            Self::Text(_) => "text[]",
            Self::BigInt(_) => "bigint[]",
            Self::Int(_) => "integer[]",
            Self::Bool(_) => "boolean[]",
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Uuid(values) => values.len(),
            Self::Text(values) => values.len(),
            Self::BigInt(values) => values.len(),
            Self::Int(values) => values.len(),
            Self::Bool(values) => values.len(),
        }
    }

    /// Takes a row's value.
    fn take(&mut self, row: usize) -> Value {
        match self {
            Self::Uuid(values) => values.get(row).copied().flatten().into(),
            Self::Text(values) => values.get_mut(row).and_then(Option::take).into(),
            Self::BigInt(values) => values.get(row).copied().flatten().into(),
            Self::Int(values) => values.get(row).copied().flatten().into(),
            Self::Bool(values) => values.get(row).copied().flatten().into(),
        }
    }

    fn bind(&self, arguments: &mut PgArguments) -> Result<(), DbErr> {
        let bound = match self {
            Self::Uuid(values) => arguments.add(values),
            Self::Text(values) => arguments.add(values),
            Self::BigInt(values) => arguments.add(values),
            Self::Int(values) => arguments.add(values),
            Self::Bool(values) => arguments.add(values),
        };
        bound.map_err(|error| DbErr::Exec(RuntimeErr::Internal(error.to_string())))
    }
}

/// Rows of a statement: named columns of equal length.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    names: Vec<&'static str>,
    columns: Vec<Column>,
}

impl Rows {
    /// No columns yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a column. All columns have as many values as the first one.
    #[must_use]
    pub fn with<T: Cell>(mut self, name: &'static str, values: impl IntoIterator<Item = T>) -> Self {
        self.names.push(name);
        self.columns.push(T::column(values.into_iter().collect()));
        debug_assert!(self.columns.iter().all(|column| column.len() == self.len()), "{name} has another length");
        self
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.columns.first().map_or(0, Column::len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// PostgreSQL's form, with the parameters from `$1` on.
    fn arrays(&self) -> String {
        let arrays: Vec<String> = (1..).zip(&self.columns).map(|(n, c)| format!("${n}::{}", c.sql_type())).collect();
        format!("WITH v ({}) AS (SELECT * FROM unnest({}))", self.names.join(", "), arrays.join(", "))
    }

    /// SQLite's form of a number of rows. The parameters have no names: each name is looked up among all when it is
    /// bound.
    fn tuples(&self, count: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns.len()].join(", "));
        format!("WITH v ({}) AS (VALUES {})", self.names.join(", "), vec![row.as_str(); count].join(", "))
    }
}

/// The sizes of the chunks of `count` rows, largest first: powers of two.
fn chunks(mut count: usize) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let size = (count > 0).then(|| MAX_CHUNK.min(1 << count.ilog2()))?;
        count -= size;
        Some(size)
    })
}

impl TxConnection {
    /// Executes `WITH v (columns) AS (rows) <sql>`, and returns the rows that it returns. `sql` has no parameters of its
    /// own. On SQLite it is executed for each chunk of the rows: its ORDER BY and GROUP BY hold within a chunk.
    ///
    /// # Errors
    /// The database's error.
    pub fn query_rows<'a>(&'a self, rows: Rows, sql: &'a str) -> BoxFuture<'a, Result<Vec<QueryResult>, Error>> {
        // Boxed, so that it is compiled here and not by each caller.
        Box::pin(self.query(rows, sql))
    }

    async fn query(&self, mut rows: Rows, sql: &str) -> Result<Vec<QueryResult>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        match &self.0 {
            Open::Sqlite(tx) => {
                let mut results = Vec::new();
                let mut first = 0;
                for size in chunks(rows.len()) {
                    let text = format!("{} {sql}", rows.tuples(size));
                    let mut values = Vec::with_capacity(size * rows.columns.len());
                    for row in first..first + size {
                        values.extend(rows.columns.iter_mut().map(|column| column.take(row)));
                    }
                    let statement = Statement::from_sql_and_values(tx.get_database_backend(), text, values);
                    results.extend(tx.query_all_raw(statement).await?);
                    first += size;
                }
                Ok(results)
            }
            Open::Postgres(lease) => {
                let mut arguments = PgArguments::default();
                for column in &rows.columns {
                    column.bind(&mut arguments)?;
                }
                let text = format!("{} {sql}", rows.arrays());
                let rows = crate::connection::fetch_with(&mut *lease.lock().await, text, arguments).await?;
                Ok(rows.into_iter().map(QueryResult::from).collect())
            }
        }
    }

    /// Executes `WITH v (columns) AS (rows) <sql>`.
    ///
    /// # Errors
    /// The database's error.
    pub async fn execute_rows(&self, rows: Rows, sql: &str) -> Result<(), Error> {
        self.query_rows(rows, sql).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_split_into_few_sizes() {
        assert_eq!(chunks(0).count(), 0);
        assert_eq!(chunks(1).collect::<Vec<_>>(), [1]);
        assert_eq!(chunks(13).collect::<Vec<_>>(), [8, 4, 1]);
        assert_eq!(chunks(200).collect::<Vec<_>>(), [64, 64, 64, 8]);
    }

    #[test]
    fn the_text_for_postgres_does_not_depend_on_the_number_of_rows() {
        let rows = |ns: &[i64]| Rows::new().with("id", ns.iter().map(|_| Uuid::nil())).with("n", ns.to_vec());
        assert_eq!(rows(&[1]).arrays(), "WITH v (id, n) AS (SELECT * FROM unnest($1::uuid[], $2::bigint[]))");
        assert_eq!(rows(&[1]).arrays(), rows(&[1, 2, 3]).arrays());
        assert_eq!(rows(&[1, 2]).tuples(2), "WITH v (id, n) AS (VALUES (?, ?), (?, ?))");
    }
}
