//! The payment's state machine, in one table. Everything else (driver, API, diagram, tests, the crash suite) reads this
//! table.
//!
//! A payment is recorded PENDING before the gateway is called. Only a response decides it; without one the charge is in
//! doubt and is retried under the same key, which charges once however often it is sent. If the doubt lasts too long,
//! or the order cancels, a tombstone is put under the key: then the charge either exists and is known, or can never be
//! made. What was charged for a cancelled order is refunded. If the gateway refuses the refund, an operator must
//! intervene.

use std::fmt::Write as _;

/// The state of a payment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum State {
    /// Recorded; the gateway has not responded yet.
    Pending,
    /// The gateway was called, and the outcome is unknown.
    InDoubt,
    /// A tombstone is being put under the charge's key.
    Cancelling,
    /// Charged; a refund is pending.
    Refunding,
    /// Final, unless the order cancels: charged.
    Succeeded,
    /// Final: declined by the issuer or by this service's checks.
    Declined,
    /// Final: in doubt for too long; certainly not charged.
    Failed,
    /// Final: cancelled by the order; certainly not charged.
    Cancelled,
    /// Final: charged and refunded.
    Refunded,
    /// No pending effect until a larger refund number: charged, and the gateway refuses the refund.
    RefundRefused,
}

/// The pending effect of a state. It is sent to the gateway under a key derived from the order, so that repeating it is
/// idempotent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Charge. Key: (order, charge).
    CreateCharge,
    /// Make certain that the key is never charged from now on. Key: (order, charge).
    CancelCharge,
    /// Refund. Key: (order, refund, n).
    RefundCharge {
        /// The number of the refund, from 1.
        n: i32,
    },
}

/// What was observed at the gateway.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Observation {
    /// Charged and not refunded.
    Charged,
    /// Declined by the issuer: not charged, and never will be under this key.
    Declined,
    /// A tombstone: not charged, and never will be under this key.
    Tombstone,
    /// Charged and refunded.
    Refunded,
    /// Charged, and the gateway refuses the refund under this refund's key.
    RefundRefused,
    /// Outcome unknown: no response, or an error, whatever its code.
    Unknown,
}

/// Whether the order has requested a cancellation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CancelRequested {
    Yes,
    No,
}

/// How long the payment has been in doubt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Doubt {
    /// Shorter than the limit, or not at all.
    WithinLimit,
    /// At least as long as the limit.
    PastLimit,
}

/// The pending effect of a state. `refund_n` is the number of the last refund that the order requested.
#[rustfmt::skip]
pub const fn pending_effect(state: State, refund_n: i32) -> Option<Effect> {
    match state {
        State::Pending       => Some(Effect::CreateCharge),
        State::InDoubt       => Some(Effect::CreateCharge),
        State::Cancelling    => Some(Effect::CancelCharge),
        State::Refunding     => Some(Effect::RefundCharge { n: refund_n }),
        State::Succeeded     => None,
        State::Declined      => None,
        State::Failed        => None,
        State::Cancelled     => None,
        State::Refunded      => None,
        State::RefundRefused => None,
    }
}

