//! A Data Service for each test, an issuer of access tokens, and helpers for calls.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use contracts::common::v1::{EventType, Money};
use contracts::data::v1::catalog_service_client::CatalogServiceClient;
use contracts::data::v1::trace_event_service_client::TraceEventServiceClient;
use contracts::data::v1::{
    self as proto, AppendTraceEventsRequest, ListTraceEventsRequest, Product, WatchTraceEventsRequest,
    WatchTraceEventsResponse, append_result,
};
use contracts::user::v1 as user;
use contracts::user::v1::user_service_server::UserServiceServer;
use data::SeedProduct;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kernel::{Clock, IdSource, SystemClock, SystemIds, Timestamp};
use mesh::{Authorizer, Channel, ClientConfig, Credentials, ServerConfig, SharedSecret};
use storage::{Database, Options};
use tempfile::TempDir;
use testkit::FakeUserService;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt;

const SECRET: &str = "a secret for tests only";
/// The first key pair of RFC 8032, section 7.1, which is public.
const SIGNING_KEY: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const VERIFYING_KEY: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: data::Config,
}

/// Longer than any working step takes: a test that reaches it has failed.
pub(crate) const GUARD: Duration = Duration::from_secs(30);

/// The folder and the database of a service.
struct Environment {
    folder: TempDir,
    /// `None`: a file in the folder.
    database_url: Option<String>,
}

impl Environment {
    /// A database of its own, on PostgreSQL if that is requested: see `testkit`.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        testkit::write_secret(folder.path().join("mesh.secret"), SECRET);
        let database_url = testkit::database().schema.map(|_| {
            let (server, name) = (testkit::shared().expect("the server"), testkit::unique("data"));
            server.sql(&format!("CREATE DATABASE {name}"));
            server.url().replace("/postgres?", &format!("/{name}?"))
        });
        Self { folder, database_url }
    }

    /// The database, on connections of its own.
    async fn database(&self) -> Database {
        let schema = self.database_url.as_ref().map(|_| "data".to_owned());
        let file = || storage::sqlite_url(&self.folder.path().join("data.db"));
        let options = Options { schema, max_connections: 1, ..Options::default() };
        let url = self.database_url.clone().unwrap_or_else(file);
        Database::connect(&url, &options).await.expect("the database")
    }
}

/// A running Data Service.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    environment: Arc<Environment>,
    /// Stops the service when the test ends, whatever the result.
    running: DropGuard,
    served: JoinHandle<Result<(), chassis::Error>>,
}

impl World {
    /// With two products and without faults.
    pub(crate) async fn new() -> Self {
        Self::with(&[], seeds()).await
    }

    /// With the given settings.
    pub(crate) async fn with(settings: &[&str], seed_products: Vec<SeedProduct>) -> Self {
        Self::start(Arc::new(Environment::new()), settings, seed_products).await
    }

    /// Another instance on the same database.
    pub(crate) async fn beside(&self) -> Self {
        self.beside_with(&[]).await
    }

    /// The same, with the given settings.
    pub(crate) async fn beside_with(&self, settings: &[&str]) -> Self {
        Self::start(self.environment.clone(), settings, vec![]).await
    }

    async fn start(environment: Arc<Environment>, settings: &[&str], seed_products: Vec<SeedProduct>) -> Self {
        let shutdown = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let signer = serve_keys(shutdown.clone()).await.to_string();
        let (own, dir) = (address.to_string(), environment.folder.path().display().to_string());
        let mut args = vec!["data", "--data-dir", &dir, "--user-addresses", &signer, "--data-addresses", &own];
        if let Some(url) = &environment.database_url {
            args.extend(["--database-connections", "4", "--database-url", url]);
        }
        args.extend(settings);
        let mut config = Cli::try_parse_from(args).expect("settings").config;
        config.seed_products = seed_products;
        let served = tokio::spawn(data::run(config, listener, None, shutdown.clone()));
        let world = Self { address, environment, running: shutdown.drop_guard(), served };
        // A test with a deadline of its own must not spend it on the start.
        world.list(ListTraceEventsRequest::default()).await.expect("a started service");
        world
    }

    /// Stops the service and starts another one on the same database.
    pub(crate) async fn restart(self, settings: &[&str], seed_products: Vec<SeedProduct>) -> Self {
        self.restart_after(async |_| {}, settings, seed_products).await
    }

    /// The same, with a change of the database between the two.
    pub(crate) async fn restart_after(
        self,
        change: impl AsyncFnOnce(&Database),
        settings: &[&str],
        seed_products: Vec<SeedProduct>,
    ) -> Self {
        drop(self.running);
        self.served.await.expect("no panic").expect("a clean end");
        change(&self.environment.database().await).await;
        Self::start(self.environment, settings, seed_products).await
    }

    /// The service's database.
    pub(crate) async fn database(&self) -> Database {
        self.environment.database().await
    }

