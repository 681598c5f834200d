//! A smaller system, searched exhaustively: two drivers of the order, two of its payment, a customer that may cancel at
//! any time, an operator that may retry, a network and a gateway that lose, delay and duplicate messages arbitrarily,
//! and processes that crash anywhere.
//!
//! Decisions are made by the services' own tables (`lifecycle`, and the order's interpretation of responses): nothing is
//! copied. Leases are omitted on purpose: they only save work, and correctness must not depend on them.
//!
//! A breadth-first search of its own: besides the invariants, it shows that a state without pending effects (a terminal
//! one, or NEEDS_ATTENTION) stays reachable from every state, which needs the whole graph.

use std::collections::{HashMap, VecDeque};

use contracts::payment::v1 as proto;
use order::lifecycle::{self as life, Decision, Effect, Input, State};
use order::ports::{PaymentOutcome, cancelled, processed};
use payment::lifecycle::{self as pay, CancelRequested, Doubt, Observation, State as Pay};

/// Maximum number of refunds: the first, and one retry.
const MAX_REFUNDS: u8 = 2;

/// A part of the design to remove, to show what it is needed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    /// CancelPayment leaves no row if there is no payment yet.
    PaymentTombstone,
    /// The gateway's CancelCharge leaves no row.
    GatewayTombstone,
    /// The order's driver records without comparing versions.
    OrderVersion,
    /// The payment's driver records without comparing versions.
    PaymentVersion,
}

/// A driver of the order, with its copy of the order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum OrderDriver {
    Idle,
    Holds { state: State, refund: u8, stale: bool, phase: Phase },
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Phase {
    Fresh,
    Requested,
    Done,
    Refused,
}

/// A driver of the payment, with its copy of the payment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum PaymentDriver {
    Idle,
    Holds { payment: Payment, stale: bool, observed: Option<u8> },
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Payment {
    state: Pay,
    cancel_requested: bool,
    refund: u8,
}

/// The gateway's row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Row {
    None,
    Charged,
    Declined,
    Tombstone,
    Refunded,
}

/// A state of the whole system. Messages that were ever sent may arrive at any later time, any number of times.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct GlobalState {
    order: State,
    refund: u8,
    order_drivers: [OrderDriver; 2],
    payment: Option<Payment>,
    payment_drivers: [PaymentDriver; 2],
    /// Whether ProcessPayment was sent; the largest refund number in a sent CancelPayment.
    process_sent: bool,
    cancel_sent: u8,
    /// Whether CreateCharge and CancelCharge were sent.
    create_sent: bool,
    tombstone_sent: bool,
    row: Row,
    /// The refunds that the gateway has refused, one bit each.
    refused: u8,
}