/// The table: the state after an observation of the pending effect.
#[rustfmt::skip]
pub const fn after(state: State, observed: Observation, cancel: CancelRequested, doubt: Doubt) -> State {
    use CancelRequested::{No, Yes};
    use Doubt::{PastLimit, WithinLimit};
    use Observation as Observed;
    use State::*;
    match (state, observed, cancel, doubt) {
        // create charge
        (Pending,    Observed::Charged,       No,  _)           => Succeeded,
        (Pending,    Observed::Declined,      No,  _)           => Declined,
        (Pending,    Observed::Tombstone,     No,  _)           => Failed,
        (Pending,    Observed::Refunded,     _,   _)           => Refunded,
        (Pending,    Observed::Unknown,       No,  _)           => InDoubt,

        // create charge again, under the same key
        (InDoubt,    Observed::Charged,       No,  _)           => Succeeded,
        (InDoubt,    Observed::Declined,      No,  _)           => Declined,
        (InDoubt,    Observed::Tombstone,     No,  _)           => Failed,
        (InDoubt,    Observed::Refunded,     _,   _)           => Refunded,
        (InDoubt,    Observed::Unknown,       No,  WithinLimit) => InDoubt,
        (InDoubt,    Observed::Unknown,       No,  PastLimit)   => Cancelling,

        // A cancellation moves the payment to CANCELLING immediately (`on_cancel`): these rows are for totality, and
        // safe.
        (Pending | InDoubt, Observed::Charged,                   Yes, _) => Refunding,
        (Pending | InDoubt, Observed::Declined | Observed::Tombstone, Yes, _) => Cancelled,
        (Pending | InDoubt, Observed::Unknown,                   Yes, _) => Cancelling,
        // Not a response to a charge.
        (Pending | InDoubt, Observed::RefundRefused,             _,   _) => state,

        // cancel charge
        (Cancelling, Observed::Charged,       Yes, _)           => Refunding,
        (Cancelling, Observed::Charged,       No,  _)           => Succeeded,
        (Cancelling, Observed::Declined,      Yes, _)           => Cancelled,
        (Cancelling, Observed::Declined,      No,  _)           => Declined,
        (Cancelling, Observed::Tombstone,     Yes, _)           => Cancelled,
        (Cancelling, Observed::Tombstone,     No,  _)           => Failed,
        (Cancelling, Observed::Refunded,     _,   _)           => Refunded,
        (Cancelling, Observed::RefundRefused, _,   _)           => Cancelling,
        (Cancelling, Observed::Unknown,       _,   _)           => Cancelling,

        // refund charge
        (Refunding,  Observed::Refunded,     _,   _)           => Refunded,
        (Refunding,  Observed::RefundRefused, _,   _)           => RefundRefused,
        (Refunding,  Observed::Charged,       _,   _)           => Refunding,
        (Refunding,  Observed::Declined,      _,   _)           => Refunding,
        (Refunding,  Observed::Tombstone,     _,   _)           => Refunding,
        (Refunding,  Observed::Unknown,       _,   _)           => Refunding,

        // No pending effect: nothing to decide.
        (Succeeded | Declined | Failed | Cancelled | Refunded | RefundRefused, _, _, _) => state,
    }
}

/// The state after the order requested a cancellation with refund number `n`; `current_n` is the number before. `None`
/// stands for "no payment yet": the service records a tombstone of its own.
#[rustfmt::skip]
pub const fn on_cancel(state: Option<State>, n: i32, current_n: i32) -> State {
    match state {
        None                       => State::Cancelled,
        Some(State::Pending)       => State::Cancelling,
        Some(State::InDoubt)       => State::Cancelling,
        // Even if the doubt limit caused this state: the request is recorded, and decides what follows.
        Some(State::Cancelling)    => State::Cancelling,
        Some(State::Refunding)     => State::Refunding,
        Some(State::Succeeded)     => State::Refunding,
        Some(State::RefundRefused) => if n > current_n { State::Refunding } else { State::RefundRefused },
        Some(State::Declined)      => State::Declined,
        Some(State::Failed)        => State::Failed,
        Some(State::Cancelled)     => State::Cancelled,
        Some(State::Refunded)      => State::Refunded,
    }
}

pub const STATES: [State; 10] = [
    State::Pending,
    State::InDoubt,
    State::Cancelling,
    State::Refunding,
    State::Succeeded,
    State::Declined,
    State::Failed,
    State::Cancelled,
    State::Refunded,
    State::RefundRefused,
];

pub const OBSERVATIONS: [Observation; 6] = [
    Observation::Charged,
    Observation::Declined,
    Observation::Tombstone,
    Observation::Refunded,
    Observation::RefundRefused,
    Observation::Unknown,
];

