//! The whole service over real sockets, on an SQLite file, with scripted peers served by the mesh.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use contracts::common::v1 as common;
use contracts::data::v1 as data;
use contracts::mesh::v1::mesh_admin_service_client::MeshAdminServiceClient;
use contracts::order::v1 as proto;
use contracts::order::v1::inventory_service_client::InventoryServiceClient;
use contracts::order::v1::order_service_client::OrderServiceClient;
use contracts::order::v1::payment_confirmation_service_client::PaymentConfirmationServiceClient;
use contracts::payment::v1 as payment;
use contracts::user::v1 as user;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kernel::{IdSource, SystemIds};
use mesh::{Authorizer, Channel, ClientConfig, Credentials, ServerConfig, SharedSecret};
use order::order::{Address, CreateOrder, PaymentMethod};
use order::{Config, SeedStock};
use serde_json::json;
use testkit::FakeUserService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

use crate::world::GUARD;

const MESH_SECRET: &str = "the platform's own";
const KEY_ID: &str = "rfc8037";
/// The key pair of RFC 8037, appendix A.
const PUBLIC_KEY: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const PRIVATE_KEY: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";

/// An access token as the User Service issues it, valid for this many seconds.
pub(crate) fn token(user: uuid::Uuid, role: &str, seconds: i64) -> String {
    // PKCS #8 around the seed.
    let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend(URL_SAFE_NO_PAD.decode(PRIVATE_KEY).expect("base64url"));
    let now = i64::try_from(jsonwebtoken::get_current_timestamp()).expect("now");
    let (issuer, audience) = (chassis::keys::ISSUER, chassis::keys::AUDIENCE);
    let claims =
        json!({ "iss": issuer, "aud": audience, "sub": user, "role": role, "nbf": now - 60, "exp": now + seconds });
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(KEY_ID.into());
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&der)).expect("signed")
}

/// The public key as a JWK set, with this key id.
pub(crate) fn key_set(kid: &str) -> String {
    json!({ "keys": [{ "kid": kid, "kty": "OKP", "crv": "Ed25519", "x": PUBLIC_KEY }] }).to_string()
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this test"))
}

/// The key that verifies the tokens.
fn signing_key() -> user::SigningKey {
    let text = |text: &str| text.to_owned();
    user::SigningKey {
        kid: text(KEY_ID),
        kty: text("OKP"),
        crv: text("Ed25519"),
        x: text(PUBLIC_KEY),
        alg: text("EdDSA"),
    }
}

/// The Data Service: every product costs one euro; it stores the events it receives.
#[derive(Clone)]
pub(crate) struct Data {
    events: watch::Sender<Vec<data::TraceEvent>>,
}

impl Data {
    fn new() -> Self {
        Self { events: watch::Sender::new(Vec::new()) }
    }

    /// Waits for a matching event.
    pub(crate) async fn event(&self, is_it: impl Fn(&data::TraceEvent) -> bool) -> data::TraceEvent {
        let mut events = self.events.subscribe();
        let came = events.wait_for(|events| events.iter().any(&is_it));
        let events = tokio::time::timeout(GUARD, came).await.expect("the event arrives").expect("the sender exists");
        events.iter().find(|event| is_it(event)).cloned().expect("the event")
    }

    /// Waits for a failed event of this type with this error class.
    pub(crate) async fn failure(&self, event_type: common::EventType, class: &str) -> data::TraceEvent {
        let is_it = |event: &data::TraceEvent| {
            event.r#type() == event_type && event.error.as_ref().is_some_and(|error| error.r#type == class)
        };
        self.event(is_it).await
    }
}