type Step = (&'static str, GlobalState);

impl GlobalState {
    const START: Self = Self {
        order: State::Created,
        refund: 1,
        order_drivers: [OrderDriver::Idle; 2],
        payment: None,
        payment_drivers: [PaymentDriver::Idle; 2],
        process_sent: false,
        cancel_sent: 0,
        create_sent: false,
        tombstone_sent: false,
        row: Row::None,
        refused: 0,
    };

    /// Drivers are interchangeable: sorting removes symmetric states.
    fn sorted(mut self) -> Self {
        self.order_drivers.sort_unstable();
        self.payment_drivers.sort_unstable();
        self
    }

    fn steps(self, without: Without) -> Vec<Step> {
        let mut steps = Vec::new();
        self.customer_and_operator(&mut steps);
        for index in 0..2 {
            self.drive_order(index, without, &mut steps);
            self.drive_payment(index, without, &mut steps);
        }
        self.network(without, &mut steps);
        steps.into_iter().map(|(name, global)| (name, global.sorted())).collect()
    }

    /// Moves the order: the drivers' copies become stale.
    fn transition(&mut self, to: State) {
        self.order = to;
        for driver in &mut self.order_drivers {
            if let OrderDriver::Holds { stale, .. } = driver {
                *stale = true;
            }
        }
    }

    fn set_payment(&mut self, payment: Payment) {
        self.payment = Some(payment);
        for driver in &mut self.payment_drivers {
            if let PaymentDriver::Holds { stale, .. } = driver {
                *stale = true;
            }
        }
    }

    fn customer_and_operator(self, steps: &mut Vec<Step>) {
        if let Decision::To(to) = life::next(self.order, Input::CancelRequested) {
            let mut after = self;
            after.transition(to);
            steps.push(("the customer cancels", after));
        }
        if let Decision::To(to) = life::next(self.order, Input::RetryRequested)
            && self.refund < MAX_REFUNDS
        {
            let mut after = self;
            after.refund += 1;
            after.transition(to);
            steps.push(("an operator retries", after));
        }
    }

    fn drive_order(self, index: usize, without: Without, steps: &mut Vec<Step>) {
        let mut with = |name: &'static str, driver: OrderDriver, change: &dyn Fn(&mut Self)| {
            let mut after = self;
            after.order_drivers[index] = driver;
            change(&mut after);
            steps.push((name, after));
        };
        let OrderDriver::Holds { state, refund, stale, phase } = self.order_drivers[index] else {
            if life::pending_effect(self.order).is_some() {
                let (state, refund) = (self.order, self.refund);
                let holds = OrderDriver::Holds { state, refund, stale: false, phase: Phase::Fresh };
                with("the order is claimed", holds, &|_| {});
            }
            return;
        };
        let at = |phase| OrderDriver::Holds { state, refund, stale, phase };
        with("the order's driver crashes", OrderDriver::Idle, &|_| {});
        match (phase, life::pending_effect(state)) {
            (Phase::Fresh, Some(Effect::ProcessPayment)) => {
                with("ProcessPayment is sent", at(Phase::Requested), &|global| global.process_sent = true);
            }
            (Phase::Fresh, Some(Effect::CancelPayment)) => {
                let sent = self.cancel_sent.max(refund);
                with("CancelPayment is sent", at(Phase::Requested), &move |global| global.cancel_sent = sent);
            }
            // Local; the allocation may find its stock written off.
            (Phase::Fresh, Some(Effect::AllocateInventory)) => {
                with("stock is available", at(Phase::Done), &|_| {});
                with("stock is written off", at(Phase::Refused), &|_| {});
            }
            (Phase::Fresh, Some(Effect::StartFulfillment)) => with("fulfilment starts", at(Phase::Done), &|_| {}),
            (Phase::Requested, Some(effect)) => match self.payment_outcome(effect, refund, without) {
                PaymentOutcome::Done => with("the payment's outcome arrives: done", at(Phase::Done), &|_| {}),
                PaymentOutcome::Refused(_) => {
                    with("the payment's outcome arrives: refused", at(Phase::Refused), &|_| {})
                }
                PaymentOutcome::Undecided(_) => {}
            },
            (Phase::Done | Phase::Refused, Some(_)) => {
                let input = if phase == Phase::Done { Input::Done } else { Input::Refused };
                if stale && without != Without::OrderVersion {
                    with("the order's driver loses its compare-and-set", OrderDriver::Idle, &|_| {});
                } else if let Decision::To(to) = life::next(state, input) {
                    with("the order's driver records", OrderDriver::Idle, &move |global| global.transition(to));
                }
            }
            (_, None) => {}
        }
    }

    /// The Payment Service's response now, and its meaning for the order: through the contract's message.
    fn payment_outcome(self, effect: Effect, refund: u8, without: Without) -> PaymentOutcome {
        let message = self.payment.map(|payment| proto::Payment {
            state: proto::PaymentState::from(payment.state).into(),
            refund_attempt: payment.refund.into(),
            ..Default::default()
        });
        match effect {
            Effect::ProcessPayment => processed(message),
            Effect::CancelPayment
                if message.is_none() && without == Without::PaymentTombstone && self.cancel_sent > 0 =>
            {
                PaymentOutcome::Done
            }
            Effect::CancelPayment => cancelled(message, refund.into()),
            Effect::AllocateInventory | Effect::StartFulfillment => PaymentOutcome::Undecided(String::new()),
        }
    }

    fn drive_payment(self, index: usize, without: Without, steps: &mut Vec<Step>) {
        let mut with = |name: &'static str, driver: PaymentDriver, change: &dyn Fn(&mut Self)| {
            let mut after = self;
            after.payment_drivers[index] = driver;
            change(&mut after);
            steps.push((name, after));
        };
        let PaymentDriver::Holds { payment, stale, observed } = self.payment_drivers[index] else {
            if let Some(payment) = self.payment.filter(|payment| pending_effect(*payment).is_some()) {
                with("the payment is claimed", PaymentDriver::Holds { payment, stale: false, observed: None }, &|_| {});
            }
            return;
        };
        with("the payment's driver crashes", PaymentDriver::Idle, &|_| {});
        match observed {
            None => {
                let Some(effect) = pending_effect(payment) else { return };
                for (row, refused, observed) in self.gateway(effect, without) {
                    let change = move |global: &mut Self| {
                        (global.row, global.refused) = (row, refused);
                        global.create_sent |= effect == pay::Effect::CreateCharge;
                        global.tombstone_sent |= effect == pay::Effect::CancelCharge;
                    };
                    let responded = PaymentDriver::Holds { payment, stale, observed: Some(number(observed)) };
                    with("the gateway executes the call and responds", responded, &change);
                    let silent = PaymentDriver::Holds { payment, stale, observed: Some(number(Observation::Unknown)) };
                    with("the gateway executes the call but its response is lost", silent, &change);
                    let unheard = move |global: &mut Self| {
                        change(global);
                        (global.row, global.refused) = (self.row, self.refused);
                    };
                    with("the call does not reach the gateway", silent, &unheard);
                }
            }
            Some(_) if stale && without != Without::PaymentVersion => {
                with("the payment's driver loses its compare-and-set", PaymentDriver::Idle, &|_| {});
            }
            Some(observed) => {
                let requested = if payment.cancel_requested { CancelRequested::Yes } else { CancelRequested::No };
                for doubt in [Doubt::WithinLimit, Doubt::PastLimit] {
                    let state = pay::after(payment.state, pay::OBSERVATIONS[usize::from(observed)], requested, doubt);
                    let next = Payment { state, ..payment };
                    with("the payment's driver records", PaymentDriver::Idle, &move |global| global.set_payment(next));
                }
            }
        }
    }

    /// The gateway's possible results of an effect: its row, the refunds it has refused, and the observation.
    fn gateway(self, effect: pay::Effect, without: Without) -> Vec<(Row, u8, Observation)> {
        let observation_of = |row: Row| match row {
            Row::Charged => Observation::Charged,
            Row::Declined => Observation::Declined,
            Row::Refunded => Observation::Refunded,
            Row::Tombstone | Row::None => Observation::Tombstone,
        };
        match (effect, self.row) {
            (pay::Effect::CreateCharge, Row::None) => {
                [Row::Charged, Row::Declined].map(|row| (row, self.refused, observation_of(row))).to_vec()
            }
            (pay::Effect::CancelCharge, Row::None) => {
                let row = if without == Without::GatewayTombstone { Row::None } else { Row::Tombstone };
                vec![(row, self.refused, Observation::Tombstone)]
            }
            (pay::Effect::RefundCharge { n }, Row::Charged) => {
                let bit = 1 << n;
                let refused = (Row::Charged, self.refused | bit, Observation::RefundRefused);
                let given = (Row::Refunded, self.refused, Observation::Refunded);
                // A refund key has one result for ever.
                if self.refused & bit != 0 { vec![refused] } else { vec![refused, given] }
            }
            (_, row) => vec![(row, self.refused, observation_of(row))],
        }
    }

    /// Messages that were sent arrive: for the first time, late, or again.
    fn network(self, without: Without, steps: &mut Vec<Step>) {
        if self.process_sent && self.payment.is_none() {
            let mut after = self;
            after.set_payment(Payment { state: Pay::Pending, cancel_requested: false, refund: 0 });
            steps.push(("ProcessPayment arrives", after));
        }
        for refund in 1..=self.cancel_sent {
            let before = self.payment;
            if before.is_none() && without == Without::PaymentTombstone {
                continue;
            }
            let current = before.map_or(0, |payment| payment.refund);
            let state = pay::on_cancel(before.map(|payment| payment.state), refund.into(), current.into());
            let changes_payment = before
                .is_none_or(|before| state != before.state || (state == Pay::Cancelling && !before.cancel_requested));
            if changes_payment {
                let mut after = self;
                after.set_payment(Payment { state, cancel_requested: true, refund: refund.max(current) });
                steps.push(("CancelPayment arrives", after));
            }
        }
        let late = [(self.create_sent, pay::Effect::CreateCharge), (self.tombstone_sent, pay::Effect::CancelCharge)];
        for (sent, effect) in late {
            for (row, refused, _) in self.gateway(effect, without) {
                if sent && row != self.row {
                    steps.push(("a late request reaches the gateway", Self { row, refused, ..self }));
                }
            }
        }
    }

    /// Promise 2, and that fulfilment requires payment.
    fn is_right(self) -> bool {
        let paid = self.payment.map(|payment| payment.state);
        match self.order {
            State::Paid | State::Allocated | State::FulfillmentStarted => {
                self.row == Row::Charged && paid == Some(Pay::Succeeded)
            }
            State::PaymentFailed | State::Cancelled => self.row != Row::Charged,
            State::NeedsAttention => self.row == Row::Charged && paid == Some(Pay::RefundRefused),
            State::Created | State::Cancelling => true,
        }
    }

    /// Nothing has a pending effect: the order is in a terminal state, or NEEDS_ATTENTION.
    fn is_at_rest(self) -> bool {
        life::pending_effect(self.order).is_none()
            && self.payment.is_none_or(|payment| pending_effect(payment).is_none())
    }
}

