//! The running instances of a system, each called directly as the operator: for `top`, `tap`, `topology`, `routes`.

use std::sync::Arc;

use contracts::mesh::v1::mesh_admin_service_client::MeshAdminServiceClient;
use contracts::mesh::v1::{
    GetSnapshotRequest, GetSnapshotResponse, ListRoutesRequest, ListRoutesResponse, TapCallsRequest, TapCallsResponse,
};
use futures_util::future::join_all;
use mesh::Channel;
use tonic::{Status, Streaming};

use crate::error::Error;
use crate::operator_session::OperatorSession;
use crate::out;
use crate::service::Service;
use crate::system::Location;

/// The services whose instances serve mesh.v1.MeshAdminService. The gateway is external.
const SERVICES: [Service; 4] = [Service::User, Service::Order, Service::Payment, Service::Data];

/// A running instance.
#[derive(Clone)]
pub(crate) struct Instance {
    pub(crate) service: Service,
    pub(crate) address: String,
    channel: Channel,
    operator: Arc<OperatorSession>,
}

impl Instance {
    fn client(&self) -> MeshAdminServiceClient<Channel> {
        MeshAdminServiceClient::new(self.channel.clone())
    }

    /// Its state.
    ///
    /// # Errors
    /// The call is rejected.
    pub(crate) async fn snapshot(&self) -> Result<GetSnapshotResponse, Status> {
        let get = |request| {
            let mut client = self.client();
            async move { client.get_snapshot(request).await }
        };
        self.operator.call(GetSnapshotRequest { include_latencies: true }, get).await
    }

    /// The policies in force.
    ///
    /// # Errors
    /// The call is rejected.
    pub(crate) async fn routes(&self) -> Result<ListRoutesResponse, Status> {
        let list = |request| {
            let mut client = self.client();
            async move { client.list_routes(request).await }
        };
        self.operator.call(ListRoutesRequest {}, list).await
    }

    /// Opens a tap.
    ///
    /// # Errors
    /// The call is rejected.
    pub(crate) async fn tap(&self, filter: TapCallsRequest) -> Result<Streaming<TapCallsResponse>, Status> {
        let tap = |request| {
            let mut client = self.client();
            async move { client.tap_calls(request).await }
        };
        self.operator.call(filter, tap).await
    }
}

/// The running instances of a system.
pub(crate) struct Instances {
    location: Location,
    operator: Arc<OperatorSession>,
    all: Vec<Instance>,
}

impl Instances {
    /// Finds them, and logs in. Those of a service that is down are found too: they do not respond.
    ///
    /// # Errors
    /// No User Service is running, the log-in is rejected, or the root certificates cannot be used.
    pub(crate) async fn find(location: Location) -> Result<Self, Error> {
        let operator = Arc::new(location.operator_session().await?);
        let mut instances = Self { location, operator, all: Vec::new() };
        for (service, problem) in instances.refresh().await? {
            out::complain(format_args!("{service}: {}", problem.report()));
        }
        Ok(instances)
    }

    /// Finds them again: some may have started or ended. On this machine an instance that has ended is kept, as one that
    /// does not respond; a service whose name cannot be looked up keeps its instances. Returns such problems.
    ///
    /// # Errors
    /// The root certificates cannot be used any more.
    pub(crate) async fn refresh(&mut self) -> Result<Vec<(Service, Error)>, Error> {
        let found = join_all(SERVICES.map(|service| self.location.instances_of(service))).await;
        let mut problems = Vec::new();
        for (service, found) in SERVICES.into_iter().zip(found) {
            match found {
                Ok(addresses) => self.set(service, addresses)?,
                Err(problem) => problems.push((service, problem)),
            }
        }
        Ok(problems)
    }

    fn set(&mut self, service: Service, addresses: Vec<String>) -> Result<(), Error> {
        if !self.location.is_local(service) {
            self.all.retain(|known| known.service != service || addresses.contains(&known.address));
        }
        for address in addresses {
            if !self.all.iter().any(|known| known.service == service && known.address == address) {
                let channel = self.location.instance(service, &address)?;
                self.all.push(Instance { service, address, channel, operator: self.operator.clone() });
            }
        }
        self.all.sort_by(|a, b| (a.service, &a.address).cmp(&(b.service, &b.address)));
        Ok(())
    }

    pub(crate) fn all(&self) -> &[Instance] {
        &self.all
    }

    /// The state of each instance.
    pub(crate) async fn snapshots(&self) -> Vec<(Instance, Result<GetSnapshotResponse, Status>)> {
        join_all(self.all.iter().map(|instance| async { (instance.clone(), instance.snapshot().await) })).await
    }
}

#[cfg(test)]
impl Instance {
    /// One that is not called.
    pub(crate) fn named(service: Service, address: &str) -> Self {
        let channel = || mesh::client(mesh::ClientConfig::new(service.name(), vec![], contracts::POLICIES));
        let operator = Arc::new(OperatorSession::none(channel()));
        Self { service, address: address.to_owned(), channel: channel(), operator }
    }
}
