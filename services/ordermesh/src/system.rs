//! Finds and calls a running system: for `demo`, `explain`, `events`, `load`, `verify`.

use std::path::PathBuf;

use clap::Args;
use futures_util::future::join_all;
use mesh::tls::Trust;
use mesh::{Addresses, Channel, ClientConfig};
use tonic::Request;
use tonic::metadata::MetadataValue;

use crate::certificates::{Certificates, TRUST_DOMAIN};
use crate::data_dir::{self, Login};
use crate::error::Error;
use crate::operator_session::{LOG_IN, OperatorSession, log_in};
use crate::probe;
use crate::service::{MAX_INSTANCES, MAX_PORT_BASE, Service};
use crate::trace::Trace;

/// The location of a running system: the settings it was started with, or addresses.
#[derive(Args, Clone, Debug)]
pub(crate) struct Location {
    /// The system's port base
    #[arg(long, env = "ORDERMESH_PORT_BASE", default_value_t = 7000, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_PORT_BASE)))]
    pub(crate) port_base: u16,
    /// The system's folder, which has the operator's password
    #[arg(long, env = "ORDERMESH_DATA_DIR", default_value = "data", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// The system was started with --tls
    #[arg(long, env = "ORDERMESH_TLS", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) tls: bool,
    #[command(flatten)]
    elsewhere: Elsewhere,
}

/// The location of a system that `ordermesh` has not started on this machine.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "A system elsewhere")]
struct Elsewhere {
    /// Instances of the User Service: HOST:PORT,… or dns:///NAME:PORT [default: those of the port base]
    #[arg(long, env = "ORDERMESH_USER_ADDRESSES", value_name = "ADDRESSES")]
    user_addresses: Option<Addresses>,
    /// Instances of the Order Service
    #[arg(long, env = "ORDERMESH_ORDER_ADDRESSES", value_name = "ADDRESSES")]
    order_addresses: Option<Addresses>,
    /// Instances of the Payment Service
    #[arg(long, env = "ORDERMESH_PAYMENT_ADDRESSES", value_name = "ADDRESSES")]
    payment_addresses: Option<Addresses>,
    /// Instances of the Data Service
    #[arg(long, env = "ORDERMESH_DATA_ADDRESSES", value_name = "ADDRESSES")]
    data_addresses: Option<Addresses>,
    /// Instances of the payment gateway, to read its ledger
    #[arg(long, env = "ORDERMESH_PAYMENT_GATEWAY_ADDRESSES", value_name = "ADDRESSES")]
    gateway_addresses: Option<Addresses>,
    /// Use TLS with the root certificates of this PEM file [default: DATA_DIR/certs/ca.pem with --tls]
    #[arg(long, env = "ORDERMESH_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Trust domain of the system's SPIFFE IDs
    #[arg(long, env = "ORDERMESH_TRUST_DOMAIN", default_value = TRUST_DOMAIN, value_name = "NAME")]
    trust_domain: String,
    /// File with the line `EMAIL PASSWORD` of an operator [default: DATA_DIR/operator.txt]
    #[arg(long, env = "ORDERMESH_OPERATOR_FILE", value_name = "FILE")]
    operator_file: Option<PathBuf>,
    /// File with the merchant's API key at the gateway [default: DATA_DIR/gateway.key]
    #[arg(long, env = "ORDERMESH_PAYMENT_GATEWAY_API_KEY_FILE", value_name = "FILE")]
    gateway_api_key_file: Option<PathBuf>,
}

impl Location {
    /// A system on this machine.
    pub(crate) fn local(port_base: u16, data_dir: PathBuf) -> Self {
        let elsewhere = Elsewhere { trust_domain: TRUST_DOMAIN.to_owned(), ..Elsewhere::default() };
        Self { port_base, data_dir, tls: false, elsewhere }
    }

    /// The merchant's API key at the gateway.
    pub(crate) fn gateway_key(&self) -> PathBuf {
        self.elsewhere.gateway_api_key_file.clone().unwrap_or_else(|| self.data_dir.join("gateway.key"))
    }

