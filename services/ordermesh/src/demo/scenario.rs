//! A scenario, what it must lead to, and its result.

use std::sync::Arc;
use std::time::Duration;

use contracts::order::v1::OrderState;
use futures_util::future::BoxFuture;
use tonic::{Code, Status};

use crate::demo::expected::{Expected, ExpectedEvent};
use crate::demo::run::{Run, Setup};
use crate::error::{self, Error};
use crate::json;
use crate::out;
use crate::trace::Trace;

/// The system that a scenario runs against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Running,
    Dedicated(Dedicated),
}

/// The settings of a dedicated system.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Dedicated {
    pub(crate) flags: &'static [&'static str],
    /// The content of its traffic policy.
    pub(crate) traffic: Option<&'static str>,
}

type Body = Box<dyn Fn(Run) -> BoxFuture<'static, Result<ScenarioOutcome, Failure>> + Send + Sync>;

/// A scenario: a row of the table of failures.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What it demonstrates.
    pub(crate) cause: String,
    pub(crate) target: Target,
    pub(crate) expected: Expected,
    body: Body,
}

impl Scenario {
    /// A scenario on the running system. Its state, response and events are checked after `body`.
    pub(crate) fn new<F>(
        name: &'static str,
        cause: impl Into<String>,
        body: impl Fn(Run) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<ScenarioOutcome, Failure>> + Send + 'static,
    {
        let body: Body = Box::new(move |run| Box::pin(body(run)));
        Self { name, cause: cause.into(), target: Target::Running, expected: Expected::default(), body }
    }

    /// The order's final state.
    pub(crate) fn state(mut self, state: OrderState) -> Self {
        self.expected.state = Some(state);
        self
    }

    /// The code and the reasons of the rejected call.
    pub(crate) fn rejected(mut self, code: Code, reasons: &[&'static str]) -> Self {
        self.expected.code = Some(code);
        self.reasons(reasons)
    }

    /// The reasons in the response, or of the order's failed payment.
    pub(crate) fn reasons(mut self, reasons: &[&'static str]) -> Self {
        self.expected.reasons = reasons.to_vec();
        self
    }

    /// The stored events of its trace. Without any, there must be none; no other event may have failed.
    pub(crate) fn events(mut self, events: &[ExpectedEvent]) -> Self {
        self.expected.events = events.to_vec();
        self
    }

    /// A scenario that needs a dedicated system, with these flags.
    pub(crate) fn with(mut self, flags: &'static [&'static str]) -> Self {
        self.target = Target::Dedicated(Dedicated { flags, ..Dedicated::default() });
        self
    }

    /// A scenario that needs a dedicated system, with this traffic policy.
    pub(crate) fn with_traffic(mut self, policy: &'static str) -> Self {
        self.target = Target::Dedicated(Dedicated { traffic: Some(policy), ..Dedicated::default() });
        self
    }

    /// Runs it in a trace of its own, and compares the result with what is expected.
    pub(crate) async fn execute(&self, setup: Arc<Setup>) -> (Trace, Result<Vec<String>, Failure>) {
        let run = Run::new(setup);
        let trace = run.trace;
        let checked = async {
            let outcome = (self.body)(run.clone()).await?;
            self.expected.check(&run, outcome).await
        };
        (trace, checked.await)
    }

    /// Its result, for the output.
    pub(crate) fn finished(&self, (trace, result): (Trace, Result<Vec<String>, Failure>), took: Duration) -> Finished {
        Finished { name: self.name, cause: self.cause.clone(), trace: trace.id(), result, took }
    }

    /// Its row of the table of failures.
    pub(crate) fn row(&self) -> String {
        let Self { name, cause, expected, .. } = self;
        let [state, response, events] = expected.cells();
        format!("| {cause} | `cargo run --release -- demo --only {name}` | {state} | {response} | {events} |")
    }
}

/// What a scenario led to.
#[derive(Debug, Default)]
pub(crate) struct ScenarioOutcome {
    /// The order that the scenario created, if its state is checked.
    pub(crate) order_id: Option<String>,
    /// The status of the rejected call.
    pub(crate) status: Option<Status>,
    /// More lines for the output.
    pub(crate) lines: Vec<String>,
}

impl ScenarioOutcome {
    pub(crate) fn order(order_id: String) -> Self {
        Self { order_id: Some(order_id), ..Self::default() }
    }

    pub(crate) fn rejected(status: Status) -> Self {
        Self { status: Some(status), ..Self::default() }
    }

    /// Adds a line to the output.
    pub(crate) fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }
}

/// Why a scenario failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{what} was rejected: {}", error::describe(.status))]
    Rejected { what: &'static str, status: Box<Status> },
    #[error("{0}")]
    Unexpected(String),
    #[error("{0}: not within {1} s")]
    TimedOut(String, u64),
    #[error("its system: {0}")]
    System(#[from] Error),
}

impl Failure {
    pub(crate) fn rejected(what: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| Self::Rejected { what, status: Box::new(status) }
    }
}

/// Fails unless both are equal.
pub(crate) fn expect_eq<T: PartialEq + std::fmt::Debug>(what: &str, actual: T, expected: T) -> Result<(), Failure> {
    if actual == expected {
        Ok(())
    } else {
        Err(Failure::Unexpected(format!("{what}: expected {expected:?}, got {actual:?}")))
    }
}

/// A scenario that was run.
pub(crate) struct Finished {
    name: &'static str,
    cause: String,
    trace: String,
    result: Result<Vec<String>, Failure>,
    took: Duration,
}

impl Finished {
    /// Prints the result, and returns whether it passed.
    ///
    /// # Errors
    /// The output cannot be written.
    pub(crate) fn print(&self, as_json: bool) -> Result<bool, Error> {
        if as_json {
            let (lines, failure) = match &self.result {
                Ok(lines) => (lines.as_slice(), None),
                Err(failure) => (Default::default(), Some(failure.to_string())),
            };
            json::print_line(&serde_json::json!({
                "scenario": self.name,
                "cause": self.cause,
                "passed": failure.is_none(),
                "seconds": self.took.as_secs_f64(),
                "trace_id": self.trace,
                "results": lines,
                "failure": failure,
            }))?;
            return Ok(self.result.is_ok());
        }
        let word = if self.result.is_ok() { "ok  " } else { "FAIL" };
        out::line(format_args!(
            "{word} {:<26} {} ({:.1} s)\n       trace {}",
            self.name,
            self.cause,
            self.took.as_secs_f64(),
            self.trace
        ))?;
        match &self.result {
            Ok(lines) => lines.iter().try_for_each(|line| out::line(format_args!("       {line}")))?,
            Err(failure) => out::line(format_args!("       {failure}"))?,
        }
        Ok(self.result.is_ok())
    }
}
