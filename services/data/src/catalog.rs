//! The catalogue: products, prices, and delivery estimates.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chassis::{Fingerprint, Invalid, PageToken};
use kernel::{Clock, Money, Timestamp, calendar};
use mesh::Violation;
use telemetry::Operation;
use tracing::Instrument;

use crate::delivery::{self, Destination, Estimate};
use crate::error::Error;
use crate::search::{Address, Searches};
use crate::store::CatalogStore;

/// Maximum SKUs in a lookup.
pub(crate) const MAX_SKUS: usize = 100;
/// Maximum characters of a product's name.
pub(crate) const MAX_NAME_CHARS: usize = 200;
/// Maximum characters of a product's description.
pub(crate) const MAX_DESCRIPTION_CHARS: usize = 2_000;
/// The highest price, roughly in euros: far above any product, and low enough that no sum overflows.
pub(crate) const MAX_PRICE_EUROS: i64 = 10_000_000;

/// A product before it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Draft {
    pub(crate) sku: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) price: Money,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Product {
    pub(crate) draft: Draft,
    /// The number of its changes, from 1.
    pub(crate) version: i64,
    pub(crate) update_time: Timestamp,
}

impl Product {
    /// The etag, which changes with every change of the product.
    pub(crate) fn etag(&self) -> String {
        etag(&self.draft.sku, self.version)
    }
}

/// Opaque on purpose: clients must not read versions from it.
pub(crate) fn etag(sku: &str, version: i64) -> String {
    let mut etag = Fingerprint::of("etag/1").part("sku", sku).part("version", version).finish();
    etag.truncate(16);
    etag
}

/// The result of a lookup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lookup {
    /// In the requested order, with repetitions.
    pub(crate) products: Vec<Product>,
    /// In the requested order, without repetitions.
    pub(crate) missing: Vec<String>,
}

/// A request for a page of products.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ListProducts {
    /// A search key (`kernel::text`); empty: all.
    pub(crate) text: String,
    pub(crate) page_size: u32,
    pub(crate) page: PageToken<String>,
}

/// The new state of a product, and the state that the caller has read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Upsert {
    pub(crate) draft: Draft,
    /// Empty: the product does not exist yet.
    pub(crate) etag: String,
}

#[derive(Clone)]
pub(crate) struct Catalog {
    store: CatalogStore,
    searches: Searches,
    clock: Arc<dyn Clock>,
}

impl Catalog {
    pub(crate) fn new(store: CatalogStore, searches: Searches, clock: Arc<dyn Clock>) -> Self {
        Self { store, searches, clock }
    }

    /// Looks up products with one query: prices are never stale.
    pub(crate) async fn lookup(&self, skus: Vec<String>, operation: &Operation) -> Result<Lookup, Error> {
        operation.set("skus", skus.len().to_string());
        let found = self.store.products(&distinct(&skus)).await?;
        let lookup = arrange(skus, found);
        operation.set("missing", lookup.missing.len().to_string());
        Ok(lookup)
    }

    /// Products by SKU, one more than fits on the page.
    pub(crate) async fn list(
        &self,
        list: &ListProducts,
        from: Address,
        operation: &Operation,
    ) -> Result<Vec<Product>, Error> {
        let permit = self.searches.acquire(from).await.inspect_err(|_| {
            // A rejection by a limit (other than memory) is a metric and a span, but no event.
            operation.discard();
        })?;
        let (store, list) = (self.store.clone(), list.clone());
        let search = async move {
            let page = store.page(&list.text, list.page.after.as_deref(), u64::from(list.page_size) + 1).await;
            drop(permit);
            page
        };
        // In its own task: if the call is cancelled, the connection stays busy until the statement ends, and so does
        // the permit.
        tokio::spawn(search.in_current_span()).await.unwrap_or_else(|_| Err(storage::Error::Panicked.into()))
    }

    /// Creates or replaces a product, if its stored state is the one that the caller has read.
    pub(crate) async fn upsert(&self, upsert: Upsert, operation: &Operation) -> Result<Product, Error> {
        operation.set("sku", &upsert.draft.sku);
        self.store.upsert(upsert, self.clock.now(), operation).await
    }

    /// Estimates the delivery date of a parcel.
    pub(crate) async fn estimate(&self, to: Destination, operation: &Operation) -> Result<Estimate, Error> {
        operation.set("country_code", to.country.clone());
        let rules = self.store.delivery_rules(&to.country).await?;
        let Some(rule) = delivery::choose(rules, &to.postal_code) else {
            return Err(Error::NoDeliveryZone { country: to.country });
        };
        operation.set("zone", rule.zone.clone());
        let dispatch = to.dispatch.unwrap_or_else(|| self.clock.now());
        let date = calendar::delivery_date(dispatch, rule.transit_business_days, rule.cutoff_hour_utc);
        date.map(|date| Estimate { rule, date }).ok_or_else(beyond_the_calendar)
    }

