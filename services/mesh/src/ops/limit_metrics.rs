//! A server's current use of its limits, as observable instruments: nothing is counted per call. An instrument outlives
//! its server, and detects that by a weak reference.

use std::sync::{Arc, Weak};

use opentelemetry::{KeyValue, global};

use crate::server::connection::Connections;
use crate::server::layers::concurrency::Admission;
use crate::server::limits::shares::Shares;

/// The observed parts of a server.
pub(crate) struct Holdings {
    pub(crate) service: &'static str,
    pub(crate) admission: Admission,
    pub(crate) budget: Arc<Shares>,
    pub(crate) connections: Arc<Connections>,
}

/// Exports them while they exist.
pub(crate) fn export(holdings: &Arc<Holdings>) {
    up_down(holdings, "mesh.server.permits.used", "{permit}", |Holdings { admission, .. }| {
        vec![("call", admission.calls.used()), ("stream", admission.streams.used())]
    });
    up_down(holdings, "mesh.server.permits.limit", "{permit}", |Holdings { admission, .. }| {
        vec![("call", admission.calls.limit), ("stream", admission.streams.limit)]
    });
    up_down(holdings, "mesh.server.memory.reserved", "By", |holdings| vec![("request", holdings.budget.used())]);
    up_down(holdings, "mesh.server.memory.limit", "By", |holdings| vec![("request", holdings.budget.limit)]);
    let connections = |holdings: &Holdings| vec![("open", holdings.connections.open())];
    up_down(holdings, "mesh.server.connections", "{connection}", connections);
}

fn up_down(
    holdings: &Arc<Holdings>,
    name: &'static str,
    unit: &'static str,
    read: impl Fn(&Holdings) -> Vec<(&'static str, usize)> + Send + Sync + 'static,
) {
    let weak: Weak<Holdings> = Arc::downgrade(holdings);
    let meter = global::meter("mesh");
    let instrument = meter.i64_observable_up_down_counter(name).with_unit(unit).with_callback(move |observer| {
        let Some(holdings) = weak.upgrade() else { return };
        for (kind, value) in read(&holdings) {
            let attributes = [KeyValue::new("mesh.service", holdings.service), KeyValue::new("kind", kind)];
            observer.observe(i64::try_from(value).unwrap_or(i64::MAX), &attributes);
        }
    });
    instrument.build();
}
