//! The human-readable report: a line for each scenario, and the failures.

use crate::load::{Failures, Outcome};

/// A scenario and its result.
pub(crate) struct Line {
    pub(crate) scenario: String,
    pub(crate) outcome: Outcome,
    /// Calls that the instances' handlers began; `None` where killed processes took their counts with them.
    pub(crate) attempts: Option<u64>,
    /// The criterion, with its figures.
    pub(crate) criterion: String,
    pub(crate) is_kept: bool,
}

impl Line {
    pub(crate) fn add(&mut self, outcome: &Outcome, attempts: u64) {
        self.outcome.add(outcome);
        self.attempts = self.attempts.map(|before| before + attempts);
    }
}

pub(crate) fn sum(failures: &Failures) -> u64 {
    failures.values().sum()
}

/// The machine's other load: the first figure is the last minute's.
pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

pub(crate) fn print(lines: &[Line]) {
    let width = lines.iter().map(|line| line.scenario.len()).max().unwrap_or(0);
    println!();
    println!("{:<width$}  calls  failed r/o  attempts  p50/p99 ms    criterion", "scenario");
    for line in lines {
        let (calls, took) = (line.outcome.calls(), &line.outcome);
        let failed = format!("{}/{}", sum(&took.repeatable_failed), sum(&took.once_failed));
        let attempts = line.attempts.map_or("-".to_owned(), |attempts| attempts.to_string());
        let times = format!("{:.1} / {:.1}", took.millis(0.5), took.millis(0.99));
        let verdict = if line.is_kept { "kept" } else { "BROKEN" };
        println!(
            "{:<width$}  {calls:>5}  {failed:>10}  {attempts:>8}  {times:<12}  {verdict}: {}",
            line.scenario, line.criterion
        );
    }
    println!("failed r/o: of the method that may be repeated / of the one that may not. How:");
    for line in lines {
        let failures = [("r", &line.outcome.repeatable_failed), ("o", &line.outcome.once_failed)];
        for (which, (how, often)) in failures.iter().flat_map(|(which, all)| all.iter().map(move |one| (which, one))) {
            println!("  {}: {which}: {often} x {how}", line.scenario);
        }
    }
}
