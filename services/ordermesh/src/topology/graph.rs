//! The services of a system and their calls, put together from the snapshots of all instances.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::ValueEnum;
use contracts::mesh::v1::mesh_admin_service_server::SERVICE_NAME;
use contracts::mesh::v1::{BreakerState, CallStatistics, Endpoint, GetSnapshotResponse, ServingState, Target, Window};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use tonic::Status;

use crate::error::describe;
use crate::instances::Instance;

/// An instance is slow if its median is this many times that of the fastest one, and by at least `SLOW_BY` longer; after
/// few calls (callers avoid a slow instance) by at least `SLOW_BY_OF_FEW`.
const SLOW_FACTOR: u32 = 3;
const SLOW_BY: Duration = Duration::from_millis(10);
const SLOW_BY_OF_FEW: Duration = Duration::from_millis(100);
const FEW_CALLS: i64 = 10;

/// Which calls are considered.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WindowLength {
    /// Of about the last 10 s
    #[value(name = "10s")]
    Short,
    /// Of about the last 60 s
    #[value(name = "60s")]
    Long,
}

impl WindowLength {
    pub(crate) fn of<'a>(self, short: &'a Option<Window>, long: &'a Option<Window>) -> Option<&'a Window> {
        match self {
            Self::Short => short.as_ref(),
            Self::Long => long.as_ref(),
        }
    }

    /// The other one.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Short => Self::Long,
            Self::Long => Self::Short,
        }
    }

    fn of_calls(self, calls: &Option<CallStatistics>) -> Option<&Window> {
        let calls = calls.as_ref()?;
        self.of(&calls.last_10s, &calls.last_60s)
    }
}

fn as_millis<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(millis).serialize(serializer)
}

/// A duration of the contract; zero without one.
pub(crate) fn duration(value: &Option<prost_types::Duration>) -> Duration {
    value.and_then(|duration| duration.try_into().ok()).unwrap_or_default()
}

/// Whether calls of a method are considered: not those of these commands, and not streams, whose latency is not that of
/// a response.
fn is_considered(method: &str) -> bool {
    let policy = contracts::POLICIES.find(&format!("/{method}"));
    !method.starts_with(SERVICE_NAME) && policy.is_none_or(|policy| !policy.streaming)
}

/// Unary calls of several reporters together.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Calls {
    pub(crate) calls: i64,
    pub(crate) failures: i64,
    /// The sum of the reporters' rates, whose windows may differ in length.
    pub(crate) per_second: f64,
    /// The number of calls, by microseconds.
    latencies: BTreeMap<i64, i64>,
}

impl Calls {
    #[expect(clippy::cast_precision_loss, reason = "there are never 2^52 calls in a minute")]
    fn add(&mut self, window: Option<&Window>) {
        let Some(window) = window else { return };
        self.calls += window.calls;
        self.failures += window.failures;
        let seconds = duration(&window.length).as_secs_f64();
        if seconds > 0.0 {
            self.per_second += window.calls as f64 / seconds;
        }
        for each in &window.latencies {
            *self.latencies.entry(each.latency_us).or_default() += each.calls;
        }
    }

    /// The latency of the call at this position of a thousand, in ascending order; zero without calls.
    fn permille(&self, permille: i64) -> Duration {
        let position = (self.latencies.values().sum::<i64>() * permille + 999) / 1_000;
        let mut seen = 0;
        let found = self.latencies.iter().find(|(_, calls)| {
            seen += **calls;
            seen >= position
        });
        found.and_then(|(micros, _)| (*micros).try_into().ok()).map(Duration::from_micros).unwrap_or_default()
    }

    pub(crate) fn p50(&self) -> Duration {
        self.permille(500)
    }

    pub(crate) fn p99(&self) -> Duration {
        self.permille(990)
    }

    /// The part of the calls that did not fail, in 0..=1; `None` without calls.
    #[expect(clippy::cast_precision_loss, reason = "there are never 2^52 calls in a minute")]
    pub(crate) fn success(&self) -> Option<f64> {
        (self.calls > 0).then(|| 1.0 - self.failures as f64 / self.calls as f64)
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}

impl Serialize for Calls {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut calls = serializer.serialize_struct("Calls", 5)?;
        calls.serialize_field("calls", &self.calls)?;
        calls.serialize_field("failures", &self.failures)?;
        calls.serialize_field("per_second", &((self.per_second * 100.0).round() / 100.0))?;
        calls.serialize_field("p50_ms", &millis(self.p50()))?;
        calls.serialize_field("p99_ms", &millis(self.p99()))?;
        calls.end()
    }
}