    fn channel(&self, credentials: Credentials) -> Channel {
        let addresses = vec![self.address.to_string()];
        mesh::client(ClientConfig { credentials, ..ClientConfig::new("data", addresses, contracts::POLICIES) })
    }

    /// A client of the catalogue without credentials.
    pub(crate) fn catalog(&self) -> CatalogServiceClient<Channel> {
        CatalogServiceClient::new(self.channel(Credentials::None))
    }

    /// A client of the catalogue with a service's credentials.
    pub(crate) fn catalog_as(&self, service: &str) -> CatalogServiceClient<Channel> {
        let credentials = Credentials::MeshSecret { service: service.to_owned(), secret: SharedSecret::new(SECRET) };
        let config = ClientConfig::new("data", vec![self.address.to_string()], contracts::POLICIES);
        CatalogServiceClient::new(mesh::client(ClientConfig { credentials, is_mesh_service: true, ..config }))
    }

    /// A client of the trace-event store without credentials.
    pub(crate) fn events(&self) -> TraceEventServiceClient<Channel> {
        TraceEventServiceClient::new(self.channel(Credentials::None))
    }

    /// A client of the trace-event store with a service's credentials.
    pub(crate) fn events_as(&self, service: &str) -> TraceEventServiceClient<Channel> {
        let credentials = Credentials::MeshSecret { service: service.to_owned(), secret: SharedSecret::new(SECRET) };
        TraceEventServiceClient::new(self.channel(credentials))
    }

    /// Creates or replaces a product.
    pub(crate) async fn upsert(&self, product: Product) -> Result<Product, Status> {
        let request = as_operator(proto::UpsertProductRequest { product: Some(product) });
        let response = self.catalog().upsert_product(request).await?;
        Ok(response.into_inner().product.expect("a product"))
    }

    pub(crate) async fn lookup(&self, skus: &[&str]) -> Result<proto::BatchGetProductsResponse, Status> {
        let skus = skus.iter().map(ToString::to_string).collect();
        Ok(self.catalog().batch_get_products(proto::BatchGetProductsRequest { skus }).await?.into_inner())
    }

    /// Appends events as the order service; returns the outcome of each.
    pub(crate) async fn append(&self, events: Vec<proto::TraceEvent>) -> Vec<append_result::Outcome> {
        let request = AppendTraceEventsRequest { events };
        let response = self.events_as("order").append_trace_events(request).await.expect("a response");
        response.into_inner().results.iter().map(proto::AppendResult::outcome).collect()
    }

    /// Lists a page of events as an operator.
    pub(crate) async fn list(&self, request: ListTraceEventsRequest) -> Result<proto::ListTraceEventsResponse, Status> {
        Ok(self.events().list_trace_events(as_operator(request)).await?.into_inner())
    }

    /// Follows events as an operator; returns after the first bookmark.
    pub(crate) async fn watch(&self, request: WatchTraceEventsRequest) -> Result<Followed, Status> {
        self.watch_as("operator", request).await
    }

    /// Follows events as a person with a role.
    pub(crate) async fn watch_as(&self, role: &str, request: WatchTraceEventsRequest) -> Result<Followed, Status> {
        let stream = self.events().watch_trace_events(as_user(request, role)).await?.into_inner();
        let mut followed = Followed { stream, cursor: String::new() };
        let first = followed.message().await?;
        assert!(first.event.is_none() && !first.cursor.is_empty(), "the first message is not a bookmark: {first:?}");
        Ok(followed)
    }

    /// The ids of the matching events.
    pub(crate) async fn ids(&self, request: ListTraceEventsRequest) -> Vec<String> {
        let page = self.list(request).await.expect("a page");
        page.events.into_iter().map(|event| event.event_id).collect()
    }
}

/// A stream of events.
pub(crate) struct Followed {
    stream: Streaming<WatchTraceEventsResponse>,
    /// The cursor of the last message.
    pub(crate) cursor: String,
}

impl Followed {
    pub(crate) async fn message(&mut self) -> Result<WatchTraceEventsResponse, Status> {
        let message = tokio::time::timeout(GUARD, self.stream.message()).await.expect("a message in time");
        let message = message?.expect("a stream ends with a reason");
        self.cursor.clone_from(&message.cursor);
        Ok(message)
    }

    /// The ids of the next events.
    pub(crate) async fn ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while ids.len() < count {
            ids.extend(self.message().await.expect("a message").event.map(|event| event.event_id));
        }
        ids
    }
}

/// The products of the seeded catalogue.
pub(crate) fn seeds() -> Vec<SeedProduct> {
    [("MUG-BLUE", "Blue mug", "Holds 100% of your tea.", 1_299), ("TEA-GREEN", "Green tea", "For the Ä in tÄa.", 499)]
        .map(|(sku, name, description, minor_units)| SeedProduct {
            sku: sku.into(),
            name: name.into(),
            description: description.into(),
            currency: "EUR".into(),
            minor_units,
        })
        .to_vec()
}