fn pending_effect(payment: Payment) -> Option<pay::Effect> {
    pay::pending_effect(payment.state, payment.refund.into())
}

fn number(observed: Observation) -> u8 {
    let index =
        pay::OBSERVATIONS.iter().position(|observation| *observation == observed).expect("a listed observation");
    u8::try_from(index).expect("a small index")
}

/// The result of a search.
struct Searched {
    /// Every reachable state.
    states: Vec<GlobalState>,
    /// The predecessor of each state, and the step from it.
    predecessor: Vec<Option<(usize, &'static str)>>,
    /// The first state that breaks an invariant.
    wrong: Option<usize>,
    /// The number of states from which no state without pending effects is reachable.
    stuck: usize,
    steps: usize,
}

impl Searched {
    /// The steps from the start to a state.
    fn path_to(&self, mut index: usize) -> Vec<&'static str> {
        let mut path = Vec::new();
        while let Some((from, step)) = self.predecessor[index] {
            path.push(step);
            index = from;
        }
        path.reverse();
        path
    }
}

/// Searches every reachable state, breadth first: the path to the first wrong one is the shortest.
fn search(without: Without) -> Searched {
    let mut index_of: HashMap<GlobalState, usize> = HashMap::from([(GlobalState::START, 0)]);
    let mut found =
        Searched { states: vec![GlobalState::START], predecessor: vec![None], wrong: None, stuck: 0, steps: 0 };
    let mut edges: Vec<(usize, usize)> = Vec::new();
    let mut next = 0;
    while next < found.states.len() {
        let global = found.states[next];
        if !global.is_right() {
            found.wrong = Some(next);
            return found;
        }
        for (name, after) in global.steps(without) {
            let index = *index_of.entry(after).or_insert_with(|| {
                found.states.push(after);
                found.predecessor.push(Some((next, name)));
                found.states.len() - 1
            });
            edges.push((index, next));
        }
        next += 1;
    }
    found.steps = edges.len();
    found.stuck = found.states.len() - count_that_can_complete(&found.states, edges);
    found
}

