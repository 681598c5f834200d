//! The rules for one order with its payment, its charge and its events. Pure.

use std::collections::BTreeMap;

use kernel::Timestamp;
use order::invariants::CheckedOrder;
use order::lifecycle::State;
use payment::lifecycle::State as Paid;
use payment::payment::{Attempt, EVENT_TYPE, Payment, event_of};
use payment::ports::{Charge, ChargeStatus};
use payment::reconcile::{LedgerEntry, difference};
use telemetry::{EventStatus, Outcome, TraceEvent};

use super::{Promise, Report, Sources, Violation};

/// An order with everything that belongs to it.
#[derive(Clone, Debug)]
pub struct Case {
    pub order: CheckedOrder,
    pub payment: Option<Payment>,
    /// The payment's attempts, oldest first.
    pub attempts: Vec<Attempt>,
    /// The gateway's row of its charge.
    pub charge: Option<Charge>,
    /// Its events from all stores, without duplicates.
    pub events: Vec<TraceEvent>,
}

/// The key of an expected or stored event: type, operation, status, span.
type EventKey<'a> = (&'a str, &'a str, EventStatus, &'a str);

impl Case {
    /// Counts the order in the report.
    pub(crate) fn count(&self, report: &mut Report) {
        *report.states.entry(self.order.state.name()).or_default() += 1;
        report.unfinished += u64::from(!self.order.is_at_rest());
        report.looked_at(Promise::NeverLost, "orders", 1);
        report.looked_at(Promise::NeverLost, "steps", self.order.steps.len());
        report.looked_at(Promise::ChargedOnce, "payments", usize::from(self.payment.is_some()));
        report.looked_at(Promise::StockAddsUp, "lines", self.order.lines.len());
        report.looked_at(Promise::OneEvent, "events", self.events.len());
    }

    /// The violations of this order.
    pub fn violations(&self, now: Timestamp, sources: &Sources) -> Vec<Violation> {
        let mut wrong: Vec<(Promise, String)> = Vec::new();
        let life = self.order.lifecycle_problems(now, sources.patience);
        wrong.extend(life.into_iter().map(|what| (Promise::NeverLost, what)));
        wrong.extend(self.payment_is_left(now, sources).map(|what| (Promise::NeverLost, what)));
        wrong.extend(self.money().into_iter().map(|what| (Promise::ChargedOnce, what)));
        wrong.extend(self.order.line_problems().into_iter().map(|what| (Promise::StockAddsUp, what)));
        wrong.extend(self.event_problems(sources.events_since).into_iter().map(|what| (Promise::OneEvent, what)));
        let subject = self.order.id.to_string();
        let violation = |(promise, what)| Violation { promise, subject: subject.clone(), what };
        wrong.into_iter().map(violation).collect()
    }

    /// A pending effect of the payment that is overdue and not leased.
    fn payment_is_left(&self, now: Timestamp, sources: &Sources) -> Option<String> {
        let payment = self.payment.as_ref()?;
        match (payment.pending_effect(), payment.next_attempt_time) {
            (Some(_), None) => Some(format!("its payment is {}, but never due", payment.state.name())),
            (None, Some(_)) => Some(format!("its payment is {}, but due", payment.state.name())),
            (None, None) => None,
            (Some(_), Some(due)) => {
                let since = if payment.lease_owner.is_some() { due.max(payment.lease_until) } else { due };
                let lain = now.since(since);
                (lain > sources.patience).then(|| {
                    format!(
                        "its payment is {} and has been due and unleased for {} s",
                        payment.state.name(),
                        lain.as_secs()
                    )
                })
            }
        }
    }

