//! What the metrics tell of payments.

use std::time::Duration;

use kernel::Timestamp;
use opentelemetry::global;

use crate::driver::Driver;
use crate::store::Store;

/// How often the payments in doubt are counted.
const INTERVAL: Duration = Duration::from_secs(5);

/// Counts until told to stop. Every instance tells of the same table: read the greatest, not the sum.
pub(crate) async fn record(store: Store, driver: Driver, chassis: chassis::Chassis) {
    let meter = global::meter("ordermesh");
    let count = meter.i64_gauge("ordermesh.payments.in_doubt").with_description("Payments in doubt").build();
    let oldest = meter
        .f64_gauge("ordermesh.payments.in_doubt.oldest")
        .with_unit("s")
        .with_description("How long the oldest payment in doubt has been so; 0 when there is none")
        .build();
    let driven =
        meter.i64_gauge("ordermesh.payments.driven").with_description("Payments that this instance drives now").build();
    loop {
        // A database that is away is told of by readiness.
        if let Ok(in_doubt) = store.in_doubt().await {
            let now = chassis.clock.now();
            let age = in_doubt.oldest.map(Timestamp::from_micros).map_or(0.0, |since| now.since(since).as_secs_f64());
            count.record(in_doubt.count, &[]);
            oldest.record(age, &[]);
        }
        driven.record(i64::try_from(driver.in_flight()).unwrap_or(i64::MAX), &[]);
        if tokio::time::timeout(INTERVAL, chassis.shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
}
