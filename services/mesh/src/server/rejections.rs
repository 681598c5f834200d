//! Counts rejections by cause: a counter, and at most one log line a second. The causes are an enum, so the metric's
//! label has a bounded number of values.

use std::collections::BTreeMap;

use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use parking_lot::Mutex;
use telemetry::LogLimit;
use tokio::time::Instant;

/// Why a call or a connection was rejected or ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// All permits are taken.
    Concurrency,
    /// The caller holds its fair share of the permits.
    FairShare,
    /// All stream slots are taken, and none can be evicted.
    Streams,
    /// A connection or stream of the caller with the most slots was evicted for another caller.
    Evicted,
    /// A connection whose peer's certificate has expired.
    Expired,
    /// A request that was not complete in time.
    MessageTooSlow,
    /// The memory budget, or the caller's share of it, is used up.
    Memory,
    /// A message longer than the limit.
    MessageTooLarge,
    /// Metadata beyond the limit.
    Metadata,
    /// The caller is over its quota.
    RateLimit,
    /// Invalid credentials, or missing permissions.
    Identity,
    /// A malformed `grpc-timeout`.
    Timeout,
    /// A malformed `traceparent`: the call is served, in a trace of its own.
    Traceparent,
    /// A response that its caller did not read.
    WriteTimeout,
    /// The connection limit is reached.
    Connections,
    /// A failed TLS handshake.
    Tls,
    /// A connection that did not begin as HTTP/2 in time.
    Preface,
    /// A connection whose peer did not answer a ping.
    KeepaliveTimeout,
    /// More calls reset before they were answered than a caller or a connection is allowed.
    Resets,
    /// A request that is not gRPC.
    NotGrpc,
    /// A connection that was closed for violating HTTP/2.
    Protocol,
}

impl Cause {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::FairShare => "fair_share",
            Self::Streams => "streams",
            Self::Evicted => "evicted",
            Self::Expired => "expired",
            Self::MessageTooSlow => "message_too_slow",
            Self::Memory => "memory",
            Self::MessageTooLarge => "message_too_large",
            Self::Metadata => "metadata",
            Self::RateLimit => "rate_limit",
            Self::Identity => "identity",
            Self::Timeout => "timeout",
            Self::Traceparent => "traceparent",
            Self::WriteTimeout => "write_timeout",
            Self::Connections => "connections",
            Self::Tls => "tls",
            Self::Preface => "preface",
            Self::KeepaliveTimeout => "keepalive_timeout",
            Self::Resets => "resets",
            Self::NotGrpc => "not_grpc",
            Self::Protocol => "protocol",
        }
    }
}

/// A server's rejections.
#[derive(Debug)]
pub(crate) struct Rejections {
    pub(crate) service: &'static str,
    counter: Counter<u64>,
    /// Since the start, for snapshots.
    counts: Mutex<BTreeMap<&'static str, u64>>,
    log_limit: LogLimit,
    /// For tests, which have no meter.
    #[cfg(test)]
    pub(crate) counted: Mutex<Vec<Cause>>,
}

impl Rejections {
    pub(crate) fn new(service: &'static str) -> Self {
        let counter = global::meter("mesh")
            .u64_counter("mesh.server.refusals")
            .with_description("Calls and connections that were rejected, by cause")
            .build();
        Self {
            service,
            counter,
            counts: Mutex::default(),
            log_limit: LogLimit::new(),
            #[cfg(test)]
            counted: Mutex::default(),
        }
    }

    /// The rejections since the start, by cause.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().clone()
    }

    pub(crate) fn count(&self, cause: Cause) {
        let attributes = [KeyValue::new("mesh.service", self.service), KeyValue::new("cause", cause.name())];
        self.counter.add(1, &attributes);
        *self.counts.lock().entry(cause.name()).or_default() += 1;
        #[cfg(test)]
        self.counted.lock().push(cause);
        if let Some(occurrences) = self.log_limit.count(Instant::now()) {
            let cause = cause.name();
            tracing::warn!(target: "ordermesh", cause, occurrences, "requests rejected");
        }
    }
}