#[tonic::async_trait]
#[rustfmt::skip]
impl data::catalog_service_server::CatalogService for Data {
    async fn batch_get_products(&self, request: Request<data::BatchGetProductsRequest>) -> Result<Response<data::BatchGetProductsResponse>, Status> {
        let price = common::Money { currency_code: "EUR".into(), minor_units: 100 };
        let product = |sku: String| data::Product { name: sku.clone(), sku, price: Some(price.clone()), ..Default::default() };
        let products = request.into_inner().skus.into_iter().map(product).collect();
        Ok(Response::new(data::BatchGetProductsResponse { products, missing_skus: vec![] }))
    }
    async fn get_delivery_estimate(&self, _: Request<data::GetDeliveryEstimateRequest>) -> Result<Response<data::GetDeliveryEstimateResponse>, Status> {
        Ok(Response::new(data::GetDeliveryEstimateResponse { zone: "home".into(), transit_business_days: 2, cutoff_hour_utc: 14, delivery_date: None }))
    }
    async fn list_products(&self, _: Request<data::ListProductsRequest>) -> Result<Response<data::ListProductsResponse>, Status> { not_here() }
    async fn upsert_product(&self, _: Request<data::UpsertProductRequest>) -> Result<Response<data::UpsertProductResponse>, Status> { not_here() }
}

#[tonic::async_trait]
#[rustfmt::skip]
impl data::trace_event_service_server::TraceEventService for Data {
    async fn append_trace_events(&self, request: Request<data::AppendTraceEventsRequest>) -> Result<Response<data::AppendTraceEventsResponse>, Status> {
        let events = request.into_inner().events;
        let stored = |event: &data::TraceEvent| data::AppendResult {
            event_id: event.event_id.clone(), outcome: data::append_result::Outcome::Stored.into(), refusal: String::new(),
        };
        let results = events.iter().map(stored).collect();
        self.events.send_modify(|all| all.extend(events));
        Ok(Response::new(data::AppendTraceEventsResponse { results }))
    }
    async fn list_trace_events(&self, request: Request<data::ListTraceEventsRequest>) -> Result<Response<data::ListTraceEventsResponse>, Status> {
        let order = request.into_inner().order_id;
        let events = self.events.borrow().iter().filter(|event| event.order_id == order).cloned().collect();
        Ok(Response::new(data::ListTraceEventsResponse { events, next_page_token: String::new() }))
    }
    type WatchTraceEventsStream = tokio_stream::Empty<Result<data::WatchTraceEventsResponse, Status>>;
    async fn watch_trace_events(&self, _: Request<data::WatchTraceEventsRequest>) -> Result<Response<Self::WatchTraceEventsStream>, Status> { not_here() }
    async fn summarize_trace_events(&self, _: Request<data::SummarizeTraceEventsRequest>) -> Result<Response<data::SummarizeTraceEventsResponse>, Status> { not_here() }
}

/// The Payment Service: responds with the scripted state of each payment, or SUCCEEDED.
#[derive(Clone)]
pub(crate) struct PaymentsServer {
    state: watch::Sender<Option<payment::PaymentState>>,
    /// The orders whose payments were requested.
    orders: watch::Sender<Vec<String>>,
}

impl PaymentsServer {
    fn new() -> Self {
        Self { state: watch::Sender::new(None), orders: watch::Sender::new(vec![]) }
    }

    /// Sets the state of every payment from now on.
    pub(crate) fn set_state(&self, state: payment::PaymentState) {
        self.state.send_replace(Some(state));
    }

    /// Waits until an order's payment was requested.
    pub(crate) async fn called_for(&self, order: &str) {
        let mut orders = self.orders.subscribe();
        let came = orders.wait_for(|orders| orders.iter().any(|id| id == order));
        tokio::time::timeout(GUARD, came).await.expect("the payment is requested").expect("the sender exists");
    }

    fn payment(&self, order_id: String, otherwise: payment::PaymentState) -> payment::Payment {
        let state = self.state.borrow().unwrap_or(otherwise);
        self.orders.send_modify(|orders| orders.push(order_id.clone()));
        payment::Payment { order_id, state: state.into(), ..Default::default() }
    }
}