/// An instance, as its callers see it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct InstanceCalls {
    /// Its name; empty if it did not respond itself.
    pub(crate) instance: String,
    pub(crate) address: String,
    pub(crate) calls: Calls,
    /// Of services' calls; of clients', the instance knows them by method only.
    pub(crate) in_flight: Option<i64>,
    /// Whether a service that calls it is connected.
    pub(crate) connected: Option<bool>,
    /// Its breaker at the caller where it is least closed: `closed`, `half_open` or `open`.
    pub(crate) breaker: &'static str,
    /// The load by which callers choose, at the caller where it is highest.
    #[serde(rename = "load_ms", serialize_with = "as_millis")]
    pub(crate) load: Option<Duration>,
    /// Whether its median is several times that of the fastest instance.
    pub(crate) slow: bool,
}

/// The calls of one service, or of clients, to another service.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Edge {
    /// `anonymous`, `customer`, `operator`, or a service.
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) calls: Calls,
    /// Of services' calls.
    pub(crate) in_flight: Option<i64>,
    /// Since the start of the callers.
    #[serde(rename = "retries_total")]
    pub(crate) retries: i64,
    /// Whether there are calls in flight.
    #[serde(skip)]
    is_busy: bool,
    /// The called instances.
    pub(crate) instances: Vec<InstanceCalls>,
}

/// An instance of a service.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Node {
    pub(crate) service: &'static str,
    /// Its name; empty if it does not respond.
    pub(crate) instance: String,
    pub(crate) address: String,
    pub(crate) version: String,
    /// `serving`, `not_serving`, `draining`, or `unreachable`.
    pub(crate) state: &'static str,
    /// Why it is unreachable.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) error: String,
    /// Served calls, of all callers.
    pub(crate) calls: Calls,
    pub(crate) in_flight: i64,
}

/// Services and their calls.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Graph {
    pub(crate) instances: Vec<Node>,
    /// Clients' first, then by caller.
    pub(crate) edges: Vec<Edge>,
}

impl Graph {
    pub(crate) fn of(snapshots: &[(Instance, Result<GetSnapshotResponse, Status>)], window: WindowLength) -> Self {
        let instances: Vec<_> = snapshots.iter().map(|(instance, state)| node(instance, state, window)).collect();
        let mut edges = Edges { window, names: &instances, by_ends: BTreeMap::new() };
        for (instance, snapshot) in snapshots {
            let Ok(snapshot) = snapshot else { continue };
            edges.add_clients(instance, snapshot);
            snapshot.targets.iter().for_each(|target| edges.add_target(&snapshot.service, target));
        }
        let edges = edges.finish();
        Self { instances, edges }
    }
}

fn node(instance: &Instance, snapshot: &Result<GetSnapshotResponse, Status>, window: WindowLength) -> Node {
    let mut node = Node {
        service: instance.service.name(),
        instance: String::new(),
        address: instance.address.clone(),
        version: String::new(),
        state: "unreachable",
        error: String::new(),
        calls: Calls::default(),
        in_flight: 0,
    };
    match snapshot {
        Err(status) => node.error = describe(status),
        Ok(snapshot) => {
            node.instance.clone_from(&snapshot.instance);
            node.version.clone_from(&snapshot.version);
            node.state = match snapshot.serving_state() {
                ServingState::Serving => "serving",
                ServingState::Draining => "draining",
                ServingState::NotServing | ServingState::Unspecified => "not_serving",
            };
            for method in snapshot.methods.iter().filter(|method| is_considered(&method.method)) {
                node.in_flight += method.in_flight;
                method.callers.iter().for_each(|entry| node.calls.add(window.of_calls(&entry.calls)));
            }
        }
    }
    node
}

/// The edges, while they are put together.
struct Edges<'a> {
    window: WindowLength,
    names: &'a [Node],
    by_ends: BTreeMap<(String, String), Edge>,
}

