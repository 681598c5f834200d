//! The order's life, on one screen. Everything else (driver, API, diagram, tests) reads this table.
//!
//! An order is created with its stock held. It is paid, its stock is allocated, its fulfilment starts: strictly in that
//! sequence. A refused payment ends it. Whoever asks for a cancellation before fulfilment has started turns it towards
//! CANCELLED, and from that moment nothing of it can be fulfilled; what was charged is given back. When the gateway
//! refuses that, a person has to look: NEEDS_ATTENTION is at rest and not final.

use std::fmt::Write as _;

/// Where an order is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum State {
    /// Recorded, stock held.
    Created,
    /// The payment succeeded.
    Paid,
    /// The stock is allocated.
    Allocated,
    /// Done.
    FulfillmentStarted,
    /// Final: the payment was refused.
    PaymentFailed,
    /// Stock released; nothing may stay charged.
    Cancelling,
    /// Final: nothing is charged.
    Cancelled,
    /// At rest: the money could not be given back.
    NeedsAttention,
}

/// What a state owes: performed under a key derived from the order and the effect, so that twice is once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Ask the Payment Service to take the money.
    ProcessPayment,
    /// Turn held stock into allocated stock; local.
    AllocateInventory,
    /// Date the delivery and record the fulfilment; local.
    StartFulfillment,
    /// Ask the Payment Service to make certain that nothing stays charged.
    CancelPayment,
}

/// What may happen to an order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// The effect that is owed was done.
    Done,
    /// The effect that is owed was refused, for good.
    Refused,
    /// The customer, or an operator, asks to cancel.
    CancelAsked,
    /// An operator asks to try again.
    RetryAsked,
}

/// What comes of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// The order moves.
    To(State),
    /// The order is where the input wants it already: OK, nothing changes.
    Stays,
    /// The input is refused: too late, or not for this state.
    No,
}

/// What a state owes.
#[rustfmt::skip]
pub const fn owes(state: State) -> Option<Effect> {
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

/// The table: what comes of an input in a state.
#[rustfmt::skip]
pub const fn next(state: State, input: Input) -> Answer {
    use Answer::{No, Stays, To};
    use Input::{CancelAsked, Done, Refused, RetryAsked};
    use State::*;
    match (state, input) {
        (Created,            Done)        => To(Paid),
        (Created,            Refused)     => To(PaymentFailed),
        (Created,            CancelAsked) => To(Cancelling),
        (Created,            RetryAsked)  => No,

        (Paid,               Done)        => To(Allocated),
        (Paid,               Refused)     => To(Cancelling),
        (Paid,               CancelAsked) => To(Cancelling),
        (Paid,               RetryAsked)  => No,

        (Allocated,          Done)        => To(FulfillmentStarted),
        (Allocated,          Refused)     => No,
        (Allocated,          CancelAsked) => To(Cancelling),
        (Allocated,          RetryAsked)  => No,

        (Cancelling,         Done)        => To(Cancelled),
        (Cancelling,         Refused)     => To(NeedsAttention),
        (Cancelling,         CancelAsked) => Stays,
        (Cancelling,         RetryAsked)  => No,

        (NeedsAttention,     Done)        => No,
        (NeedsAttention,     Refused)     => No,
        (NeedsAttention,     CancelAsked) => Stays,
        (NeedsAttention,     RetryAsked)  => To(Cancelling),

        (Cancelled,          CancelAsked) => Stays,
        (Cancelled,          _)           => No,
        (FulfillmentStarted, _)           => No,
        (PaymentFailed,      _)           => No,
    }
}

/// Nothing more will happen to it.
pub const fn is_final(state: State) -> bool {
    matches!(state, State::FulfillmentStarted | State::PaymentFailed | State::Cancelled)
}

/// Entering this state gives held and allocated stock back: from here the order can never be fulfilled.
pub const fn releases_stock(state: State) -> bool {
    matches!(state, State::Cancelling | State::PaymentFailed)
}

/// All states.
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
    /// Its name in the contract and in the database.
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

    /// The state of a name.
    pub fn of(name: &str) -> Option<Self> {
        STATES.into_iter().find(|state| state.name() == name)
    }
}

impl Effect {
    /// Its name in spans and events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProcessPayment => "process_payment",
            Self::AllocateInventory => "allocate_inventory",
            Self::StartFulfillment => "start_fulfillment",
            Self::CancelPayment => "cancel_order",
        }
    }
}

/// The table as a mermaid state diagram; the README shows it, and a test keeps them equal.
pub fn diagram() -> String {
    let mut text = String::from("stateDiagram-v2\n    [*] --> CREATED: CreateOrder\n");
    for state in STATES {
        let effect = owes(state).map_or("", |effect| effect.name());
        let inputs = [
            (Input::Done, format!("{effect} done")),
            (Input::Refused, format!("{effect} refused")),
            (Input::CancelAsked, "CancelOrder".to_owned()),
            (Input::RetryAsked, "RetryOrder".to_owned()),
        ];
        for (input, label) in inputs {
            if let Answer::To(to) = next(state, input) {
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

    const INPUTS: [Input; 4] = [Input::Done, Input::Refused, Input::CancelAsked, Input::RetryAsked];

    #[test]
    fn a_final_state_owes_nothing_and_is_never_left() {
        for state in STATES.into_iter().filter(|state| is_final(*state)) {
            assert_eq!(owes(state), None);
            for input in INPUTS {
                assert!(!matches!(next(state, input), Answer::To(_)), "{state:?} {input:?}");
            }
        }
    }

    #[test]
    fn every_state_that_owes_something_can_be_done_with_it() {
        for state in STATES {
            assert_eq!(owes(state).is_some(), matches!(next(state, Input::Done), Answer::To(_)), "{state:?}");
        }
    }

    #[test]
    fn fulfilment_is_reached_through_payment_and_allocation_only() {
        let into = |target: State| -> Vec<State> {
            STATES
                .into_iter()
                .filter(|state| INPUTS.iter().any(|input| next(*state, *input) == Answer::To(target)))
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
                if let Answer::To(to) = next(state, input)
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
    fn names_are_read_back() {
        for state in STATES {
            assert_eq!(State::of(state.name()), Some(state));
        }
        assert_eq!(State::of("created"), None);
    }
}
