//! Metrics of a database's connections (OpenTelemetry's semantic conventions for database clients).

use std::time::Duration;

use opentelemetry::metrics::{Gauge, Histogram};
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
