//! Statistics of calls: totals, and the latencies of about the last ten and sixty seconds.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;
use tonic::Code;

use crate::call::OTHER_METHOD;
use crate::call::caller_class::CallerClass;
use crate::monitor::snapshot::{CallSummary, CallerCalls, Window};
use crate::policy::PolicyTable;
use crate::status::CODES;

/// Latencies are kept by intervals of this length.
const INTERVAL: Duration = Duration::from_secs(5);
/// The complete intervals of the two windows; the current one is added.
const SHORT: u64 = 2;
const LONG: u64 = 12;
/// In microseconds; shorter and longer calls count as these.
const MIN_LATENCY: u64 = 1;
const MAX_LATENCY: u64 = 60_000_000;
/// One significant digit: latencies are accurate to 10 %, with some 400 counters for each interval.
const SIGNIFICANT_DIGITS: u8 = 1;
/// Callers of a method with statistics of their own; a server has a handful of peers.
const MAX_CALLERS: usize = 16;
/// The caller that further services count as.
const OTHERS: &str = "others";

type Latencies = Histogram<u32>;

fn latencies() -> Latencies {
    Latencies::new_with_bounds(MIN_LATENCY, MAX_LATENCY, SIGNIFICANT_DIGITS).expect("the bounds are valid")
}

/// Whether a call failed, by its status code: the server's fault, not the caller's (OpenTelemetry's convention for RPC).
pub(crate) fn is_server_error(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The calls that ended in one interval.
#[derive(Clone)]
struct Interval {
    number: u64,
    failures: u64,
    latencies: Latencies,
}

/// The calls of about the last minute.
pub(crate) struct Recent {
    began: Instant,
    /// By number, the newest last.
    intervals: VecDeque<Interval>,
}

impl Recent {
    pub(crate) fn new(began: Instant) -> Self {
        Self { began, intervals: VecDeque::new() }
    }

    pub(crate) fn record(&mut self, now: Instant, took: Duration, is_failure: bool) {
        let number = self.number(now);
        if self.intervals.back().is_none_or(|newest| newest.number < number) {
            let interval =
                self.reused(number).unwrap_or_else(|| Interval { number, failures: 0, latencies: latencies() });
            self.intervals.push_back(interval);
        }
        let Some(newest) = self.intervals.back_mut() else { return };
        newest.failures += u64::from(is_failure);
        let micros = u64::try_from(took.as_micros()).unwrap_or(MAX_LATENCY).max(MIN_LATENCY);
        newest.latencies.saturating_record(micros);
    }

    /// The oldest interval for a new one, when it is in no window any more.
    fn reused(&mut self, number: u64) -> Option<Interval> {
        self.intervals.front().filter(|oldest| oldest.number + LONG < number)?;
        let mut oldest = self.intervals.pop_front()?;
        (oldest.number, oldest.failures) = (number, 0);
        oldest.latencies.reset();
        Some(oldest)
    }

    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs() / INTERVAL.as_secs()
    }

    fn window(&self, now: Instant, intervals: u64) -> Calls {
        let number = self.number(now);
        let first = number.saturating_sub(intervals);
        let start = self.began + INTERVAL * u32::try_from(first).unwrap_or(u32::MAX);
        let mut calls = Calls { length: now.saturating_duration_since(start), failures: 0, latencies: latencies() };
        for interval in self.intervals.iter().filter(|interval| interval.number >= first) {
            calls.failures += interval.failures;
            // Both have the same bounds.
            let _ = calls.latencies.add(&interval.latencies);
        }
        calls
    }

    pub(crate) fn windows(&self, now: Instant) -> Windows {
        Windows { short: self.window(now, SHORT), long: self.window(now, LONG) }
    }
}

/// The calls of a window.
struct Calls {
    length: Duration,
    failures: u64,
    latencies: Latencies,
}

impl Calls {
    fn add(&mut self, other: &Self) {
        self.length = self.length.max(other.length);
        self.failures += other.failures;
        let _ = self.latencies.add(&other.latencies);
    }

    fn summary(&self) -> Window {
        let at = |quantile| Duration::from_micros(self.latencies.value_at_quantile(quantile));
        let (p50, p90, p99) = (at(0.5), at(0.9), at(0.99));
        let recorded = self.latencies.iter_recorded();
        let buckets = recorded.map(|bucket| {
            let highest = self.latencies.highest_equivalent(bucket.value_iterated_to());
            (Duration::from_micros(highest), bucket.count_since_last_iteration())
        });
        Window {
            length: self.length,
            calls: self.latencies.len(),
            failures: self.failures,
            p50,
            p90,
            p99,
            latencies: buckets.collect(),
        }
    }
}

/// The calls of about the last ten and sixty seconds.
pub(crate) struct Windows {
    short: Calls,
    long: Calls,
}

impl Windows {
    pub(crate) fn add(&mut self, other: &Self) {
        self.short.add(&other.short);
        self.long.add(&other.long);
    }

    /// The shorter and the longer one.
    pub(crate) fn summary(&self) -> [Window; 2] {
        [self.short.summary(), self.long.summary()]
    }
}

