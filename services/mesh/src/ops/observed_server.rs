//! A server as a source of its instance's snapshots.

use std::sync::Arc;

use tokio::time::Instant;

use crate::monitor::observed::Observer;
use crate::monitor::snapshot::{LimitUse, ServedMethod, ServerSnapshot};
use crate::monitor::statistics::{MethodReading, by_caller};
use crate::monitor::{Reading, Source};
use crate::ops::health::Health;
use crate::ops::limit_metrics::ServerLimits;
use crate::server::rejections::Rejections;

pub(crate) struct ObservedServer {
    pub(crate) observer: Arc<Observer>,
    pub(crate) health: Health,
    pub(crate) limits: Arc<ServerLimits>,
    pub(crate) rejections: Arc<Rejections>,
}

impl Source for ObservedServer {
    fn read(&self, now: Instant) -> Reading {
        let calls = self.observer.calls.read(now).into_iter();
        let methods = calls.map(|MethodReading { name: method, in_flight, callers }| ServedMethod {
            method,
            in_flight,
            callers: by_caller(callers),
        });
        let ServerLimits { service, admission, budget, connections } = &*self.limits;
        let limits = [
            ("calls", admission.calls.used(), admission.calls.limit),
            ("streams", admission.streams.used(), admission.streams.limit),
            ("connections", connections.open_connections(), connections.limit()),
            ("memory_bytes", budget.used(), budget.limit),
        ];
        Reading::Server(ServerSnapshot {
            service,
            is_serving: self.health.is_serving(),
            methods: methods.collect(),
            limits: limits.map(|(name, used, limit)| LimitUse { name, used, limit }).to_vec(),
            rejections: self.rejections.counts(),
        })
    }
}
