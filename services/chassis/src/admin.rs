//! mesh.v1.MeshAdminService: an instance's calls, live. Every service serves it, for operators.

mod convert;
mod error;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use contracts::mesh::v1 as proto;
use contracts::mesh::v1::mesh_admin_service_server::{MeshAdminService, MeshAdminServiceServer};
use futures_util::{Stream, stream};
use kernel::{Clock, Timestamp};
use mesh::tls::Identity;
use mesh::{Caller, Monitor, PolicyTable, Quota, Tap, TrafficPolicy};
use storage::Database;
use telemetry::{Operation, Outcome};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait};

use crate::admin::convert::{Latencies, TapCalls};
use crate::admin::error::{Error, status};
use crate::audit;

/// The name of the service.
pub(crate) use contracts::mesh::v1::mesh_admin_service_server::SERVICE_NAME;

/// What is driven in the background: for snapshots.
pub type ReadDriver = Arc<dyn Fn() -> DriverState + Send + Sync>;

/// The items that are driven in the background, each under a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DriverState {
    /// In the plural, for example `orders`.
    pub items: &'static str,
    /// Driven now.
    pub in_flight: usize,
    pub max_in_flight: usize,
}

/// An instance, as its administrators see it.
pub(crate) struct Admin {
    pub(crate) service: &'static str,
    pub(crate) instance: String,
    pub(crate) monitor: Monitor,
    pub(crate) traffic: TrafficPolicy,
    pub(crate) identity: Option<Identity>,
    pub(crate) driver: Option<ReadDriver>,
    pub(crate) started: Timestamp,
    pub(crate) clock: Arc<dyn Clock>,
    /// Has the outbox for audit events.
    pub(crate) db: Database,
    /// The policies of the methods that are served.
    pub(crate) policies: PolicyTable,
    pub(crate) quotas: Vec<(&'static str, Quota)>,
    pub(crate) max_message_bytes: usize,
    /// Cancelled when a shutdown is requested.
    pub(crate) shutdown_requested: CancellationToken,
    /// Cancelled when the streams end.
    pub(crate) shutdown: CancellationToken,
}

impl Admin {
    pub(crate) fn into_server(self) -> MeshAdminServiceServer<Self> {
        MeshAdminServiceServer::new(self).max_encoding_message_size(mesh::MAX_RESPONSE_BYTES)
    }

    /// Opens a tap, with its audit event.
    async fn tap(&self, request: Request<proto::TapCallsRequest>) -> Result<Taps, Error> {
        let operation = audit::operation(request.extensions());
        let token_left = match mesh::caller(request.extensions()) {
            Caller::User { token_expires, .. } => token_expires.since(self.clock.now()),
            Caller::Anonymous | Caller::Service { .. } => Duration::ZERO,
        };
        let TapCalls { filter, description } = request.into_inner().try_into()?;
        let tap = self.monitor.tap(filter)?;
        operation.set("tap.filter", description);
        self.store(&operation).await?;
        Ok(Taps {
            instance: self.instance.clone(),
            state: TapState::Opened(tap),
            shutdown: self.shutdown.clone(),
            token_ends: Instant::now() + token_left,
        })
    }

    async fn store(&self, operation: &Operation) -> Result<(), Error> {
        let emit = |tx: &storage::Tx, operation: Operation| {
            tx.emit(&operation, &Outcome::Success);
        };
        self.db
            .transact(operation.clone(), move |tx, operation| {
                Box::pin(async move {
                    emit(tx, operation);
                    Ok::<_, storage::Error>(())
                })
            })
            .await?;
        Ok(())
    }
}

enum TapState {
    /// The first message is due.
    Opened(Tap),
    Open(Tap),
    Ended,
}

/// The stream of a tap.
struct Taps {
    instance: String,
    state: TapState,
    shutdown: CancellationToken,
    token_ends: Instant,
}

impl Taps {
    async fn next(&mut self) -> Option<Result<proto::TapCallsResponse, Status>> {
        let mut tap = match std::mem::replace(&mut self.state, TapState::Ended) {
            TapState::Opened(tap) => {
                self.state = TapState::Open(tap);
                return Some(Ok(proto::TapCallsResponse::default()));
            }
            TapState::Open(tap) => tap,
            TapState::Ended => return None,
        };
        let next = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(Error::Draining),
            () = tokio::time::sleep_until(self.token_ends) => Err(Error::TokenExpired),
            next = tap.next() => next.map_err(Error::from),
        };
        Some(match next {
            Ok((call, dropped)) => {
                self.state = TapState::Open(tap);
                Ok(convert::tapped(call, &self.instance, dropped))
            }
            Err(error) => Err(status(error)),
        })
    }
}

#[async_trait]
impl MeshAdminService for Admin {
    async fn get_snapshot(
        &self,
        request: Request<proto::GetSnapshotRequest>,
    ) -> Result<Response<proto::GetSnapshotResponse>, Status> {
        let latencies = if request.get_ref().include_latencies { Latencies::Included } else { Latencies::LeftOut };
        Ok(Response::new(convert::snapshot(self, latencies)))
    }

    type TapCallsStream = Pin<Box<dyn Stream<Item = Result<proto::TapCallsResponse, Status>> + Send>>;

    async fn tap_calls(
        &self,
        request: Request<proto::TapCallsRequest>,
    ) -> Result<Response<Self::TapCallsStream>, Status> {
        let taps = self.tap(request).await.map_err(status)?;
        let calls = stream::unfold(taps, |mut taps| async move { Some((taps.next().await?, taps)) });
        Ok(Response::new(Box::pin(calls)))
    }

    async fn list_routes(
        &self,
        _request: Request<proto::ListRoutesRequest>,
    ) -> Result<Response<proto::ListRoutesResponse>, Status> {
        let routes = self.policies.0.iter().map(|policy| convert::route(policy, self)).collect();
        Ok(Response::new(proto::ListRoutesResponse { routes }))
    }
}
