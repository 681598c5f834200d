//! Payments without a pending effect in `payment_archive`: one row for each, with its attempts.
//!
//! A payment is the tombstone of its order: while it exists, no other one is made. So it is first copied, and deleted
//! later, when no statement runs any more that began before the copy. Until then it counts, and the copy only if it has the
//! same version. A command about an archived payment brings it back; the copy stays, and only a newer one replaces it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chassis::archive::{Batch, to_json};
use kernel::{OrderId, Timestamp, first_id_at};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, FromQueryResult, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
    QueryTrait,
};
use serde::{Deserialize, Serialize};
use storage::leases::micros;
use storage::{Backend, Error, Rows, Tx};
use uuid::Uuid;

use super::Store;
use super::write::restore_attempts;
use crate::entity::{payment as row, payment_archive, payment_attempt as attempt_row};
use crate::lifecycle::State;
use crate::payment::Attempt;

/// The most payments of one transaction.
const BATCH: u64 = 256;
/// The most attempts of these payments, unless one payment has more: an outage of days causes very many.
const MAX_ATTEMPTS: i64 = 10_000;

/// A payment with all its attempts, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Archived {
    pub(super) payment: row::Model,
    pub(super) attempts: Vec<attempt_row::Model>,
}

impl Archived {
    fn read(row: &payment_archive::Model) -> Result<Self, Error> {
        let corrupt = |_| Error::Corrupt { what: "archived payment", value: row.order_id.to_string() };
        serde_json::from_str(&row.record).map_err(corrupt)
    }

    /// Whether all attempts were read with the payment.
    fn is_complete(&self) -> bool {
        self.attempts.last().is_some_and(|last| last.attempt == self.payment.attempt)
    }
}

/// The copy of a payment.
#[derive(FromQueryResult)]
struct Copied {
    order_id: Uuid,
    version: i64,
    /// Whether no statement runs any more that began before it was made.
    is_old: bool,
}

#[derive(FromQueryResult)]
struct Key {
    order_id: Uuid,
}

fn keys(rows: &[sea_orm::QueryResult]) -> Result<Vec<Uuid>, Error> {
    let keys = rows.iter().map(|row| Key::from_query_result(row, "").map(|key| key.order_id));
    Ok(keys.collect::<Result<_, _>>()?)
}

impl Store {
    /// Copies payments without a pending effect whose last change was before an instant to the archive, and deletes the ones
    /// that were copied `grace` ago: the next 256 at most, in the order of their orders' ids. `grace` must be longer than a
    /// transaction may last.
    pub async fn archive_before(
        self,
        before: Timestamp,
        after: Option<OrderId>,
        grace: Duration,
    ) -> Result<Batch, Error> {
        let mut rows = row::Entity::find()
            .apply_if(after, |find, after| find.filter(row::Column::OrderId.gt(after.as_uuid())))
            // By the primary key: a younger payment's last change is not as old.
            .filter(row::Column::OrderId.lt(first_id_at(before)))
            .filter(row::Column::UpdateTime.lt(before.as_micros()))
            .filter(row::Column::NextAttemptTime.is_null())
            // Its order is not final.
            .filter(row::Column::State.ne(State::RefundRefused.name()))
            .order_by_asc(row::Column::OrderId)
            .limit(BATCH)
            .all(self.db.read())
            .await?;
        let is_last = u64::try_from(rows.len()).is_ok_and(|count| count < BATCH);
        let mut attempts = 0;
        let fitting = rows.iter().take_while(|row| {
            attempts += i64::from(row.attempt);
            attempts <= MAX_ATTEMPTS
        });
        let fitting = fitting.count().max(1);
        let is_last = is_last && fitting >= rows.len();
        rows.truncate(fitting);
        let Some(last) = rows.last().map(|row| OrderId::from_uuid(row.order_id)) else { return Ok(Batch::default()) };
        let archived = self
            .db
            .transact_rows((self.clone(), rows), move |tx, (store, rows)| {
                Box::pin(async move { store.archive(tx, rows, grace).await })
            })
            .await?;
        Ok(Batch { archived, last: (!is_last).then_some(last) })
    }

