//! The statements that change a payment, each inside its caller's transaction.

use kernel::{Money, OrderId, Timestamp, UserId};
use sea_orm::{ConnectionTrait, Value};
use storage::leases::micros;
use storage::{Error, Tx};
use telemetry::TraceParent;

use super::rows::secret;
use super::{OpenOperation, Schedule, Store};
use crate::payment::{Attempt, Payment, event_of};

impl Store {
    pub(super) async fn insert(&self, tx: &Tx, new: &Payment, schedule: &Schedule) -> Result<bool, Error> {
        let values = vec![
            new.order_id.as_uuid().into(),
            new.user_id.map(UserId::as_uuid).into(),
            new.state.name().into(),
            new.amount.map(Money::minor_units).into(),
            new.amount.map(|amount| amount.currency().code().to_owned()).into(),
            secret(new),
            new.contact_email.clone().into(),
            new.fingerprint.clone().into(),
            new.attempt.into(),
            schedule.due_in.map(micros).into(),
            schedule.lease.as_ref().map(|lease| lease.owner.clone()).into(),
            schedule.lease.as_ref().map(|lease| micros(lease.length)).into(),
            new.cancel_requested.into(),
            new.refund_n.into(),
            new.decline_code.map(|code| code.name().to_owned()).into(),
            new.traceparent.clone().into(),
            new.create_time.as_micros().into(),
            self.now(),
        ];
        Ok(tx.conn().execute_raw(self.statement(&self.sql.insert, values)).await?.rows_affected() == 1)
    }

    /// The compare-and-set and its attempt.
    pub(super) async fn write(
        &self,
        tx: &Tx,
        before: &Payment,
        after: Payment,
        attempt: &Attempt,
        schedule: &Schedule,
    ) -> Result<Option<Payment>, Error> {
        let now = self.clock.now();
        let lease = schedule.lease.as_ref();
        let mut values = vec![
            after.state.name().into(),
            after.attempt.into(),
            i32::try_from(after.failures).unwrap_or(i32::MAX).into(),
            schedule.due_in.map(micros).into(),
            lease.map(|lease| lease.owner.clone()).into(),
            lease.map(|lease| micros(lease.length)).into(),
            after.doubt_since.map(Timestamp::as_micros).into(),
            after.cancel_requested.into(),
            after.refund_n.into(),
            after.decline_code.map(|code| code.name().to_owned()).into(),
            after.charge_id.clone().into(),
            after.last_error.clone().into(),
            after.traceparent.clone().into(),
            secret(&after),
            now.as_micros().into(),
            self.now(),
            before.order_id.as_uuid().into(),
            before.version.into(),
        ];
        if self.sql.writes_attempt {
            values.extend(attempt_values(attempt));
        }
        if tx.conn().execute_raw(self.statement(&self.sql.write, values)).await?.rows_affected() == 0 {
            return Ok(None);
        }
        if !self.sql.writes_attempt {
            self.insert_attempt(tx, before.order_id, attempt).await?;
        }
        Ok(Some(Payment {
            version: before.version + 1,
            next_attempt_time: schedule.due_in.map(|wait| now.plus(wait)),
            lease_owner: lease.map(|lease| lease.owner.clone()),
            lease_until: lease.map_or(Timestamp::default(), |lease| now.plus(lease.length)),
            update_time: now,
            ..after
        }))
    }

    async fn insert_attempt(&self, tx: &Tx, order_id: OrderId, attempt: &Attempt) -> Result<(), Error> {
        let values = std::iter::once(order_id.as_uuid().into()).chain(attempt_values(attempt)).collect();
        tx.conn().execute_raw(self.statement(&self.sql.insert_attempt, values)).await?;
        Ok(())
    }

    /// Writes the attempt and the event of a payment that was inserted in a final state.
    pub(super) async fn record_insert(
        &self,
        tx: &Tx,
        new: &Payment,
        outcome: &str,
        open: &OpenOperation,
    ) -> Result<(), Error> {
        let operation = open();
        self.insert_attempt(tx, new.order_id, &self.record_of(new, outcome, operation.span_ref())).await?;
        if let Some((name, event)) = event_of(new.state, new.decline_code, outcome) {
            operation.set("operation", name);
            tx.emit(&operation, &event);
        }
        Ok(())
    }

    /// The attempt of a change without the gateway.
    pub(super) fn record_of(&self, payment: &Payment, outcome: &str, span_ref: TraceParent) -> Attempt {
        Attempt {
            attempt: payment.attempt,
            effect: "record".to_owned(),
            outcome: payment
                .decline_code
                .map_or_else(|| outcome.to_owned(), |code| format!("{outcome}: {}", code.name())),
            state: payment.state,
            time: self.clock.now(),
            trace_id: span_ref.trace_id(),
            span_id: span_ref.span_id(),
        }
    }
}

/// Every column but the order.
fn attempt_values(attempt: &Attempt) -> [Value; 7] {
    [
        attempt.attempt.into(),
        attempt.effect.clone().into(),
        attempt.outcome.clone().into(),
        attempt.state.name().into(),
        attempt.time.as_micros().into(),
        attempt.trace_id.clone().into(),
        attempt.span_id.clone().into(),
    ]
}