    fn operator(&self) -> Result<Login, Error> {
        let own = || data_dir::operator_file(&self.data_dir);
        data_dir::read_operator(&self.elsewhere.operator_file.clone().unwrap_or_else(own))
    }

    fn addresses_of(&self, service: Service) -> Option<&Addresses> {
        let elsewhere = &self.elsewhere;
        match service {
            Service::User => elsewhere.user_addresses.as_ref(),
            Service::Order => elsewhere.order_addresses.as_ref(),
            Service::Payment => elsewhere.payment_addresses.as_ref(),
            Service::Data => elsewhere.data_addresses.as_ref(),
            Service::Gateway => elsewhere.gateway_addresses.as_ref(),
        }
    }

    fn trust(&self) -> Result<Option<Trust>, Error> {
        let own = || self.tls.then(|| Certificates::in_folder(data_dir::certificates_dir(&self.data_dir)).roots());
        let Some(roots) = self.elsewhere.tls_ca.clone().or_else(own) else { return Ok(None) };
        let clock = std::sync::Arc::new(kernel::SystemClock);
        Trust::load(roots, self.elsewhere.trust_domain.clone(), clock).map(Some).map_err(Error::Roots)
    }

    fn client(&self, service: Service, addresses: Addresses, retries: Retries) -> Result<Channel, Error> {
        let tls = self.trust()?.map(|trust| trust.client(service.name()));
        let retries = matches!(retries, Retries::On);
        let config = ClientConfig::new(service.name(), addresses, contracts::POLICIES);
        Ok(mesh::client(ClientConfig { retries, tls, ..config }))
    }

    /// A channel to the system's gateway, which need not be running.
    ///
    /// # Errors
    /// The root certificates cannot be used.
    pub(crate) fn gateway(&self) -> Result<Channel, Error> {
        let local = || Service::Gateway.addresses(self.port_base, 1).into();
        let addresses = self.addresses_of(Service::Gateway).cloned().unwrap_or_else(local);
        self.client(Service::Gateway, addresses, Retries::Off)
    }

    /// The address of each instance: as configured, or those that are running on this machine; if none is, the first one's.
    ///
    /// # Errors
    /// The name of the service cannot be looked up.
    pub(crate) async fn instances_of(&self, service: Service) -> Result<Vec<String>, Error> {
        match self.addresses_of(service) {
            Some(Addresses::Fixed(addresses)) => Ok(addresses.clone()),
            Some(Addresses::Dns { host, port }) => {
                let found = tokio::net::lookup_host((host.as_str(), *port)).await;
                let found = found.map_err(|source| Error::Lookup { name: host.clone(), source })?;
                let mut addresses: Vec<_> = found.map(|address| address.to_string()).collect();
                addresses.sort();
                addresses.dedup();
                Ok(addresses)
            }
            None => {
                let found = self.listening(service).await;
                Ok(if found.is_empty() { vec![service.address(self.port_base, 1).to_string()] } else { found })
            }
        }
    }

    /// Whether the instances of a service are found by their ports: then one that does not listen has ended.
    pub(crate) fn is_local(&self, service: Service) -> bool {
        self.addresses_of(service).is_none()
    }

    /// The addresses of this machine's instances that accept connections. The port of HTTP health checks is asked first: a
    /// connection without a TLS handshake is an error of the other one.
    async fn listening(&self, service: Service) -> Vec<String> {
        let probes = (1..=service.instances(MAX_INSTANCES)).map(|instance| async move {
            let address = service.address(self.port_base, instance);
            let admin = service.admin_address(self.port_base, instance);
            (probe::listens(admin).await || probe::listens(address).await).then(|| address.to_string())
        });
        join_all(probes).await.into_iter().flatten().collect()
    }

    /// A channel to one instance, without retries.
    ///
    /// # Errors
    /// The root certificates cannot be used.
    pub(crate) fn instance(&self, service: Service, address: &str) -> Result<Channel, Error> {
        self.client(service, vec![address.to_owned()].into(), Retries::Off)
    }

