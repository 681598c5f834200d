//! The catalogue's queries. Entities stay in this file.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kernel::text::{decomposed, search_key};
use kernel::{Money, Timestamp};
use parking_lot::Mutex;
use sea_orm::sea_query::{Expr, ExprTrait, LikeExpr};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect, Set, Statement,
    TryInsertResult, Value,
};
use storage::{Database, Tx};
use telemetry::{Operation, Outcome};
use tokio::time::Instant;

use crate::catalog::{Draft, Product, Upsert, etag};
use crate::delivery::Rule;
use crate::entity::{delivery_zone, product};
use crate::error::Error;

/// Escapes the characters of a filter that are wildcards of LIKE.
const ESCAPE: char = '!';

/// The catalogue in the database.
#[derive(Clone, Debug)]
pub(crate) struct CatalogStore {
    db: Database,
    rules: Arc<Mutex<Option<(Instant, Rules)>>>,
}

/// The delivery rules by country.
type Rules = HashMap<String, Vec<Rule>>;

/// How old the delivery rules may be that an estimate is made by: no rpc changes them.
const MAX_RULES_AGE: Duration = Duration::from_secs(60);

impl CatalogStore {
    pub(crate) fn new(db: Database) -> Self {
        Self { db, rules: Arc::default() }
    }

    /// Those of the given products that exist, in any order, with one query.
    pub(crate) async fn products(&self, skus: &[&str]) -> Result<Vec<Product>, Error> {
        let Some(last) = skus.last() else { return Ok(vec![]) };
        // The hot path: no query builder, and the last SKU is repeated up to a power of two, so that each connection
        // keeps few prepared statements.
        let count = skus.len().next_power_of_two();
        let marks: Vec<String> = (1..=count).map(|number| format!("${number}")).collect();
        let values: Vec<Value> =
            skus.iter().chain(std::iter::repeat(last)).take(count).map(|sku| (*sku).into()).collect();
        let sql = format!(
            "SELECT sku, name, description, currency_code, minor_units, version, update_time \
             FROM product WHERE sku IN ({})",
            marks.join(",")
        );
        let select = Statement::from_sql_and_values(self.db.read().get_database_backend(), sql, values);
        let rows = Row::find_by_statement(select).all(self.db.read()).await?;
        rows.into_iter().map(Row::product).collect()
    }

    /// The first products after a SKU that contain a search key.
    pub(crate) async fn page(&self, text: &str, after: Option<&str>, limit: u64) -> Result<Vec<Product>, Error> {
        let mut select = product::Entity::find().order_by_asc(product::Column::Sku).limit(limit);
        if !text.is_empty() {
            let contains = |key: &str| {
                let like = LikeExpr::new(format!("%{}%", escaped(key))).escape(ESCAPE);
                Expr::col(product::Column::SearchText).like(like)
            };
            // Rows written by an earlier release keep the Unicode form in which their product was sent.
            let other = decomposed(text);
            let filter = if other == text { contains(text) } else { contains(text).or(contains(&other)) };
            select = select.filter(filter);
        }
        if let Some(after) = after {
            select = select.filter(product::Column::Sku.gt(after));
        }
        select.into_model::<Row>().all(self.db.search()).await?.into_iter().map(Row::product).collect()
    }

    /// Creates a product (no etag), or replaces the one with this etag.
    pub(crate) async fn upsert(&self, upsert: Upsert, now: Timestamp, operation: &Operation) -> Result<Product, Error> {
        self.db
            .transact((upsert, operation.clone()), move |tx, (upsert, operation)| {
                Box::pin(async move {
                    let Upsert { draft, etag: known } = upsert;
                    let mismatch = Error::EtagMismatch { sku: draft.sku.clone() };
                    if known.is_empty() {
                        let inserted = insert(tx.conn(), vec![draft.clone()], now).await?;
                        if inserted == 0 {
                            return Err(mismatch);
                        }
                        emit_audit(tx, &operation, None, &draft);
                        return Ok(Product { draft, version: 1, update_time: now });
                    }
                    let stored = product::Entity::find_by_id(draft.sku.clone()).one(tx.conn()).await?;
                    let Some(stored) = stored.filter(|stored| etag(&stored.sku, stored.version) == known) else {
                        return Err(mismatch);
                    };
                    let version = stored.version + 1;
                    let replaced = product::Entity::update_many()
                        .set(active(&draft, version, now))
                        .filter(product::Column::Sku.eq(draft.sku.clone()))
                        .filter(product::Column::Version.eq(stored.version))
                        .exec(tx.conn())
                        .await?;
                    // Another call may have changed it since it was read.
                    if replaced.rows_affected == 0 {
                        return Err(mismatch);
                    }
                    emit_audit(tx, &operation, Some(&stored), &draft);
                    Ok(Product { draft, version, update_time: now })
                })
            })
            .await
    }

