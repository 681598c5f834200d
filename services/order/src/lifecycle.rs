//! The order's state machine, in one table: [`next`]. Driver, API, diagram, verification and tests read it, and a
//! `store::Transition` other than the creation cannot be made without it: what is not in the table does not happen.
//!
//! An order is created with reserved stock. Then it is paid, its stock is allocated and its fulfilment starts, strictly
//! in that sequence. A declined payment ends it. A cancellation requested before fulfilment has started moves it
//! towards CANCELLED; from then on it can never be fulfilled, and what was charged is refunded. If the gateway refuses
//! the refund, an operator must intervene: NEEDS_ATTENTION has no pending effect but is not final.

use std::fmt::Write as _;

/// The state of an order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum State {
    /// Created, stock reserved.
    Created,
    Paid,
    /// The stock is allocated.
    Allocated,
    /// Final: fulfilment has started.
    FulfillmentStarted,
    /// Final: the payment was declined or failed.
    PaymentFailed,
    /// Stock released; the payment is being cancelled or refunded.
    Cancelling,
    /// Final: nothing is charged.
    Cancelled,
    /// Not final, without a pending effect: the refund was refused.
    NeedsAttention,
}

/// The pending effect of a state. Its key is derived from the order and the effect, so performing it again is
/// idempotent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Charge through the Payment Service.
    ProcessPayment,
    /// Turn held stock into allocated stock; local.
    AllocateInventory,
    /// Compute the delivery date and record the fulfilment; local.
    StartFulfillment,
    /// Have the Payment Service make certain that nothing stays charged.
    CancelPayment,
}

/// The inputs of the state machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// The pending effect was performed.
    Done,
    /// The pending effect was refused permanently.
    Refused,
    /// CancelOrder by the customer or an operator.
    CancelRequested,
    /// RetryOrder by an operator.
    RetryRequested,
}

/// What the state machine decides about an input.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decision {
    /// The order moves to this state.
    To(State),
    /// The order is already in, or on the way to, the requested state: OK, nothing changes.
    Stays,
    /// The input is rejected: too late, or not valid in this state.
    Rejected,
}

/// A state machine: [`next`], or another one in a test.
pub type Table = fn(State, Input) -> Decision;

/// The state of a new order.
pub const INITIAL: State = State::Created;

/// The pending effect of a state.
#[rustfmt::skip]
pub const fn pending_effect(state: State) -> Option<Effect> {
    match state {
        State::Created            => Some(Effect::ProcessPayment),
        State::Paid               => Some(Effect::AllocateInventory),
        State::Allocated          => Some(Effect::StartFulfillment),
        State::Cancelling         => Some(Effect::CancelPayment),
        State::NeedsAttention     => None,
        State::FulfillmentStarted => None,
        State::PaymentFailed      => None,
        State::Cancelled          => None,
    }
}

/// The table: the decision about an input in a state.
#[rustfmt::skip]
pub const fn next(state: State, input: Input) -> Decision {
    use Decision::{Rejected, Stays, To};
    use Input::{CancelRequested, Done, Refused, RetryRequested};
    use State::*;
    match (state, input) {
        (Created,            Done)            => To(Paid),
        (Created,            Refused)         => To(PaymentFailed),
        (Created,            CancelRequested) => To(Cancelling),
        (Created,            RetryRequested)  => Rejected,

        (Paid,               Done)            => To(Allocated),
        (Paid,               Refused)         => To(Cancelling),
        (Paid,               CancelRequested) => To(Cancelling),
        (Paid,               RetryRequested)  => Rejected,

        (Allocated,          Done)            => To(FulfillmentStarted),
        (Allocated,          Refused)         => Rejected,
        (Allocated,          CancelRequested) => To(Cancelling),
        (Allocated,          RetryRequested)  => Rejected,

        (Cancelling,         Done)            => To(Cancelled),
        (Cancelling,         Refused)         => To(NeedsAttention),
        (Cancelling,         CancelRequested) => Stays,
        (Cancelling,         RetryRequested)  => Rejected,

        (NeedsAttention,     Done)            => Rejected,
        (NeedsAttention,     Refused)         => Rejected,
        (NeedsAttention,     CancelRequested) => Stays,
        (NeedsAttention,     RetryRequested)  => To(Cancelling),

        (Cancelled,          CancelRequested) => Stays,
        (Cancelled,          _)               => Rejected,
        (FulfillmentStarted, _)               => Rejected,
        (PaymentFailed,      _)               => Rejected,
    }
}

/// Whether a state is terminal.
pub const fn is_final(state: State) -> bool {
    matches!(state, State::FulfillmentStarted | State::PaymentFailed | State::Cancelled)
}

