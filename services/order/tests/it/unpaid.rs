//! Limits on what a customer's orders reserve before their payments are decided.

use std::sync::Arc;

use futures_util::future::join_all;
use order::Error;
use order::lifecycle::State;
use order::store::{UnpaidLimit, UnpaidLimits};
use tokio::sync::Notify;

use crate::fakes::Reply;
use crate::world::{World, new_user, order_of};

async fn world(orders: Option<u64>, units: Option<u64>) -> World {
    let mut world = World::new().await;
    world.orders.store = world.store.clone().with_unpaid_limits(UnpaidLimits { orders, units });
    world
}

/// The next payments stay undecided until the gates open.
fn held(world: &World, count: usize) -> Vec<Arc<Notify>> {
    let gates: Vec<_> = (0..count).map(|_| Arc::new(Notify::new())).collect();
    world.payments.script(gates.iter().map(Reply::response_held).collect::<Vec<_>>());
    gates
}

fn open(gates: &[Arc<Notify>]) {
    gates.iter().for_each(|gate| gate.notify_one());
}

fn limit(rejection: &Error) -> Option<UnpaidLimit> {
    if let Error::TooMuchUnpaid { limit } = rejection { Some(*limit) } else { None }
}

#[tokio::test]
async fn a_customers_unpaid_orders_are_limited_until_they_are_paid() {
    let world = world(Some(2), None).await;
    let gates = held(&world, 2);
    let first = order_of(&[("MUG", 1)]);
    let order = world.create(first.clone()).await.expect("the first");
    world.create(order_of(&[("MUG", 1)])).await.expect("the second");
    let rejection = world.create(order_of(&[("MUG", 1)])).await.expect_err("a third");
    assert_eq!(limit(&rejection), Some(UnpaidLimit::Orders(2)), "{rejection}");
    assert_eq!(world.stock("MUG").await, (10, 2), "nothing was reserved");
    assert_eq!(world.create(first).await.expect("a replay").id, order.id);
    world.create_for(new_user(), order_of(&[("MUG", 1)])).await.expect("another customer's");
    open(&gates);
    world.settle().await;
    assert_eq!(world.state(order.id).await, State::FulfillmentStarted);
    world.create(order_of(&[("MUG", 1)])).await.expect("the others are paid");
    world.settle().await;
}

#[tokio::test]
async fn a_customers_unpaid_units_are_limited() {
    let world = world(None, Some(5)).await;
    let rejection = world.create(order_of(&[("MUG", 4), ("PLATE", 2)])).await.expect_err("six in one order");
    assert_eq!(limit(&rejection), Some(UnpaidLimit::Units(5)), "{rejection}");
    let gates = held(&world, 2);
    world.create(order_of(&[("MUG", 2), ("PLATE", 1)])).await.expect("three");
    let rejection = world.create(order_of(&[("MUG", 3)])).await.expect_err("six in two orders");
    assert_eq!(limit(&rejection), Some(UnpaidLimit::Units(5)), "{rejection}");
    let cancelled = world.create(order_of(&[("MUG", 2)])).await.expect("five in two orders").id;
    assert!(world.create(order_of(&[("MUG", 1)])).await.is_err());
    world.cancel(cancelled).await.expect("it is not too late");
    world.create(order_of(&[("MUG", 2)])).await.expect("a cancelled order reserves nothing");
    open(&gates);
    world.settle().await;
}

#[tokio::test]
async fn concurrent_orders_are_counted_one_after_the_other() {
    let world = world(Some(3), None).await;
    let gates = held(&world, 8);
    let all = join_all((0..8).map(|_| world.create(order_of(&[("MUG", 1)])))).await;
    let made: Vec<_> = all.iter().filter_map(|result| result.as_ref().ok()).collect();
    assert_eq!(made.len(), 3);
    assert!(
        all.iter().filter_map(|result| result.as_ref().err()).all(|rejection| limit(rejection).is_some()),
        "{all:?}"
    );
    assert_eq!(world.stock("MUG").await, (10, 3));
    open(&gates);
    world.settle().await;
}
