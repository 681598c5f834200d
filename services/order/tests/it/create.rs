//! CreateOrder: a rejected call changes nothing; retries of a request create one order.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kernel::OrderId;
use order::Error;
use order::lifecycle::State;
use storage::Error as StorageError;
use telemetry::{ErrorType, EventStatus};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::world::{GUARD, World, eur, new_user, order_of};

/// Asserts that nothing has changed.
async fn nothing_has_changed(world: &World) {
    world.settle().await;
    let orders = world.orders.list(order::order::Scope::All, None, None, 200).await.expect("a list");
    assert_eq!(orders, []);
    assert_eq!((world.stock("MUG").await, world.stock("PLATE").await), ((10, 0), (10, 0)));
    assert_eq!(world.events().await, []);
    assert_eq!(world.payments.calls(), []);
}

/// The class and the reason of the event of the only rejection.
fn last_event(world: &World) -> (String, String) {
    let unclaimed = world.unclaimed.0.lock();
    let [ended] = &unclaimed[..] else { panic!("one rejection: {unclaimed:?}") };
    let event = &ended.event;
    assert_eq!((event.event_type.as_str(), event.status), ("order_creation", EventStatus::Failed));
    assert!(event.order_id.is_some(), "the id is generated first");
    assert_eq!(event.user_id, Some(world.user.as_uuid()));
    let error = event.error.clone().expect("a failed event has an error");
    (error.error_type, error.reason)
}

#[tokio::test]
async fn insufficient_stock_is_rejected_with_all_skus_that_are_short() {
    let world = World::new().await;
    let rejection = world.create(order_of(&[("MUG", 11), ("PLATE", 10), ("SPOON", 1)])).await.expect_err("rejected");
    assert!(matches!(&rejection, Error::InsufficientStock { skus } if skus == "MUG, SPOON"), "{rejection}");
    assert_eq!(last_event(&world), ("FAILED_PRECONDITION".into(), "INSUFFICIENT_STOCK".into()));
    nothing_has_changed(&world).await;
}

#[tokio::test]
async fn all_unknown_skus_are_reported() {
    let world = World::new().await;
    let rejection = world.create(order_of(&[("FORK", 1), ("MUG", 1), ("KNIFE", 1)])).await.expect_err("rejected");
    let Error::UnknownSku(invalid) = rejection else { panic!("{rejection}") };
    let named: Vec<_> = invalid.0.iter().map(|v| (v.field.as_str(), v.reason, v.description.as_str())).collect();
    assert_eq!(named, [("items[0].sku", "UNKNOWN_SKU", "FORK"), ("items[2].sku", "UNKNOWN_SKU", "KNIFE")]);
    assert_eq!(last_event(&world), ("ValidationError".into(), "UNKNOWN_SKU".into()));
    nothing_has_changed(&world).await;
}

#[tokio::test]
async fn two_currencies_in_one_order_are_rejected() {
    let world = World::new().await;
    let rejection = world.create(order_of(&[("MUG", 1), ("VASE", 1)])).await.expect_err("rejected");
    assert!(matches!(&rejection, Error::MixedCurrencies { currencies } if currencies == "EUR, USD"), "{rejection}");
    nothing_has_changed(&world).await;
}

#[tokio::test]
async fn a_changed_price_is_rejected_if_the_request_has_an_expected_total() {
    let world = World::new().await;
    let mut command = order_of(&[("MUG", 2)]);
    command.expected_total = Some(eur(2_400));
    let rejection = world.create(command).await.expect_err("rejected");
    assert!(matches!(&rejection, Error::PriceChanged { .. }), "{rejection}");
    assert_eq!(last_event(&world), ("FAILED_PRECONDITION".into(), "PRICE_CHANGED".into()));
    nothing_has_changed(&world).await;
    let mut command = order_of(&[("MUG", 2)]);
    command.expected_total = Some(eur(2_500));
    assert_eq!(world.create(command).await.expect("the expected total").total, eur(2_500));
    world.settle().await;
}

#[tokio::test]
async fn a_total_that_overflows_is_rejected() {
    let world = World::new().await;
    world.catalog.prices.lock().insert("MUG".into(), eur(i64::MAX));
    let rejection = world.create(order_of(&[("MUG", 2)])).await.expect_err("rejected");
    assert!(matches!(rejection, Error::AmountTooLarge { total: None, .. }), "{rejection}");
    nothing_has_changed(&world).await;
}

