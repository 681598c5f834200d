//! grpc.health.v1: NOT_SERVING until ready, and again from the moment of the drain.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// What the health service says, for "" and for each named service.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    services: &'static [&'static str],
}

impl Health {
    pub(crate) fn new(services: &'static [&'static str]) -> Self {
        Self { reporter: HealthReporter::new(), services }
    }

    pub(crate) fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    pub(crate) async fn say(&self, ready: bool) {
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in std::iter::once(&"").chain(self.services) {
            self.reporter.set_service_status(*service, status).await;
        }
    }

    /// Says what `ready` says, until the drain.
    pub(crate) async fn follow(self, mut ready: watch::Receiver<bool>, drain: CancellationToken) {
        loop {
            let now = *ready.borrow_and_update();
            self.say(now).await;
            tokio::select! {
                () = drain.cancelled() => return,
                changed = ready.changed() => if changed.is_err() {
                    // Whoever knew is gone: what was said last stays.
                    return;
                }
            }
        }
    }
}