impl State {
    /// The name in the contract and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::InDoubt => "IN_DOUBT",
            Self::Cancelling => "CANCELLING",
            Self::Refunding => "REFUNDING",
            Self::Succeeded => "SUCCEEDED",
            Self::Declined => "DECLINED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Refunded => "REFUNDED",
            Self::RefundRefused => "REFUND_REFUSED",
        }
    }

    /// The state with this name.
    pub fn of(name: &str) -> Option<Self> {
        STATES.into_iter().find(|state| state.name() == name)
    }

    /// Whether it has a pending effect; without one it stays until the order requests something else.
    pub const fn has_pending_effect(self) -> bool {
        pending_effect(self, 1).is_some()
    }
}

impl Effect {
    /// The name in `payment_attempt`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CreateCharge => "create_charge",
            Self::CancelCharge => "cancel_charge",
            Self::RefundCharge { .. } => "refund_charge",
        }
    }

    /// The name of its span.
    pub const fn span_name(self) -> &'static str {
        match self {
            Self::CreateCharge => "process_payment",
            Self::CancelCharge => "cancel_payment",
            Self::RefundCharge { .. } => "refund_payment",
        }
    }
}

impl Observation {
    const fn label(self) -> &'static str {
        match self {
            Self::Charged => "charged",
            Self::Declined => "declined",
            Self::Tombstone => "tombstone",
            Self::Refunded => "refunded",
            Self::RefundRefused => "refund refused",
            Self::Unknown => "unknown",
        }
    }
}

