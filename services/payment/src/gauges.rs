//! The metrics of payments.

use std::time::Duration;

use kernel::Timestamp;
use opentelemetry::global;

use crate::driver::Driver;
use crate::store::Store;

/// The interval between two counts.
const INTERVAL: Duration = Duration::from_secs(5);

/// Records the metrics until shutdown. Every instance reports the same table: aggregate by maximum, not by sum.
pub(crate) async fn record(store: Store, driver: Driver, chassis: chassis::Chassis) {
    let meter = global::meter("ordermesh");
    let count = meter.i64_gauge("ordermesh.payments.in_doubt").with_description("Payments in doubt").build();
    let oldest = meter
        .f64_gauge("ordermesh.payments.in_doubt.oldest")
        .with_unit("s")
        .with_description("Age of the oldest doubt; 0 when no payment is in doubt")
        .build();
    let driven =
        meter.i64_gauge("ordermesh.payments.driven").with_description("Payments being driven by this instance").build();
    loop {
        // Readiness reports an unavailable database.
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