#[tonic::async_trait]
#[rustfmt::skip]
impl payment::payment_service_server::PaymentService for PaymentsServer {
    async fn process_payment(&self, request: Request<payment::ProcessPaymentRequest>) -> Result<Response<payment::ProcessPaymentResponse>, Status> {
        let payment = Some(self.payment(request.into_inner().order_id, payment::PaymentState::Succeeded));
        Ok(Response::new(payment::ProcessPaymentResponse { payment }))
    }
    async fn cancel_payment(&self, request: Request<payment::CancelPaymentRequest>) -> Result<Response<payment::CancelPaymentResponse>, Status> {
        let request = request.into_inner();
        let mut payment = self.payment(request.order_id, payment::PaymentState::Refunded);
        payment.refund_attempt = request.refund_attempt;
        Ok(Response::new(payment::CancelPaymentResponse { payment: Some(payment) }))
    }
    async fn get_payment(&self, request: Request<payment::GetPaymentRequest>) -> Result<Response<payment::GetPaymentResponse>, Status> {
        let payment = Some(payment::Payment { order_id: request.into_inner().order_id, ..Default::default() });
        Ok(Response::new(payment::GetPaymentResponse { payment, attempts: vec![], gateway_ledger: "SUCCEEDED".into() }))
    }
    async fn reconcile_payments(&self, _: Request<payment::ReconcilePaymentsRequest>) -> Result<Response<payment::ReconcilePaymentsResponse>, Status> { not_here() }
}

/// The options of a test's system.
#[derive(Clone)]
pub(crate) struct SystemOptions {
    pub(crate) memory_budget: Option<chassis::ByteSize>,
    pub(crate) create_order_quota: Option<mesh::Quota>,
    pub(crate) amount_limit: Option<kernel::AmountLimits>,
    pub(crate) max_watchers: usize,
    pub(crate) traffic: chassis::TrafficSettings,
    pub(crate) pre_drain_delay: Duration,
    /// The Data Service starts only when the test starts it.
    pub(crate) data_is_down: bool,
    /// No Payment Service is running, and the backoff is short.
    pub(crate) payments_are_down: bool,
}

impl Default for SystemOptions {
    fn default() -> Self {
        Self {
            memory_budget: None,
            create_order_quota: None,
            amount_limit: None,
            max_watchers: 10,
            traffic: chassis::TrafficSettings::default(),
            pre_drain_delay: Duration::ZERO,
            data_is_down: false,
            payments_are_down: false,
        }
    }
}

/// An instance of the Order Service, and its peers.
pub(crate) struct System {
    pub(crate) order: Channel,
    pub(crate) data: Data,
    pub(crate) payments: PaymentsServer,
    pub(crate) shutdown: CancellationToken,
    pub(crate) running: JoinHandle<Result<(), chassis::Error>>,
    admin_address: SocketAddr,
    config: Config,
    address: SocketAddr,
    data_socket: Option<TcpSocket>,
    folder: tempfile::TempDir,
}

fn free_port() -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    socket
}

fn serve(service: &'static str, routes: Routes, socket: TcpSocket) {
    let listener = socket.listen(128).expect("a listener");
    let authorizer = Authorizer::new(contracts::POLICIES).with_mesh_secret(SharedSecret::new(MESH_SECRET));
    let config = ServerConfig {
        drain_timeout: Duration::from_secs(1),
        ..ServerConfig::new(service, contracts::POLICIES, authorizer)
    };
    let (ready, is_ready) = watch::channel(true);
    tokio::spawn(async move {
        let _ready = ready;
        mesh::server(config, routes).serve(listener, is_ready, CancellationToken::new()).await
    });
}

fn channel(address: SocketAddr, credentials: Credentials) -> Channel {
    let addresses = vec![address.to_string()];
    mesh::client(ClientConfig { credentials, ..ClientConfig::new("order", addresses, contracts::POLICIES) })
}

