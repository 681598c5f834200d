//! Bounds repeated log lines.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Limits log lines to one a second, and counts the events in between.
#[derive(Debug)]
pub struct LogLimit(Mutex<(Option<Instant>, u64)>);

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

impl LogLimit {
    /// Before the first line.
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// Counts an event. Returns the number of events since the last line when the next line is due.
    pub fn count(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let (last, count) = &mut *state;
        *count += 1;
        if last.is_some_and(|last| now.saturating_duration_since(last) < LOG_INTERVAL) {
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_one_line_a_second_is_due_and_it_has_the_number_of_events() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        let at = |millis: u64| start + Duration::from_millis(millis);
        assert_eq!(limit.count(at(0)), Some(1));
        let lines: Vec<_> = (1..1_000).filter_map(|millis| limit.count(at(millis))).collect();
        assert_eq!(lines, [] as [u64; 0]);
        assert_eq!(limit.count(at(1_000)), Some(1_000));
    }
}
