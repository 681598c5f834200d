//! Products: lookups, lists and changes.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use contracts::common::v1::Money;
use contracts::data::v1::{ListProductsRequest, Product, UpsertProductRequest};
use tonic::Code;

use crate::world::{World, as_operator, product, rejection, seeds, violations};

fn skus(products: &[Product]) -> Vec<&str> {
    products.iter().map(|product| product.sku.as_str()).collect()
}

async fn list(world: &World, text: &str, page_size: i32, page_token: &str) -> (Vec<String>, String) {
    let request = ListProductsRequest { text: text.into(), page_size, page_token: page_token.into() };
    let page = world.catalog().list_products(request).await.expect("a page").into_inner();
    (page.products.into_iter().map(|product| product.sku).collect(), page.next_page_token)
}

#[tokio::test]
async fn a_lookup_returns_products_in_the_requested_order_and_lists_missing_ones_once() {
    let world = World::new().await;
    let response = world.lookup(&["TEA-GREEN", "NONE", "MUG-BLUE", "TEA-GREEN", "NONE"]).await.expect("a response");
    assert_eq!(skus(&response.products), ["TEA-GREEN", "MUG-BLUE", "TEA-GREEN"]);
    assert_eq!(response.missing_skus, ["NONE"]);
    let mug = &response.products[1];
    assert_eq!(mug.price, Some(Money { currency_code: "EUR".into(), minor_units: 1_299 }));
    assert!(!mug.etag.is_empty() && mug.update_time.is_some());
}

#[tokio::test]
async fn a_lookup_with_invalid_skus_is_rejected_with_every_violation() {
    let world = World::new().await;
    let rejected = rejection(world.lookup(&["mug", "MUG-BLUE", ""]).await);
    let expected = violations(&[("skus[0]", "INVALID_SKU"), ("skus[2]", "INVALID_SKU")]);
    assert_eq!(rejected, (Code::InvalidArgument, "INVALID_ARGUMENT".into(), expected));
    for invalid in [vec![], vec!["MUG-BLUE"; 101]] {
        let (_, _, found) = rejection(world.lookup(&invalid).await);
        assert_eq!(found, violations(&[("skus", "INVALID_LENGTH")]));
    }
    assert_eq!(world.lookup(&["MUG-BLUE"; 100]).await.expect("a response").products.len(), 100);
}

#[tokio::test]
async fn pages_reach_the_end_without_gaps_or_repetitions() {
    let world = World::with(&[], vec![]).await;
    let all: Vec<String> = (0..7).map(|number| format!("P-{number}")).collect();
    for sku in &all {
        world.upsert(product(sku)).await.expect("stored");
    }
    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let (page, next) = list(&world, "p-", 3, &token).await;
        assert!(page.len() <= 3);
        listed.extend(page);
        if next.is_empty() {
            break;
        }
        token = next;
    }
    assert_eq!(listed, all);
    assert_eq!(list(&world, "p-", 0, &token).await.0, all[6..], "the token is valid with another page size");
}