    /// Inserts products if there are none.
    pub(crate) async fn seed(&self, products: Vec<Draft>, now: Timestamp) -> Result<(), Error> {
        self.db
            .transact(products, move |tx, products| {
                Box::pin(async move {
                    let any = product::Entity::find().limit(1).one(tx.conn()).await?;
                    if any.is_none() && !products.is_empty() {
                        insert(tx.conn(), products, now).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// The delivery rules of a country, at most [`MAX_RULES_AGE`] old. Concurrent reads of stale rules each read them.
    pub(crate) async fn delivery_rules(&self, country: &str) -> Result<Vec<Rule>, Error> {
        let of = |rules: &Rules| rules.get(country).cloned().unwrap_or_default();
        let fresh = |(time, _): &&(Instant, Rules)| time.elapsed() < MAX_RULES_AGE;
        if let Some((_, rules)) = self.rules.lock().as_ref().filter(fresh) {
            return Ok(of(rules));
        }
        let time = Instant::now();
        let mut rules = Rules::new();
        for row in delivery_zone::Entity::find().all(self.db.read()).await? {
            rules.entry(row.country_code.clone()).or_default().push(rule(row)?);
        }
        let found = of(&rules);
        *self.rules.lock() = Some((time, rules));
        Ok(found)
    }
}

/// The audit event of a product's change: its price before and after, and which other fields changed.
fn emit_audit(tx: &Tx, operation: &Operation, before: Option<&product::Model>, after: &Draft) {
    if let Some(before) = before {
        operation.set("price.before", format!("{} {}", before.currency_code, before.minor_units));
        let changed: Vec<&str> =
            [("name", before.name != after.name), ("description", before.description != after.description)]
                .into_iter()
                .filter_map(|(field, is_changed)| is_changed.then_some(field))
                .collect();
        operation.set("fields", changed.join(","));
    }
    operation.set("price.after", format!("{} {}", after.price.currency().code(), after.price.minor_units()));
    tx.emit(operation, &Outcome::Success);
}

/// A product's row without the columns of the filter.
#[derive(FromQueryResult)]
struct Row {
    sku: String,
    name: String,
    description: String,
    currency_code: String,
    minor_units: i64,
    version: i64,
    update_time: i64,
}

impl Row {
    fn product(self) -> Result<Product, Error> {
        let Ok(currency) = self.currency_code.parse() else {
            return Err(storage::Error::Corrupt { what: "currency", value: self.currency_code }.into());
        };
        let price = Money::new(currency, self.minor_units);
        let draft = Draft { sku: self.sku, name: self.name, description: self.description, price };
        Ok(Product { draft, version: self.version, update_time: Timestamp::from_micros(self.update_time) })
    }
}

fn rule(row: delivery_zone::Model) -> Result<Rule, Error> {
    let corrupt = || storage::Error::Corrupt { what: "delivery zone", value: format!("{row:?}") };
    Ok(Rule {
        transit_business_days: u16::try_from(row.transit_business_days).map_err(|_| corrupt())?,
        cutoff_hour_utc: u8::try_from(row.cutoff_hour_utc).map_err(|_| corrupt())?,
        postal_prefix: row.postal_prefix,
        zone: row.zone,
    })
}

/// Inserts products; returns how many are new.
async fn insert(conn: &impl ConnectionTrait, drafts: Vec<Draft>, now: Timestamp) -> Result<u64, Error> {
    let rows = drafts.iter().map(|draft| active(draft, 1, now));
    let inserted = product::Entity::insert_many(rows).on_conflict_do_nothing().exec_without_returning(conn).await?;
    Ok(match inserted {
        TryInsertResult::Inserted(count) => count,
        TryInsertResult::Empty | TryInsertResult::Conflicted => 0,
    })
}

fn active(draft: &Draft, version: i64, now: Timestamp) -> product::ActiveModel {
    product::ActiveModel {
        sku: Set(draft.sku.clone()),
        name: Set(draft.name.clone()),
        description: Set(draft.description.clone()),
        currency_code: Set(draft.price.currency().code().to_owned()),
        minor_units: Set(draft.price.minor_units()),
        version: Set(version),
        update_time: Set(now.as_micros()),
        // The key is computed here: SQLite converts only ASCII to lower case, and has no normalization.
        search_text: Set(search_key(&format!("{}\n{}\n{}", draft.sku, draft.name, draft.description))),
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '%' | '_' | ESCAPE) {
            escaped.push(ESCAPE);
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_of_a_filter_are_escaped() {
        assert_eq!(escaped("100%_!"), "100!%!_!!");
    }

    #[tokio::test]
    async fn products_are_found_in_either_unicode_form_even_those_of_an_earlier_release() {
        let test_database = testkit::database();
        let options = storage::Options { schema: test_database.schema, ..storage::Options::default() };
        let db = Database::connect(&test_database.url, &options).await.expect("a database");
        db.migrate(crate::MIGRATIONS).await.expect("a schema");
        let store = CatalogStore::new(db.clone());
        let price = Money::new("EUR".parse().expect("a currency"), 100);
        let draft =
            |sku: &str, name: &str| Draft { sku: sku.into(), name: name.into(), description: String::new(), price };
        let drafts = [
            draft("NEW-C", "CAF\u{c9}"),
            draft("NEW-D", "Cafe\u{301}"),
            draft("OLD-C", "CAF\u{c9}"),
            draft("OLD-D", "Cafe\u{301}"),
        ];
        store.seed(drafts.to_vec(), Timestamp::default()).await.expect("stored");
        for old in &drafts[2..] {
            let before = product::ActiveModel { search_text: Set(old.name.to_lowercase()), ..Default::default() };
            let update = product::Entity::update_many().set(before);
            update
                .filter(product::Column::Sku.eq(old.sku.clone()))
                .exec(db.read())
                .await
                .expect("as an earlier release wrote it");
        }
        for filter in ["caf\u{e9}", "CAFE\u{301}", "Caf\u{c9}"] {
            let found = store.page(&search_key(filter), None, 10).await.expect("a page");
            let skus: Vec<_> = found.into_iter().map(|product| product.draft.sku).collect();
            assert_eq!(skus, ["NEW-C", "NEW-D", "OLD-C", "OLD-D"], "{filter:?}");
        }
        assert_eq!(store.page(&search_key("caf\u{ea}"), None, 10).await.expect("a page"), []);
    }

    #[tokio::test]
    async fn changed_delivery_rules_are_read_within_a_minute() {
        let test_database = testkit::database();
        let options = storage::Options { schema: test_database.schema, ..storage::Options::default() };
        let db = Database::connect(&test_database.url, &options).await.expect("a database");
        db.migrate(crate::MIGRATIONS).await.expect("a schema");
        let store = CatalogStore::new(db.clone());
        let days = async || {
            let rules = store.delivery_rules("DE").await.expect("rules");
            rules.iter().map(|rule| rule.transit_business_days).max()
        };
        let before = days().await;
        let update = "UPDATE delivery_zone SET transit_business_days = 99 WHERE country_code = 'DE'";
        db.execute(Statement::from_string(db.read().get_database_backend(), update)).await.expect("updated");
        assert_eq!(days().await, before);
        tokio::time::pause();
        tokio::time::advance(MAX_RULES_AGE).await;
        tokio::time::resume();
        assert_eq!(days().await, Some(99));
        assert!(store.delivery_rules("AQ").await.expect("rules").is_empty());
    }
}
