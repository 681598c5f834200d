//! Live rates: a progress bar on a terminal, a line at intervals elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::load::load_model::StopCondition;
use crate::load::statistics::Statistics;
use crate::out;

const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Prints the progress until `stop`; without lines, only a progress bar on a terminal. Cancels `stop` if the output is closed.
///
/// # Errors
/// The output cannot be written.
pub(crate) async fn watch(
    statistics: Statistics,
    until: StopCondition,
    has_lines: bool,
    stop: CancellationToken,
) -> Result<(), Error> {
    let _stop = stop.clone().drop_guard();
    let is_terminal = std::io::stderr().is_terminal();
    let bar = is_terminal.then(|| bar(until));
    let every = if is_terminal { TERMINAL_INTERVAL } else { LINE_INTERVAL };
    let start = Instant::now();
    let (mut last, mut last_time) = (statistics.so_far(), start);
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        let (now, time) = (statistics.so_far(), Instant::now());
        let seconds = time.duration_since(last_time).as_secs_f64();
        let rate = |now: u64, last: u64| f64::from(u32::try_from(now - last).unwrap_or(u32::MAX)) / seconds;
        let text = format!("{:.0} acknowledged/s, {:.0} finished/s", rate(now.0, last.0), rate(now.1, last.1));
        match &bar {
            Some(bar) => {
                let done = match (until.orders, until.duration) {
                    (None, Some(_)) => start.elapsed().as_secs(),
                    (_, _) => now.1,
                };
                bar.set_position(done);
                bar.set_message(text);
            }
            None if !has_lines => {}
            None => out::line(format_args!(
                "{:>5.0} s  {:>8} acknowledged  {:>8} finished  {text}",
                start.elapsed().as_secs_f64(),
                now.0,
                now.1
            ))?,
        }
        (last, last_time) = (now, time);
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(())
}

fn bar(until: StopCondition) -> ProgressBar {
    let (length, unit) = match (until.orders, until.duration) {
        (Some(orders), _) => (orders, "orders"),
        (None, duration) => (duration.unwrap_or_default().as_secs(), "s"),
    };
    let style = ProgressStyle::with_template(&format!("{{bar:30}} {{pos}}/{{len}} {unit}  {{msg}}"));
    // The template is a valid constant.
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
