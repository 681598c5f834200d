//! The servers and channels of an instance, as they are read: channels to the same target are merged.

use std::time::Duration;

use crate::monitor::snapshot::{BreakerState, CalledMethod, EndpointState, ServerSnapshot, Snapshot, Target};
use crate::monitor::statistics::{Totals, Windows};

/// The statistics of an instance of a target, as a channel has them.
pub(crate) struct EndpointReading {
    pub(crate) address: String,
    pub(crate) is_connected: bool,
    pub(crate) breaker: BreakerState,
    pub(crate) load: Duration,
    pub(crate) in_flight: usize,
    pub(crate) attempts: u64,
    pub(crate) failures: u64,
    pub(crate) windows: Windows,
}

/// A channel, as it is read.
pub(crate) struct TargetReading {
    pub(crate) name: &'static str,
    pub(crate) addresses: String,
    pub(crate) methods: Vec<(&'static str, usize, Totals)>,
    pub(crate) endpoints: Vec<EndpointReading>,
    pub(crate) retries: u64,
    pub(crate) retry_budget: i64,
}

impl TargetReading {
    /// Adds another channel to the same target.
    fn merge(&mut self, other: Self) {
        self.retries += other.retries;
        self.retry_budget += other.retry_budget;
        for (name, in_flight, totals) in other.methods {
            match self.methods.iter_mut().find(|(known, ..)| *known == name) {
                Some((_, sum, known)) => {
                    *sum += in_flight;
                    known.add(&totals);
                }
                None => self.methods.push((name, in_flight, totals)),
            }
        }
        for endpoint in other.endpoints {
            match self.endpoints.iter_mut().find(|known| known.address == endpoint.address) {
                Some(known) => known.merge(&endpoint),
                None => self.endpoints.push(endpoint),
            }
        }
    }
}

impl EndpointReading {
    fn merge(&mut self, other: &Self) {
        self.is_connected |= other.is_connected;
        self.breaker = self.breaker.max(other.breaker);
        self.load = self.load.max(other.load);
        self.in_flight += other.in_flight;
        self.attempts += other.attempts;
        self.failures += other.failures;
        self.windows.add(&other.windows);
    }
}

impl From<EndpointReading> for EndpointState {
    fn from(read: EndpointReading) -> Self {
        let [last_10s, last_60s] = read.windows.summary();
        Self {
            address: read.address,
            is_connected: read.is_connected,
            breaker: read.breaker,
            load: read.load,
            in_flight: read.in_flight,
            attempts: read.attempts,
            failures: read.failures,
            last_10s,
            last_60s,
        }
    }
}

impl From<TargetReading> for Target {
    fn from(read: TargetReading) -> Self {
        let method = |(method, in_flight, totals): (&'static str, usize, Totals)| CalledMethod {
            method,
            in_flight,
            calls: totals.summary(),
        };
        let mut methods: Vec<_> = read.methods.into_iter().map(method).collect();
        methods.sort_by_key(|method| method.method);
        let mut endpoints: Vec<EndpointState> = read.endpoints.into_iter().map(Into::into).collect();
        endpoints.sort_by(|a, b| a.address.cmp(&b.address));
        Self {
            name: read.name,
            addresses: read.addresses,
            methods,
            endpoints,
            retries: read.retries,
            retry_budget: read.retry_budget,
        }
    }
}

/// The sources of an instance, while they are read.
#[derive(Default)]
pub(crate) struct Readings {
    servers: Vec<ServerSnapshot>,
    targets: Vec<TargetReading>,
}

impl Readings {
    pub(crate) fn add_server(&mut self, server: ServerSnapshot) {
        self.servers.push(server);
    }

    pub(crate) fn add_target(&mut self, target: TargetReading) {
        match self.targets.iter_mut().find(|known| known.name == target.name) {
            Some(known) => known.merge(target),
            None => self.targets.push(target),
        }
    }

    pub(crate) fn finish(self) -> Snapshot {
        let mut targets: Vec<Target> = self.targets.into_iter().map(Into::into).collect();
        targets.sort_by_key(|target| target.name);
        Snapshot { servers: self.servers, targets }
    }
}