/// Whether entering this state releases held and allocated stock: from here the order can never be fulfilled.
pub const fn releases_stock(state: State) -> bool {
    matches!(state, State::Cancelling | State::PaymentFailed)
}

/// Whether entering this state turns reserved stock into allocated stock.
pub const fn allocates_stock(state: State) -> bool {
    matches!(state, State::Allocated)
}

pub const STATES: [State; 8] = [
    State::Created,
    State::Paid,
    State::Allocated,
    State::FulfillmentStarted,
    State::PaymentFailed,
    State::Cancelling,
    State::Cancelled,
    State::NeedsAttention,
];

impl State {
    /// The name in the contract and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "CREATED",
            Self::Paid => "PAID",
            Self::Allocated => "ALLOCATED",
            Self::FulfillmentStarted => "FULFILLMENT_STARTED",
            Self::PaymentFailed => "PAYMENT_FAILED",
            Self::Cancelling => "CANCELLING",
            Self::Cancelled => "CANCELLED",
            Self::NeedsAttention => "NEEDS_ATTENTION",
        }
    }

    /// The state with this name.
    pub fn of(name: &str) -> Option<Self> {
        STATES.into_iter().find(|state| state.name() == name)
    }
}

impl Effect {
    /// The name in spans and events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProcessPayment => "process_payment",
            Self::AllocateInventory => "allocate_inventory",
            Self::StartFulfillment => "start_fulfillment",
            // Not `cancel_payment`: that is the Payment Service's span. The name is public, as the `operation` of stored
            // events, in which `verify` looks for it.
            Self::CancelPayment => "cancel_order",
        }
    }
}

/// The table as a mermaid state diagram; the README contains it, and a test keeps them equal.
pub fn diagram() -> String {
    let mut text = String::from("stateDiagram-v2\n    [*] --> CREATED: CreateOrder\n");
    for state in STATES {
        let effect = pending_effect(state).map_or("", |effect| effect.name());
        let inputs = [
            (Input::Done, format!("{effect} done")),
            (Input::Refused, format!("{effect} refused")),
            (Input::CancelRequested, "CancelOrder".to_owned()),
            (Input::RetryRequested, "RetryOrder".to_owned()),
        ];
        for (input, label) in inputs {
            if let Decision::To(to) = next(state, input) {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "    {} --> {}: {label}", state.name(), to.name());
            }
        }
        if is_final(state) {
            let _ = writeln!(text, "    {} --> [*]", state.name());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUTS: [Input; 4] = [Input::Done, Input::Refused, Input::CancelRequested, Input::RetryRequested];

    #[test]
    fn a_final_state_has_no_pending_effect_and_no_transitions() {
        for state in STATES.into_iter().filter(|state| is_final(*state)) {
            assert_eq!(pending_effect(state), None);
            for input in INPUTS {
                assert!(!matches!(next(state, input), Decision::To(_)), "{state:?} {input:?}");
            }
        }
    }

    #[test]
    fn exactly_the_states_with_a_pending_effect_accept_done() {
        for state in STATES {
            assert_eq!(
                pending_effect(state).is_some(),
                matches!(next(state, Input::Done), Decision::To(_)),
                "{state:?}"
            );
        }
    }

    #[test]
    fn fulfilment_is_reached_through_payment_and_allocation_only() {
        let into = |target: State| -> Vec<State> {
            STATES
                .into_iter()
                .filter(|state| INPUTS.iter().any(|input| next(*state, *input) == Decision::To(target)))
                .collect()
        };
        assert_eq!(into(State::FulfillmentStarted), [State::Allocated]);
        assert_eq!(into(State::Allocated), [State::Paid]);
        assert_eq!(into(State::Paid), [State::Created]);
        assert_eq!(into(State::Created), []);
    }

    #[test]
    fn once_stock_is_released_fulfilment_is_out_of_reach() {
        let mut reached: Vec<State> = STATES.into_iter().filter(|state| releases_stock(*state)).collect();
        let mut index = 0;
        while let Some(state) = reached.get(index).copied() {
            for input in INPUTS {
                if let Decision::To(to) = next(state, input)
                    && !reached.contains(&to)
                {
                    reached.push(to);
                }
            }
            index += 1;
        }
        for forbidden in [State::FulfillmentStarted, State::Allocated, State::Paid] {
            assert!(!reached.contains(&forbidden), "{forbidden:?}");
        }
    }

    #[test]
    fn names_round_trip() {
        for state in STATES {
            assert_eq!(State::of(state.name()), Some(state));
        }
        assert_eq!(State::of("created"), None);
    }
}
