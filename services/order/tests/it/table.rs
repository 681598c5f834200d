//! The program goes by its table: a transition that is taken out of it is not made.

use order::lifecycle::{Decision, Input, State, Table, next};

use crate::world::{BACKOFF_CAP, LEASE, World};

/// Where an order is left, and why it went no further.
async fn left_in(table: Table) -> (State, Option<String>) {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    let driver = world.instance_by(table);
    for _ in 0..3 {
        world.clock.advance(LEASE + BACKOFF_CAP);
        driver.run_due().await.expect("the store works");
    }
    let order = world.order(id).await;
    let fulfilled = world.events().await.iter().filter(|event| event.event_type == "order_fulfillment").count();
    assert_eq!(fulfilled > 0, order.state == State::FulfillmentStarted, "no event of what did not happen");
    assert_eq!(world.stock("MUG").await.1, 2, "the stock stays reserved or allocated");
    (order.state, order.last_error)
}

#[tokio::test]
async fn a_transition_that_is_not_in_the_table_is_not_made() {
    let without_allocation: Table = |state, input| match (state, input) {
        (State::Paid, Input::Done) => Decision::Rejected,
        (state, input) => next(state, input),
    };
    let without_payment: Table = |state, input| match (state, input) {
        (State::Created, Input::Done) => Decision::Rejected,
        (state, input) => next(state, input),
    };
    // Payment, allocation and the start of fulfilment are recorded together.
    let missing = |from: &str| (State::Created, Some(format!("the table has no transition from {from} by Done")));
    assert_eq!(left_in(without_allocation).await, missing("PAID"));
    assert_eq!(left_in(without_payment).await, missing("CREATED"));
    assert_eq!(left_in(next).await, (State::FulfillmentStarted, None), "the control case");
}