/// The number of states from which one without pending effects is reachable: by a backward search from these.
fn count_that_can_complete(states: &[GlobalState], mut edges: Vec<(usize, usize)>) -> usize {
    edges.sort_unstable();
    let from = |to: usize| {
        let start = edges.partition_point(|edge| edge.0 < to);
        edges[start..].iter().take_while(move |edge| edge.0 == to).map(|edge| edge.1)
    };
    let mut can: Vec<bool> = states.iter().map(|global| global.is_at_rest()).collect();
    let mut queue: VecDeque<usize> = (0..states.len()).filter(|index| can[*index]).collect();
    while let Some(to) = queue.pop_front() {
        for before in from(to) {
            if !can[before] {
                can[before] = true;
                queue.push_back(before);
            }
        }
    }
    can.into_iter().filter(|can| *can).count()
}

#[test]
fn no_interleaving_charges_wrongly_and_a_state_without_pending_effects_is_always_reachable() {
    let found = search(Without::Nothing);
    let counterexample = found.wrong.map(|index| (found.states[index], found.path_to(index)));
    assert_eq!(counterexample, None);
    assert_eq!(found.stuck, 0, "states that can never complete");
    println!("model: {} states, {} steps", found.states.len(), found.steps);
    // Every state was visited.
    for state in life::STATES {
        assert!(found.states.iter().any(|global| global.order == state), "{state:?} is never reached");
    }
    for state in pay::STATES {
        let is_there = |global: &GlobalState| global.payment.is_some_and(|payment| payment.state == state);
        assert!(found.states.iter().any(is_there), "{state:?} is never reached");
    }
}

/// Removing a part of the design must break an invariant: returns the steps to it.
fn counterexample_without(without: Without) -> Vec<&'static str> {
    let found = search(without);
    let index = found.wrong.unwrap_or_else(|| panic!("{without:?} is not needed"));
    let path = found.path_to(index);
    println!("without {without:?}: {:?} after {path:#?}", found.states[index].order);
    path
}

#[test]
fn without_cancel_payments_tombstone_a_stalled_process_payment_charges_a_cancelled_order() {
    let path = counterexample_without(Without::PaymentTombstone);
    assert!(path.contains(&"the customer cancels") && path.contains(&"ProcessPayment arrives"), "{path:?}");
}

#[test]
fn without_the_gateways_tombstone_a_late_charge_is_made_for_a_cancelled_order() {
    let path = counterexample_without(Without::GatewayTombstone);
    assert!(path.contains(&"the customer cancels"), "{path:?}");
}

#[test]
fn without_compare_and_set_a_late_driver_breaks_the_order() {
    counterexample_without(Without::OrderVersion);
    counterexample_without(Without::PaymentVersion);
}