fn config(folder: PathBuf, instance: &str, addresses: [String; 3], options: &SystemOptions) -> Config {
    let [users, payments, data] = addresses;
    Config {
        common: chassis::Settings {
            server: chassis::ServerSettings {
                listen: "127.0.0.1:0".parse().expect("an address"),
                admin_listen: None,
                instance: Some(instance.into()),
                trusted_proxies: None,
                memory_budget: options.memory_budget,
                memory_limit: None,
                max_concurrency: mesh::DEFAULT_MAX_CONCURRENCY,
                max_streams: mesh::DEFAULT_MAX_STREAMS,
                max_connections: mesh::DEFAULT_MAX_CONNECTIONS,
                max_message: chassis::ByteSize(64 * 1_024),
                pre_drain_delay: options.pre_drain_delay,
                drain_timeout: Duration::from_secs(2),
                reflection: true,
            },
            data_dir: folder,
            database: chassis::DatabaseSettings {
                url: None,
                connections: 4,
                acquire_timeout: Duration::from_secs(2),
                statement_timeout: Duration::from_secs(10),
                migrate_only: false,
            },
            tls: chassis::TlsSettings {
                tls_cert: None,
                tls_key: None,
                tls_ca: None,
                trust_domain: "test.local".into(),
            },
            mesh_secret_file: None,
            data_addresses: vec![data].into(),
            subset_size: None,
            traffic: options.traffic.clone(),
            telemetry: chassis::TelemetrySettings {
                otlp_endpoint: None,
                log: "info".into(),
                trust_client_trace_context: false,
            },
        },
        user: chassis::UserPeer { user_addresses: vec![users].into(), token_keys: None },
        payment: chassis::PaymentPeer { payment_addresses: vec![payments].into() },
        lease: Duration::from_secs(15),
        poll_interval: Duration::from_millis(25),
        backoff: if options.payments_are_down { Duration::from_millis(10) } else { Duration::from_secs(60) },
        backoff_cap: Duration::from_secs(60),
        max_in_flight: 16,
        archive_after: None,
        cell: 7,
        max_unpaid_orders: 100,
        max_unpaid_units: None,
        create_order_quota: options.create_order_quota,
        amount_limit: options.amount_limit.clone(),
        max_watchers: options.max_watchers,
        seed_stock: vec![SeedStock { sku: "MUG".into(), on_hand: 1_000 }],
    }
}

impl System {
    pub(crate) async fn new() -> Self {
        Self::with(SystemOptions::default()).await
    }