#[tokio::test]
async fn a_total_above_the_limit_of_its_currency_is_rejected_before_the_order_is_acknowledged() {
    let world = World::new().await;
    let price = |code: &str, minor_units| {
        let price = kernel::Money::new(code.parse().expect("a currency"), minor_units);
        world.catalog.prices.lock().insert("MUG".into(), price);
    };
    price("EUR", 5_000_001);
    let rejection = world.create(order_of(&[("MUG", 2)])).await.expect_err("rejected");
    assert_eq!(rejection.to_string(), "the order's total is above 100000.00 EUR, the limit in EUR");
    nothing_has_changed(&world).await;
    // Ten million of a small currency unit are an ordinary order.
    price("VND", 12_000_000);
    assert_eq!(world.create(order_of(&[("MUG", 2)])).await.expect("an order").total.to_string(), "24000000 VND");
    world.settle().await;
}

#[tokio::test]
async fn an_order_outside_the_delivery_zones_is_rejected() {
    let world = World::new().await;
    let mut command = order_of(&[("MUG", 1)]);
    command.address.country_code = "AQ".into();
    let rejection = world.create(command).await.expect_err("rejected");
    assert!(matches!(&rejection, Error::NoDeliveryZone { country } if country == "AQ"), "{rejection}");
    nothing_has_changed(&world).await;
}

#[tokio::test]
async fn a_failed_lookup_changes_nothing_and_its_request_may_be_retried() {
    let world = World::new().await;
    world.catalog.is_down.store(true, Ordering::SeqCst);
    let command = order_of(&[("MUG", 1)]);
    let rejection = world.create(command.clone()).await.expect_err("rejected");
    assert!(matches!(&rejection, Error::LookupFailed { cause: ErrorType::ConnectionError }), "{rejection}");
    assert_eq!(last_event(&world), ("CONNECTION_ERROR".into(), "LOOKUP_FAILED".into()));
    nothing_has_changed(&world).await;
    world.catalog.is_down.store(false, Ordering::SeqCst);
    world.create(command).await.expect("a rejected call stores nothing");
    world.settle().await;
}

#[tokio::test]
async fn of_two_orders_for_the_last_items_exactly_one_wins() {
    let world = World::on_file().await;
    let (one, other) = tokio::join!(world.create(order_of(&[("MUG", 6)])), world.create(order_of(&[("MUG", 6)])));
    let (won, lost) = if one.is_ok() { (one, other) } else { (other, one) };
    assert!(matches!(lost, Err(Error::InsufficientStock { .. })), "{lost:?}");
    world.settle().await;
    assert_eq!(world.state(won.expect("one has won").id).await, State::FulfillmentStarted);
    assert_eq!(world.stock("MUG").await, (10, 6));
}

#[tokio::test]
async fn concurrent_customers_get_exactly_the_stock_on_hand() {
    let world = World::on_file().await;
    let all =
        futures_util::future::join_all((0..25).map(|_| world.create_for(new_user(), order_of(&[("MUG", 1)])))).await;
    let won = all.iter().filter(|result| result.is_ok()).count();
    assert_eq!(won, 10);
    assert!(all.iter().all(|result| matches!(result, Ok(_) | Err(Error::InsufficientStock { .. }))));
    world.settle().await;
    assert_eq!(world.stock("MUG").await, (10, 10));
}

#[tokio::test]
async fn the_same_request_is_the_same_order() {
    let world = World::new().await;
    let command = order_of(&[("MUG", 2)]);
    let first = world.create(command.clone()).await.expect("an order");
    world.settle().await;
    let again = world.create(command).await.expect("the order");
    world.settle().await;
    assert_eq!((again.id, again.state), (first.id, State::FulfillmentStarted), "as it is now");
    assert_eq!(world.stock("MUG").await, (10, 2));
    assert_eq!(world.payments.calls().len(), 1);
    assert!(world.unclaimed.0.lock().is_empty(), "a replay has no event");
}