/// A product without an etag: a new one.
pub(crate) fn product(sku: &str) -> Product {
    Product {
        sku: sku.into(),
        name: format!("The {sku}"),
        price: Some(Money { currency_code: "EUR".into(), minor_units: 100 }),
        ..Product::default()
    }
}

/// A valid event of the order service, of an operation that began some seconds ago and took a second.
pub(crate) fn event(seconds_ago: u64) -> proto::TraceEvent {
    let ended = SystemClock.now().minus(Duration::from_secs(seconds_ago)).plus(Duration::from_secs(1));
    proto::TraceEvent {
        event_id: uuid_at(ended),
        r#type: EventType::OrderCreation.into(),
        status: proto::EventStatus::Success.into(),
        service: "order".into(),
        instance: "order-1".into(),
        operation: "order.v1.OrderService/CreateOrder".into(),
        trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
        span_id: "b7ad6b7169203331".into(),
        start_time: Some(ago(seconds_ago)),
        duration: Some(prost_types::Duration { seconds: 1, nanos: 5_000 }),
        order_id: uuid(),
        user_id: uuid(),
        attributes: [("lines".to_owned(), "2".to_owned())].into(),
        ..proto::TraceEvent::default()
    }
}

/// The same event, failed.
pub(crate) fn failed(event: proto::TraceEvent, kind: &str) -> proto::TraceEvent {
    let error = proto::EventError { r#type: kind.into(), reason: "REASON".into(), message: "it failed".into() };
    proto::TraceEvent { status: proto::EventStatus::Failed.into(), error: Some(error), ..event }
}

/// The instant some seconds ago.
pub(crate) fn ago(seconds: u64) -> prost_types::Timestamp {
    chassis::to_proto::timestamp(SystemClock.now().minus(Duration::from_secs(seconds)))
}

/// A new UUIDv7 of an instant.
fn uuid_at(instant: Timestamp) -> String {
    let (random, millis) = (SystemIds.uuid(), u64::try_from(instant.as_micros() / 1_000).expect("after 1970"));
    let random = random.as_bytes().last_chunk().expect("16 bytes");
    uuid::Builder::from_unix_timestamp_millis(millis, random).into_uuid().to_string()
}

/// A new UUIDv7.
pub(crate) fn uuid() -> String {
    SystemIds.uuid().to_string()
}

/// A request of an operator.
pub(crate) fn as_operator<T>(message: T) -> Request<T> {
    as_user(message, "operator")
}

/// A request of a person with a role.
pub(crate) fn as_user<T>(message: T, role: &str) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {}", token(role)).parse().expect("a header");
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// A rejection's code, reason and violations (field and reason).
pub(crate) fn rejection<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String, Vec<(String, String)>) {
    let status = result.expect_err("a rejection");
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert!(["data.ordermesh", "mesh.ordermesh"].contains(&info.domain.as_str()), "{}", info.domain);
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    let violations = violations.into_iter().map(|violation| (violation.field, violation.reason)).collect();
    (status.code(), info.reason, violations)
}

/// Violations as returned by [`rejection`].
pub(crate) fn violations(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(field, reason)| ((*field).to_owned(), (*reason).to_owned())).collect()
}

fn token(role: &str) -> String {
    #[derive(serde::Serialize)]
    struct Claims<'a> {
        iss: &'a str,
        sub: String,
        aud: &'a str,
        exp: i64,
        nbf: i64,
        role: &'a str,
    }
    let seconds = |at: Timestamp| at.as_micros() / 1_000_000;
    let now = SystemClock.now();
    let claims = Claims {
        iss: chassis::keys::ISSUER,
        sub: uuid(),
        aud: chassis::keys::AUDIENCE,
        exp: seconds(now.plus(Duration::from_secs(900))),
        nbf: seconds(now),
        role,
    };
    // PKCS #8 (RFC 8410): a fixed header, then the seed.
    let pkcs8: Vec<u8> = bytes("302e020100300506032b657004220420").chain(bytes(SIGNING_KEY)).collect();
    let header = Header { kid: Some("test".into()), ..Header::new(Algorithm::EdDSA) };
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&pkcs8)).expect("a token")
}

fn bytes(hex: &str) -> impl Iterator<Item = u8> + '_ {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
}

/// A User Service that only serves the signing keys.
async fn serve_keys(shutdown: CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let authorizer = Authorizer::new(contracts::POLICIES).with_mesh_secret(SharedSecret::new(SECRET));
    let config = ServerConfig {
        descriptors: &[contracts::DESCRIPTORS],
        drain_timeout: Duration::from_secs(1),
        ..ServerConfig::new("user", contracts::POLICIES, authorizer)
    };
    let key = user::SigningKey { kid: "test".into(), x: VERIFYING_KEY.into(), ..user::SigningKey::default() };
    let server = mesh::server(config, Routes::new(UserServiceServer::new(FakeUserService::with_keys([key]))));
    let (ready, is_ready) = watch::channel(true);
    tokio::spawn(async move {
        let _ready = ready;
        server.serve(listener, is_ready, shutdown).await
    });
    address
}
