//! The invariants of orders and stock, as pure rules over what [`crate::store::Store`] reads: for `ordermesh verify`,
//! the crash suite and the gauges. Comparisons with other services and the gateway are in `ordermesh verify`, not here.

use std::time::Duration;

use kernel::{Money, OrderId, Timestamp, UserId};
use telemetry::EventStatus;

use crate::lifecycle::{Decision, Input, State, is_final, next, pending_effect};
use crate::order::LineState;
use crate::orders::reasons;

/// An order as the rules see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckedOrder {
    pub id: OrderId,
    /// The customer that placed it.
    pub user: UserId,
    pub state: State,
    /// Incremented by every transition.
    pub version: i64,
    /// The amount to charge.
    pub total: Money,
    /// Whether the payment method's token is still stored.
    pub keeps_token: bool,
    /// When its pending effect is due; `None` when there is none.
    pub due: Option<Timestamp>,
    /// When its lease expires; `None` when it is not leased.
    pub leased_until: Option<Timestamp>,
    pub created: Timestamp,
    /// Number of fulfilment rows; at most one is valid.
    pub fulfillments: i64,
    /// The states of its lines' reservations.
    pub lines: Vec<LineState>,
    /// Its history, oldest first.
    pub steps: Vec<CheckedTransition>,
}

/// A transition in an order's history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckedTransition {
    /// The version after the transition.
    pub version: i64,
    /// The state after the transition.
    pub state: State,
    /// When it was committed.
    pub time: Timestamp,
    /// The span of the transition; its event has the same.
    pub span_id: String,
    /// For a transition requested by an audited call: `cancel` or `retry`, the value of its event's attribute
    /// `operation`.
    pub requested: Option<&'static str>,
}

impl CheckedTransition {
    /// The event written with the transition: its type, the value of its attribute `operation`, and its status.
    pub fn event(&self) -> Option<(&'static str, &'static str, EventStatus)> {
        let audit = self.requested.map(|operation| (chassis::audit::EVENT_TYPE, operation, EventStatus::Success));
        audit.or_else(|| event_of(self.state))
    }
}

/// The audited operation that a transition's reason stands for, if any.
pub(crate) fn requested_operation(reason: &str) -> Option<&'static str> {
    match reason {
        reasons::CANCEL_BY_CUSTOMER | reasons::CANCEL_BY_OPERATOR => Some("cancel"),
        reasons::RETRY_BY_OPERATOR => Some("retry"),
        _ => None,
    }
}

/// A SKU's stock next to the lines that reserve it, read in one snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckedStock {
    pub sku: String,
    /// Units in stock; `None` when lines reserve a SKU that is not in the inventory.
    pub on_hand: Option<i64>,
    pub reserved: i64,
    /// The sum of the HELD and ALLOCATED lines of orders whose state permits a reservation.
    pub held: i64,
    /// The sum of the HELD and ALLOCATED lines of all other orders.
    pub held_wrongly: i64,
}

/// The event written on entering a state: its type, the value of its attribute `operation`, and its status.
pub const fn event_of(state: State) -> Option<(&'static str, &'static str, EventStatus)> {
    use EventStatus::{Failed, Success};
    match state {
        State::Created => Some(("order_creation", "", Success)),
        State::Allocated => Some(("order_fulfillment", "allocate_inventory", Success)),
        State::FulfillmentStarted => Some(("order_fulfillment", "start_fulfillment", Success)),
        State::Cancelled => Some(("order_fulfillment", "cancel_order", Success)),
        State::NeedsAttention => Some(("order_fulfillment", "cancel_order", Failed)),
        State::Paid | State::PaymentFailed | State::Cancelling => None,
    }
}

impl CheckedOrder {
    /// Whether it is final or parked in NEEDS_ATTENTION: no effect is pending.
    pub fn is_at_rest(&self) -> bool {
        pending_effect(self.state).is_none()
    }

