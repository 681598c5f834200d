//! What a scenario must lead to: compared with the system's responses, and printed as a row of the table of failures.

use contracts::common::v1::EventType;
use contracts::data::v1 as data_v1;
use contracts::order::v1::{Order, OrderHistoryEntry, OrderState};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::demo::run::Run;
use crate::demo::scenario::{Failure, ScenarioOutcome, expect_eq};
use crate::error;
use crate::text;

/// The reason of an error whose violations have reasons of their own.
const INVALID_ARGUMENT: &str = "INVALID_ARGUMENT";

/// A scenario's expected result.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    /// The order's final state.
    pub(crate) state: Option<OrderState>,
    /// The code of the rejected call.
    pub(crate) code: Option<Code>,
    /// The reasons of the rejected call and of its violations, or of the failed payment.
    pub(crate) reasons: Vec<&'static str>,
    /// The events of the trace: all failed ones, and at least these successful ones.
    pub(crate) events: Vec<ExpectedEvent>,
}

impl Expected {
    /// Compares; returns the lines of the output.
    ///
    /// # Errors
    /// The first difference.
    pub(crate) async fn check(&self, run: &Run, outcome: ScenarioOutcome) -> Result<Vec<String>, Failure> {
        let mut lines = Vec::new();
        let mut reasons = Vec::new();
        if let Some((state, order_id)) = self.state.zip(outcome.order_id) {
            let history = run.follow(&order_id, state).await?;
            lines.extend([format!("order {order_id}"), transitions(&history)]);
            let order = run.get(&order_id).await?;
            expect_eq("the order's state", text::state(order.state), text::state(state.into()))?;
            reasons = payment_reasons(&order);
            lines.extend(order.payment_failure.map(|failure| format!("{}: {}", reasons.join(" "), failure.message)));
        }
        expect_eq("the response's code", outcome.status.as_ref().map(Status::code), self.code)?;
        if let Some(status) = &outcome.status {
            reasons = reasons_of(status);
            lines.push(error::describe(status));
        }
        expect_eq("the reasons", reasons, self.reasons.iter().map(|reason| (*reason).to_owned()).collect())?;
        run.expect_events(&self.events).await?;
        lines.extend(outcome.lines);
        lines.extend(self.events.iter().map(|event| format!("event {}", event.text())));
        Ok(lines)
    }

    /// The cells of the table: state, response, events.
    pub(crate) fn cells(&self) -> [String; 3] {
        let code = |text: &str| format!("`{text}`");
        let or = |cell: String, other: &str| if cell.is_empty() { other.to_owned() } else { cell };
        let state = self.state.map(|state| code(text::state(state.into()))).unwrap_or_default();
        let status = self.code.map(|status| code(&format!("{status:?}")));
        let response: Vec<_> = status.into_iter().chain(self.reasons.iter().map(|reason| code(reason))).collect();
        let events: Vec<_> = self.events.iter().map(|event| event.cell()).collect();
        [or(state, "-"), or(response.join(" "), "-"), or(events.join("; "), "none")]
    }
}

/// The order's transitions, with the time since its creation.
fn transitions(history: &[OrderHistoryEntry]) -> String {
    let start = history.first().and_then(|entry| entry.time);
    let steps: Vec<String> = history
        .iter()
        .map(|entry| format!("{} {}", text::state(entry.state), text::offset(start.as_ref(), entry.time.as_ref())))
        .collect();
    steps.join(" → ")
}

/// Why the order's payment failed, as shown to its customer.
fn payment_reasons(order: &Order) -> Vec<String> {
    let Some(failure) = &order.payment_failure else { return Vec::new() };
    distinct([&failure.reason, &failure.decline_code, &failure.advice])
}

/// The reasons of a status: of the error, unless it only says that there are violations, and of the violations.
fn reasons_of(status: &Status) -> Vec<String> {
    let violations = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
    let reasons: Vec<_> = violations.into_iter().map(|violation| violation.reason).collect();
    let own = Some(error::reason(status)).filter(|own| reasons.is_empty() || own != INVALID_ARGUMENT);
    distinct(own.iter().chain(&reasons))
}

fn distinct<'a>(words: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for word in words {
        if !word.is_empty() && !all.contains(word) {
            all.push(word.clone());
        }
    }
    all
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ExpectedEvent {
    kind: EventType,
    /// The error's type and reason.
    error: Option<(&'static str, &'static str)>,
}

pub(crate) const fn succeeded(kind: EventType) -> ExpectedEvent {
    ExpectedEvent { kind, error: None }
}

/// A failed event, with the error's type and reason.
pub(crate) const fn failed(kind: EventType, error_type: &'static str, reason: &'static str) -> ExpectedEvent {
    ExpectedEvent { kind, error: Some((error_type, reason)) }
}

impl ExpectedEvent {
    pub(crate) fn matches(self, event: &data_v1::TraceEvent) -> bool {
        let error = event.error.as_ref().map(|error| (error.r#type.as_str(), error.reason.as_str()));
        let status = match self.error {
            None => data_v1::EventStatus::Success,
            Some(_) => data_v1::EventStatus::Failed,
        };
        event.r#type == i32::from(self.kind)
            && event.status == i32::from(status)
            && self.error.is_none_or(|expected| error == Some(expected))
    }

    /// For example `order_creation failed: ValidationError EMPTY_ORDER`.
    pub(crate) fn text(self) -> String {
        let kind = text::event_type(self.kind.into());
        match self.error {
            None => format!("{kind} success"),
            Some((error_type, reason)) => format!("{kind} failed: {error_type} {reason}"),
        }
    }

    /// The same in Markdown.
    fn cell(self) -> String {
        let kind = text::event_type(self.kind.into());
        match self.error {
            None => format!("`{kind}` success"),
            Some((error_type, reason)) => format!("`{kind}` failed: `{error_type}` `{reason}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_matches_only_its_own_type_status_and_error() {
        let event = |reason: &str| data_v1::TraceEvent {
            r#type: EventType::OrderCreation.into(),
            status: data_v1::EventStatus::Failed.into(),
            error: Some(data_v1::EventError {
                r#type: "ValidationError".into(),
                reason: reason.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let expected = failed(EventType::OrderCreation, "ValidationError", "UNKNOWN_SKU");
        assert!(expected.matches(&event("UNKNOWN_SKU")));
        assert!(!expected.matches(&event("MIXED_CURRENCIES")));
        assert!(!succeeded(EventType::OrderCreation).matches(&event("UNKNOWN_SKU")));
        assert_eq!(expected.text(), "order_creation failed: ValidationError UNKNOWN_SKU");
    }
}