/// The table as a mermaid state diagram; services/README.md contains it, and a test keeps them equal. Omitted:
/// unreachable rows (cancellation requested, but not CANCELLING), and refunds that this service did not request.
pub fn diagram() -> String {
    let mut text = String::from("stateDiagram-v2\n    [*] --> PENDING: ProcessPayment\n");
    let mut lines = vec![format!("    [*] --> {}: CancelPayment came first", on_cancel(None, 1, 0).name())];
    for state in STATES {
        for (cancel, doubt) in [
            (CancelRequested::No, Doubt::WithinLimit),
            (CancelRequested::No, Doubt::PastLimit),
            (CancelRequested::Yes, Doubt::WithinLimit),
        ] {
            if cancel == CancelRequested::Yes && matches!(state, State::Pending | State::InDoubt) {
                continue;
            }
            for observed in OBSERVATIONS {
                let to = after(state, observed, cancel, doubt);
                if to == state || (observed == Observation::Refunded && state != State::Refunding) {
                    continue;
                }
                let decides = after(state, observed, CancelRequested::No, doubt)
                    != after(state, observed, CancelRequested::Yes, doubt);
                let when = match (state, cancel, doubt) {
                    (State::InDoubt, _, Doubt::PastLimit) if observed == Observation::Unknown => " past the limit",
                    (State::Cancelling, CancelRequested::Yes, _) if decides => ", cancellation requested",
                    (_, _, _) => "",
                };
                lines.push(format!("    {} --> {}: {}{when}", state.name(), to.name(), observed.label()));
            }
        }
        let to = on_cancel(Some(state), 2, 1);
        if to != state {
            let larger = if state == State::RefundRefused { " with a larger refund_attempt" } else { "" };
            lines.push(format!("    {} --> {}: CancelPayment{larger}", state.name(), to.name()));
        }
        if !state.has_pending_effect() && !matches!(state, State::RefundRefused) {
            lines.push(format!("    {} --> [*]", state.name()));
        }
    }
    let mut listed = std::collections::BTreeSet::new();
    for line in lines.into_iter().filter(|line| listed.insert(line.clone())) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANCEL_REQUESTED: [CancelRequested; 2] = [CancelRequested::Yes, CancelRequested::No];
    const DOUBTS: [Doubt; 2] = [Doubt::WithinLimit, Doubt::PastLimit];

    fn rows() -> impl Iterator<Item = (State, Observation, CancelRequested, Doubt)> {
        STATES.into_iter().flat_map(|state| {
            OBSERVATIONS.into_iter().flat_map(move |observed| {
                CANCEL_REQUESTED
                    .into_iter()
                    .flat_map(move |cancel| DOUBTS.into_iter().map(move |doubt| (state, observed, cancel, doubt)))
            })
        })
    }

    #[test]
    fn no_observation_moves_a_state_without_a_pending_effect() {
        for (state, observed, cancel, doubt) in rows().filter(|row| !row.0.has_pending_effect()) {
            assert_eq!(after(state, observed, cancel, doubt), state, "{state:?} {observed:?}");
        }
    }

    #[test]
    fn a_pending_effect_is_completed_by_some_response_and_never_without_one() {
        for state in STATES.into_iter().filter(|state| state.has_pending_effect()) {
            assert!(rows().any(|(from, observed, cancel, doubt)| from == state
                && !after(from, observed, cancel, doubt).has_pending_effect()));
        }
        for (state, _, cancel, doubt) in rows().filter(|row| row.0.has_pending_effect()) {
            assert!(
                after(state, Observation::Unknown, cancel, doubt).has_pending_effect(),
                "{state:?} {cancel:?} {doubt:?}"
            );
        }
    }

    #[test]
    fn a_charge_ends_in_succeeded_or_refunding() {
        for (state, _, cancel, doubt) in rows().filter(|row| row.0.has_pending_effect()) {
            let to = after(state, Observation::Charged, cancel, doubt);
            assert!(matches!(to, State::Succeeded | State::Refunding), "{state:?} {cancel:?} {doubt:?}");
            if cancel == CancelRequested::Yes {
                assert_eq!(to, State::Refunding, "{state:?}: the order cancelled, so it is refunded");
            }
        }
    }

    #[test]
    fn a_payment_fails_only_if_it_certainly_was_not_charged() {
        for (state, observed, cancel, doubt) in rows().filter(|row| row.0.has_pending_effect()) {
            if matches!(after(state, observed, cancel, doubt), State::Declined | State::Failed | State::Cancelled) {
                assert!(matches!(observed, Observation::Declined | Observation::Tombstone), "{state:?} {observed:?}");
            }
        }
    }

    #[test]
    fn a_cancelled_orders_payment_never_stays_charged() {
        for state in STATES {
            assert_ne!(on_cancel(Some(state), 1, 0), State::Succeeded, "{state:?}");
        }
        assert_eq!(on_cancel(Some(State::RefundRefused), 1, 1), State::RefundRefused);
        assert_eq!(on_cancel(Some(State::RefundRefused), 2, 1), State::Refunding);
        assert_eq!(on_cancel(None, 1, 0), State::Cancelled);
    }

    #[test]
    fn state_names_round_trip() {
        for state in STATES {
            assert_eq!(State::of(state.name()), Some(state));
        }
        assert_eq!(State::of("PAID"), None);
    }

    #[test]
    fn the_diagram_shows_the_table() {
        let diagram = diagram();
        for line in [
            "[*] --> PENDING: ProcessPayment",
            "[*] --> CANCELLED: CancelPayment came first",
            "PENDING --> IN_DOUBT: unknown",
            "IN_DOUBT --> CANCELLING: unknown past the limit",
            "CANCELLING --> REFUNDING: charged, cancellation requested",
            "CANCELLING --> SUCCEEDED: charged",
            "SUCCEEDED --> REFUNDING: CancelPayment",
            "REFUND_REFUSED --> REFUNDING: CancelPayment with a larger refund_attempt",
        ] {
            assert!(diagram.lines().any(|shown| shown.trim() == line), "{line} is missing in\n{diagram}");
        }
        let lines: Vec<_> = diagram.lines().collect();
        let distinct: std::collections::BTreeSet<_> = lines.iter().collect();
        assert_eq!(lines.len(), distinct.len(), "a line is duplicated in\n{diagram}");
    }
}
