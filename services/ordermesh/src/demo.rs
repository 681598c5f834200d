//! `ordermesh demo`: every path, good and bad, through the public API of a running system; paths that need settings of
//! their own run against a small system that the demo starts and stops. Each path checks the state, the error and the
//! stored trace event.
//!
//! # Layout
//! - `scenario`: a path and its result; `stage`: the accounts, the clients and the checks
//! - `payments`, `refusals`, `cancels`, `settings`: the paths

mod cancels;
mod payments;
mod refusals;
mod scenario;
mod settings;
mod stage;

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::{StreamExt, stream};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::IntervalStream;

use crate::demo::scenario::{Scenario, Where};
use crate::demo::stage::Stage;
use crate::error::Error;
use crate::out;
use crate::system::{Location, Retries, System};

/// Between the starts of two paths: of more than ten rejections of a kind per second and instance the events are summed, and
/// each path shows its own.
const PACE: Duration = Duration::from_millis(125);
/// How many paths run concurrently on the running system: most of them wait.
const AT_ONCE: usize = 6;

/// The paths to run.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Run only this path; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Print the names of the paths, and what each demonstrates
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    location: Location,
}

/// Every path, in the order of the output.
fn scenarios() -> Vec<Scenario> {
    [payments::scenarios(), refusals::scenarios(), cancels::scenarios(), settings::scenarios()]
        .into_iter()
        .flatten()
        .collect()
}

/// Runs the paths.
///
/// # Errors
/// There is no system, a name is unknown, or a path failed.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let all = scenarios();
    if options.list {
        for scenario in &all {
            out::line(format_args!("{:<26} {}", scenario.name, scenario.about))?;
        }
        return Ok(());
    }
    if let Some(unknown) = options.only.iter().find(|name| all.iter().all(|scenario| scenario.name != **name)) {
        return Err(Error::Usage(format!("there is no path {unknown}; `ordermesh demo --list` lists them")));
    }
    let is_chosen =
        |scenario: &Scenario| options.only.is_empty() || options.only.iter().any(|name| name == scenario.name);
    let (own, running): (Vec<_>, Vec<_>) =
        all.into_iter().filter(is_chosen).partition(|scenario| matches!(scenario.at, Where::Own(_)));

    let (mut failed, mut played) = (0, 0);
    let mut count = |ok: bool| {
        played += 1;
        failed += usize::from(!ok);
    };
    if !running.is_empty() {
        let stage = Arc::new(Stage::open(System::find(&options.location, Retries::Off).await?).await?);
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let paced = stream::iter(running).zip(IntervalStream::new(pace));
        let mut results = paced.map(|(scenario, _)| play(scenario, stage.clone())).buffered(AT_ONCE);
        while let Some(ok) = results.next().await {
            count(ok.print()?);
        }
    }
    // One at a time: each has the whole machine.
    for scenario in own {
        let result = match &scenario.at {
            Where::Own(flags) => settings::play(&scenario, flags).await,
            Where::Running => continue,
        };
        count(result.print()?);
    }
    out::line(format_args!("\n{} of {played} paths passed", played - failed))?;
    if failed == 0 { Ok(()) } else { Err(Error::Demo { failed, played }) }
}

async fn play(scenario: Scenario, stage: Arc<Stage>) -> scenario::Played {
    let began = Instant::now();
    let result = scenario.play(stage).await;
    scenario.played(result, began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_a_unique_name_and_a_description() {
        let all = scenarios();
        let names: std::collections::BTreeSet<_> = all.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|scenario| !scenario.about.is_empty()));
        for needed in ["success", "out-of-memory", "lookup-timeout", "lookup-refused", "gateway-timeout", "answer-lost"]
        {
            assert!(names.contains(needed), "{needed}");
        }
    }
}
