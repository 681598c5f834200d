//! Gauges for monitoring: unfinished orders by state, the age of the oldest, orders in NEEDS_ATTENTION (0 in normal
//! operation), and how many orders this instance drives.

use std::collections::HashMap;
use std::time::Duration;

use chassis::Chassis;
use opentelemetry::{KeyValue, global};

use crate::driver::Driver;
use crate::lifecycle::STATES;
use crate::store::Store;

const INTERVAL: Duration = Duration::from_secs(5);

pub(crate) async fn record(store: Store, driver: Driver, chassis: Chassis) {
    let meter = global::meter("ordermesh");
    let by_state = meter.i64_gauge("ordermesh.orders").with_description("Orders that are not final, by state").build();
    let oldest = meter
        .f64_gauge("ordermesh.orders.oldest_unfinished")
        .with_unit("s")
        .with_description("Age of the oldest order with a pending effect")
        .build();
    let drives = meter.u64_gauge("ordermesh.driver.in_flight").with_description("Orders being driven").build();
    while tokio::time::timeout(INTERVAL, chassis.shutdown.cancelled()).await.is_err() {
        drives.record(u64::try_from(driver.in_flight()).unwrap_or(u64::MAX), &[]);
        let Ok((counts, since)) = store.unfinished().await else { continue };
        let counts: HashMap<String, i64> = counts.into_iter().collect();
        for state in STATES.into_iter().filter(|state| !crate::lifecycle::is_final(*state)) {
            let count = counts.get(state.name()).copied().unwrap_or(0);
            by_state.record(count, &[KeyValue::new("state", state.name())]);
        }
        oldest.record(since.map_or(0.0, |since| chassis.clock.now().since(since).as_secs_f64()), &[]);
    }
}
