//! What was turned away, by cause: a counter, and one log line a second at most. The causes are an enum, so the metric's
//! label has as many values as there are lines here.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use tokio::time::Instant;

const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Why something was turned away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// All permits are taken.
    Concurrency,
    /// The caller holds its share of the permits.
    Share,
    /// All streams are taken, and none of them gives way.
    Streams,
    /// A connection or stream of the caller that has most of them, whose place another got.
    GaveWay,
    /// A connection whose peer's certificate has ended.
    Expired,
    /// A request that was not there as a whole in time.
    MessageTooSlow,
    /// The memory budget is spent.
    Memory,
    /// A message longer than the limit.
    MessageTooLarge,
    /// More metadata than the limit.
    Metadata,
    /// The caller is over its quota.
    RateLimit,
    /// Bad credentials, or a caller who may not.
    Identity,
    /// A `grpc-timeout` that is none.
    Timeout,
    /// A `traceparent` that is none: the call is served, in a trace of its own.
    Traceparent,
    /// An answer that its caller did not take.
    Stalled,
    /// There are enough connections.
    Connections,
    /// A TLS handshake that failed.
    Tls,
    /// A connection that did not begin as HTTP/2 in time.
    Preface,
    /// A connection whose peer answered no ping.
    Silent,
    /// More calls that were reset before they were answered than a caller or a connection may have.
    Resets,
    /// A request that is not gRPC.
    NotGrpc,
    /// A connection that broke the rules of HTTP/2, and was ended.
    Protocol,
}

impl Cause {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::Share => "share",
            Self::Streams => "streams",
            Self::GaveWay => "gave_way",
            Self::Expired => "expired",
            Self::MessageTooSlow => "message_too_slow",
            Self::Memory => "memory",
            Self::MessageTooLarge => "message_too_large",
            Self::Metadata => "metadata",
            Self::RateLimit => "rate_limit",
            Self::Identity => "identity",
            Self::Timeout => "timeout",
            Self::Traceparent => "traceparent",
            Self::Stalled => "stalled",
            Self::Connections => "connections",
            Self::Tls => "tls",
            Self::Preface => "preface",
            Self::Silent => "silent",
            Self::Resets => "resets",
            Self::NotGrpc => "not_grpc",
            Self::Protocol => "protocol",
        }
    }
}

/// Counts what a server turns away.
#[derive(Debug)]
pub(crate) struct Refusals {
    pub(crate) service: &'static str,
    counter: Counter<u64>,
    seldom: Seldom,
    /// What a test sees without a meter.
    #[cfg(test)]
    pub(crate) seen: Mutex<Vec<Cause>>,
}

impl Refusals {
    pub(crate) fn new(service: &'static str) -> Self {
        let counter = global::meter("mesh")
            .u64_counter("mesh.server.refusals")
            .with_description("Calls and connections that were turned away, by cause")
            .build();
        Self {
            service,
            counter,
            seldom: Seldom::new(),
            #[cfg(test)]
            seen: Mutex::default(),
        }
    }

    pub(crate) fn count(&self, cause: Cause) {
        let facts = [KeyValue::new("mesh.service", self.service), KeyValue::new("cause", cause.name())];
        self.counter.add(1, &facts);
        #[cfg(test)]
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(cause);
        if let Some(since_last_line) = self.seldom.count(Instant::now()) {
            let cause = cause.name();
            tracing::warn!(target: "ordermesh", cause, since_last_line, "the server turns callers away");
        }
    }
}

/// Says when to log: at most once a second, with how many there were since.
#[derive(Debug)]
pub struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Default for Seldom {
    fn default() -> Self {
        Self::new()
    }
}

impl Seldom {
    /// No line yet.
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// One more. How many there were since the last line, when it is time for another.
    pub fn count(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, count) = &mut *state;
        *count += 1;
        if last.is_some_and(|last| now.saturating_duration_since(last) < LOG_INTERVAL) {
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(count))
    }
}

/// The same, for each reason: one that is frequent does not hide another.
#[derive(Debug)]
pub(crate) struct SeldomBy(Mutex<BTreeMap<&'static str, Seldom>>);

impl SeldomBy {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    pub(crate) fn count(&self, reason: &'static str, now: Instant) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default().count(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_line_a_second_at_most_and_it_says_how_many_there_were() {
        let (seldom, start) = (Seldom::new(), Instant::now());
        let at = |millis: u64| start + Duration::from_millis(millis);
        assert_eq!(seldom.count(at(0)), Some(1));
        let lines: Vec<_> = (1..1_000).filter_map(|millis| seldom.count(at(millis))).collect();
        assert_eq!(lines, [] as [u64; 0]);
        assert_eq!(seldom.count(at(1_000)), Some(1_000));
    }

    #[test]
    fn a_reason_that_is_frequent_hides_no_other() {
        let (seldom, now) = (SeldomBy::new(), Instant::now());
        assert_eq!(seldom.count("STORE_FAILED", now), Some(1));
        assert_eq!(seldom.count("STORE_FAILED", now), None);
        assert_eq!(seldom.count("PANIC", now), Some(1));
    }
}
