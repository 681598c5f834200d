//! Where a running system is, and how to talk to it: for `demo` and `explain`.

use std::path::PathBuf;

use clap::Args;
use contracts::user::v1 as user_v1;
use contracts::user::v1::user_service_client::UserServiceClient;
use mesh::{Channel, ClientConfig};
use tonic::Request;
use tonic::metadata::MetadataValue;

use crate::data_dir::{self, Login};
use crate::error::Error;
use crate::probe;
use crate::service::{MAX_PORT_BASE, Service};
use crate::trace::Trace;

/// The most instances that are looked for.
const LOOKED_FOR: u16 = 8;

/// Where a running system is: what it was started with.
#[derive(Args, Clone, Debug)]
pub(crate) struct Place {
    /// The system's port base
    #[arg(long, env = "ORDERMESH_PORT_BASE", default_value_t = 7000, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_PORT_BASE)))]
    pub(crate) port_base: u16,
    /// The system's folder: the operator's password is in it
    #[arg(long, env = "ORDERMESH_DATA_DIR", default_value = "data", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
}

/// Channels to a running system.
#[derive(Clone, Debug)]
pub(crate) struct System {
    pub(crate) user: Channel,
    pub(crate) order: Channel,
    pub(crate) payment: Channel,
    pub(crate) data: Channel,
    operator: Login,
}

impl System {
    /// Finds the system's instances.
    ///
    /// # Errors
    /// A service of which none answers; no operator's password.
    pub(crate) async fn find(place: &Place) -> Result<Self, Error> {
        Ok(Self {
            user: channel(Service::User, place.port_base).await?,
            order: channel(Service::Order, place.port_base).await?,
            payment: channel(Service::Payment, place.port_base).await?,
            data: channel(Service::Data, place.port_base).await?,
            operator: data_dir::read_operator(&place.data_dir)?,
        })
    }

    /// A system of so many instances of each service, whether they answer just now or not.
    ///
    /// # Errors
    /// No operator's password.
    pub(crate) fn at(place: &Place, instances: u16) -> Result<Self, Error> {
        let to = |service: Service| client(service, service.addresses(place.port_base, instances));
        Ok(Self {
            user: to(Service::User),
            order: to(Service::Order),
            payment: to(Service::Payment),
            data: to(Service::Data),
            operator: data_dir::read_operator(&place.data_dir)?,
        })
    }

    /// An operator's access token.
    ///
    /// # Errors
    /// The log-in is refused.
    pub(crate) async fn operator_token(&self) -> Result<String, Error> {
        self.login(&self.operator).await
    }

    /// Somebody's access token.
    ///
    /// # Errors
    /// The log-in is refused.
    pub(crate) async fn login(&self, login: &Login) -> Result<String, Error> {
        let message = user_v1::LoginRequest { email: login.email.clone(), password: login.password.clone() };
        let answer = UserServiceClient::new(self.user.clone())
            .login(mesh::untraced(message))
            .await
            .map_err(Error::refused("the log-in"))?;
        Ok(answer.into_inner().session.unwrap_or_default().access_token)
    }
}

/// The way to a system's gateway; it may not be there.
pub(crate) fn gateway(place: &Place) -> Channel {
    client(Service::Gateway, Service::Gateway.addresses(place.port_base, 1))
}

async fn channel(service: Service, port_base: u16) -> Result<Channel, Error> {
    let mut addresses = Vec::new();
    for instance in 1..=LOOKED_FOR {
        let address = service.address(port_base, instance);
        if probe::listens(address).await {
            addresses.push(address.to_string());
        }
    }
    if addresses.is_empty() {
        return Err(Error::NoSystem { service: service.name(), port: service.port(port_base, 1) });
    }
    Ok(client(service, addresses))
}

fn client(service: Service, addresses: Vec<String>) -> Channel {
    // A person sees each refusal, and decides himself whether to ask again.
    mesh::client(ClientConfig { retries: false, ..ClientConfig::new(service.name(), addresses, contracts::POLICIES) })
}

/// A request as a person sends it, in a trace of their own when one is given.
pub(crate) fn request<T>(message: T, token: &str, trace: Option<Trace>) -> Request<T> {
    // Untraced: this process exports no spans, and a parent that nobody has seen would hide the trace.
    let mut request = mesh::untraced(message);
    if let Ok(bearer) = MetadataValue::try_from(format!("Bearer {token}"))
        && !token.is_empty()
    {
        request.metadata_mut().insert("authorization", bearer);
    }
    if let Some(trace) = trace
        && let Ok(place) = MetadataValue::try_from(trace.to_string())
    {
        request.metadata_mut().insert("traceparent", place);
    }
    request
}