/// The attempts at one instance.
pub(crate) struct AttemptStatistics {
    /// Since the start.
    pub(crate) total: u64,
    pub(crate) failures: u64,
    recent: Recent,
}

impl AttemptStatistics {
    pub(crate) fn new(began: Instant) -> Self {
        Self { total: 0, failures: 0, recent: Recent::new(began) }
    }

    pub(crate) fn record(&mut self, now: Instant, took: Duration, is_failure: bool) {
        self.total += 1;
        self.failures += u64::from(is_failure);
        self.recent.record(now, took, is_failure);
    }

    pub(crate) fn windows(&self, now: Instant) -> Windows {
        self.recent.windows(now)
    }
}

/// Totals since the start, and the windows.
pub(crate) struct Totals {
    by_code: [u64; CODES],
    windows: Windows,
}

impl Totals {
    /// Of a method whose calls are all in flight.
    pub(crate) fn none(now: Instant) -> Self {
        Self { by_code: [0; CODES], windows: Recent::new(now).windows(now) }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.by_code.iter_mut().zip(other.by_code).for_each(|(sum, count)| *sum += count);
        self.windows.add(&other.windows);
    }

    pub(crate) fn summary(&self) -> CallSummary {
        let counts = self.by_code.iter().enumerate().filter(|(_, count)| **count > 0);
        let by_code = counts.map(|(code, count)| (Code::from(i32::try_from(code).unwrap_or_default()), *count));
        let [last_10s, last_60s] = self.windows.summary();
        CallSummary { by_code: by_code.collect(), last_10s, last_60s }
    }
}

/// The ended calls of one method by one caller.
struct CallerCounters {
    caller: CallerClass,
    by_code: [u64; CODES],
    recent: Recent,
}

impl CallerCounters {
    fn totals(&self, now: Instant) -> Totals {
        Totals { by_code: self.by_code, windows: self.recent.windows(now) }
    }
}

/// The calls of one method.
#[derive(Default)]
struct OfMethod {
    in_flight: AtomicUsize,
    callers: Mutex<SmallVec<[CallerCounters; 1]>>,
}

/// The calls of each method of a policy table, and of all others together.
pub(crate) struct CallTable {
    policies: PolicyTable,
    began: Instant,
    /// By the policies' index; the last one for methods without a policy.
    methods: Box<[OfMethod]>,
}

impl CallTable {
    pub(crate) fn new(policies: PolicyTable) -> Self {
        let methods = (0..=policies.0.len()).map(|_| OfMethod::default()).collect();
        Self { policies, began: Instant::now(), methods }
    }

    fn method(&self, index: Option<usize>) -> &OfMethod {
        let others = self.methods.len() - 1;
        &self.methods[index.unwrap_or(others).min(others)]
    }

    pub(crate) fn begin(&self, index: Option<usize>) {
        self.method(index).in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A call that has begun ended now, after `took`.
    pub(crate) fn end(&self, index: Option<usize>, caller: &CallerClass, code: Code, took: Duration) {
        let method = self.method(index);
        method.in_flight.fetch_sub(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut callers = method.callers.lock();
        let found = callers.iter().position(|entry| entry.caller == *caller);
        let at = found.unwrap_or_else(|| {
            let others = CallerClass::Service(OTHERS.into());
            if callers.len() >= MAX_CALLERS
                && let Some(at) = callers.iter().position(|entry| entry.caller == others)
            {
                return at;
            }
            let caller = if callers.len() < MAX_CALLERS { caller.clone() } else { others };
            callers.push(CallerCounters { caller, by_code: [0; CODES], recent: Recent::new(self.began) });
            callers.len() - 1
        });
        let entry = &mut callers[at];
        entry.by_code[code as usize] += 1;
        entry.recent.record(now, took, is_server_error(code));
    }

    /// Each method that was called.
    pub(crate) fn read(&self, now: Instant) -> Vec<MethodReading> {
        let names = self.policies.0.iter().map(|policy| policy.name()).chain([OTHER_METHOD]);
        let read = names.zip(&self.methods).map(|(name, method)| {
            let callers = method.callers.lock().iter().map(|entry| (entry.caller.clone(), entry.totals(now))).collect();
            MethodReading { name, in_flight: method.in_flight.load(Ordering::Relaxed), callers }
        });
        read.filter(|method| method.in_flight > 0 || !method.callers.is_empty()).collect()
    }
}

/// The calls of a method, as they are read.
pub(crate) struct MethodReading {
    pub(crate) name: &'static str,
    pub(crate) in_flight: usize,
    /// Ended calls, by caller.
    pub(crate) callers: Vec<(CallerClass, Totals)>,
}

/// The calls by caller, as they are reported.
pub(crate) fn by_caller(callers: Vec<(CallerClass, Totals)>) -> Vec<CallerCalls> {
    callers.into_iter().map(|(caller, totals)| CallerCalls { caller, calls: totals.summary() }).collect()
}

#[cfg(test)]
mod tests;
