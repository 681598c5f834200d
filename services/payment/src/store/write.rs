//! The statements that change payments, each inside its caller's transaction.

use std::collections::HashSet;

use kernel::{Money, OrderId, Timestamp, UserId};
use sea_orm::FromQueryResult;
use storage::leases::micros;
use storage::{Error, Rows, Tx};
use telemetry::{Operation, Outcome, TraceParent};
use uuid::Uuid;

use super::{OpenOperation, Schedule, Store};
use crate::payment::{Attempt, Payment, event_of};

/// A compare-and-set with its attempt and its event.
#[derive(Clone)]
pub(super) struct PaymentUpdate {
    pub(super) before: Payment,
    pub(super) after: Payment,
    pub(super) attempt: Attempt,
    pub(super) schedule: Schedule,
    pub(super) event: Option<(Operation, Outcome)>,
}

#[derive(FromQueryResult)]
struct Key {
    order_id: Uuid,
}

async fn keys(tx: &Tx, rows: Rows, sql: &str) -> Result<HashSet<Uuid>, Error> {
    let rows = tx.conn().query_rows(rows, sql).await?;
    let keys = rows.iter().map(|row| Key::from_query_result(row, "").map(|key| key.order_id));
    Ok(keys.collect::<Result<_, _>>()?)
}

impl Store {
    /// Inserts payments, sorted by their orders' ids; returns the orders that had none, in the archive neither.
    pub(super) async fn insert(&self, tx: &Tx, new: &[(&Payment, &Schedule)]) -> Result<HashSet<Uuid>, Error> {
        let payments = || new.iter().map(|(payment, _)| *payment);
        let rows = Rows::new()
            .with("order_id", payments().map(|new| new.order_id.as_uuid()))
            .with("user_id", payments().map(|new| new.user_id.map(UserId::as_uuid)))
            .with("state", payments().map(|new| new.state.name().to_owned()))
            .with("amount", payments().map(|new| new.amount.map(Money::minor_units)))
            .with("currency", payments().map(|new| new.amount.map(|amount| amount.currency().code().to_owned())))
            .with("payment_method", payments().map(method))
            .with("contact_email", payments().map(|new| new.contact_email.clone()))
            .with("fingerprint", payments().map(|new| new.fingerprint.clone()))
            .with("attempt", payments().map(|new| new.attempt))
            .with("due_in", new.iter().map(|(_, schedule)| schedule.due_in.map(micros)))
            .with("lease_owner", new.iter().map(|(_, schedule)| lease_owner(schedule)))
            .with("lease_length", new.iter().map(|(_, schedule)| lease_length(schedule)))
            .with("cancel_asked", payments().map(|new| new.cancel_requested))
            .with("refund_n", payments().map(|new| new.refund_n))
            .with("decline_code", payments().map(|new| new.decline_code.map(|code| code.name().to_owned())))
            .with("traceparent", payments().map(|new| new.traceparent.clone()))
            .with("create_time", payments().map(|new| new.create_time.as_micros()))
            .with("now", payments().map(|_| self.leases.now_micros()));
        let now = self.leases.now_expression("v.now");
        let insert = format!(
            "INSERT INTO payment (order_id, user_id, state, amount, currency, payment_method, contact_email, fingerprint, \
             version, attempt, tries, next_attempt_time, lease_owner, lease_until, cancel_asked, refund_n, decline_code, \
             traceparent, create_time, update_time) \
             SELECT order_id, user_id, state, amount, currency, payment_method, contact_email, fingerprint, 1, attempt, 0, \
             {now} + due_in, lease_owner, COALESCE({now} + lease_length, 0), cancel_asked, refund_n, decline_code, \
             traceparent, create_time, create_time FROM v \
             WHERE NOT EXISTS (SELECT 1 FROM payment_archive a WHERE a.order_id = v.order_id) \
             ON CONFLICT (order_id) DO NOTHING RETURNING order_id"
        );
        keys(tx, rows, &insert).await
    }

    /// Makes the changes whose payment is still as it was before, sorted by their orders' ids, with their attempts;
    /// emits their events. Returns the changes' payments; `None` where it was not.
    pub(super) async fn write(&self, tx: &Tx, updates: &[PaymentUpdate]) -> Result<Vec<Option<Payment>>, Error> {
        let mut sorted: Vec<&PaymentUpdate> = updates.iter().collect();
        sorted.sort_by_key(|update| update.before.order_id);
        let now = self.clock.now();
        let written = self.update(tx, &sorted, now).await?;
        sorted.retain(|update| written.contains(&update.before.order_id.as_uuid()));
        insert_attempts(tx, sorted.iter().map(|update| (update.before.order_id, &update.attempt))).await?;
        for (operation, outcome) in sorted.iter().filter_map(|update| update.event.as_ref()) {
            tx.emit(operation, outcome);
        }
        let is_written = |update: &PaymentUpdate| written.contains(&update.before.order_id.as_uuid());
        Ok(updates.iter().map(|update| is_written(update).then(|| update.written(now))).collect())
    }

