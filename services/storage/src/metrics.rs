//! Metrics of a database's connections, by the names of OpenTelemetry's semantic conventions for database clients, and
//! of what is committed in batches.

use std::time::Duration;

use opentelemetry::metrics::{Counter, Gauge, Histogram};
use opentelemetry::{KeyValue, global};

use crate::connect::Backend;

/// The instruments of one database. Without a meter provider, recording does nothing.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    wait: Histogram<f64>,
    count: Gauge<u64>,
    system: KeyValue,
}

impl Metrics {
    pub(crate) fn new(backend: Backend) -> Self {
        let meter = global::meter("storage");
        let system = match backend {
            Backend::Sqlite => "sqlite",
            Backend::Postgres => "postgresql",
        };
        Self {
            wait: meter
                .f64_histogram("db.client.connection.wait_time")
                .with_unit("s")
                .with_description("Time that transactions waited for a connection; on SQLite for its single writer")
                .build(),
            count: meter
                .u64_gauge("db.client.connection.count")
                .with_description("Connections of the pool, by state")
                .build(),
            system: KeyValue::new("db.system.name", system),
        }
    }

    pub(crate) fn waited(&self, wait: Duration) {
        self.wait.record(wait.as_secs_f64(), std::slice::from_ref(&self.system));
    }

    pub(crate) fn connections(&self, used: u64, idle: u64) {
        for (state, count) in [("used", used), ("idle", idle)] {
            self.count.record(count, &[self.system.clone(), KeyValue::new("db.client.connection.state", state)]);
        }
    }
}

/// The instruments of one kind of change that is committed in batches.
#[derive(Clone, Debug)]
pub(crate) struct BatchMetrics {
    commands: Histogram<u64>,
    wait: Histogram<f64>,
    split: Counter<u64>,
    kind: KeyValue,
}

impl BatchMetrics {
    pub(crate) fn new(kind: &'static str) -> Self {
        let meter = global::meter("storage");
        Self {
            commands: meter
                .u64_histogram("storage.batch.commands")
                .with_unit("{command}")
                .with_description("Commands of a batch, which is committed as one transaction")
                .with_boundaries(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
                .build(),
            wait: meter
                .f64_histogram("storage.batch.wait_time")
                .with_unit("s")
                .with_description("Time that commands waited for their batch to be started")
                .with_boundaries(vec![0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0])
                .build(),
            split: meter
                .u64_counter("storage.batch.splits")
                .with_unit("{batch}")
                .with_description("Batches that were rolled back and run again in parts")
                .build(),
            kind: KeyValue::new("batch.kind", kind),
        }
    }

    pub(crate) fn started(&self, commands: usize, waits: impl Iterator<Item = Duration>) {
        let kind = std::slice::from_ref(&self.kind);
        self.commands.record(u64::try_from(commands).unwrap_or(u64::MAX), kind);
        waits.for_each(|wait| self.wait.record(wait.as_secs_f64(), kind));
    }

    pub(crate) fn split(&self) {
        self.split.add(1, std::slice::from_ref(&self.kind));
    }
}
