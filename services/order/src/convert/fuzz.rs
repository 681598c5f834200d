//! Fuzzes every decoder with malformed input: it never panics, and what it accepts round-trips.

use chassis::{Decoded, to_proto};
use contracts::common::v1 as common;
use contracts::order::v1 as proto;
use proptest::prelude::*;
use testkit::{mutations, text};

use super::request::MAX_ITEMS;
use super::*;
use crate::inventory::AdjustStock;
use crate::order::{CreateOrder, Scope};

const ID: &str = "0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e";

fn valid_request() -> proto::CreateOrderRequest {
    proto::CreateOrderRequest {
        request_id: ID.into(),
        items: vec![
            proto::OrderItem { sku: "MUG-BLUE".into(), quantity: 2 },
            proto::OrderItem { sku: "TEA".into(), quantity: 1 },
        ],
        payment_method: "pm_card_visa".into(),
        shipping_address: Some(common::Address {
            recipient: "Ada".into(),
            lines: vec!["Street 1".into()],
            city: "Berlin".into(),
            postal_code: "10115".into(),
            country_code: "DE".into(),
        }),
        contact_email: "ada@example.com".into(),
        expected_total: Some(common::Money { currency_code: "EUR".into(), minor_units: 5 }),
    }
}

/// Encodes a command as its message.
fn request(command: &CreateOrder) -> proto::CreateOrderRequest {
    proto::CreateOrderRequest {
        request_id: command.request_id.to_string(),
        items: command
            .items
            .iter()
            .map(|(sku, quantity)| proto::OrderItem {
                sku: sku.clone(),
                quantity: i32::try_from(*quantity).expect("it came from an i32"),
            })
            .collect(),
        payment_method: command.payment_method.clone().into_inner(),
        shipping_address: Some((&command.address).into()),
        contact_email: command.contact_email.clone(),
        expected_total: command.expected_total.map(to_proto::money),
    }
}

fn check(command: &CreateOrder) {
    assert!((1..=MAX_ITEMS).contains(&command.items.len()));
    assert!(command.items.iter().all(|(_, quantity)| (1..=999).contains(quantity)));
    let again = create_order(request(command)).expect("what was accepted is accepted again");
    assert_eq!(again.violations, None);
    let again = again.command;
    assert_eq!((again.request_id, again.fingerprint()), (command.request_id, command.fingerprint()));
    assert!(!kernel::text::is_blank(&command.address.recipient) && !kernel::text::is_blank(&command.address.city));
}

#[test]
fn the_valid_order_is_accepted() {
    let decoded = create_order(valid_request()).expect("a valid order");
    assert_eq!(decoded.violations, None);
    check(&decoded.command);
}

proptest! {
    #[test]
    fn the_order_of_items_does_not_change_the_fingerprint(
        (given, stored) in Just((0..9_u32).map(|n| (format!("SKU-{n}"), n + 1)).collect::<Vec<_>>())
            .prop_flat_map(|items| (Just(items.clone()).prop_shuffle(), Just(items).prop_shuffle())),
        at in 0..9_usize,
    ) {
        let valid = create_order(valid_request()).expect("a valid order").command;
        let (given, stored) = (CreateOrder { items: given, ..valid.clone() }, CreateOrder { items: stored, ..valid });
        let skus: Vec<&str> = stored.items.iter().map(|(sku, _)| sku.as_str()).collect();
        prop_assert_eq!(given.fingerprint_in_order_of(&skus), stored.fingerprint());
        let mut other = given;
        other.items[at].1 += 1;
        prop_assert_ne!(other.fingerprint_in_order_of(&skus), stored.fingerprint(), "another quantity is another command");
        other.items.remove(at);
        prop_assert_ne!(other.fingerprint_in_order_of(&skus), stored.fingerprint(), "and so is one item fewer");
    }

    #[test]
    fn an_order_is_rejected_or_round_trips(request in mutations(valid_request())) {
        match create_order(request) {
            Ok(Decoded { command, violations: None }) => check(&command),
            Ok(Decoded { violations: Some(invalid), .. }) => prop_assert!(!invalid.0.is_empty(), "a rejection names a field"),
            Err(invalid) => prop_assert!(!invalid.0.is_empty(), "a rejection names a field"),
        }
    }

    #[test]
    fn arbitrary_texts_in_an_order_never_panic(
        id in text(ID), sku in text("MUG"), method in text("pm_card_visa"), email in text("a@b.de"), country in text("DE"),
        quantity in any::<i32>(),
    ) {
        let mut request = proto::CreateOrderRequest { request_id: id, payment_method: method, contact_email: email, ..valid_request() };
        request.items.push(proto::OrderItem { sku, quantity });
        if let Some(address) = &mut request.shipping_address {
            address.country_code = country;
        }
        if let Ok(Decoded { command, violations: None }) = create_order(request) {
            check(&command);
        }
    }

    #[test]
    fn the_other_decoders_never_panic(
        list in mutations(proto::ListOrdersRequest { state: 1, page_size: 5, page_token: "MSBhIGI".into() }),
        watch in mutations(proto::WatchOrderRequest { order_id: ID.into(), after_version: 1 }),
        adjust in mutations(proto::AdjustStockRequest { request_id: ID.into(), sku: "MUG".into(), delta: 5, write_off: true }),
        stock in mutations(proto::BatchGetStockRequest { skus: vec!["MUG".into(), "TEA".into()] }),
        id in text(ID), day in text("2026-03-02"),
    ) {
        if let Ok(list) = list_orders(Scope::All, &list) {
            prop_assert!((1..=200).contains(&list.size));
        }
        if let Ok(watch) = WatchOrder::try_from(watch) {
            prop_assert!(watch.after >= 0);
        }
        if let Ok(adjust) = AdjustStock::try_from(adjust) {
            prop_assert!(adjust.delta != 0);
        }
        if let Ok(skus) = skus(stock.skus) {
            prop_assert!((1..=MAX_ITEMS).contains(&skus.len()));
        }
        if let Ok(read) = order_id(&id) {
            prop_assert_eq!(read.to_string(), id.to_lowercase());
        }
        let _ = date(&day);
    }
}
