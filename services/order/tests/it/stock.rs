//! Stock: adjusted once per request, never below what is reserved, written off from the newest order first.

use order::Error;
use order::inventory::{AdjustStock, Stock};
use order::lifecycle::State;
use order::order::LineState;
use telemetry::EventStatus;

use crate::fakes::ChargeState;
use crate::world::{LEASE, World, new_request};

#[tokio::test]
async fn an_adjustment_adds_or_removes_stock() {
    let world = World::new().await;
    let adjusted = world.adjust("MUG", 5, false).await.expect("added");
    assert_eq!((adjusted.stock.on_hand, adjusted.stock.reserved, adjusted.lost_lines), (15, 0, 0));
    world.adjust("MUG", -15, false).await.expect("removed");
    assert_eq!(world.stock("MUG").await, (0, 0));
    world.adjust("FORK", 3, false).await.expect("a new SKU");
    let skus = ["FORK", "KNIFE", "PLATE"].map(str::to_owned);
    let stocks = world.inventory.stock(&skus).await.expect("the store is readable");
    let expected = [("FORK", 3), ("KNIFE", 0), ("PLATE", 10)];
    let expected = expected.map(|(sku, on_hand)| Stock { sku: sku.into(), on_hand, reserved: 0 });
    assert_eq!(stocks, expected, "in the requested order; unknown SKUs are zero");
}

#[tokio::test]
async fn stock_cannot_become_negative() {
    let world = World::new().await;
    for write_off in [false, true] {
        let rejection = world.adjust("MUG", -11, write_off).await.expect_err("rejected");
        assert!(matches!(&rejection, Error::StockNegative { on_hand: 10, .. }), "{rejection}");
        let rejection = world.adjust("FORK", -1, write_off).await.expect_err("rejected");
        assert!(matches!(&rejection, Error::StockNegative { on_hand: 0, .. }), "{rejection}");
    }
    assert_eq!((world.stock("MUG").await, world.stock("FORK").await), ((10, 0), (0, 0)));
}

#[tokio::test]
async fn reserved_stock_is_taken_only_by_a_write_off_and_from_the_newest_order_first() {
    let world = World::new().await;
    let (old, new) = (world.abandoned_order().await, world.abandoned_order().await);
    let rejection = world.adjust("MUG", -7, false).await.expect_err("rejected");
    assert!(matches!(&rejection, Error::StockReserved { reserved: 4, .. }), "{rejection}");
    assert_eq!(world.stock("MUG").await, (10, 4));
    let adjusted = world.adjust("MUG", -7, true).await.expect("written off");
    assert_eq!((adjusted.stock.on_hand, adjusted.stock.reserved, adjusted.lost_lines), (3, 2, 1));
    assert_eq!(world.order(new).await.lines[0].state, LineState::Lost);
    assert_eq!(world.order(old).await.lines[0].state, LineState::Held);
    world.settle().await;
    world.drive_to_rest(&world.instance("order-2"), 3).await;
    assert_eq!((world.state(old).await, world.state(new).await), (State::FulfillmentStarted, State::Cancelled));
    assert_eq!(world.stock("MUG").await, (3, 2));
}

#[tokio::test]
async fn an_order_whose_stock_was_written_off_is_cancelled_and_refunded() {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    world.adjust("MUG", -10, true).await.expect("written off");
    world.clock.advance(LEASE);
    world.instance("order-2").run_due().await.expect("a poll");
    world.settle().await;
    assert_eq!(world.states(id).await, [State::Created, State::Paid, State::Cancelling, State::Cancelled]);
    let order = world.order(id).await;
    assert_eq!(order.payment_failure.expect("a reason").reason, "STOCK_LOST");
    assert_eq!(order.lines[0].state, LineState::Lost);
    assert_eq!(world.payments.of(id), Some(ChargeState::Refunded));
    assert_eq!(world.stock("MUG").await, (0, 0));
    let events = world.events().await;
    let failed: Vec<_> = events.iter().filter(|event| event.status == EventStatus::Failed).collect();
    let [event] = &failed[..] else { panic!("one failed event: {failed:?}") };
    assert_eq!((event.event_type.as_str(), event.operation.as_str()), ("order_fulfillment", "allocate_inventory"));
    assert_eq!(event.error.as_ref().expect("a reason").reason, "STOCK_LOST");
}

