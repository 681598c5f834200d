//! The counter-example to the first design, on the real stores: a stalled ProcessPayment arrives after its order was
//! cancelled. The tombstones keep it from charging.

use kernel::FaultPoint::{AfterEffect, BeforeEffect};
use order::lifecycle::State;
use payment::lifecycle::State as Paid;

use crate::faults::{Injection, InjectionPlan, Spot};
use crate::gateway::Ledger;
use crate::system::{LEASE, On, OrderInstance, System, Wire};

/// The order's driver is about to call the Payment Service, or the payment's driver is about to call the gateway.
const BEFORE_PROCESS_PAYMENT: Spot = ("order", BeforeEffect, "CREATED");
const BEFORE_CREATE_CHARGE: Spot = ("payment", BeforeEffect, "PENDING");

/// Stalls a driver at a fault point; the order is cancelled completely; then the driver resumes.
async fn cancelled_meanwhile(spot: Spot, ledger: Ledger) -> System {
    let system = System::new(On::Memory, Wire::Fine, ledger, InjectionPlan::new([(spot, Injection::Stall)])).await;
    let mut order: OrderInstance = system.order_instance("order-1");
    system.advance(LEASE);
    system.drive_once(&order).await;
    assert!(system.has_stalled());
    system.api.cancel().await;
    system.make_due();
    system.drive_to_completion(&mut order, false).await;
    assert_eq!(system.state().await, State::Cancelled);
    assert_eq!(system.ledger.charge_count(), 0, "nothing was charged before");
    system.resume().await;
    system
}

#[tokio::test]
async fn a_process_payment_that_arrives_after_the_cancellation_charges_nothing() {
    let system = cancelled_meanwhile(BEFORE_PROCESS_PAYMENT, Ledger::default()).await;
    assert_eq!(system.ledger.charge_count(), 0);
    assert_eq!(system.payment().await.map(|payment| payment.state), Some(Paid::Cancelled));
    assert_eq!(system.broken(), [""; 0]);
}

#[tokio::test]
async fn a_charge_that_arrives_after_the_cancellation_is_not_made() {
    let system = cancelled_meanwhile(BEFORE_CREATE_CHARGE, Ledger::default()).await;
    assert_eq!(system.ledger.charge_count(), 0);
    assert_eq!(system.broken(), [""; 0]);
}

#[tokio::test]
async fn without_the_gateways_tombstone_the_late_charge_is_made_and_detected() {
    let ledger = Ledger::default();
    ledger.forget_tombstones();
    let system = cancelled_meanwhile(BEFORE_CREATE_CHARGE, ledger).await;
    assert_eq!(system.ledger.charge_count(), 1, "the tombstone would have prevented this");
    assert!(system.broken().iter().any(|broken| broken.contains("promise 2")), "{:?}", system.broken());
}

#[tokio::test]
async fn without_cancel_payments_tombstone_the_late_payment_is_made_and_detected() {
    let system = System::new(
        On::Memory,
        Wire::Fine,
        Ledger::default(),
        InjectionPlan::new([(BEFORE_PROCESS_PAYMENT, Injection::Stall)]),
    );
    let system = system.await;
    let mut order = system.order_instance("order-1");
    system.advance(LEASE);
    system.drive_once(&order).await;
    system.api.cancel().await;
    system.make_due();
    system.drive_to_completion(&mut order, false).await;
    // The first design kept no row for a payment that was cancelled before it was requested.
    system.takes_out_the_tombstone().await;
    system.resume().await;
    system.settle_payment().await;
    assert_eq!(system.ledger.charge_count(), 1, "the tombstone would have prevented this");
    let found = system.report().await;
    assert!(found.violations.iter().any(|violation| violation.to_string().contains("promise 2")), "{found}");
}

#[tokio::test]
async fn an_order_cancelled_after_the_charge_is_refunded() {
    let spot = ("payment", AfterEffect, "PENDING");
    let system =
        System::new(On::Memory, Wire::Fine, Ledger::default(), InjectionPlan::new([(spot, Injection::Cancel)])).await;
    let mut order = system.order_instance("order-1");
    system.advance(LEASE);
    system.drive_to_completion(&mut order, false).await;
    assert_eq!(system.state().await, State::Cancelled);
    assert_eq!(system.ledger.charge_count(), 1);
    assert_eq!(system.payment().await.map(|payment| payment.state), Some(Paid::Refunded));
    assert_eq!(system.broken(), [""; 0]);
}
