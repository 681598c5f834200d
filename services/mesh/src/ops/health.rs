//! grpc.health.v1 as specified: NOT_SERVING until ready, and again from the start of the drain. Not tonic-health: there
//! a watch of an unknown service fails, and the specification requires that it stays open.

use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// The health service's state, for "" and for each service.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    is_serving: watch::Sender<bool>,
    services: Arc<[&'static str]>,
}

impl Health {
    pub(crate) fn new(services: Vec<&'static str>) -> Self {
        Self { is_serving: watch::Sender::new(false), services: services.into() }
    }

    pub(crate) fn service(&self) -> HealthServer<Self> {
        HealthServer::new(self.clone())
    }

    pub(crate) fn is_serving(&self) -> bool {
        *self.is_serving.borrow()
    }

    pub(crate) fn set_serving(&self, ready: bool) {
        self.is_serving.send_if_modified(|serving| std::mem::replace(serving, ready) != ready);
    }

    /// Reports `ready` until the drain.
    pub(crate) async fn follow(self, mut ready: watch::Receiver<bool>, drain: CancellationToken) {
        loop {
            let now = *ready.borrow_and_update();
            self.set_serving(now);
            tokio::select! {
                () = drain.cancelled() => return,
                changed = ready.changed() => if changed.is_err() {
                    // The sender is gone: the last value stays.
                    return;
                }
            }
        }
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(&service)
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn response_of(is_serving: bool) -> HealthCheckResponse {
    response(if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !self.knows(&request.get_ref().service) {
            return Err(Status::not_found("no such service is served here"));
        }
        Ok(Response::new(response_of(*self.is_serving.borrow())))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if !self.knows(&request.get_ref().service) {
            // Per health.proto a service may become known later; here none does, and the drain ends the stream.
            let unknown = stream::iter([Ok(response(ServingStatus::ServiceUnknown))]);
            return Ok(Response::new(unknown.chain(stream::pending()).boxed()));
        }
        let mut changes = self.is_serving.subscribe();
        changes.mark_changed();
        let responses = stream::unfold(changes, async |mut changes| {
            changes.changed().await.ok()?;
            let now = *changes.borrow_and_update();
            Some((Ok(response_of(now)), changes))
        });
        Ok(Response::new(responses.boxed()))
    }
}