    /// Fills an empty catalogue.
    pub(crate) async fn seed(&self, products: Vec<Draft>) -> Result<(), Error> {
        self.store.seed(products, self.clock.now()).await
    }
}

fn beyond_the_calendar() -> Error {
    Error::Invalid(Invalid(vec![Violation {
        field: "dispatch_time".to_owned(),
        reason: "INVALID_TIME",
        description: "the delivery would be after the year 9999".to_owned(),
    }]))
}

fn distinct(skus: &[String]) -> Vec<&str> {
    let mut found = HashSet::with_capacity(skus.len());
    skus.iter().map(String::as_str).filter(|sku| found.insert(*sku)).collect()
}

/// Arranges the found products in the requested order, and lists the missing SKUs.
fn arrange(skus: Vec<String>, found: Vec<Product>) -> Lookup {
    let found: HashMap<String, Product> =
        found.into_iter().map(|product| (product.draft.sku.clone(), product)).collect();
    let (mut products, mut missing) = (Vec::with_capacity(skus.len()), Vec::new());
    for sku in skus {
        match found.get(&sku) {
            Some(product) => products.push(product.clone()),
            None if missing.contains(&sku) => {}
            None => missing.push(sku),
        }
    }
    Lookup { products, missing }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn product(sku: &str) -> Product {
        let price = Money::new("EUR".parse().expect("a currency"), 100);
        let draft = Draft { sku: sku.into(), name: sku.into(), description: String::new(), price };
        Product { draft, version: 1, update_time: Timestamp::default() }
    }

    #[test]
    fn products_are_in_the_requested_order_and_missing_ones_are_listed_once() {
        let skus = ["B", "X", "A", "B", "Y", "X"].map(String::from).to_vec();
        assert_eq!(distinct(&skus), ["B", "X", "A", "Y"]);
        let lookup = arrange(skus, vec![product("A"), product("B")]);
        let skus: Vec<_> = lookup.products.iter().map(|product| product.draft.sku.as_str()).collect();
        assert_eq!(skus, ["B", "A", "B"]);
        assert_eq!(lookup.missing, ["X", "Y"]);
    }

    /// More searches than one address may have waiting, and a lookup for an order.
    #[tokio::test]
    async fn a_lookup_does_not_wait_for_searches() {
        let test_database = testkit::database();
        let options = storage::Options { schema: test_database.schema, ..storage::Options::default() };
        let db = storage::Database::connect(&test_database.url, &options).await.expect("a database");
        db.migrate(crate::MIGRATIONS).await.expect("a schema");
        let clock = Arc::new(kernel::SystemClock);
        let searches = Searches::new(options.max_connections);
        let catalog = Catalog::new(CatalogStore::new(db), searches.clone(), clock);
        catalog.seed(vec![product("MUG").draft]).await.expect("stored");
        let list = ListProducts {
            text: "mug".into(),
            page_size: 1,
            page: PageToken::decode(&mut chassis::Fields::default(), "", Fingerprint::of("ListProducts/1"), |_| None),
        };
        let operation = Operation::unseen(telemetry::Kind::Server, "lookup", None, None);
        // Each permit is held by a search that does not end.
        let held = [searches.acquire(None).await, searches.acquire("192.0.2.1".parse().ok()).await];
        let mut waiting: Vec<_> = (0..70).map(|_| Box::pin(catalog.list(&list, None, &operation))).collect();
        let mut rejected = 0;
        for search in &mut waiting {
            match search.now_or_never() {
                None => {}
                Some(Err(Error::TooManySearches)) => rejected += 1,
                Some(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(rejected, 6, "64 wait");
        let found = catalog.lookup(vec!["MUG".into()], &operation).await.expect("a lookup");
        assert_eq!(found.products.len(), 1);
        let regular = catalog.list(&list, "192.0.2.2".parse().ok(), &operation);
        drop(held);
        assert_eq!(regular.await.expect("served next").len(), 1);
    }

    #[test]
    fn an_etag_changes_with_the_version_and_the_product() {
        let etags: HashSet<_> = [etag("A", 1), etag("A", 2), etag("B", 1)].into();
        assert_eq!(etags.len(), 3);
        assert_eq!(etag("A", 1), product("A").etag());
    }
}
