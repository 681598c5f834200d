//! Conversions between payments and rows.

use kernel::{Money, OrderId, Timestamp, UserId};
use storage::Error;
use telemetry::TraceParent;

use super::{Draft, Lease, Store};
use crate::entity::{payment as row, payment_attempt as attempt_row};
use crate::lifecycle::{State, on_cancel};
use crate::payment::{Attempt, DeclineCode, Payment, PaymentMethod};

impl Store {
    pub(super) fn pending(&self, draft: Draft, lease: Option<&Lease>) -> Payment {
        let now = self.clock.now();
        let is_declined = draft.declined.is_some();
        Payment {
            order_id: draft.order_id,
            user_id: Some(draft.user_id),
            state: if is_declined { State::Declined } else { State::Pending },
            amount: draft.amount,
            payment_method: (!is_declined).then_some(draft.payment_method),
            contact_email: (!is_declined).then_some(draft.contact_email),
            fingerprint: Some(draft.fingerprint),
            attempt: i32::from(is_declined),
            next_attempt_time: (!is_declined).then_some(now),
            lease_owner: lease.filter(|_| !is_declined).map(|lease| lease.owner.clone()),
            lease_until: lease.filter(|_| !is_declined).map_or(Timestamp::default(), |lease| now.plus(lease.length)),
            decline_code: draft.declined,
            traceparent: draft.parent.to_string(),
            ..self.blank(draft.order_id)
        }
    }

    pub(super) fn tombstone(&self, order_id: OrderId, n: i32, parent: TraceParent) -> Payment {
        Payment {
            state: on_cancel(None, n, 0),
            attempt: 1,
            cancel_requested: true,
            refund_n: n,
            traceparent: parent.to_string(),
            ..self.blank(order_id)
        }
    }

    fn blank(&self, order_id: OrderId) -> Payment {
        let now = self.clock.now();
        Payment {
            order_id,
            user_id: None,
            state: State::Pending,
            amount: None,
            payment_method: None,
            contact_email: None,
            fingerprint: None,
            version: 1,
            attempt: 0,
            failures: 0,
            next_attempt_time: None,
            lease_owner: None,
            lease_until: Timestamp::default(),
            doubt_since: None,
            cancel_requested: false,
            refund_n: 0,
            decline_code: None,
            charge_id: None,
            last_error: None,
            traceparent: String::new(),
            create_time: now,
            update_time: now,
        }
    }
}

impl TryFrom<row::Model> for Payment {
    type Error = Error;

    fn try_from(row: row::Model) -> Result<Self, Error> {
        let amount = match (row.currency, row.amount) {
            (Some(code), Some(minor_units)) => {
                let currency = code.parse().map_err(|_| Error::Corrupt { what: "currency", value: code.clone() })?;
                Some(Money::new(currency, minor_units))
            }
            (_, _) => None,
        };
        let decline_code = row
            .decline_code
            .map(|name| DeclineCode::of(&name).ok_or(Error::Corrupt { what: "decline code", value: name }))
            .transpose()?;
        Ok(Self {
            order_id: OrderId::from_uuid(row.order_id),
            user_id: row.user_id.map(UserId::from_uuid),
            state: state(row.state)?,
            amount,
            payment_method: row.payment_method.map(PaymentMethod::new),
            contact_email: row.contact_email,
            fingerprint: row.fingerprint,
            version: row.version,
            attempt: row.attempt,
            failures: u32::try_from(row.tries).unwrap_or(0),
            next_attempt_time: row.next_attempt_time.map(Timestamp::from_micros),
            lease_owner: row.lease_owner,
            lease_until: Timestamp::from_micros(row.lease_until),
            doubt_since: row.doubt_since.map(Timestamp::from_micros),
            cancel_requested: row.cancel_asked,
            refund_n: row.refund_n,
            decline_code,
            charge_id: row.charge_id,
            last_error: row.last_error,
            traceparent: row.traceparent,
            create_time: Timestamp::from_micros(row.create_time),
            update_time: Timestamp::from_micros(row.update_time),
        })
    }
}

impl TryFrom<attempt_row::Model> for Attempt {
    type Error = Error;

    fn try_from(row: attempt_row::Model) -> Result<Self, Error> {
        Ok(Self {
            attempt: row.attempt,
            effect: row.effect,
            outcome: row.outcome,
            state: state(row.state)?,
            time: Timestamp::from_micros(row.time),
            trace_id: row.trace_id,
            span_id: row.span_id,
        })
    }
}

fn state(name: String) -> Result<State, Error> {
    State::of(&name).ok_or(Error::Corrupt { what: "payment state", value: name })
}
