//! One server on port 0 with the mesh around it, and helpers.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use mesh::{
    Authorizer, Channel, ClientConfig, Credentials, KeySource, ServerConfig, SharedSecret, VerifyingKey, client, server,
};
use telemetry::{Disposition, Ended, EventSink, Propagation, TraceEvent};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use crate::echo::{Echo, POLICIES};

pub(crate) const MESH_SECRET: &str = "the platform's own";
pub(crate) const ISSUER: &str = "ordermesh";
pub(crate) const AUDIENCE: &str = "ordermesh-api";
pub(crate) const KEY_ID: &str = "rfc8037";
/// The key pair of RFC 8037, appendix A.
pub(crate) const PUBLIC_KEY: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

/// Collects operations that ended with an unclaimed slot.
#[derive(Default)]
pub(crate) struct Events(pub(crate) Mutex<Vec<Ended>>);

impl EventSink for Events {
    fn unclaimed(&self, ended: Ended) -> Disposition {
        self.0.lock().expect("not poisoned").push(ended);
        Disposition::NoEvent
    }
    fn put(&self, _event: TraceEvent) {}
    fn origin(&self) -> (&str, &str) {
        ("test", "test-1")
    }
}

impl Events {
    pub(crate) fn take(&self) -> Vec<Ended> {
        std::mem::take(&mut self.0.lock().expect("not poisoned"))
    }
}

/// A key source with a configurable response that counts its fetches.
pub(crate) struct Keys {
    pub(crate) response: Mutex<Option<Vec<VerifyingKey>>>,
    pub(crate) fetches: std::sync::atomic::AtomicUsize,
}

impl Keys {
    pub(crate) fn with(response: Option<Vec<VerifyingKey>>) -> Arc<Self> {
        Arc::new(Self { response: Mutex::new(response), fetches: Default::default() })
    }

    pub(crate) fn ours() -> Arc<Self> {
        Self::with(Some(vec![VerifyingKey { kid: KEY_ID.into(), x: PUBLIC_KEY.into() }]))
    }
}

impl KeySource for Keys {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<VerifyingKey>, Status>> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let response = self.response.lock().expect("not poisoned").clone();
        Box::pin(async move { response.ok_or_else(|| Status::unavailable("not yet")) })
    }
}

/// The options of a test's server.
pub(crate) struct WorldOptions {
    pub(crate) address: SocketAddr,
    pub(crate) next: Option<Channel>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) memory_budget_bytes: Option<usize>,
    pub(crate) max_message_bytes: usize,
    pub(crate) trust_client_trace_context: bool,
    pub(crate) propagation: Propagation,
    pub(crate) drain_timeout: Duration,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            next: None,
            keys: Keys::ours(),
            memory_budget_bytes: None,
            max_message_bytes: mesh::DEFAULT_MAX_MESSAGE_BYTES,
            trust_client_trace_context: false,
            propagation: Propagation::DEFAULT,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// One server.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) echo: Echo,
    pub(crate) events: Arc<Events>,
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) served: JoinHandle<Result<(), std::io::Error>>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(WorldOptions::default()).await
    }

    pub(crate) async fn with(options: WorldOptions) -> Self {
        Self::altered(options, |_| {}).await
    }

    /// With a configuration that the test changes.
    pub(crate) async fn altered(options: WorldOptions, alter: impl FnOnce(&mut ServerConfig)) -> Self {
        let (echo, events) = (Echo::new(options.next), Arc::new(Events::default()));
        let listener = TcpListener::bind(options.address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (ready, watched) = watch::channel(true);
        let shutdown = CancellationToken::new();
        let authorizer = Authorizer::new(POLICIES)
            .with_tokens(options.keys, ISSUER, AUDIENCE)
            .with_mesh_secret(SharedSecret::new(MESH_SECRET));
        let mut config = ServerConfig {
            events: Some(events.clone()),
            services: vec!["test.v1.Echo"],
            memory_budget_bytes: options.memory_budget_bytes,
            max_message_bytes: options.max_message_bytes,
            trust_client_trace_context: options.trust_client_trace_context,
            propagation: options.propagation,
            drain_timeout: options.drain_timeout,
            ..ServerConfig::new("test", POLICIES, authorizer)
        };
        alter(&mut config);
        let server = server(config, Routes::new(echo.clone()));
        let served = tokio::spawn(server.serve(listener, watched, shutdown.clone()));
        Self { address, echo, events, ready, shutdown, served }
    }

    pub(crate) fn anonymous(&self) -> Channel {
        channel(vec![self.address.to_string()], Credentials::None)
    }

    pub(crate) fn service(&self, name: &str, secret: &str) -> Channel {
        let credentials = Credentials::MeshSecret { service: name.into(), secret: SharedSecret::new(secret) };
        channel(vec![self.address.to_string()], credentials)
    }

    /// From now on every call fails with this code; `Ok`: normal behaviour.
    pub(crate) fn answer_with(&self, code: tonic::Code) {
        self.echo.failing.store(code as i32, Ordering::SeqCst);
    }

    pub(crate) fn handlers_started(&self) -> usize {
        self.echo.handlers_started.load(Ordering::SeqCst)
    }
}

pub(crate) fn channel(addresses: Vec<String>, credentials: Credentials) -> Channel {
    client(ClientConfig { credentials, ..ClientConfig::new("test", addresses, POLICIES) })
}

pub(crate) async fn call(
    channel: &Channel,
    path: &'static str,
    request: Request<String>,
) -> Result<tonic::Response<String>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await?;
    grpc.unary(request, path.parse().expect("a path"), ProstCodec::<String, String>::default()).await
}

pub(crate) async fn say(channel: &Channel, path: &'static str, text: &str) -> Result<String, Status> {
    call(channel, path, Request::new(text.to_owned())).await.map(tonic::Response::into_inner)
}

pub(crate) fn with_metadata(text: &str, metadata: &[(&'static str, &str)]) -> Request<String> {
    let mut request = Request::new(text.to_owned());
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, value.parse().expect("a value"));
    }
    request
}

/// The reason of one of the mesh's errors.
pub(crate) fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("every error has ErrorInfo");
    assert_eq!(info.domain, "mesh.ordermesh");
    info.reason
}

/// An address without a listener.
pub(crate) async fn dead_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address").to_string()
}