    pub(crate) async fn with(options: SystemOptions) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        testkit::write_secret(folder.path().join("mesh.secret"), MESH_SECRET);
        let sockets = [free_port(), free_port(), free_port()];
        let addresses = sockets.each_ref().map(|socket| socket.local_addr().expect("an address").to_string());
        let [users, payments_socket, data_socket] = sockets;
        let (data, payments) = (Data::new(), PaymentsServer::new());
        serve(
            "user",
            Routes::new(user::user_service_server::UserServiceServer::new(FakeUserService::with_keys([signing_key()]))),
            users,
        );
        let routes = Routes::new(payment::payment_service_server::PaymentServiceServer::new(payments.clone()));
        if !options.payments_are_down {
            serve("payment", routes, payments_socket);
        }
        let config = config(folder.path().to_owned(), "order-1", addresses, &options);
        let admin = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let admin_address = admin.local_addr().expect("an address");
        let (address, shutdown, running) = start(config.clone(), Some(admin)).await;
        let order = channel(address, Credentials::None);
        let data_socket = Some(data_socket);
        let mut system =
            Self { order, data, payments, shutdown, running, admin_address, config, address, data_socket, folder };
        if !options.data_is_down {
            system.data_comes_up();
        }
        system
    }

    pub(crate) fn data_comes_up(&mut self) {
        let routes = Routes::new(data::catalog_service_server::CatalogServiceServer::new(self.data.clone()))
            .add_service(data::trace_event_service_server::TraceEventServiceServer::new(self.data.clone()));
        serve("data", routes, self.data_socket.take().expect("it was down"));
    }

    /// A second instance on the same store.
    pub(crate) async fn another_instance(&self) -> Channel {
        let mut config = self.config.clone();
        config.common.server.instance = Some("order-2".into());
        channel(start(config, None).await.0, Credentials::None)
    }

    /// A further instance on the same store, without a reachable User Service.
    pub(crate) async fn another_instance_without_users(&self, token_keys: Option<PathBuf>) -> Channel {
        let mut config = self.config.clone();
        config.common.server.instance = Some("order-2".into());
        let unreachable = free_port().local_addr().expect("an address").to_string();
        config.user = chassis::UserPeer { user_addresses: vec![unreachable].into(), token_keys };
        channel(start(config, None).await.0, Credentials::None)
    }

    async fn db(&self) -> storage::Database {
        let url = format!("sqlite://{}", self.folder.path().join("order.db").display());
        storage::Database::connect(&url, &storage::Options::default()).await.expect("the database opens")
    }

    /// An event that an instance has left in the outbox a minute ago.
    pub(crate) async fn leave_event_of(&self, instance: &str, event: telemetry::TraceEvent) {
        let db = self.db().await;
        db.outbox().put(vec![telemetry::TraceEvent { instance: instance.to_owned(), ..event }]).await.expect("written");
        let update = sea_orm::Statement::from_sql_and_values(
            db.read().get_database_backend(),
            "UPDATE outbox SET create_time = create_time - 60000000 WHERE owner = $1",
            [instance.into()],
        );
        assert_eq!(db.execute(update).await.expect("updated"), 1);
    }

    /// Rewrites an order as if an earlier release had created it from this request.
    pub(crate) async fn as_of_an_earlier_release(&self, order_id: &str, request: &proto::CreateOrderRequest) {
        use sea_orm::{ConnectionTrait, Statement};
        let to = request.shipping_address.clone().expect("an address");
        let command = CreateOrder {
            request_id: request.request_id.parse().expect("an id"),
            items: request.items.iter().map(|item| (item.sku.clone(), item.quantity.unsigned_abs())).collect(),
            payment_method: PaymentMethod::new(request.payment_method.clone()),
            address: Address {
                recipient: to.recipient,
                lines: to.lines,
                city: to.city,
                postal_code: to.postal_code,
                country_code: to.country_code,
            },
            contact_email: request.contact_email.clone(),
            expected_total: None,
        };
        let db = self.db().await;
        let order_id: kernel::OrderId = order_id.parse().expect("an id");
        let update = Statement::from_sql_and_values(
            db.read().get_database_backend(),
            "UPDATE orders SET request_id = $1, fingerprint = $2 WHERE order_id = $3",
            [command.request_id.as_uuid().into(), command.fingerprint().into(), order_id.as_uuid().into()],
        );
        assert_eq!(db.read().execute_raw(update).await.expect("updated").rows_affected(), 1);
    }

    /// The status line of the admin port's response.
    pub(crate) async fn admin(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.admin_address).await.expect("the admin port is open");
        let question = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(question.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer.lines().next().unwrap_or_default().to_owned()
    }

    pub(crate) fn client(&self, role: &str) -> Client {
        self.client_until(role, 900)
    }

    /// A caller whose access token is valid for this many seconds.
    pub(crate) fn client_until(&self, role: &str, seconds: i64) -> Client {
        let id = SystemIds.uuid();
        Client { id, token: Some(token(id, role, seconds)), order: self.order.clone() }
    }

    pub(crate) fn anonymous_client(&self) -> Client {
        Client { id: uuid::Uuid::nil(), token: None, order: self.order.clone() }
    }

    /// A client with a mesh service's credentials.
    pub(crate) fn confirmations(&self, name: &str) -> PaymentConfirmationServiceClient<Channel> {
        let credentials = Credentials::MeshSecret { service: name.into(), secret: SharedSecret::new(MESH_SECRET) };
        PaymentConfirmationServiceClient::new(channel(self.address, credentials))
    }
}

async fn start(
    config: Config,
    admin: Option<TcpListener>,
) -> (SocketAddr, CancellationToken, JoinHandle<Result<(), chassis::Error>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(order::run(config, listener, admin, shutdown.clone()));
    (address, shutdown, running)
}