/// A page token is not signed: a client can forge one.
#[tokio::test]
async fn a_page_token_with_an_invalid_sku_is_rejected() {
    let world = World::new().await;
    let (_, token) = list(&world, "", 1, "").await;
    let valid = String::from_utf8(URL_SAFE_NO_PAD.decode(token).expect("base64")).expect("a text");
    for (key, is_sound) in [("A", true), ("A\0B", false), ("a", false), ("", false)] {
        let page_token = URL_SAFE_NO_PAD.encode(valid.replace("MUG-BLUE", key));
        let request = ListProductsRequest { page_token, ..Default::default() };
        match world.catalog().list_products(request).await {
            Ok(_) => assert!(is_sound, "{key:?}"),
            Err(rejected) => {
                let expected = violations(&[("page_token", "INVALID_PAGE_TOKEN")]);
                let found = rejection(Err::<tonic::Response<()>, _>(rejected));
                assert_eq!(found, (Code::InvalidArgument, "INVALID_ARGUMENT".into(), expected), "{key:?}");
                assert!(!is_sound, "{key:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_token_of_other_filters_and_a_negative_page_size_are_reported_together() {
    let world = World::new().await;
    let (_, token) = list(&world, "", 1, "").await;
    let request = ListProductsRequest { text: "mug".into(), page_size: -1, page_token: token };
    let (code, _, found) = rejection(world.catalog().list_products(request).await);
    assert_eq!(code, Code::InvalidArgument);
    let expected = [("page_size", "NEGATIVE_PAGE_SIZE"), ("page_token", "PAGE_TOKEN_OF_OTHER_FILTERS")];
    assert_eq!(found, violations(&expected));
}

#[tokio::test]
async fn the_text_filter_ignores_case_and_escapes_wildcards() {
    let world = World::new().await;
    let found = async |text: &str| list(&world, text, 0, "").await.0;
    assert_eq!(found("BLUE m").await, ["MUG-BLUE"]);
    assert_eq!(found("tea").await, ["MUG-BLUE", "TEA-GREEN"], "in a description and in a SKU");
    assert_eq!(found("täA").await, ["TEA-GREEN"], "also outside ASCII");
    assert_eq!(found("ta\u{308}a").await, ["TEA-GREEN"], "in the other normal form");
    assert_eq!(found("100%").await, ["MUG-BLUE"]);
    for nothing in ["%g", "M_G", "!", "blue mugholds"] {
        assert_eq!(found(nothing).await, [""; 0], "{nothing}");
    }
}

#[tokio::test]
async fn a_product_is_created_once_and_replaced_only_with_its_current_etag() {
    let world = World::new().await;
    let made = world.upsert(product("POT-RED")).await.expect("made");
    let mismatch = || (Code::Aborted, "ETAG_MISMATCH".to_owned(), vec![]);
    assert_eq!(rejection(world.upsert(product("POT-RED")).await), mismatch(), "the product exists");
    let dearer = Product { price: Some(Money { currency_code: "EUR".into(), minor_units: 150 }), ..made.clone() };
    let replaced = world.upsert(dearer.clone()).await.expect("replaced");
    assert_ne!(replaced.etag, made.etag);
    assert_eq!(rejection(world.upsert(dearer).await), mismatch(), "the etag is outdated");
    let unknown = Product { etag: made.etag, ..product("POT-BLUE") };
    assert_eq!(rejection(world.upsert(unknown).await), mismatch(), "no such product");
    assert_eq!(world.lookup(&["POT-RED", "POT-BLUE"]).await.expect("a response").products, [replaced]);
}

#[tokio::test]
async fn of_two_concurrent_replacements_of_a_product_one_wins() {
    let world = World::new().await;
    let listed = world.upsert(product("POT-RED")).await.expect("made");
    let rename = |name: &str| world.upsert(Product { name: name.into(), ..listed.clone() });
    let (one, two) = tokio::join!(rename("One"), rename("Two"));
    let winner = match (one, two) {
        (Ok(winner), Err(status)) | (Err(status), Ok(winner)) => {
            assert_eq!(status.code(), Code::Aborted);
            winner
        }
        both => panic!("one must win: {both:?}"),
    };
    assert_eq!(world.lookup(&["POT-RED"]).await.expect("a response").products, [winner]);
}

#[tokio::test]
async fn an_invalid_product_is_rejected_with_all_violations_and_not_stored() {
    let world = World::new().await;
    let price = Some(Money { currency_code: "EURO".into(), minor_units: 1_000_000_001 });
    let invalid =
        Product { sku: "pot".into(), name: "x".repeat(201), description: "\n".into(), price, ..Product::default() };
    let expected = violations(&[
        ("product.sku", "INVALID_SKU"),
        ("product.name", "INVALID_LENGTH"),
        ("product.description", "CONTROL_CHARACTER"),
        ("product.price.currency_code", "UNKNOWN_CURRENCY"),
    ]);
    assert_eq!(rejection(world.upsert(invalid).await), (Code::InvalidArgument, "INVALID_ARGUMENT".into(), expected));
    let nothing = world.catalog().upsert_product(as_operator(UpsertProductRequest { product: None })).await;
    assert_eq!(rejection(nothing).2, violations(&[("product", "REQUIRED")]));
    assert_eq!(list(&world, "", 0, "").await.0, ["MUG-BLUE", "TEA-GREEN"]);
}

#[tokio::test]
async fn a_blank_name_and_a_price_above_its_currencys_limit_are_rejected() {
    let world = World::new().await;
    let price = |code: &str, minor_units| Some(Money { currency_code: code.into(), minor_units });
    let blank = Product { name: "\u{200b} \u{3164}".into(), price: price("EUR", 1_000_000_001), ..product("POT-RED") };
    let expected = violations(&[("product.name", "REQUIRED"), ("product.price.minor_units", "OUT_OF_RANGE")]);
    assert_eq!(rejection(world.upsert(blank).await), (Code::InvalidArgument, "INVALID_ARGUMENT".into(), expected));
    let dong = Product { price: price("VND", 25_000_000_000), ..product("POT-RED") };
    world.upsert(dong).await.expect("a price of less than a million euros");
}

#[tokio::test]
async fn only_an_empty_catalogue_is_seeded_at_startup() {
    let world = World::new().await;
    let mut mug = world.lookup(&["MUG-BLUE"]).await.expect("a response").products.remove(0);
    mug.name = "Very blue mug".into();
    let mug = world.upsert(mug).await.expect("replaced");
    let mut others = seeds();
    others[1].sku = "TEA-WHITE".into();
    let world = world.restart(&[], others).await;
    let response = world.lookup(&["MUG-BLUE", "TEA-WHITE"]).await.expect("a response");
    assert_eq!(response.products, [mug], "the change is kept");
    assert_eq!(response.missing_skus, ["TEA-WHITE"]);
}