    /// Returns how many were copied.
    async fn archive(&self, tx: &Tx, rows: Vec<row::Model>, grace: Duration) -> Result<u64, Error> {
        let copies = self.copies(tx, &rows, grace).await?;
        let (copied, new): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| copies.get(&row.order_id).is_some_and(|copy| copy.version >= row.version));
        let is_old = |row: &row::Model| copies.get(&row.order_id).is_some_and(|copy| copy.is_old);
        delete(tx, copied.iter().filter(|row| is_old(row))).await?;
        self.copy(tx, new).await
    }

    async fn copies(&self, tx: &Tx, rows: &[row::Model], grace: Duration) -> Result<HashMap<Uuid, Copied>, Error> {
        let keys = Rows::new()
            .with("order_id", rows.iter().map(|row| row.order_id))
            .with("now", rows.iter().map(|_| self.leases.now_micros()));
        let select = format!(
            "SELECT a.order_id, a.version, {} - a.archive_time > {} AS is_old \
             FROM v JOIN payment_archive a ON a.order_id = v.order_id",
            self.leases.now_expression("v.now"),
            micros(grace)
        );
        let copies = tx.conn().query_rows(keys, &select).await?;
        let copies = copies.iter().map(|row| Copied::from_query_result(row, "").map(|copy| (copy.order_id, copy)));
        Ok(copies.collect::<Result<_, _>>()?)
    }

    async fn copy(&self, tx: &Tx, rows: Vec<row::Model>) -> Result<u64, Error> {
        if rows.is_empty() {
            return Ok(0);
        }
        let mut attempts: HashMap<Uuid, Vec<attempt_row::Model>> = HashMap::new();
        let find = attempt_row::Entity::find()
            .filter(attempt_row::Column::OrderId.is_in(rows.iter().map(|row| row.order_id)))
            .order_by_asc(attempt_row::Column::Attempt);
        for attempt in find.all(tx.conn()).await? {
            attempts.entry(attempt.order_id).or_default().push(attempt);
        }
        let record = |payment: row::Model| {
            let mut attempts = attempts.remove(&payment.order_id).unwrap_or_default();
            // A later one belongs to a later version.
            attempts.retain(|attempt| attempt.attempt <= payment.attempt);
            Archived { payment, attempts }
        };
        // Another instance has deleted the others since their rows were read.
        let records: Vec<Archived> = rows.into_iter().map(record).filter(Archived::is_complete).collect();
        let each = || records.iter().map(|record| &record.payment);
        let text = |record: &Archived| {
            let corrupt = |_| Error::Corrupt { what: "payment to archive", value: record.payment.order_id.to_string() };
            to_json(record).map_err(corrupt)
        };
        let rows = Rows::new()
            .with("order_id", each().map(|payment| payment.order_id))
            .with("version", each().map(|payment| payment.version))
            .with("now", each().map(|_| self.leases.now_micros()))
            .with("record", records.iter().map(text).collect::<Result<Vec<_>, _>>()?);
        let insert = format!(
            "INSERT INTO payment_archive (order_id, version, archive_time, record) \
             SELECT order_id, version, {}, record FROM v WHERE TRUE ON CONFLICT (order_id) DO UPDATE SET \
             version = excluded.version, archive_time = excluded.archive_time, record = excluded.record \
             WHERE payment_archive.version < excluded.version RETURNING order_id",
            self.leases.now_expression("v.now")
        );
        let copied = tx.conn().query_rows(rows, &insert).await?;
        Ok(u64::try_from(copied.len()).unwrap_or(u64::MAX))
    }

    /// The archived ones among the payments of these orders.
    pub(super) async fn archived(&self, ids: impl IntoIterator<Item = OrderId>) -> Result<Vec<Archived>, Error> {
        let ids: Vec<Uuid> = ids.into_iter().map(OrderId::as_uuid).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let find = payment_archive::Entity::find().filter(payment_archive::Column::OrderId.is_in(ids));
        find.all(self.db.read()).await?.iter().map(Archived::read).collect()
    }

    /// A page of all archived payments, ordered by order id, after `after` and up to `until`.
    pub(super) async fn archive_page(
        &self,
        after: Option<OrderId>,
        until: Option<OrderId>,
        count: u64,
    ) -> Result<Vec<Archived>, Error> {
        let find = payment_archive::Entity::find()
            .apply_if(after, |find, after| find.filter(payment_archive::Column::OrderId.gt(after.as_uuid())))
            .apply_if(until, |find, until| find.filter(payment_archive::Column::OrderId.lte(until.as_uuid())))
            .order_by_asc(payment_archive::Column::OrderId)
            .limit(count);
        find.all(self.db.read()).await?.iter().map(Archived::read).collect()
    }

    /// Brings a payment back, if it is archived.
    pub(super) async fn restore(&self, tx: &Tx, order_id: OrderId) -> Result<(), Error> {
        let find = payment_archive::Entity::find_by_id(order_id.as_uuid());
        let Some(archived) = find.one(tx.conn()).await? else { return Ok(()) };
        let Archived { payment, attempts } = Archived::read(&archived)?;
        // Another instance may do the same.
        let insert = row::Entity::insert(payment.into_active_model().reset_all());
        insert.on_conflict_do_nothing().exec_without_returning(tx.conn()).await?;
        let attempts: Vec<Attempt> = attempts.into_iter().map(Attempt::try_from).collect::<Result<_, _>>()?;
        restore_attempts(tx, order_id, &attempts).await
    }
}

