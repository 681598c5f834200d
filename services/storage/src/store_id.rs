//! The identity of a database: instances that show the same id share one. Made by the first instance, and never changed.

use kernel::{IdSource, SystemIds};
use sea_orm::{FromQueryResult, Statement};

use crate::connect::Database;
use crate::error::Error;
use crate::migrate::Migration;

pub(crate) const MIGRATION: Migration = Migration {
    version: -1,
    name: "create store id",
    statements: &["CREATE TABLE store_id (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), id TEXT NOT NULL)"],
    postgres: &[],
};

#[derive(FromQueryResult)]
struct StoreId {
    id: String,
}

impl Database {
    /// The id of this database, in which each service has a schema or a file of its own.
    ///
    /// # Errors
    /// The database failed, or its schema is newer than this program and has no id.
    pub async fn store_id(&self) -> Result<String, Error> {
        let backend = self.read().get_database_backend();
        let select = Statement::from_string(backend, "SELECT id FROM store_id WHERE only_row = 1");
        if let Some(found) = StoreId::find_by_statement(select.clone()).one(self.read()).await? {
            return Ok(found.id);
        }
        let insert = "INSERT INTO store_id (only_row, id) VALUES (1, $1) ON CONFLICT (only_row) DO NOTHING";
        let id = SystemIds.uuid().to_string();
        self.execute(Statement::from_sql_and_values(backend, insert, [id.into()])).await?;
        let found = StoreId::find_by_statement(select).one(self.read()).await?;
        found.map(|found| found.id).ok_or(Error::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::Options;

    #[tokio::test]
    async fn an_id_is_made_once_and_is_that_of_every_connection_to_the_database() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = async |name: &str| {
            let url = format!("sqlite://{}", folder.path().join(name).display());
            let db = Database::connect(&url, &Options::default()).await.expect("opened");
            db.migrate(&[]).await.expect("migrated");
            db.store_id().await.expect("an id")
        };
        let first = open("a.db").await;
        assert!(first.parse::<uuid::Uuid>().is_ok(), "{first}");
        assert_eq!(open("a.db").await, first);
        assert_ne!(open("b.db").await, first);
    }
}
