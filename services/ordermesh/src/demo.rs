//! `ordermesh demo`: every scenario, success or failure, through the public API of a running system; scenarios that need
//! settings of their own run against a small system that the demo starts and stops. Each checks the state, the error and the
//! stored trace event.
//!
//! # Layout
//! - `scenario`: one of them and its result; `expected`: what it must lead to; `run`: the accounts, the clients, the calls
//! - `payments`, `rejections`, `cancels`, `dedicated`: the scenarios

mod cancels;
mod dedicated;
mod expected;
mod payments;
mod rejections;
mod run;
mod scenario;

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures_util::{StreamExt, stream};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::IntervalStream;

use crate::demo::run::Setup;
use crate::demo::scenario::{Scenario, Target};
use crate::error::Error;
use crate::json;
use crate::out;
use crate::system::{Location, Retries, System};

/// Between the starts of two scenarios: of more than ten rejections of a kind per second and instance the events are
/// summed, and each scenario shows its own.
const START_INTERVAL: Duration = Duration::from_millis(125);
/// How many scenarios run concurrently on the running system: most of them wait.
const MAX_CONCURRENT: usize = 6;

/// The scenarios to run.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Run only this scenario; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Print the scenarios, and what each demonstrates, instead of running them
    #[arg(long)]
    list: bool,
    /// Output format
    #[arg(long, short, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    location: Location,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// For people
    Text,
    /// One object per scenario and line
    Json,
    /// With --list the table of failures: cause, command, state, response and events
    Markdown,
}

/// Every scenario, in the order of the output.
fn scenarios() -> Vec<Scenario> {
    [payments::scenarios(), rejections::scenarios(), cancels::scenarios(), dedicated::scenarios()]
        .into_iter()
        .flatten()
        .collect()
}

/// Runs the scenarios.
///
/// # Errors
/// There is no system, a name is unknown, or a scenario failed.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let all = scenarios();
    if options.list {
        return list(&all, options.output);
    }
    if options.output == Format::Markdown {
        return Err(Error::Usage("-o markdown is for --list".to_owned()));
    }
    if let Some(unknown) = options.only.iter().find(|name| all.iter().all(|scenario| scenario.name != **name)) {
        return Err(Error::Usage(format!("there is no scenario {unknown}; `ordermesh demo --list` lists them")));
    }
    let is_chosen =
        |scenario: &Scenario| options.only.is_empty() || options.only.iter().any(|name| name == scenario.name);
    let (own, running): (Vec<_>, Vec<_>) =
        all.into_iter().filter(is_chosen).partition(|scenario| matches!(scenario.target, Target::Dedicated(_)));

    let (mut failed, mut finished) = (0, 0);
    let mut count = |ok: bool| {
        finished += 1;
        failed += usize::from(!ok);
    };
    if !running.is_empty() {
        let setup = Arc::new(Setup::open(System::find(&options.location, Retries::Off).await?).await?);
        let mut pace = tokio::time::interval(START_INTERVAL);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let paced = stream::iter(running).zip(IntervalStream::new(pace));
        let mut results = paced.map(|(scenario, _)| execute(scenario, setup.clone())).buffered(MAX_CONCURRENT);
        while let Some(ok) = results.next().await {
            count(ok.print(options.output == Format::Json)?);
        }
    }
    // One at a time: each has the whole machine.
    for scenario in own {
        let result = match &scenario.target {
            Target::Dedicated(settings) => dedicated::execute(&scenario, *settings).await,
            Target::Running => continue,
        };
        count(result.print(options.output == Format::Json)?);
    }
    if options.output == Format::Text {
        out::line(format_args!("\n{} of {finished} scenarios passed", finished - failed))?;
    }
    if failed == 0 { Ok(()) } else { Err(Error::Demo { failed, finished }) }
}

fn list(all: &[Scenario], format: Format) -> Result<(), Error> {
    match format {
        Format::Json => all
            .iter()
            .try_for_each(|one| json::print_line(&serde_json::json!({ "scenario": one.name, "cause": one.cause }))),
        Format::Text => all.iter().try_for_each(|one| out::line(format_args!("{:<26} {}", one.name, one.cause))),
        Format::Markdown => {
            out::line("| cause | command | state | response | events |\n|---|---|---|---|---|")?;
            all.iter().try_for_each(|one| out::line(one.row()))
        }
    }
}

async fn execute(scenario: Scenario, setup: Arc<Setup>) -> scenario::Finished {
    let began = Instant::now();
    let result = scenario.execute(setup).await;
    scenario.finished(result, began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_unique_name_and_a_description() {
        let all = scenarios();
        let names: std::collections::BTreeSet<_> = all.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|scenario| !scenario.cause.is_empty()));
        for needed in ["success", "out-of-memory", "lookup-timeout", "lookup-refused", "gateway-timeout", "answer-lost"]
        {
            assert!(names.contains(needed), "{needed}");
        }
    }
}