/// A caller with or without an access token.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) id: uuid::Uuid,
    token: Option<String>,
    order: Channel,
}

impl Client {
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let bearer = format!("Bearer {token}").parse().expect("a header");
            request.metadata_mut().insert("authorization", bearer);
        }
        request
    }

    /// The same caller at another instance.
    pub(crate) fn at(&self, order: &Channel) -> Self {
        Self { order: order.clone(), ..self.clone() }
    }

    pub(crate) fn orders(&self) -> OrderServiceClient<Channel> {
        OrderServiceClient::new(self.order.clone())
    }

    pub(crate) fn mesh_admin(&self) -> MeshAdminServiceClient<Channel> {
        MeshAdminServiceClient::new(self.order.clone())
    }

    pub(crate) fn inventory(&self) -> InventoryServiceClient<Channel> {
        InventoryServiceClient::new(self.order.clone())
    }

    pub(crate) async fn create(&self, request: proto::CreateOrderRequest) -> Result<proto::Order, Status> {
        let response = self.orders().create_order(self.request(request)).await?;
        Ok(response.into_inner().order.expect("an order"))
    }

    pub(crate) async fn get(&self, id: &str) -> Result<proto::GetOrderResponse, Status> {
        let request = proto::GetOrderRequest { order_id: id.into() };
        Ok(self.orders().get_order(self.request(request)).await?.into_inner())
    }

    pub(crate) async fn cancel(&self, id: &str) -> Result<proto::Order, Status> {
        let request = proto::CancelOrderRequest { order_id: id.into() };
        Ok(self.orders().cancel_order(self.request(request)).await?.into_inner().order.expect("an order"))
    }

    pub(crate) async fn watch(
        &self,
        id: &str,
        after: i64,
    ) -> Result<tonic::Streaming<proto::WatchOrderResponse>, Status> {
        let request = proto::WatchOrderRequest { order_id: id.into(), after_version: after };
        Ok(self.orders().watch_order(self.request(request)).await?.into_inner())
    }

    /// Watches until the stream ends; returns the states, and how it ended.
    pub(crate) async fn watch_to_the_end(&self, id: &str, after: i64) -> (Vec<String>, Result<(), Status>) {
        let mut steps = match self.watch(id, after).await {
            Ok(steps) => steps,
            Err(status) => return (vec![], Err(status)),
        };
        let mut states = Vec::new();
        loop {
            match tokio::time::timeout(GUARD, steps.message()).await.expect("a message, or the end") {
                Ok(Some(step)) => states.push(state(step.entry.expect("a step has an entry").state())),
                Ok(None) => return (states, Ok(())),
                Err(status) => return (states, Err(status)),
            }
        }
    }
}

pub(crate) fn state(state: proto::OrderState) -> String {
    state.as_str_name().trim_start_matches("ORDER_STATE_").to_owned()
}

/// A valid order of some mugs.
pub(crate) fn mugs(quantity: i32) -> proto::CreateOrderRequest {
    proto::CreateOrderRequest {
        request_id: SystemIds.uuid().to_string(),
        items: vec![proto::OrderItem { sku: "MUG".into(), quantity }],
        payment_method: "pm_card_visa".into(),
        shipping_address: Some(common::Address {
            recipient: "Ada".into(),
            lines: vec!["Street 1".into()],
            city: "Berlin".into(),
            postal_code: "10115".into(),
            country_code: "DE".into(),
        }),
        contact_email: "ada@example.com".into(),
        expected_total: None,
    }
}

/// The code, reason and domain of an error.
pub(crate) fn rejection(status: &Status) -> (Code, String, String) {
    let info = status.get_details_error_info().expect("every error has ErrorInfo");
    (status.code(), info.reason, info.domain)
}

pub(crate) fn error_of(code: Code, reason: &str, by: &str) -> (Code, String, String) {
    (code, reason.to_owned(), format!("{by}.ordermesh"))
}

/// The delay before a retry.
pub(crate) fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}
