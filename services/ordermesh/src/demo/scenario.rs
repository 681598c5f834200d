//! A path, and its result.

use std::sync::Arc;
use std::time::Duration;

use contracts::order::v1 as order_v1;
use futures_util::future::BoxFuture;
use tonic::Status;

use crate::demo::stage::{Act, Stage};
use crate::error::{self, Error};
use crate::out;
use crate::text;
use crate::trace::Trace;

/// The system that a path runs against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Where {
    /// The running system.
    Running,
    /// A dedicated system, started with these flags.
    Own(&'static [&'static str]),
}

type Play = Box<dyn Fn(Act) -> BoxFuture<'static, Result<Report, Wrong>> + Send + Sync>;

/// A path through the system.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What it demonstrates.
    pub(crate) about: String,
    pub(crate) at: Where,
    play: Play,
}

impl Scenario {
    /// A path through the running system.
    pub(crate) fn new<F>(
        name: &'static str,
        about: impl Into<String>,
        play: impl Fn(Act) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Report, Wrong>> + Send + 'static,
    {
        let play: Play = Box::new(move |act| Box::pin(play(act)));
        Self { name, about: about.into(), at: Where::Running, play }
    }

    /// A path that needs a dedicated system.
    pub(crate) fn with(mut self, flags: &'static [&'static str]) -> Self {
        self.at = Where::Own(flags);
        self
    }

    /// Runs it in a trace of its own.
    pub(crate) async fn play(&self, stage: Arc<Stage>) -> (Trace, Result<Report, Wrong>) {
        let act = Act::new(stage);
        let trace = act.trace;
        (trace, (self.play)(act).await)
    }

    /// Its result, for the output.
    pub(crate) fn played(&self, (trace, result): (Trace, Result<Report, Wrong>), took: Duration) -> Played {
        Played { name: self.name, about: self.about.clone(), trace: trace.id(), result, took }
    }
}

/// The output of a path that passed.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<String>);

impl Report {
    /// Adds a line.
    pub(crate) fn line(mut self, line: impl Into<String>) -> Self {
        self.0.push(line.into());
        self
    }

    /// The order's transitions, with the time since its creation.
    pub(crate) fn history(self, order_id: &str, history: &[order_v1::OrderHistoryEntry]) -> Self {
        let start = history.first().and_then(|entry| entry.time);
        let steps: Vec<String> = history
            .iter()
            .map(|entry| format!("{} {}", text::state(entry.state), text::offset(start.as_ref(), entry.time.as_ref())))
            .collect();
        self.line(format!("order {order_id}")).line(steps.join(" → "))
    }

    /// The status that a call was rejected with.
    pub(crate) fn refusal(self, status: &Status) -> Self {
        self.line(error::refusal(status))
    }
}

/// Why a path failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Wrong {
    #[error("{what} was refused: {}", error::refusal(.status))]
    Refused { what: &'static str, status: Box<Status> },
    #[error("{0}")]
    Unexpected(String),
    #[error("{0}: not within {1} s")]
    Late(String, u64),
    #[error("its system: {0}")]
    System(#[from] Error),
}

impl Wrong {
    pub(crate) fn refused(what: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| Self::Refused { what, status: Box::new(status) }
    }
}

/// Fails unless both are equal.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, is: T, should: T) -> Result<(), Wrong> {
    if is == should { Ok(()) } else { Err(Wrong::Unexpected(format!("{what}: expected {should:?}, got {is:?}"))) }
}

/// A path that was run.
pub(crate) struct Played {
    name: &'static str,
    about: String,
    trace: String,
    result: Result<Report, Wrong>,
    took: Duration,
}

impl Played {
    /// Prints the result, and returns whether it passed.
    ///
    /// # Errors
    /// The output cannot be written.
    pub(crate) fn print(&self) -> Result<bool, Error> {
        let word = if self.result.is_ok() { "ok  " } else { "FAIL" };
        out::line(format_args!(
            "{word} {:<26} {} ({:.1} s)\n       trace {}",
            self.name,
            self.about,
            self.took.as_secs_f64(),
            self.trace
        ))?;
        match &self.result {
            Ok(report) => report.0.iter().try_for_each(|line| out::line(format_args!("       {line}")))?,
            Err(wrong) => out::line(format_args!("       {wrong}"))?,
        }
        Ok(self.result.is_ok())
    }
}
