//! Calling the gateway, and deciding what its response, or the lack of one, means for a payment.

use std::time::Duration;

use driver::Context;
use kernel::Timestamp;
use telemetry::Operation;

use super::Payments;
use crate::lifecycle::{Doubt, Effect, Observation, State, after};
use crate::payment::{Attempt, DeclineCode, Payment, charge_key, refund_key};
use crate::ports::{Charge, ChargeCommand, ChargeStatus, NoResponse, RefundOutcome};
use crate::store::Schedule;

/// The observed result of an effect.
pub(super) struct EffectResult {
    pub(super) observation: Observation,
    decline: Option<DeclineCode>,
    charge_id: Option<String>,
    /// Shown to operators.
    pub(super) outcome: String,
}

/// A payment after an attempt, when it is due, and the attempt's record.
pub(super) struct Decision {
    pub(super) next: Payment,
    pub(super) schedule: Schedule,
    pub(super) attempt: Attempt,
}

impl Payments {
    pub(super) async fn perform(&self, effect: Effect, payment: &Payment) -> EffectResult {
        let gateway = &self.gateway;
        let key = charge_key(payment.order_id);
        match effect {
            Effect::CreateCharge => match command(payment) {
                Some(command) => EffectResult::charge(gateway.create_charge(command).await),
                // Unreachable: a PENDING payment has both. Doubt, and a tombstone later, is the safe way out.
                None => EffectResult::charge(Err(NoResponse::new("the payment has no amount or no method"))),
            },
            Effect::CancelCharge => EffectResult::charge(gateway.cancel_charge(key).await),
            Effect::RefundCharge { n } => {
                EffectResult::refund(gateway.refund_charge(key, refund_key(payment.order_id, n)).await)
            }
        }
    }

    /// Applies the state table.
    pub(super) fn decide(
        &self,
        before: &Payment,
        effect: Effect,
        result: &EffectResult,
        began: Timestamp,
        operation: &Operation,
        context: &Context,
    ) -> Decision {
        let now = self.clock.now();
        // A doubt that began in the future was recorded by a clock that was set back since: it begins anew.
        let since = before.doubt_since.map(|since| since.min(now));
        let is_past = since.is_some_and(|since| now.since(since) >= self.doubt_limit);
        let doubt = if is_past { Doubt::PastLimit } else { Doubt::WithinLimit };
        let state = after(before.state, result.observation, before.cancellation(), doubt);
        let may_charge = matches!(state, State::Pending | State::InDoubt);
        // No definite result: the same effect is retried with backoff.
        let is_retried = matches!(
            (before.state, state),
            (State::Pending | State::InDoubt, State::Pending | State::InDoubt)
                | (State::Cancelling, State::Cancelling)
                | (State::Refunding, State::Refunding)
        );
        let mut next = Payment {
            state,
            attempt: before.attempt + 1,
            failures: if is_retried { before.failures.saturating_add(1) } else { 0 },
            doubt_since: if state == State::InDoubt { since.or(Some(began)) } else { since },
            payment_method: before.payment_method.clone().filter(|_| may_charge),
            charge_id: result.charge_id.clone().or_else(|| before.charge_id.clone()),
            last_error: (is_retried || result.observation == Observation::Unknown || state == State::RefundRefused)
                .then(|| result.outcome.clone()),
            ..before.clone()
        };
        next.decline_code = match state {
            State::Declined => Some(result.decline.unwrap_or(DeclineCode::GenericDecline)),
            State::Failed => Some(DeclineCode::GatewayTimeout),
            State::Pending | State::InDoubt | State::Cancelling | State::Refunding => None,
            State::Succeeded | State::Cancelled | State::Refunded | State::RefundRefused => None,
        };
        let schedule = if next.pending_effect().is_none() {
            Schedule::default()
        } else if is_retried {
            Schedule { due_in: Some(self.wait(&next, now, context)), lease: None }
        } else {
            Schedule { due_in: Some(Duration::ZERO), lease: Some(context.lease()) }
        };
        let attempt = Attempt {
            attempt: next.attempt,
            effect: effect.name().to_owned(),
            outcome: result.outcome.clone(),
            state,
            time: now,
            trace_id: operation.traceparent().trace_id(),
            span_id: operation.traceparent().span_id(),
        };
        Decision { next, schedule, attempt }
    }

    /// The time until the next attempt: exponential backoff with jitter, but never past the doubt limit.
    fn wait(&self, payment: &Payment, now: Timestamp, context: &Context) -> Duration {
        let wait = context.backoff(payment.failures);
        match (payment.state, payment.doubt_since) {
            (State::InDoubt, Some(since)) if now.since(since) < self.doubt_limit => {
                wait.min(since.plus(self.doubt_limit).since(now))
            }
            (_, _) => wait,
        }
    }
}

fn command(payment: &Payment) -> Option<ChargeCommand> {
    Some(ChargeCommand {
        charge_key: charge_key(payment.order_id),
        amount: payment.amount?,
        payment_method: payment.payment_method.clone()?,
        receipt_email: payment.contact_email.clone().unwrap_or_default(),
    })
}

impl EffectResult {
    fn charge(response: Result<Charge, NoResponse>) -> Self {
        let charge = match response {
            Ok(charge) => charge,
            Err(error) => return Self::unknown(&error),
        };
        let name = charge.status.name();
        let (observation, decline, outcome) = match charge.status {
            ChargeStatus::Succeeded => (Observation::Charged, None, name.to_owned()),
            ChargeStatus::Declined(code) => (Observation::Declined, Some(code), format!("{name} {}", code.name())),
            ChargeStatus::Cancelled => (Observation::Tombstone, None, name.to_owned()),
            ChargeStatus::Refunded => (Observation::Refunded, None, name.to_owned()),
        };
        let is_charged = matches!(observation, Observation::Charged | Observation::Refunded);
        Self { observation, decline, charge_id: is_charged.then_some(charge.charge_id), outcome }
    }

    fn refund(response: Result<RefundOutcome, NoResponse>) -> Self {
        let (observation, outcome) = match response {
            Ok(RefundOutcome::Refunded) => (Observation::Refunded, "REFUNDED".to_owned()),
            Ok(RefundOutcome::Refused(reason)) => (Observation::RefundRefused, format!("REFUND_REFUSED {reason}")),
            Err(error) => return Self::unknown(&error),
        };
        Self { observation, decline: None, charge_id: None, outcome }
    }

    fn unknown(error: &NoResponse) -> Self {
        Self {
            observation: Observation::Unknown,
            decline: None,
            charge_id: None,
            outcome: format!("no response: {error}"),
        }
    }
}
