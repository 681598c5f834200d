//! A server's current use of its limits, as observable instruments: nothing is counted per call. An instrument outlives
//! its server, and detects that by a weak reference.

use std::sync::{Arc, Weak};

use opentelemetry::{KeyValue, global};

use crate::server::connection::Connections;
use crate::server::layers::concurrency::Admission;
use crate::server::limits::shares::Shares;

/// What a server's limits are and what is used of them.
pub(crate) struct ServerLimits {
    pub(crate) service: &'static str,
    pub(crate) admission: Admission,
    pub(crate) budget: Arc<Shares>,
    pub(crate) connections: Arc<Connections>,
}

/// Exports them while the server exists.
pub(crate) fn export(limits: &Arc<ServerLimits>) {
    up_down(limits, "mesh.server.permits.used", "{permit}", |ServerLimits { admission, .. }| {
        vec![("call", admission.calls.used()), ("stream", admission.streams.used())]
    });
    up_down(limits, "mesh.server.permits.limit", "{permit}", |ServerLimits { admission, .. }| {
        vec![("call", admission.calls.limit), ("stream", admission.streams.limit)]
    });
    up_down(limits, "mesh.server.memory.reserved", "By", |limits| vec![("request", limits.budget.used())]);
    up_down(limits, "mesh.server.memory.limit", "By", |limits| vec![("request", limits.budget.limit)]);
    let connections = |limits: &ServerLimits| vec![("open", limits.connections.open_connections())];
    up_down(limits, "mesh.server.connections", "{connection}", connections);
}

fn up_down(
    limits: &Arc<ServerLimits>,
    name: &'static str,
    unit: &'static str,
    read: impl Fn(&ServerLimits) -> Vec<(&'static str, usize)> + Send + Sync + 'static,
) {
    let weak: Weak<ServerLimits> = Arc::downgrade(limits);
    let meter = global::meter("mesh");
    let instrument = meter.i64_observable_up_down_counter(name).with_unit(unit).with_callback(move |observer| {
        let Some(limits) = weak.upgrade() else { return };
        for (kind, value) in read(&limits) {
            let attributes = [KeyValue::new("mesh.service", limits.service), KeyValue::new("kind", kind)];
            observer.observe(i64::try_from(value).unwrap_or(i64::MAX), &attributes);
        }
    });
    instrument.build();
}