    /// Promise 1, in the order's own tables: the history is complete, and a pending effect is due and not overdue.
    /// `patience` is how long a due order may stay unleased.
    pub fn lifecycle_problems(&self, now: Timestamp, patience: Duration) -> Vec<String> {
        let mut problems = self.history_problems();
        let name = self.state.name();
        if self.due.is_some() == self.is_at_rest() {
            let due = if self.due.is_some() {
                "is due without a pending effect"
            } else {
                "has a pending effect that is never due"
            };
            problems.push(format!("in {name} it {due}"));
        }
        if self.is_at_rest() && self.leased_until.is_some() {
            problems.push(format!("in {name} it has no pending effect but is leased"));
        }
        if (self.fulfillments == 1) != (self.state == State::FulfillmentStarted) || self.fulfillments > 1 {
            problems.push(format!("in {name} it has {} fulfilments", self.fulfillments));
        }
        if self.keeps_token != (self.state == State::Created) {
            problems.push(format!(
                "in {name} the payment's token is {}",
                if self.keeps_token { "stored" } else { "missing" }
            ));
        }
        let left_since = self.due.map(|due| due.max(self.leased_until.unwrap_or_default()));
        if let Some(since) = left_since.filter(|since| now.since(*since) > patience) {
            problems.push(format!("in {name} it has been due and unleased for {} s", now.since(since).as_secs()));
        }
        problems
    }

    fn history_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut before: Option<&CheckedTransition> = None;
        for step in &self.steps {
            match before {
                None if (step.version, step.state) != (1, State::Created) => {
                    problems.push(format!("its history begins with {} {}", step.version, step.state.name()));
                }
                None => {}
                Some(last) => {
                    let inputs = [Input::Done, Input::Refused, Input::CancelRequested, Input::RetryRequested];
                    if !inputs.into_iter().any(|input| next(last.state, input) == Decision::To(step.state)) {
                        problems.push(format!("{} to {} is not in the table", last.state.name(), step.state.name()));
                    }
                    if step.version != last.version + 1 {
                        problems.push(format!("its history has a gap before {}", step.version));
                    }
                }
            }
            before = Some(step);
        }
        if before.map(|last| (last.version, last.state)) != Some((self.version, self.state)) {
            problems.push(format!("its history does not end with {} {}", self.version, self.state.name()));
        }
        problems
    }

    /// Promise 3, line by line: each line's state is allowed in the order's state.
    pub fn line_problems(&self) -> Vec<String> {
        let allocated = matches!(self.state, State::Allocated | State::FulfillmentStarted);
        let may_hold = allocated || matches!(self.state, State::Created | State::Paid);
        let is_allowed = |line: &LineState| match line {
            LineState::Held => may_hold && !allocated,
            LineState::Allocated => allocated,
            LineState::Released => !may_hold,
            LineState::Lost => !allocated,
        };
        let violations = self.lines.iter().filter(|line| !is_allowed(line));
        let mut problems: Vec<String> =
            violations.map(|line| format!("in {} it has a line that is {}", self.state.name(), line.name())).collect();
        if self.lines.is_empty() {
            problems.push("it has no lines".to_owned());
        }
        problems
    }

    /// Whether its state is terminal.
    pub fn is_final(&self) -> bool {
        is_final(self.state)
    }
}

impl CheckedStock {
    /// Promise 3, SKU by SKU: reserved stock is what the lines reserve, and within what is on hand.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match self.on_hand {
            Some(on_hand) if (0..=on_hand).contains(&self.reserved) => {}
            Some(on_hand) => problems.push(format!("{} of {on_hand} are reserved", self.reserved)),
            None => problems.push(format!("{} are reserved, but the SKU is not in the inventory", self.held)),
        }
        if self.reserved != self.held {
            problems.push(format!("{} are reserved, but orders hold {}", self.reserved, self.held));
        }
        if self.held_wrongly != 0 {
            problems.push(format!("{} are held by orders in states without a reservation", self.held_wrongly));
        }
        problems
    }
}