    /// Promise 2: the payment and the charge match the order's state.
    fn money(&self) -> Vec<String> {
        let state = self.order.state;
        let charge = self.charge.as_ref().map(|charge| charge.status);
        let is_charged = charge == Some(ChargeStatus::Succeeded);
        let paid = self.payment.as_ref().map(|payment| payment.state);
        let mut problems = Vec::new();
        let right = match state {
            State::Paid | State::Allocated | State::FulfillmentStarted => paid == Some(Paid::Succeeded) && is_charged,
            State::PaymentFailed | State::Cancelled => {
                let uncharged = [Paid::Declined, Paid::Failed, Paid::Cancelled, Paid::Refunded];
                paid.is_some_and(|paid| uncharged.contains(&paid)) && !is_charged
            }
            State::NeedsAttention => paid == Some(Paid::RefundRefused) && is_charged,
            State::Created | State::Cancelling => true,
        };
        if !right {
            problems.push(format!(
                "it is {}, its payment is {}, and the gateway has {}",
                state.name(),
                paid.map_or("missing", Paid::name),
                charge.map_or("no row", ChargeStatus::name),
            ));
        }
        if let Some(payment) = &self.payment {
            let ledger = self.charge.clone().map_or(LedgerEntry::NoRow, LedgerEntry::Row);
            problems.extend(difference(payment, &ledger).map(str::to_owned));
            if payment.amount.is_some_and(|amount| amount != self.order.total) {
                problems.push("its payment has another amount".to_owned());
            }
        }
        problems
    }

    /// Promise 4: exactly one event for each change that has one, and no others.
    fn event_problems(&self, events_since: Timestamp) -> Vec<String> {
        let mut balance: BTreeMap<EventKey<'_>, i64> = BTreeMap::new();
        for step in self.order.steps.iter().filter(|step| step.time >= events_since) {
            if let Some((kind, operation, status)) = step.event() {
                *balance.entry((kind, operation, status, &step.span_id)).or_default() += 1;
            }
        }
        for attempt in self.attempts.iter().filter(|attempt| attempt.time >= events_since) {
            if let Some((operation, outcome)) = event_of(attempt.state, None, "") {
                let status = if outcome == Outcome::Success { EventStatus::Success } else { EventStatus::Failed };
                *balance.entry((EVENT_TYPE, operation, status, &attempt.span_id)).or_default() += 1;
            }
        }
        let oldest = self.order.steps.first().is_some_and(|step| step.time < events_since);
        for event in self.events.iter().filter(|event| is_of_a_change(event)) {
            let operation = event.attributes.get("operation").map_or("", String::as_str);
            *balance.entry((&event.event_type, operation, event.status, &event.span_id)).or_default() -= 1;
        }
        let problem = |((kind, operation, status, span), balance): (EventKey<'_>, i64)| {
            let event =
                format!("{kind} {operation} ({})", if status == EventStatus::Success { "success" } else { "failed" });
            match balance {
                0 => None,
                1.. => Some(format!("{event} of span {span}: a change without an event")),
                // The change may be older than the window of the comparison.
                _ if oldest => None,
                _ => Some(format!("{event} of span {span}: an event without a change")),
            }
        };
        balance.into_iter().filter_map(problem).collect()
    }
}

/// Whether an event is written with a change. Failures that change nothing, and lookups, are not.
fn is_of_a_change(event: &TraceEvent) -> bool {
    match (event.event_type.as_str(), event.status) {
        ("data_lookup", _) => false,
        // Of the audit events, only a cancellation or a retry belongs to a transition.
        ("audit", status) => {
            status == EventStatus::Success
                && matches!(event.attributes.get("operation").map(String::as_str), Some("cancel" | "retry"))
        }
        (EVENT_TYPE, EventStatus::Failed) => {
            // An unreachable Payment Service has an event, but changes nothing.
            event.error.as_ref().is_none_or(|error| error.reason != "UNREACHABLE")
        }
        // A failed allocation is recorded with the cancellation that follows, which may also be the customer's.
        ("order_fulfillment", EventStatus::Failed) => {
            event.error.as_ref().is_some_and(|error| error.error_type == "NeedsAttention")
        }
        (_, status) => status == EventStatus::Success,
    }
}