/// Deletes payments that still have these versions.
async fn delete<'a>(tx: &Tx, payments: impl Iterator<Item = &'a row::Model>) -> Result<(), Error> {
    let payments: Vec<&row::Model> = payments.collect();
    let rows = Rows::new()
        .with("order_id", payments.iter().map(|payment| payment.order_id))
        .with("version", payments.iter().map(|payment| payment.version));
    let lock = match tx.backend() {
        Backend::Postgres => " FOR UPDATE OF payment",
        Backend::Sqlite => "",
    };
    let select = format!(
        "SELECT payment.order_id FROM v JOIN payment \
         ON payment.order_id = v.order_id AND payment.version = v.version{lock}"
    );
    let unchanged: HashSet<Uuid> = keys(&tx.conn().query_rows(rows, &select).await?)?.into_iter().collect();
    for table in ["payment_attempt", "payment"] {
        let delete = format!("DELETE FROM {table} WHERE order_id IN (SELECT order_id FROM v)");
        tx.conn().execute_rows(Rows::new().with("order_id", unchanged.iter().copied()), &delete).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As release 0.2.0 writes it: later releases must read it.
    const RECORD: &str = include_str!("archive/record.json");

    /// An instance that was suspended after it had read a payment, which another one has archived meanwhile.
    #[tokio::test]
    async fn an_older_copy_does_not_replace_a_newer_one() {
        let db = storage::Database::connect("sqlite::memory:", &storage::Options::default()).await.expect("a database");
        Store::migrate(&db).await.expect("migrated");
        let store = Store::new(db.clone(), std::sync::Arc::new(kernel::SystemClock));
        let archived: Archived = serde_json::from_str(RECORD).expect("a record");
        let (payment, record) = (archived.payment.clone(), RECORD.trim().to_owned());
        let newer =
            payment_archive::Model { order_id: payment.order_id, version: payment.version, archive_time: 1, record };
        db.transact(newer.clone(), |tx, copy| {
            Box::pin(async move {
                let insert = payment_archive::Entity::insert(copy.into_active_model().reset_all());
                insert.exec_without_returning(tx.conn()).await?;
                Ok::<_, Error>(())
            })
        })
        .await
        .expect("inserted");
        for version in [payment.version, payment.version - 1] {
            let rows = vec![row::Model { version, ..payment.clone() }];
            let late = (store.clone(), rows);
            let copied = db
                .transact_rows(late, |tx, (store, rows)| {
                    Box::pin(async move {
                        store.archive(tx, rows.clone(), Duration::ZERO).await?;
                        store.copy(tx, rows).await
                    })
                })
                .await
                .expect("archived");
            assert_eq!(copied, 0);
            let stored = payment_archive::Entity::find().all(db.read()).await.expect("read");
            assert_eq!(stored, std::slice::from_ref(&newer));
        }
    }

    #[test]
    fn a_record_of_release_0_2_0_is_read() {
        let archived: Archived = serde_json::from_str(RECORD).expect("a record");
        assert!(archived.is_complete());
        let written: serde_json::Value = serde_json::from_str(&to_json(&archived).expect("JSON")).expect("JSON");
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(RECORD).expect("JSON"));
    }
}
