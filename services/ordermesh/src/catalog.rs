//! The demo catalogue with its stock, loaded on the first local start.

/// SKU, name, description, currency, price in minor units, units in stock.
type Row = (&'static str, &'static str, &'static str, &'static str, i64, i64);

/// Enough stock for any demo run.
const PLENTY: i64 = 1_000_000;

/// A product with one unit in stock: ordering two fails with INSUFFICIENT_STOCK.
pub(crate) const SCARCE: &str = "LAST-ONE";
/// A product in another currency than the rest: ordered with one of them it fails with MIXED_CURRENCIES.
pub(crate) const FOREIGN: &str = "POSTER-NYC";

#[rustfmt::skip]
const ROWS: [Row; 10] = [
    ("MUG-BLUE",     "Blue mug",            "Stoneware, 330 ml, safe in the dishwasher",     "EUR",   1_250, PLENTY),
    ("MUG-RED",      "Red mug",             "Stoneware, 330 ml, safe in the dishwasher",     "EUR",   1_250, PLENTY),
    ("TEAPOT-1L",    "Teapot",              "Glass, one litre, with a strainer",             "EUR",   3_490, PLENTY),
    ("TEA-DARJ-100", "Darjeeling, 100 g",   "First flush, loose leaves",                     "EUR",     890, PLENTY),
    ("COFFEE-500",   "Coffee, 500 g",       "Whole beans, medium roast",                     "EUR",   1_095, PLENTY),
    ("LAMP-DESK",    "Desk lamp",           "Warm white, dimmable, three joints",            "EUR",   7_900, PLENTY),
    ("NOTEBOOK-A5",  "Notebook A5",         "Dotted, 192 pages, sewn",                       "EUR",   1_490, PLENTY),
    ("BIKE-CITY",    "City bicycle",        "Seven gears, step-through frame",               "EUR",  64_900, PLENTY),
    (SCARCE,         "Signed first print",  "Number 1 of 1",                                 "EUR",  19_900,      1),
    (FOREIGN,        "Poster of New York",  "50 by 70 cm, sold in dollars",                  "USD",   2_500, PLENTY),
];

pub(crate) fn products() -> Vec<data::SeedProduct> {
    ROWS.iter()
        .map(|(sku, name, description, currency_code, minor_units, _)| data::SeedProduct {
            sku: (*sku).to_owned(),
            name: (*name).to_owned(),
            description: (*description).to_owned(),
            currency: (*currency_code).to_owned(),
            minor_units: *minor_units,
        })
        .collect()
}

/// The demo products' stock.
pub(crate) fn stock() -> Vec<order::SeedStock> {
    ROWS.iter().map(|(sku, .., on_hand)| order::SeedStock { sku: (*sku).to_owned(), on_hand: *on_hand }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_product_has_stock_and_a_known_currency() {
        let skus: std::collections::BTreeSet<_> = ROWS.iter().map(|row| row.0).collect();
        assert_eq!(skus.len(), ROWS.len());
        for (sku, _, _, currency, price, on_hand) in ROWS {
            assert!(currency.parse::<kernel::Currency>().is_ok(), "{sku}");
            assert!(price > 0 && on_hand > 0, "{sku}");
        }
    }
}
