//! Events for tests.

use std::collections::BTreeMap;

use kernel::Timestamp;
use telemetry::{EventStatus, TraceEvent};
use uuid::Builder;

/// The event of an operation that ended at an instant; `number` makes it unique at that instant.
pub(crate) fn event(ended: Timestamp, number: u16) -> TraceEvent {
    let millis = u64::try_from(ended.as_micros() / 1_000).expect("after 1970");
    let mut random = [0; 10];
    random[8..].copy_from_slice(&number.to_be_bytes());
    TraceEvent {
        event_id: Builder::from_unix_timestamp_millis(millis, &random).into_uuid(),
        event_type: "data_lookup".into(),
        status: EventStatus::Success,
        service: "data".into(),
        instance: "data-1".into(),
        operation: "op".into(),
        trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
        span_id: "b7ad6b7169203331".into(),
        start_micros: ended.as_micros(),
        duration_micros: 0,
        order_id: None,
        user_id: None,
        error: None,
        attributes: BTreeMap::new(),
        suppressed_count: 0,
    }
}
