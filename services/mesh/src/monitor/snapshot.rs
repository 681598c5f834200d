//! An instance's state, as it is reported. Plain data, without any identifier of a user.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::Code;

use crate::call::caller_class::CallerClass;

/// The calls that ended in a window of time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Window {
    /// Its length: about ten or sixty seconds, or less after a start.
    pub length: Duration,
    /// The calls that ended.
    pub calls: u64,
    /// Those that failed, by the server's fault (OpenTelemetry's convention for the status codes of RPC servers).
    pub failures: u64,
    /// The median latency, accurate to 10 %; zero without calls.
    pub p50: Duration,
    /// The 90th percentile.
    pub p90: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// A histogram: latency (rounded up by at most 10 %) and number of calls. Those of several instances can be merged.
    pub latencies: Vec<(Duration, u64)>,
}

/// Ended calls.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CallSummary {
    /// Since the start, by status code.
    pub by_code: Vec<(Code, u64)>,
    /// Of about the last ten seconds.
    pub last_10s: Window,
    /// Of about the last sixty seconds.
    pub last_60s: Window,
}

/// The ended calls of one caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallerCalls {
    /// The caller.
    pub caller: CallerClass,
    /// Its calls.
    pub calls: CallSummary,
}

/// A method that a server serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServedMethod {
    /// For example `order.v1.OrderService/CreateOrder`.
    pub method: &'static str,
    /// Calls in flight.
    pub in_flight: usize,
    /// Ended calls, by caller.
    pub callers: Vec<CallerCalls>,
}

/// A limit, and what is used of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitUse {
    /// `calls`, `streams`, `connections` or `memory_bytes`.
    pub name: &'static str,
    /// In use now.
    pub used: usize,
    /// The limit.
    pub limit: usize,
}

/// A server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerSnapshot {
    /// The service's name.
    pub service: &'static str,
    /// Whether health reports SERVING.
    pub is_serving: bool,
    /// The methods that were called.
    pub methods: Vec<ServedMethod>,
    /// The limits.
    pub limits: Vec<LimitUse>,
    /// Rejected calls and connections since the start, by cause.
    pub rejections: BTreeMap<&'static str, u64>,
}

/// A method that is called at a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CalledMethod {
    /// For example `data.v1.CatalogService/BatchGetProducts`.
    pub method: &'static str,
    /// Calls in flight.
    pub in_flight: usize,
    /// Ended calls, each with all its attempts.
    pub calls: CallSummary,
}

/// The state of an instance's circuit breaker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BreakerState {
    /// All calls are admitted.
    Closed,
    /// One call is admitted: the probe.
    HalfOpen,
    /// None is admitted.
    Open,
}

/// An endpoint of a target: one address, and how calls to it went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointState {
    /// Its address.
    pub address: String,
    /// Whether there is a connection to it.
    pub is_connected: bool,
    /// Its circuit breaker.
    pub breaker: BreakerState,
    /// Peak EWMA of its response time × (calls in flight + 1).
    pub load: Duration,
    /// Attempts in flight.
    pub in_flight: usize,
    /// Attempts since the start.
    pub attempts: u64,
    /// Failed ones, as its breaker counts them.
    pub failures: u64,
    /// Attempts of about the last ten seconds.
    pub last_10s: Window,
    /// Attempts of about the last sixty seconds.
    pub last_60s: Window,
}

/// A service that is called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Its addresses, as they are configured.
    pub addresses: String,
    /// The methods that were called.
    pub methods: Vec<CalledMethod>,
    /// Its endpoints.
    pub endpoints: Vec<EndpointState>,
    /// Retries since the start.
    pub retries: u64,
    /// Retries that the budget would allow now.
    pub retry_budget: i64,
}

/// An instance's state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Its servers. The process of a service has one.
    pub servers: Vec<ServerSnapshot>,
    /// The services that it calls.
    pub targets: Vec<Target>,
}