    async fn update(&self, tx: &Tx, updates: &[&PaymentUpdate], time: Timestamp) -> Result<HashSet<Uuid>, Error> {
        let after = || updates.iter().map(|update| &update.after);
        let schedules = || updates.iter().map(|update| &update.schedule);
        let rows = Rows::new()
            .with("order_id", updates.iter().map(|update| update.before.order_id.as_uuid()))
            .with("version", updates.iter().map(|update| update.before.version))
            .with("state", after().map(|payment| payment.state.name().to_owned()))
            .with("attempt", after().map(|payment| payment.attempt))
            .with("tries", after().map(|payment| i32::try_from(payment.failures).unwrap_or(i32::MAX)))
            .with("due_in", schedules().map(|schedule| schedule.due_in.map(micros)))
            .with("lease_owner", schedules().map(lease_owner))
            .with("lease_length", schedules().map(lease_length))
            .with("doubt_since", after().map(|payment| payment.doubt_since.map(Timestamp::as_micros)))
            .with("cancel_asked", after().map(|payment| payment.cancel_requested))
            .with("refund_n", after().map(|payment| payment.refund_n))
            .with("decline_code", after().map(|payment| payment.decline_code.map(|code| code.name().to_owned())))
            .with("charge_id", after().map(|payment| payment.charge_id.clone()))
            .with("last_error", after().map(|payment| payment.last_error.clone()))
            .with("traceparent", after().map(|payment| payment.traceparent.clone()))
            .with("payment_method", after().map(method))
            .with("update_time", after().map(|_| time.as_micros()))
            .with("now", after().map(|_| self.leases.now_micros()));
        let now = self.leases.now_expression("v.now");
        let sql = format!(
            "UPDATE payment SET state = v.state, attempt = v.attempt, tries = v.tries, \
             next_attempt_time = {now} + v.due_in, lease_owner = v.lease_owner, \
             lease_until = COALESCE({now} + v.lease_length, 0), doubt_since = v.doubt_since, cancel_asked = v.cancel_asked, \
             refund_n = v.refund_n, decline_code = v.decline_code, charge_id = v.charge_id, last_error = v.last_error, \
             traceparent = v.traceparent, payment_method = v.payment_method, update_time = v.update_time, \
             version = payment.version + 1 FROM v WHERE payment.order_id = v.order_id AND payment.version = v.version \
             RETURNING payment.order_id AS order_id"
        );
        keys(tx, rows, &sql).await
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
        let attempt = self.record_of(new, outcome, operation.traceparent());
        insert_attempts(tx, std::iter::once((new.order_id, &attempt))).await?;
        if let Some((name, event)) = event_of(new.state, new.decline_code, outcome) {
            operation.set("operation", name);
            tx.emit(&operation, &event);
        }
        Ok(())
    }

    /// The attempt of a change without the gateway.
    pub(super) fn record_of(&self, payment: &Payment, outcome: &str, traceparent: TraceParent) -> Attempt {
        Attempt {
            attempt: payment.attempt,
            effect: "record".to_owned(),
            outcome: payment
                .decline_code
                .map_or_else(|| outcome.to_owned(), |code| format!("{outcome}: {}", code.name())),
            state: payment.state,
            time: self.clock.now(),
            trace_id: traceparent.trace_id(),
            span_id: traceparent.span_id(),
        }
    }
}

impl PaymentUpdate {
    /// The payment as it was written.
    fn written(&self, now: Timestamp) -> Payment {
        let Schedule { due_in, lease } = &self.schedule;
        Payment {
            version: self.before.version + 1,
            next_attempt_time: due_in.map(|wait| now.plus(wait)),
            lease_owner: lease.as_ref().map(|lease| lease.owner.clone()),
            lease_until: lease.as_ref().map_or(Timestamp::default(), |lease| now.plus(lease.length)),
            update_time: now,
            ..self.after.clone()
        }
    }
}

async fn insert_attempts<'a>(tx: &Tx, attempts: impl Iterator<Item = (OrderId, &'a Attempt)>) -> Result<(), Error> {
    tx.conn().execute_rows(attempt_rows(&attempts.collect::<Vec<_>>()), INSERT_ATTEMPTS).await
}

/// Inserts those of an archived payment that are not there.
pub(super) async fn restore_attempts(tx: &Tx, order_id: OrderId, attempts: &[Attempt]) -> Result<(), Error> {
    let attempts: Vec<_> = attempts.iter().map(|attempt| (order_id, attempt)).collect();
    let insert = format!("{INSERT_ATTEMPTS} WHERE TRUE ON CONFLICT DO NOTHING");
    tx.conn().execute_rows(attempt_rows(&attempts), &insert).await
}

const INSERT_ATTEMPTS: &str = "INSERT INTO payment_attempt (order_id, attempt, effect, outcome, state, time, trace_id, \
                               span_id) SELECT order_id, attempt, effect, outcome, state, time, trace_id, span_id FROM v";

fn attempt_rows(attempts: &[(OrderId, &Attempt)]) -> Rows {
    let each = || attempts.iter().map(|(_, attempt)| *attempt);
    Rows::new()
        .with("order_id", attempts.iter().map(|(order_id, _)| order_id.as_uuid()))
        .with("attempt", each().map(|attempt| attempt.attempt))
        .with("effect", each().map(|attempt| attempt.effect.clone()))
        .with("outcome", each().map(|attempt| attempt.outcome.clone()))
        .with("state", each().map(|attempt| attempt.state.name().to_owned()))
        .with("time", each().map(|attempt| attempt.time.as_micros()))
        .with("trace_id", each().map(|attempt| attempt.trace_id.clone()))
        .with("span_id", each().map(|attempt| attempt.span_id.clone()))
}

fn method(payment: &Payment) -> Option<String> {
    payment.payment_method.as_ref().map(|method| method.expose().clone())
}

fn lease_owner(schedule: &Schedule) -> Option<String> {
    schedule.lease.as_ref().map(|lease| lease.owner.clone())
}

fn lease_length(schedule: &Schedule) -> Option<i64> {
    schedule.lease.as_ref().map(|lease| micros(lease.length))
}