#[tokio::test]
async fn a_replay_returns_its_order_even_if_the_command_would_be_rejected_by_now() {
    let world = World::new().await;
    let mut command = order_of(&[("MUG", 10)]);
    command.expected_total = Some(eur(12_500));
    let first = world.create(command.clone()).await.expect("an order");
    world.settle().await;
    assert_eq!(world.create(command.clone()).await.expect("sold out by its own order").id, first.id);
    world.catalog.prices.lock().insert("MUG".into(), eur(1));
    assert_eq!(world.create(command.clone()).await.expect("another price").id, first.id);
    world.catalog.prices.lock().remove("MUG");
    assert_eq!(world.create(command.clone()).await.expect("no such product any more").id, first.id);
    world.catalog.is_down.store(true, Ordering::SeqCst);
    assert_eq!(world.create(command.clone()).await.expect("the catalogue is down").id, first.id);
    let mut other = command;
    other.items = vec![("MUG".into(), 1)];
    assert!(matches!(world.create(other).await, Err(Error::RequestIdReused)), "whatever else is wrong with it");
    world.settle().await;
    let unclaimed = world.unclaimed.0.lock();
    assert_eq!(unclaimed.len(), 1, "only the rejection has an event: {unclaimed:?}");
}

#[tokio::test]
async fn the_items_of_a_retry_may_be_in_another_order() {
    let world = World::new().await;
    let command = order_of(&[("MUG", 2), ("PLATE", 1)]);
    let first = world.create(command.clone()).await.expect("an order");
    let mut reordered = command.clone();
    reordered.items.reverse();
    assert_eq!(world.create(reordered.clone()).await.expect("the same command").id, first.id);
    reordered.items[0].1 += 1;
    assert!(matches!(world.create(reordered).await, Err(Error::RequestIdReused)), "another quantity");
    world.settle().await;
    assert_eq!((world.stock("MUG").await, world.stock("PLATE").await), ((10, 2), (10, 1)));
}

#[tokio::test]
async fn concurrent_retries_of_a_request_create_one_order() {
    let world = World::on_file().await;
    let command = order_of(&[("MUG", 2)]);
    let calls = (0..8).map(|_| world.create(command.clone()));
    let all = futures_util::future::join_all(calls).await;
    let ids: std::collections::BTreeSet<OrderId> = all.into_iter().map(|order| order.expect("the order").id).collect();
    assert_eq!(ids.len(), 1);
    world.settle().await;
    assert_eq!(world.stock("MUG").await, (10, 2));
    assert!(world.unclaimed.0.lock().is_empty(), "a replay has no event");
}

#[tokio::test]
async fn a_request_id_of_another_command_is_rejected_and_one_of_another_customer_is_not() {
    let world = World::new().await;
    let command = order_of(&[("MUG", 2)]);
    world.create(command.clone()).await.expect("an order");
    let mut other = command.clone();
    other.items = vec![("MUG".into(), 3)];
    let rejection = world.create(other).await.expect_err("rejected");
    assert!(matches!(rejection, Error::RequestIdReused), "{rejection}");
    let mut other = command.clone();
    other.contact_email = "eve@example.com".into();
    assert!(matches!(world.create(other).await, Err(Error::RequestIdReused)));
    world.create_for(new_user(), command).await.expect("another customer's request id");
    world.settle().await;
    assert_eq!(world.stock("MUG").await, (10, 4));
}

#[tokio::test]
async fn an_order_is_driven_even_if_its_client_disconnects_during_the_commit() {
    let world = World::on_file().await;
    // Hold the store's only writer.
    let (holding, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (db, signals) = (world.db.clone(), (holding.clone(), gate.clone()));
    let holder = tokio::spawn(async move {
        db.transact(signals, |_tx, (held, release)| {
            Box::pin(async move {
                held.notify_one();
                release.notified().await;
                Ok::<_, StorageError>(())
            })
        })
        .await
    });
    timeout(GUARD, holding.notified()).await.expect("the writer is held");
    tokio::select! {
        biased;
        _ = world.create(order_of(&[("MUG", 2)])) => panic!("it cannot commit"),
        // The lookups are done; it waits for the writer.
        () = world.catalog.looked_up.notified() => {}
    }
    gate.notify_one();
    holder.await.expect("it stops").expect("it commits");
    timeout(GUARD, world.payments.called(1)).await.expect("the order is driven, and its lease has not expired");
    world.settle().await;
    let orders = world.orders.list(order::order::Scope::All, None, None, 10).await.expect("a list");
    let [order] = &orders[..] else { panic!("one order: {orders:?}") };
    assert_eq!(order.state, State::FulfillmentStarted);
}