impl Edges<'_> {
    fn edge(&mut self, from: &str, to: &str) -> &mut Edge {
        let ends = (from.to_owned(), to.to_owned());
        self.by_ends.entry(ends).or_insert_with(|| Edge {
            from: from.to_owned(),
            to: to.to_owned(),
            calls: Calls::default(),
            in_flight: None,
            retries: 0,
            is_busy: false,
            instances: Vec::new(),
        })
    }

    /// The calls of clients: services report theirs themselves.
    fn add_clients(&mut self, instance: &Instance, snapshot: &GetSnapshotResponse) {
        let window = self.window;
        let methods = snapshot.methods.iter().filter(|method| is_considered(&method.method));
        for (method, entry) in methods.flat_map(|method| method.callers.iter().map(move |entry| (method, entry))) {
            if !matches!(entry.caller.as_str(), "anonymous" | "customer" | "operator") {
                continue;
            }
            let edge = self.edge(&entry.caller, &snapshot.service);
            edge.calls.add(window.of_calls(&entry.calls));
            edge.is_busy |= method.in_flight > 0;
            let known = edge.instances.iter_mut().find(|known| known.address == instance.address);
            let served = match known {
                Some(known) => known,
                None => {
                    edge.instances.push(InstanceCalls {
                        instance: snapshot.instance.clone(),
                        address: instance.address.clone(),
                        calls: Calls::default(),
                        in_flight: None,
                        connected: None,
                        breaker: "closed",
                        load: None,
                        slow: false,
                    });
                    // It was pushed.
                    let Some(pushed) = edge.instances.last_mut() else { continue };
                    pushed
                }
            };
            served.calls.add(window.of_calls(&entry.calls));
        }
    }

    fn add_target(&mut self, from: &str, target: &Target) {
        let window = self.window;
        let names = self.names;
        let edge = self.edge(from, &target.name);
        edge.retries += target.retries;
        for method in target.methods.iter().filter(|method| is_considered(&method.method)) {
            *edge.in_flight.get_or_insert(0) += method.in_flight;
            edge.is_busy |= method.in_flight > 0;
            edge.calls.add(window.of_calls(&method.calls));
        }
        if target.methods.is_empty() {
            // Another target of a service: its calls are among the service's, and its instances'.
            target
                .endpoints
                .iter()
                .for_each(|endpoint| edge.calls.add(window.of(&endpoint.last_10s, &endpoint.last_60s)));
        }
        for endpoint in &target.endpoints {
            let name = names.iter().find(|node| node.address == endpoint.address && node.service == target.name);
            let name = name.map(|node| node.instance.clone()).unwrap_or_default();
            merge(&mut edge.instances, endpoint, name, window);
        }
    }

    fn finish(self) -> Vec<Edge> {
        // A channel that is not used is no edge.
        let is_used = |edge: &Edge| edge.calls.calls > 0 || edge.is_busy;
        let mut edges: Vec<_> = self.by_ends.into_values().filter(is_used).collect();
        for edge in &mut edges {
            edge.instances.sort_by(|a, b| a.address.cmp(&b.address));
            mark_slow(&mut edge.instances);
        }
        let is_service = |edge: &Edge| !matches!(edge.from.as_str(), "anonymous" | "customer" | "operator");
        edges.sort_by(|a, b| (is_service(a), &a.from, &a.to).cmp(&(is_service(b), &b.from, &b.to)));
        edges
    }
}

fn merge(instances: &mut Vec<InstanceCalls>, endpoint: &Endpoint, instance: String, window: WindowLength) {
    let breaker = match endpoint.breaker() {
        BreakerState::Closed | BreakerState::Unspecified => "closed",
        BreakerState::HalfOpen => "half_open",
        BreakerState::Open => "open",
    };
    let mut calls = Calls::default();
    calls.add(window.of(&endpoint.last_10s, &endpoint.last_60s));
    let new = InstanceCalls {
        instance,
        address: endpoint.address.clone(),
        calls,
        in_flight: Some(endpoint.in_flight),
        connected: Some(endpoint.connected),
        breaker,
        load: Some(duration(&endpoint.load)),
        slow: false,
    };
    let Some(known) = instances.iter_mut().find(|known| known.address == new.address) else {
        return instances.push(new);
    };
    known.calls.add(window.of(&endpoint.last_10s, &endpoint.last_60s));
    known.in_flight = Some(known.in_flight.unwrap_or(0) + endpoint.in_flight);
    known.connected = Some(known.connected.unwrap_or(false) || endpoint.connected);
    known.load = known.load.max(new.load);
    let openness = |breaker| ["closed", "half_open", "open"].iter().position(|state| *state == breaker);
    if openness(new.breaker) > openness(known.breaker) {
        known.breaker = new.breaker;
    }
}

fn mark_slow(instances: &mut [InstanceCalls]) {
    let called = |instance: &&InstanceCalls| instance.calls.calls > 0;
    let Some(fastest) = instances.iter().filter(called).map(|instance| instance.calls.p50()).min() else { return };
    for instance in instances {
        let p50 = instance.calls.p50();
        let by = if instance.calls.calls < FEW_CALLS { SLOW_BY_OF_FEW } else { SLOW_BY };
        instance.slow = instance.calls.calls > 0 && p50 >= fastest * SLOW_FACTOR && p50 >= fastest + by;
    }
}

#[cfg(test)]
pub(crate) mod tests;
