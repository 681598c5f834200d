//! The catalogue's messages, from and to values, with all checks of their fields.

use chassis::decode;
use chassis::page::{self, Page};
use chassis::{Fields, Fingerprint, Invalid, PageToken, to_proto};
use contracts::common::v1 as common;
use contracts::data::v1 as proto;

use crate::SeedProduct;
use crate::catalog::{
    Draft, ListProducts, Lookup, MAX_DESCRIPTION_CHARS, MAX_NAME_CHARS, MAX_PRICE_EUROS, MAX_SKUS, Product, Upsert,
};
use crate::delivery::{Destination, Estimate};

/// Products per page: the default and the maximum.
const PAGE: (u32, u32) = (50, 200);
/// Maximum characters of a text filter.
const MAX_FILTER_CHARS: usize = 200;
/// Maximum characters of a postal code.
const MAX_POSTAL_CHARS: usize = 20;
/// Maximum characters of an etag; those of this service have 16.
const MAX_ETAG_CHARS: usize = 64;

/// The SKUs of a lookup.
pub(crate) struct Skus(pub(crate) Vec<String>);

impl TryFrom<proto::BatchGetProductsRequest> for Skus {
    type Error = Invalid;

    fn try_from(request: proto::BatchGetProductsRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        if request.skus.is_empty() || request.skus.len() > MAX_SKUS {
            fields.reject("skus", "INVALID_LENGTH", format!("must have 1 to {MAX_SKUS} SKUs"));
        }
        for (index, sku) in request.skus.iter().take(MAX_SKUS).enumerate() {
            fields.sku(format!("skus[{index}]"), sku);
        }
        fields.finish(Some(Self(request.skus)))
    }
}

impl TryFrom<proto::ListProductsRequest> for ListProducts {
    type Error = Invalid;

    fn try_from(request: proto::ListProductsRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let page_size = page::page_size(&mut fields, request.page_size, PAGE.0, PAGE.1);
        let text = fields.text("text", &request.text, 0, MAX_FILTER_CHARS);
        let filters = Fingerprint::of("ListProducts/1").part("text", &request.text);
        let page = PageToken::decode(&mut fields, &request.page_token, filters, |key| {
            decode::is_sku(key).then(|| key.to_owned())
        });
        fields.finish(text.map(|text| Self { text: kernel::text::search_key(&text), page_size, page }))
    }
}

impl TryFrom<proto::UpsertProductRequest> for Upsert {
    type Error = Invalid;

    fn try_from(request: proto::UpsertProductRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let Some(product) = request.product else {
            fields.reject("product", "REQUIRED", "a product is required");
            return fields.finish(None);
        };
        let etag = fields.text("product.etag", &product.etag, 0, MAX_ETAG_CHARS);
        let draft = draft(&mut fields, "product.", &product);
        fields.finish(draft.zip(etag).map(|(draft, etag)| Self { draft, etag }))
    }
}

impl TryFrom<&SeedProduct> for Draft {
    type Error = Invalid;

    fn try_from(seed: &SeedProduct) -> Result<Self, Invalid> {
        let price = common::Money { currency_code: seed.currency.clone(), minor_units: seed.minor_units };
        let product = proto::Product {
            sku: seed.sku.clone(),
            name: seed.name.clone(),
            description: seed.description.clone(),
            price: Some(price),
            ..proto::Product::default()
        };
        let mut fields = Fields::default();
        let draft = draft(&mut fields, "", &product);
        fields.finish(draft)
    }
}

fn draft(fields: &mut Fields, prefix: &str, product: &proto::Product) -> Option<Draft> {
    let sku = fields.sku(format!("{prefix}sku"), &product.sku);
    let name = fields.text(&format!("{prefix}name"), &product.name, 1, MAX_NAME_CHARS);
    let description = fields.text(&format!("{prefix}description"), &product.description, 0, MAX_DESCRIPTION_CHARS);
    let price = fields.money(&format!("{prefix}price"), product.price.as_ref());
    if let Some(given) = &product.price {
        // Minor units depend on the currency; if it is unknown, only the sign can be checked.
        let max = price.map(|price| price.currency().roughly(MAX_PRICE_EUROS));
        if given.minor_units < 1 || max.is_some_and(|max| given.minor_units > max.minor_units()) {
            let bound = max.map(|max| format!(" and at most {} ({max})", max.minor_units())).unwrap_or_default();
            fields.reject(format!("{prefix}price.minor_units"), "OUT_OF_RANGE", format!("must be at least 1{bound}"));
        }
    }
    Some(Draft { sku: sku?, name: name?, description: description?, price: price? })
}

impl TryFrom<proto::GetDeliveryEstimateRequest> for Destination {
    type Error = Invalid;