#[tokio::test]
async fn allocated_stock_is_not_written_off() {
    let world = World::new().await;
    let id = world.order_mugs().await;
    world.settle().await;
    let rejection = world.adjust("MUG", -9, true).await.expect_err("its fulfilment has started");
    assert!(matches!(&rejection, Error::StockReserved { reserved: 2, .. }), "{rejection}");
    assert_eq!((world.state(id).await, world.stock("MUG").await), (State::FulfillmentStarted, (10, 2)));
    world.adjust("MUG", -8, true).await.expect("the rest is free");
    world.settle().await;
}

#[tokio::test]
async fn a_rejected_write_off_takes_no_stock_from_any_order() {
    let world = World::new().await;
    world.order_mugs().await;
    world.settle().await;
    let held = world.abandoned_order().await;
    // The held line alone is not enough: two are allocated.
    world.adjust("MUG", -9, true).await.expect_err("rejected");
    assert_eq!(world.order(held).await.lines[0].state, LineState::Held);
    assert_eq!(world.stock("MUG").await, (10, 4));
    world.settle().await;
}

#[tokio::test]
async fn an_adjustment_is_made_once_per_request() {
    let world = World::on_file().await;
    let command = AdjustStock { request_id: new_request(), sku: "MUG".into(), delta: 5, write_off: false };
    let calls = (0..5).map(|_| world.adjust_by(command.clone()));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.expect("the same response").stock.on_hand, 15);
    }
    world.adjust("MUG", 1, false).await.expect("another request");
    assert_eq!(world.adjust_by(command.clone()).await.expect("the same response").stock.on_hand, 15);
    assert_eq!(world.stock("MUG").await, (16, 0));
    for other in [
        AdjustStock { delta: 6, ..command.clone() },
        AdjustStock { sku: "FORK".into(), ..command.clone() },
        AdjustStock { write_off: true, ..command },
    ] {
        let rejection = world.adjust_by(other).await.expect_err("another command");
        assert!(matches!(rejection, Error::RequestIdReused), "{rejection}");
    }
    assert_eq!((world.stock("MUG").await, world.stock("FORK").await), ((16, 0), (0, 0)));
}

#[tokio::test]
async fn a_rejected_adjustment_stores_nothing_and_its_request_may_be_retried() {
    let world = World::new().await;
    let command = AdjustStock { request_id: new_request(), sku: "FORK".into(), delta: -5, write_off: false };
    world.adjust_by(command.clone()).await.expect_err("there is none");
    world.adjust("FORK", 5, false).await.expect("now there is some");
    assert_eq!(world.adjust_by(command).await.expect("removed").stock.on_hand, 0);
}

#[tokio::test]
async fn a_change_of_stock_is_audited_once_with_the_old_and_the_new_stock() {
    let world = World::new().await;
    let before = world.stock_audits().await.len();
    let command = AdjustStock { request_id: new_request(), sku: "MUG".into(), delta: -9, write_off: true };
    world.adjust_by(command.clone()).await.expect("written off");
    world.adjust_by(command).await.expect("the same response");
    world.adjust("MUG", -1_000, false).await.expect_err("not enough");
    let audits = world.stock_audits().await.split_off(before);
    let [audit] = &audits[..] else { panic!("one, because a replay and a rejection change nothing: {audits:?}") };
    let of = |name: &str| audit.attributes.get(name).map_or("", String::as_str);
    assert_eq!((audit.event_type.as_str(), audit.status), ("audit", EventStatus::Success));
    assert_eq!((of("sku"), of("delta"), of("write_off")), ("MUG", "-9", "true"));
    assert_eq!((of("on_hand.before"), of("on_hand.after")), ("10", "1"));
}
