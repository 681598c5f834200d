//! What must be so of every order and of all stock, as pure rules over what [`crate::store::Store`] reads: for
//! `ordermesh verify`, the crash suite and the gauges. What other services and the gateway know is compared there, not here.

use std::time::Duration;

use kernel::{Money, OrderId, Timestamp, UserId};
use telemetry::EventStatus;

use crate::lifecycle::{Answer, Input, State, is_final, next, owes};
use crate::order::LineState;
use crate::orders::asked;

/// An order as the rules see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditedOrder {
    /// Its id.
    pub id: OrderId,
    /// Whose it is.
    pub user: UserId,
    /// Where it is.
    pub state: State,
    /// Counts the steps.
    pub version: i64,
    /// What it costs.
    pub total: Money,
    /// Is the payment's token still kept?
    pub keeps_token: bool,
    /// When what it owes is due; `None` when nothing is.
    pub due: Option<Timestamp>,
    /// Until when somebody drives it; `None` when nobody does.
    pub leased_until: Option<Timestamp>,
    /// When it was recorded.
    pub created: Timestamp,
    /// How many fulfilments it has.
    pub fulfillments: i64,
    /// What became of its lines' stock.
    pub lines: Vec<LineState>,
    /// Its history, oldest first.
    pub steps: Vec<AuditedStep>,
}

/// A step of an order's history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditedStep {
    /// The version after it.
    pub version: i64,
    /// The state after it.
    pub state: State,
    /// When it was committed.
    pub time: Timestamp,
    /// The span in which it happened: also its event's.
    pub span_id: String,
    /// Was it asked for by a call that is audited: `cancel` or `retry`, the value of its event's attribute `operation`.
    pub asked: Option<&'static str>,
}

impl AuditedStep {
    /// The event that is written with it: its type, the value of its attribute `operation`, and its status.
    pub fn event(&self) -> Option<(&'static str, &'static str, EventStatus)> {
        let audit = self.asked.map(|operation| (chassis::audit::EVENT_TYPE, operation, EventStatus::Success));
        audit.or_else(|| event_of(self.state))
    }
}

/// What a step's reason says of the call that asked for it.
pub(crate) fn asked(reason: &str) -> Option<&'static str> {
    match reason {
        asked::CUSTOMER_TO_CANCEL | asked::OPERATOR_TO_CANCEL => Some("cancel"),
        asked::OPERATOR_TO_RETRY => Some("retry"),
        _ => None,
    }
}

/// A SKU's stock beside the lines that hold of it, read in one snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditedStock {
    /// Stock keeping unit.
    pub sku: String,
    /// How many there are; `None`: lines hold of what is in no inventory.
    pub on_hand: Option<i64>,
    /// How many are reserved.
    pub reserved: i64,
    /// The sum of the HELD and ALLOCATED lines of orders that may hold some.
    pub held: i64,
    /// The sum of the HELD and ALLOCATED lines of all other orders.
    pub held_wrongly: i64,
}

/// The event that entering a state writes: its type, the value of its attribute `operation`, and its status.
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

impl AuditedOrder {
    /// Is it final, or at rest in NEEDS_ATTENTION?
    pub fn is_at_rest(&self) -> bool {
        owes(self.state).is_none()
    }

    /// Promise 1, in the order's own tables: the history is whole, what is owed is due and not left lying. `patience` is how
    /// long something that is due, and that nobody drives, may lie.
    pub fn life_problems(&self, now: Timestamp, patience: Duration) -> Vec<String> {
        let mut problems = self.history_problems();
        let name = self.state.name();
        if self.due.is_some() == self.is_at_rest() {
            let due = if self.due.is_some() { "is due and owes nothing" } else { "owes something and is never due" };
            problems.push(format!("in {name} it {due}"));
        }
        if self.is_at_rest() && self.leased_until.is_some() {
            problems.push(format!("in {name} it is at rest and somebody has its lease"));
        }
        if (self.fulfillments == 1) != (self.state == State::FulfillmentStarted) || self.fulfillments > 1 {
            problems.push(format!("in {name} it has {} fulfilments", self.fulfillments));
        }
        if self.keeps_token != (self.state == State::Created) {
            problems
                .push(format!("in {name} the payment's token is {}", if self.keeps_token { "kept" } else { "gone" }));
        }
        let left_since = self.due.map(|due| due.max(self.leased_until.unwrap_or_default()));
        if let Some(since) = left_since.filter(|since| now.since(*since) > patience) {
            problems.push(format!("in {name} it is due and nobody has driven it for {} s", now.since(since).as_secs()));
        }
        problems
    }

    fn history_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut before: Option<&AuditedStep> = None;
        for step in &self.steps {
            match before {
                None if (step.version, step.state) != (1, State::Created) => {
                    problems.push(format!("its history begins with {} {}", step.version, step.state.name()));
                }
                None => {}
                Some(last) => {
                    let inputs = [Input::Done, Input::Refused, Input::CancelAsked, Input::RetryAsked];
                    if !inputs.into_iter().any(|input| next(last.state, input) == Answer::To(step.state)) {
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

    /// Promise 3, line by line.
    pub fn line_problems(&self) -> Vec<String> {
        let allocated = matches!(self.state, State::Allocated | State::FulfillmentStarted);
        let may_hold = allocated || matches!(self.state, State::Created | State::Paid);
        let is_right = |line: &LineState| match line {
            LineState::Held => may_hold && !allocated,
            LineState::Allocated => allocated,
            LineState::Released => !may_hold,
            LineState::Lost => !allocated,
        };
        let wrong = self.lines.iter().filter(|line| !is_right(line));
        let mut problems: Vec<String> =
            wrong.map(|line| format!("in {} it has a line that is {}", self.state.name(), line.name())).collect();
        if self.lines.is_empty() {
            problems.push("it has no lines".to_owned());
        }
        problems
    }

    /// Is it at rest for good?
    pub fn is_final(&self) -> bool {
        is_final(self.state)
    }
}

impl AuditedStock {
    /// Promise 3, SKU by SKU.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match self.on_hand {
            Some(on_hand) if (0..=on_hand).contains(&self.reserved) => {}
            Some(on_hand) => problems.push(format!("{} are reserved of {on_hand}", self.reserved)),
            None => problems.push(format!("{} are held of what is in no inventory", self.held)),
        }
        if self.reserved != self.held {
            problems.push(format!("{} are reserved, and orders hold {}", self.reserved, self.held));
        }
        if self.held_wrongly != 0 {
            problems.push(format!("{} are held by orders that may hold none", self.held_wrongly));
        }
        problems
    }
}
