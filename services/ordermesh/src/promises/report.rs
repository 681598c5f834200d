//! The result of verifying the promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

/// A promise about the data in the stores.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Promise {
    /// 1: an acknowledged order reaches a final state, or has a pending effect on the way there.
    NeverLost,
    /// 2: charged at most once, and nothing stays charged for an order that was not fulfilled.
    ChargedOnce,
    /// 3: reserved stock is the sum of what orders reserve.
    StockAddsUp,
    /// 4: for each change that has an event there is exactly one, and there is no event without its change.
    OneEvent,
}

impl Promise {
    pub const ALL: [Self; 4] = [Self::NeverLost, Self::ChargedOnce, Self::StockAddsUp, Self::OneEvent];

    /// The number in the README.
    pub const fn number(self) -> u8 {
        match self {
            Self::NeverLost => 1,
            Self::ChargedOnce => 2,
            Self::StockAddsUp => 3,
            Self::OneEvent => 4,
        }
    }

    /// A short name.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NeverLost => "no order is lost",
            Self::ChargedOnce => "charged once, or not at all",
            Self::StockAddsUp => "stock adds up",
            Self::OneEvent => "one event per change",
        }
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Violation {
    pub promise: Promise,
    /// An order's id, a SKU, a session.
    pub subject: String,
    /// A sentence about what is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "promise {}: {}: {}", self.promise.number(), self.subject, self.what)
    }
}

/// What was checked, and what is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The number of rows checked, by promise and kind.
    pub looked_at: BTreeMap<Promise, BTreeMap<&'static str, u64>>,
    /// The number of orders by state.
    pub states: BTreeMap<&'static str, u64>,
    /// Orders with a pending effect.
    pub unfinished: u64,
    /// Events that the store has rejected permanently: an administrator must intervene.
    pub refused_events: u64,
    /// Orders that changed at every read, and so could not be verified.
    pub changing: u64,
    pub violations: BTreeSet<Violation>,
}

impl Report {
    pub(crate) fn looked_at(&mut self, promise: Promise, what: &'static str, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        *self.looked_at.entry(promise).or_default().entry(what).or_default() += count;
    }

    pub(crate) fn violated(&mut self, promise: Promise, subject: String, what: String) {
        self.violations.insert(Violation { promise, subject, what });
    }

    pub(crate) fn refused_events(&mut self, count: usize) {
        self.refused_events = self.refused_events.max(u64::try_from(count).unwrap_or(u64::MAX));
    }

    pub(crate) fn changing(&mut self, count: usize) {
        self.changing += u64::try_from(count).unwrap_or(u64::MAX);
    }

    /// Called when everything should have completed: what is still pending is a violation.
    pub(crate) fn expect_rest(&mut self) {
        let attention = self.in_state(order::lifecycle::State::NeedsAttention);
        for (count, what) in [(self.unfinished, "are still unfinished"), (attention, "need attention")] {
            if count > 0 {
                self.violated(
                    Promise::NeverLost,
                    format!("{count} orders"),
                    format!("{what}, long after the faults have ended"),
                );
            }
        }
        if self.refused_events > 0 {
            let what = "were rejected by the store of events".to_owned();
            self.violated(Promise::OneEvent, format!("{} events", self.refused_events), what);
        }
    }

    /// The number of orders.
    pub fn orders(&self) -> u64 {
        self.states.values().sum()
    }

    /// The number of orders in a state.
    pub fn in_state(&self, state: order::lifecycle::State) -> u64 {
        self.states.get(state.name()).copied().unwrap_or(0)
    }

    /// Whether all promises are kept.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

/// The values of the monitored gauges, by the same queries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Gauges {
    /// Orders with a pending effect (`ordermesh.orders`).
    pub unfinished: i64,
    /// Age of the oldest of them, in seconds (`ordermesh.orders.oldest_unfinished`).
    pub oldest_unfinished_s: u64,
    /// Orders in NEEDS_ATTENTION (`ordermesh.orders`).
    pub needs_attention: i64,
    /// Payments in doubt (`ordermesh.payments.in_doubt`).
    pub in_doubt: i64,
    /// Events waiting for delivery (`ordermesh.outbox.events`).
    pub waiting: i64,
    /// Events that the store has rejected (`ordermesh.outbox.refused`).
    pub refused: i64,
}

impl fmt::Display for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unfinished, oldest_unfinished_s, needs_attention, in_doubt, waiting, refused } = self;
        write!(
            f,
            "gauges     {unfinished} unfinished, the oldest for {oldest_unfinished_s} s; {needs_attention} need attention; \
             {in_doubt} payments in doubt; {waiting} events waiting, {refused} rejected"
        )
    }
}

/// The output of `ordermesh verify`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for promise in Promise::ALL {
            let broken = self.violations.iter().filter(|violation| violation.promise == promise).count();
            let verdict = if broken == 0 { "kept".to_owned() } else { format!("BROKEN {broken} times") };
            let rows = self.looked_at.get(&promise).into_iter().flatten();
            let rows: Vec<String> = rows.map(|(what, count)| format!("{count} {what}")).collect();
            writeln!(f, "promise {}  {:<28} {:<16} {}", promise.number(), promise.words(), verdict, rows.join(", "))?;
        }
        let states: Vec<String> = self.states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        writeln!(f, "orders     {}", if states.is_empty() { "none".to_owned() } else { states.join(", ") })?;
        writeln!(
            f,
            "           {} in progress, {} changing too fast to verify, {} events rejected permanently",
            self.unfinished, self.changing, self.refused_events
        )?;
        for violation in &self.violations {
            writeln!(f, "VIOLATION  {violation}")?;
        }
        Ok(())
    }
}