    /// A session of the operator.
    ///
    /// # Errors
    /// No User Service is running, there is no operator's password, or the log-in is rejected.
    pub(crate) async fn operator_session(&self) -> Result<OperatorSession, Error> {
        let user = self.client(Service::User, self.found(Service::User).await?, Retries::On)?;
        OperatorSession::open(user, self.operator()?).await
    }

    /// The addresses that accept connections.
    async fn found(&self, service: Service) -> Result<Addresses, Error> {
        if let Some(addresses) = self.addresses_of(service) {
            return Ok(addresses.clone());
        }
        let addresses = self.listening(service).await;
        if addresses.is_empty() {
            return Err(Error::NoSystem { service: service.name(), address: service.address(self.port_base, 1) });
        }
        Ok(addresses.into())
    }
}

/// Whether the mesh retries failed calls, where the contract allows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Retries {
    /// As in a client program.
    On,
    /// Every rejection is visible, and retrying is up to the caller.
    Off,
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
    /// Finds the system's running instances.
    ///
    /// # Errors
    /// No instance of a service accepts connections; there is no operator's password; the root certificates cannot be
    /// used.
    pub(crate) async fn find(location: &Location, retries: Retries) -> Result<Self, Error> {
        let to = async |service| location.client(service, location.found(service).await?, retries);
        Ok(Self {
            user: to(Service::User).await?,
            order: to(Service::Order).await?,
            payment: to(Service::Payment).await?,
            data: to(Service::Data).await?,
            operator: location.operator()?,
        })
    }

    /// A system with this many instances of each service, whether or not they are running.
    ///
    /// # Errors
    /// There is no operator's password; the root certificates cannot be used.
    pub(crate) fn at(location: &Location, instances: u16) -> Result<Self, Error> {
        let to = |service: Service| {
            location.client(service, service.addresses(location.port_base, instances).into(), Retries::Off)
        };
        Ok(Self {
            user: to(Service::User)?,
            order: to(Service::Order)?,
            payment: to(Service::Payment)?,
            data: to(Service::Data)?,
            operator: location.operator()?,
        })
    }

    /// Only with a User and a Data Service.
    #[cfg(test)]
    pub(crate) fn of_two(user: Channel, data: Channel) -> Self {
        let operator = Login { email: "operator@ordermesh.local".into(), password: "a password".into() };
        Self { order: user.clone(), payment: user.clone(), user, data, operator }
    }

    /// An access token of the operator.
    ///
    /// # Errors
    /// The log-in is rejected.
    pub(crate) async fn operator_token(&self) -> Result<String, Error> {
        self.login(&self.operator).await
    }

    /// A session of the operator.
    ///
    /// # Errors
    /// The log-in is rejected.
    pub(crate) async fn operator_session(&self) -> Result<OperatorSession, Error> {
        OperatorSession::open(self.user.clone(), self.operator.clone()).await
    }

    /// An access token of an account.
    ///
    /// # Errors
    /// The log-in is rejected.
    pub(crate) async fn login(&self, login: &Login) -> Result<String, Error> {
        log_in(&self.user, login).await.map_err(Error::rejected(LOG_IN))
    }
}

/// A request with an access token, in the given trace, if any.
pub(crate) fn request<T>(message: T, token: &str, trace: Option<Trace>) -> Request<T> {
    // Untraced: this process exports no spans, and a parent span that is never exported would hide the trace.
    let mut request = mesh::untraced(message);
    if let Ok(bearer) = MetadataValue::try_from(format!("Bearer {token}"))
        && !token.is_empty()
    {
        request.metadata_mut().insert("authorization", bearer);
    }
    if let Some(trace) = trace
        && let Ok(traceparent) = MetadataValue::try_from(trace.to_string())
    {
        request.metadata_mut().insert("traceparent", traceparent);
    }
    request
}
