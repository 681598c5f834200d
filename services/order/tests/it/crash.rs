//! Orders that were left in PAID or ALLOCATED: this release writes these states together with the next one, so that no driver
//! finds them, and the crash suite cannot reach them. Another release may have left such an order.

use order::lifecycle::State;
use sea_orm::ConnectionTrait;

use crate::fakes::ChargeState;
use crate::invariants::invariants;
use crate::world::World;

async fn an_order_that_lies_in(state: State, cancels: bool) {
    let world = World::new().await;
    let id = world.abandoned_order().await;
    let key = world.literal(id);
    world.payments.ledger.lock().insert(id, ChargeState::Charged);
    let version = if state == State::Paid { 2 } else { 3 };
    let execute = |sql: String| {
        let world = &world;
        async move { world.db.read().execute_unprepared(&sql).await.expect("executed") }
    };
    execute(format!(
        "UPDATE orders SET state = '{}', version = {version}, payment_method = NULL WHERE order_id = {key}",
        state.name()
    ))
    .await;
    let step = |version: i64, state: State| {
        format!(
            "INSERT INTO order_history SELECT order_id, {version}, '{}', time, reason, trace_id, 'span' FROM order_history \
             WHERE order_id = {key} AND version = 1",
            state.name()
        )
    };
    execute(step(2, State::Paid)).await;
    if state == State::Allocated {
        execute(step(3, State::Allocated)).await;
        execute(format!("UPDATE order_line SET state = 'ALLOCATED' WHERE order_id = {key}")).await;
        // Its event was sent long ago: restore the event for the check.
        let mut event = world.events().await.pop().expect("the creation's");
        event.event_id = kernel::IdSource::uuid(&kernel::SystemIds);
        event.event_type = "order_fulfillment".into();
        event.span_id = "span".into();
        event.attributes.insert("operation".into(), "allocate_inventory".into());
        world.db.outbox().put(vec![event]).await.expect("written");
    }
    invariants(&world).await;
    if cancels {
        world.cancel(id).await.expect("it is not too late");
        world.settle().await;
        assert_eq!((world.state(id).await, world.payments.of(id)), (State::Cancelled, Some(ChargeState::Refunded)));
        assert_eq!(world.stock("MUG").await, (10, 0));
    } else {
        world.drive_to_rest(&world.instance("order-2"), 3).await;
        assert_eq!(world.state(id).await, State::FulfillmentStarted);
        assert_eq!(world.history(id).await.last(), Some(&(4, State::FulfillmentStarted)));
        assert_eq!(world.payments.calls(), [], "already paid");
    }
}

#[tokio::test]
async fn an_order_stored_in_paid_or_allocated_continues_from_there() {
    an_order_that_lies_in(State::Paid, false).await;
    an_order_that_lies_in(State::Allocated, false).await;
}

#[tokio::test]
async fn an_order_stored_in_paid_or_allocated_can_be_cancelled() {
    an_order_that_lies_in(State::Paid, true).await;
    an_order_that_lies_in(State::Allocated, true).await;
}
