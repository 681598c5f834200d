//! A channel as a source of its instance's snapshots.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::endpoint::Endpoint;
use crate::client::endpoints::Endpoints;
use crate::client::metrics::ClientMetrics;
use crate::client::retry::budget::RetryBudget;
use crate::monitor::observed::Observer;
use crate::monitor::readings::{EndpointReading, TargetReading};
use crate::monitor::statistics::{MethodReading, Totals};
use crate::monitor::{Reading, Source};

pub(crate) struct ObservedTarget {
    pub(crate) name: &'static str,
    pub(crate) observer: Arc<Observer>,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) metrics: Arc<ClientMetrics>,
    pub(crate) budget: Arc<RetryBudget>,
}

impl Source for ObservedTarget {
    fn read(&self, now: Instant) -> Reading {
        let calls = self.observer.calls.read(now).into_iter();
        let methods = calls.map(|MethodReading { name, in_flight, callers }| {
            // The only caller is this instance.
            let totals = callers.into_iter().next().map(|(_, totals)| totals);
            (name, in_flight, totals.unwrap_or_else(|| Totals::none(now)))
        });
        Reading::Target(TargetReading {
            name: self.name,
            addresses: self.endpoints.addresses().to_string(),
            methods: methods.collect(),
            endpoints: self.endpoints.list().iter().map(|endpoint| read(endpoint, now)).collect(),
            retries: self.metrics.retried(),
            retry_budget: self.budget.left(),
        })
    }
}

fn read(endpoint: &Endpoint, now: Instant) -> EndpointReading {
    let attempts = endpoint.attempts.lock();
    EndpointReading {
        address: endpoint.address().to_owned(),
        is_connected: endpoint.is_ready(),
        breaker: endpoint.breaker.state(),
        load: Duration::from_secs_f64(endpoint.load.now(now)),
        in_flight: endpoint.load.in_flight(),
        attempts: attempts.total,
        failures: attempts.failures,
        windows: attempts.windows(now),
    }
}
