//! The counter-example to the first design, on the real stores: a stalled ProcessPayment arrives after its order was
//! cancelled. The tombstones keep it from charging.

use kernel::FaultPoint::{AfterEffect, BeforeEffect};
use order::lifecycle::State;
use payment::lifecycle::State as Paid;

use crate::faults::{Act, Plan, Spot};
use crate::gateway::Ledger;
use crate::world::{LEASE, On, OrderInstance, Wire, World};

/// The order's driver is about to call the Payment Service, or the payment's driver is about to call the gateway.
const BEFORE_PROCESS_PAYMENT: Spot = ("order", BeforeEffect, "CREATED");
const BEFORE_CREATE_CHARGE: Spot = ("payment", BeforeEffect, "PENDING");

/// Stalls a driver at a fault point; the order is cancelled completely; then the driver resumes.
async fn cancelled_meanwhile(spot: Spot, ledger: Ledger) -> World {
    let world = World::new(On::Memory, Wire::Fine, ledger, Plan::new([(spot, Act::Stall)])).await;
    let mut order: OrderInstance = world.order_instance("order-1");
    world.advance(LEASE);
    world.drive_once(&order).await;
    assert!(world.is_standing());
    world.api.cancel().await;
    world.later();
    world.to_rest(&mut order, false).await;
    assert_eq!(world.state().await, State::Cancelled);
    assert_eq!(world.ledger.taken(), 0, "nothing was charged before");
    world.let_go().await;
    world
}

#[tokio::test]
async fn a_process_payment_that_arrives_after_the_cancellation_charges_nothing() {
    let world = cancelled_meanwhile(BEFORE_PROCESS_PAYMENT, Ledger::default()).await;
    assert_eq!(world.ledger.taken(), 0);
    assert_eq!(world.payment().await.map(|payment| payment.state), Some(Paid::Cancelled));
    assert_eq!(world.broken(), [""; 0]);
}

#[tokio::test]
async fn a_charge_that_arrives_after_the_cancellation_is_not_made() {
    let world = cancelled_meanwhile(BEFORE_CREATE_CHARGE, Ledger::default()).await;
    assert_eq!(world.ledger.taken(), 0);
    assert_eq!(world.broken(), [""; 0]);
}

#[tokio::test]
async fn without_the_gateways_tombstone_the_late_charge_is_made_and_detected() {
    let ledger = Ledger::default();
    ledger.forgets_tombstones();
    let world = cancelled_meanwhile(BEFORE_CREATE_CHARGE, ledger).await;
    assert_eq!(world.ledger.taken(), 1, "the tombstone would have prevented this");
    assert!(world.broken().iter().any(|broken| broken.contains("promise 2")), "{:?}", world.broken());
}

#[tokio::test]
async fn without_cancel_payments_tombstone_the_late_payment_is_made_and_detected() {
    let world =
        World::new(On::Memory, Wire::Fine, Ledger::default(), Plan::new([(BEFORE_PROCESS_PAYMENT, Act::Stall)]));
    let world = world.await;
    let mut order = world.order_instance("order-1");
    world.advance(LEASE);
    world.drive_once(&order).await;
    world.api.cancel().await;
    world.later();
    world.to_rest(&mut order, false).await;
    // The first design kept no row for a payment that was cancelled before it was requested.
    world.takes_out_the_tombstone().await;
    world.let_go().await;
    world.settle_payment().await;
    assert_eq!(world.ledger.taken(), 1, "the tombstone would have prevented this");
    let found = world.report().await;
    assert!(found.violations.iter().any(|violation| violation.to_string().contains("promise 2")), "{found}");
}

#[tokio::test]
async fn an_order_cancelled_after_the_charge_is_refunded() {
    let spot = ("payment", AfterEffect, "PENDING");
    let world = World::new(On::Memory, Wire::Fine, Ledger::default(), Plan::new([(spot, Act::Cancel)])).await;
    let mut order = world.order_instance("order-1");
    world.advance(LEASE);
    world.to_rest(&mut order, false).await;
    assert_eq!(world.state().await, State::Cancelled);
    assert_eq!(world.ledger.taken(), 1);
    assert_eq!(world.payment().await.map(|payment| payment.state), Some(Paid::Refunded));
    assert_eq!(world.broken(), [""; 0]);
}
