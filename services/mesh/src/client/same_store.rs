//! Connections to another target of a service, which are made only if the instance shares the service's store. An instance
//! shows its store's id to mesh services in the response to a health check: the first call of each such connection.
//! So a call never reaches an instance whose store is another one, whatever process has its address.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method, header};
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::body::Body;

use crate::call::deadline::{GRPC_TIMEOUT, format};
use crate::call::wire::{Request, STORE_HEADER};
use crate::client::connect::{Connect, Connected};
use crate::client::discovery::{Addresses, Resolve};
use crate::client::retry::replay::body_of;

/// The health check of a connection.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// Of the checks of the service's own instances together.
const OWN_TIMEOUT: Duration = Duration::from_secs(3);
/// An empty message.
const MESSAGE: &[u8] = &[0; 5];

pub(crate) struct SameStore {
    /// The service, and the other target.
    pub(crate) service: &'static str,
    pub(crate) target: &'static str,
    /// The service's own instances.
    pub(crate) own: Addresses,
    pub(crate) resolve: Arc<dyn Resolve>,
    pub(crate) connect: Arc<dyn Connect>,
    /// The credentials of this mesh service.
    pub(crate) credentials: Vec<(HeaderName, HeaderValue)>,
    pub(crate) has_tls: bool,
    /// What was logged last, by address.
    pub(crate) logged: Mutex<BTreeMap<String, String>>,
}

impl Connect for SameStore {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Connected, String>> {
        Box::pin(async move {
            let connected = self.connect_same(address).await;
            self.log(address, connected.as_ref().err());
            connected
        })
    }
}

impl SameStore {
    async fn connect_same(&self, address: &str) -> Result<Connected, String> {
        let (connected, store) = self.ask(address).await?;
        let own = timeout(OWN_TIMEOUT, self.own_store()).await;
        let own = own.map_err(|_elapsed| format!("no instance of {} responded in time", self.service))??;
        match store {
            Some(store) if store == own => Ok(connected),
            Some(_) => Err(format!("it has another store than {}", self.service)),
            None => Err("it shows no store".to_owned()),
        }
    }

    /// The store of the service's own instances: that of the first one that shows it.
    async fn own_store(&self) -> Result<String, String> {
        let addresses = match &self.own {
            Addresses::Fixed(addresses) => addresses.clone(),
            Addresses::Dns { host, port } => {
                let found = self.resolve.lookup(host.clone(), *port).await.map_err(|error| error.to_string())?;
                found.iter().map(ToString::to_string).collect()
            }
        };
        for address in addresses {
            if let Ok((_, Some(store))) = self.ask(&address).await {
                return Ok(store);
            }
        }
        Err(format!("no instance of {} shows its store", self.service))
    }

    /// Connects, and makes the first call. Returns the store that the instance shows.
    async fn ask(&self, address: &str) -> Result<(Connected, Option<String>), String> {
        let Connected { mut sender, mut until_closed } = self.connect.connect(address).await?;
        let request = self.health_check(address).map_err(|error| error.to_string())?;
        let answer = sender.send_request(request);
        let response = tokio::select! {
            answer = timeout(CHECK_TIMEOUT, answer) => match answer {
                Ok(answer) => answer.map_err(|error| error.to_string())?,
                Err(_elapsed) => return Err("it did not respond to a health check".to_owned()),
            },
            () = &mut until_closed => return Err("the connection ended with its health check".to_owned()),
        };
        let store = response.headers().get(&STORE_HEADER).and_then(|store| store.to_str().ok()).map(str::to_owned);
        Ok((Connected { sender, until_closed }, store))
    }

    fn health_check(&self, address: &str) -> Result<Request, http::Error> {
        let scheme = if self.has_tls { "https" } else { "http" };
        let mut request = http::Request::builder()
            .method(Method::POST)
            .uri(format!("{scheme}://{address}/grpc.health.v1.Health/Check"))
            .header(header::TE, "trailers")
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(GRPC_TIMEOUT, format(CHECK_TIMEOUT));
        for (name, value) in &self.credentials {
            request = request.header(name, value);
        }
        let body: Body = body_of(MESSAGE.into());
        request.body(body)
    }

    /// Logs a change.
    fn log(&self, address: &str, problem: Option<&String>) {
        let Self { service, target, .. } = self;
        let now = problem.cloned().unwrap_or_default();
        if self.logged.lock().insert(address.to_owned(), now.clone()).as_ref() == Some(&now) {
            return;
        }
        if now.is_empty() {
            tracing::info!(target: "ordermesh", address, "{target} shares the store of {service}: it gets calls");
        } else {
            tracing::warn!(target: "ordermesh", address, "{target} gets no calls: {now}");
        }
    }
}