    fn try_from(request: proto::GetDeliveryEstimateRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let country = fields.country("country_code", &request.country_code);
        let postal_code = fields.text("postal_code", &request.postal_code, 0, MAX_POSTAL_CHARS);
        let dispatch = fields.instant("dispatch_time", request.dispatch_time.as_ref());
        fields.finish(country.zip(postal_code).map(|(country, postal_code)| Self { country, postal_code, dispatch }))
    }
}

impl From<Product> for proto::Product {
    fn from(product: Product) -> Self {
        let etag = product.etag();
        Self {
            etag,
            sku: product.draft.sku,
            name: product.draft.name,
            description: product.draft.description,
            price: Some(to_proto::money(product.draft.price)),
            update_time: Some(to_proto::timestamp(product.update_time)),
        }
    }
}

impl From<Lookup> for proto::BatchGetProductsResponse {
    fn from(lookup: Lookup) -> Self {
        Self { products: lookup.products.into_iter().map(Into::into).collect(), missing_skus: lookup.missing }
    }
}

/// A page from the products read, one more than its size.
pub(crate) fn products(read: Vec<Product>, list: &ListProducts) -> proto::ListProductsResponse {
    let next = |last: &proto::Product| list.page.next(&last.sku);
    let Page { entries, next_page_token } = Page::from_rows(read, list.page_size, proto::Product::from, next);
    proto::ListProductsResponse { products: entries, next_page_token }
}

impl From<Product> for proto::UpsertProductResponse {
    fn from(product: Product) -> Self {
        Self { product: Some(product.into()) }
    }
}

