//! A client's metrics besides those of the calls themselves. Labels are the target and, for a fixed list of instances,
//! the instance's address: the number of series must not grow with every new pod.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::uri::Authority;
use opentelemetry::metrics::{Counter, Meter, UpDownCounter};
use opentelemetry::{KeyValue, global};

use crate::client::retry::budget::RetryBudget;

pub(crate) const SERVER_ADDRESS: &str = "server.address";
pub(crate) const SERVER_PORT: &str = "server.port";
const TARGET: &str = "mesh.target";
const CAUSE: &str = "mesh.cause";

/// The instruments of one client stack.
pub(crate) struct ClientMetrics {
    target: KeyValue,
    attempts: Counter<u64>,
    retries: Counter<u64>,
    /// The same since the start, for snapshots.
    retried: AtomicU64,
    rejections: Counter<u64>,
    ready: UpDownCounter<i64>,
    breakers_open: UpDownCounter<i64>,
}

fn meter() -> Meter {
    global::meter("mesh")
}

impl ClientMetrics {
    pub(crate) fn new(target: &'static str) -> Self {
        let meter = meter();
        let counter = |name, description| meter.u64_counter(name).with_description(description).build();
        let up_down = |name, description| meter.i64_up_down_counter(name).with_description(description).build();
        let metrics = Self {
            target: KeyValue::new(TARGET, target),
            attempts: counter("mesh.client.attempts", "Attempts that were sent to an instance"),
            retries: counter("mesh.client.retries", "Retries, by the cause of the previous attempt's failure"),
            retried: AtomicU64::new(0),
            rejections: counter("mesh.client.refusals", "Calls and retries that the client itself rejected, by cause"),
            ready: up_down("mesh.client.endpoints.ready", "Instances that are connected"),
            breakers_open: up_down("mesh.client.breakers.open", "Instances whose circuit breaker is open"),
        };
        // Present from the start: an alert needs a zero, not an absent series.
        metrics.breakers_open.add(0, std::slice::from_ref(&metrics.target));
        metrics
    }

    /// The attributes of an instance.
    pub(crate) fn attributes(&self, address: Option<&Authority>) -> Box<[KeyValue]> {
        let mut attributes = vec![self.target.clone()];
        if let Some(address) = address {
            attributes.push(KeyValue::new(SERVER_ADDRESS, address.host().to_owned()));
            attributes.extend(address.port_u16().map(|port| KeyValue::new(SERVER_PORT, i64::from(port))));
        }
        attributes.into()
    }

    pub(crate) fn attempt(&self, attributes: &[KeyValue]) {
        self.attempts.add(1, attributes);
    }

    /// Retries since the start.
    pub(crate) fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    pub(crate) fn retry(&self, cause: &'static str) {
        self.retried.fetch_add(1, Ordering::Relaxed);
        self.retries.add(1, &[self.target.clone(), KeyValue::new(CAUSE, cause)]);
    }

    pub(crate) fn rejection(&self, cause: &'static str) {
        self.rejections.add(1, &[self.target.clone(), KeyValue::new(CAUSE, cause)]);
    }

    pub(crate) fn ready(&self, attributes: &[KeyValue], change: i64) {
        self.ready.add(change, attributes);
    }

    pub(crate) fn breakers_open(&self, attributes: &[KeyValue], change: i64) {
        self.breakers_open.add(change, attributes);
    }

    /// Exports the retry budget's balance, while it exists.
    pub(crate) fn export_retry_budget(&self, budget: &Arc<RetryBudget>) {
        let (target, budget) = ([self.target.clone()], Arc::downgrade(budget));
        meter()
            .i64_observable_gauge("mesh.client.retry.budget")
            .with_description("Retries that the budget would allow now")
            .with_callback(move |observer| {
                if let Some(budget) = budget.upgrade() {
                    observer.observe(budget.left(), &target);
                }
            })
            .build();
    }
}

/// Exports the load of instances; `read` passes on each instance's load and attributes, on collection.
pub(crate) fn export_endpoint_load(read: impl Fn(&mut dyn FnMut(f64, &[KeyValue])) + Send + Sync + 'static) {
    meter()
        .f64_observable_gauge("mesh.client.endpoint.load")
        .with_unit("s")
        .with_description("Peak EWMA of an instance's response time x (calls in flight + 1)")
        .with_callback(move |observer| read(&mut |load, attributes| observer.observe(load, attributes)))
        .build();
}