impl From<Estimate> for proto::GetDeliveryEstimateResponse {
    fn from(Estimate { rule, date }: Estimate) -> Self {
        let delivery_date =
            common::Date { year: date.year(), month: u8::from(date.month()).into(), day: date.day().into() };
        Self {
            zone: rule.zone,
            transit_business_days: rule.transit_business_days.into(),
            cutoff_hour_utc: rule.cutoff_hour_utc.into(),
            delivery_date: Some(delivery_date),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn the_limits_equal_the_contracts_and_the_largest_request_fits_into_a_message() {
        let limits = |path: &str| contracts::POLICIES.find(path).expect("a method").limits;
        let skus = limits("/data.v1.CatalogService/BatchGetProducts");
        assert_eq!(skus.iter().map(|limit| (limit.field, limit.max_items)).collect::<Vec<_>>(), [("skus", MAX_SKUS)]);
        let product = proto::Product {
            sku: "X".repeat(64),
            name: "😀".repeat(MAX_NAME_CHARS),
            description: "😀".repeat(MAX_DESCRIPTION_CHARS),
            ..mug()
        };
        let request = proto::UpsertProductRequest { product: Some(product) };
        assert!(request.encoded_len() < mesh::DEFAULT_MAX_MESSAGE_BYTES / 4, "{}", request.encoded_len());
    }

    fn fields_of<T>(result: Result<T, Invalid>) -> Vec<(String, &'static str)> {
        match result {
            Ok(_) => vec![],
            Err(Invalid(violations)) => violations.into_iter().map(|it| (it.field, it.reason)).collect(),
        }
    }

    fn mug() -> proto::Product {
        proto::Product {
            sku: "MUG-BLUE".into(),
            name: "Blue mug".into(),
            description: "Holds tea.".into(),
            price: Some(common::Money { currency_code: "EUR".into(), minor_units: 1_299 }),
            ..proto::Product::default()
        }
    }

    #[test]
    fn a_lookup_has_one_to_a_hundred_valid_skus() {
        let of = |skus: Vec<&str>| {
            let skus = skus.into_iter().map(String::from).collect();
            fields_of(Skus::try_from(proto::BatchGetProductsRequest { skus }))
        };
        assert_eq!(of(vec!["A"; 100]), []);
        assert_eq!(of(vec![]), [("skus".into(), "INVALID_LENGTH")]);
        assert_eq!(of(vec!["A"; 101]), [("skus".into(), "INVALID_LENGTH")]);
        assert_eq!(of(vec!["A", "b", ""]), [("skus[1]".into(), "INVALID_SKU"), ("skus[2]".into(), "INVALID_SKU")]);
    }

    /// A product of the largest possible size.
    fn largest(sku: usize) -> Product {
        let product = proto::Product {
            sku: format!("{sku:0>64}"),
            name: "😀".repeat(MAX_NAME_CHARS),
            description: "😀".repeat(MAX_DESCRIPTION_CHARS),
            price: Some(common::Money { currency_code: "EUR".into(), minor_units: MAX_PRICE_EUROS * 100 }),
            ..mug()
        };
        let upsert = Upsert::try_from(proto::UpsertProductRequest { product: Some(product) }).expect("valid");
        Product { draft: upsert.draft, version: i64::MAX, update_time: kernel::Timestamp::default() }
    }

    #[test]
    fn responses_with_the_largest_products_fit_into_a_clients_default_limit() {
        let request = proto::ListProductsRequest { page_size: i32::MAX, ..Default::default() };
        let page = products((0..201).map(largest).collect(), &ListProducts::try_from(request).expect("valid"));
        assert_eq!(page.products.len(), 200);
        assert!(!page.next_page_token.is_empty() && page.encoded_len() < 4_194_304, "{}", page.encoded_len());
        let missing = (0..MAX_SKUS).map(|sku| format!("{sku:0>64}")).collect();
        let found =
            proto::BatchGetProductsResponse::from(Lookup { products: (0..MAX_SKUS).map(largest).collect(), missing });
        assert!(found.encoded_len() < 4_194_304, "{}", found.encoded_len());
    }

    #[test]
    fn a_product_at_the_limits_is_valid() {
        let product = proto::Product {
            name: "é".repeat(200),
            description: "é".repeat(2_000),
            price: Some(common::Money { currency_code: "JPY".into(), minor_units: 1_700_000_000 }),
            ..mug()
        };
        assert_eq!(fields_of(Upsert::try_from(proto::UpsertProductRequest { product: Some(product) })), []);
    }

    #[test]
    fn all_violations_of_a_product_are_reported_together() {
        let product = proto::Product {
            sku: "mug".into(),
            name: String::new(),
            description: "x".repeat(2_001),
            price: Some(common::Money { currency_code: "EURO".into(), minor_units: 0 }),
            etag: "e".repeat(65),
            ..proto::Product::default()
        };
        let violations = fields_of(Upsert::try_from(proto::UpsertProductRequest { product: Some(product) }));
        let expected = [
            ("product.etag", "INVALID_LENGTH"),
            ("product.sku", "INVALID_SKU"),
            ("product.name", "REQUIRED"),
            ("product.description", "INVALID_LENGTH"),
            ("product.price.currency_code", "UNKNOWN_CURRENCY"),
            ("product.price.minor_units", "OUT_OF_RANGE"),
        ];
        assert_eq!(violations, expected.map(|(field, reason)| (field.to_owned(), reason)));
        let nothing = proto::UpsertProductRequest { product: None };
        assert_eq!(fields_of(Upsert::try_from(nothing)), [("product".into(), "REQUIRED")]);
    }

    #[test]
    fn a_price_is_positive_and_not_above_the_limit_of_its_currency() {
        for (code, minor_units, is_valid) in [
            ("EUR", 1, true),
            ("EUR", 1_000_000_000, true),
            ("EUR", 0, false),
            ("EUR", -1, false),
            ("EUR", 1_000_000_001, false),
            ("VND", 25_000_000_000, true),
            ("IDR", 18_000_000_000_000, true),
            ("IDR", 18_000_000_000_001, false),
            ("KWD", 3_500_000_001, false),
        ] {
            let price = Some(common::Money { currency_code: code.into(), minor_units });
            let request = proto::UpsertProductRequest { product: Some(proto::Product { price, ..mug() }) };
            let rejected = Upsert::try_from(request).err();
            assert_eq!(rejected.is_none(), is_valid, "{code} {minor_units}");
            if let Some(Invalid(violations)) = rejected {
                let max = code.parse::<kernel::Currency>().expect("a currency").roughly(MAX_PRICE_EUROS);
                assert!(violations[0].description.contains(&max.to_string()), "{}", violations[0].description);
            }
        }
    }

    #[test]
    fn the_highest_prices_of_the_largest_order_do_not_overflow() {
        for code in ["EUR", "IDR", "VND", "KWD", "COP"] {
            let max = code.parse::<kernel::Currency>().expect("a currency").roughly(MAX_PRICE_EUROS);
            assert!(max.checked_mul(999 * 100).is_ok(), "{code}");
        }
    }

    #[test]
    fn a_products_texts_are_not_blank_and_a_search_is_normalized() {
        for (name, reason) in [
            ("\u{a0}\u{200b}", "REQUIRED"),
            ("Mug\u{202e}", "MISLEADING_CHARACTER"),
            ("Mug\u{2028}", "MISLEADING_CHARACTER"),
        ] {
            let request = proto::UpsertProductRequest { product: Some(proto::Product { name: name.into(), ..mug() }) };
            assert_eq!(fields_of(Upsert::try_from(request)), [("product.name".into(), reason)]);
        }
        let search = |text: &str| {
            let request = proto::ListProductsRequest { text: text.into(), ..Default::default() };
            ListProducts::try_from(request).expect("valid").text
        };
        assert_eq!(search("Cafe\u{301}"), search("CAF\u{c9}"));
    }

    #[test]
    fn a_destination_needs_a_country_code_and_a_valid_time() {
        let request = proto::GetDeliveryEstimateRequest {
            country_code: "Germany".into(),
            postal_code: "1".repeat(21),
            dispatch_time: Some(prost_types::Timestamp { seconds: -1, nanos: 0 }),
        };
        let fields: Vec<_> = fields_of(Destination::try_from(request)).into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["country_code", "postal_code", "dispatch_time"]);
    }
}

#[cfg(test)]
mod fuzz;
