//! A well-behaved client that calls at a steady rate, and its results.

use std::sync::Arc;
use std::time::{Duration, Instant};

use contracts::common::v1::Address;
use contracts::data::v1 as data;
use contracts::data::v1::catalog_service_client::CatalogServiceClient;
use contracts::order::v1 as order;
use contracts::order::v1::order_service_client::OrderServiceClient;
use contracts::payment::v1 as payment;
use contracts::payment::v1::payment_service_client::PaymentServiceClient;
use contracts::user::v1 as user;
use contracts::user::v1::user_service_client::UserServiceClient;
use kernel::{IdSource, SystemIds};
use mesh::Channel;
use tonic::client::Grpc;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::system::{Target, with_token};

/// The client's timeout.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The method it calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    CreateOrder,
    GetProfile,
    ListProducts,
    Login,
    /// Over a new connection each time; UNAUTHENTICATED counts as a response.
    GetPayment,
    HealthCheck,
    /// Until the first update.
    WatchOrder,
}

/// The share of served calls in a phase, and the latencies of all calls.
pub(crate) struct Phase {
    pub(crate) served_percent: f64,
    pub(crate) p50_ms: u128,
    pub(crate) p99_ms: u128,
}

/// The client, with connections of its own.
pub(crate) struct Caller {
    call: Call,
    target: Target,
    login: (&'static str, &'static str),
    users: Channel,
    orders: Channel,
    data: Channel,
    /// An order of its own, to watch.
    order: String,
}

impl Caller {
    pub(crate) async fn new(call: Call, target: Target, login: (&'static str, &'static str)) -> Self {
        let (users, orders, data) =
            (target.channel("user", 101), target.channel("order", 201), target.channel("data", 401));
        let order = create_order(&orders, &target.token, "pm_card_visa").await.expect("an order");
        Self { call, target, login, users, orders, data, order }
    }

    async fn try_once(&self) -> Result<(), Status> {
        let token = &self.target.token;
        match self.call {
            Call::CreateOrder => create_order(&self.orders, token, "pm_card_visa").await.map(drop),
            Call::GetProfile => {
                let request = with_token(user::GetProfileRequest {}, token);
                UserServiceClient::new(self.users.clone()).get_profile(request).await.map(drop)
            }
            Call::ListProducts => {
                let request = data::ListProductsRequest { page_size: 1, ..Default::default() };
                CatalogServiceClient::new(self.data.clone()).list_products(request).await.map(drop)
            }
            Call::Login => {
                let (email, password) = self.login;
                let request = user::LoginRequest { email: email.into(), password: password.into() };
                UserServiceClient::new(self.users.clone()).login(request).await.map(drop)
            }
            Call::GetPayment => {
                let channel = self.target.channel("payment", 301);
                let request = payment::GetPaymentRequest::default();
                match PaymentServiceClient::new(channel).get_payment(request).await {
                    Err(status) if status.code() == Code::Unauthenticated => Ok(()),
                    response => response.map(drop),
                }
            }
            Call::HealthCheck => {
                let mut grpc = Grpc::new(self.data.clone());
                grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
                let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
                let response = grpc.unary(Request::new(()), path, ProstCodec::<(), ()>::default());
                response.await.map(drop)
            }
            Call::WatchOrder => {
                let request = order::WatchOrderRequest { order_id: self.order.clone(), ..Default::default() };
                let request = with_token(request, token);
                let stream = OrderServiceClient::new(self.orders.clone()).watch_order(request).await?;
                stream.into_inner().message().await.map(drop)
            }
        }
    }
}

/// Creates an order; returns its id.
pub(crate) async fn create_order(channel: &Channel, token: &str, payment_method: &str) -> Result<String, Status> {
    let request = order::CreateOrderRequest {
        request_id: SystemIds.uuid().to_string(),
        items: vec![order::OrderItem { sku: "MUG-BLUE".into(), quantity: 1 }],
        payment_method: payment_method.into(),
        shipping_address: Some(Address {
            recipient: "Ada".into(),
            lines: vec!["Main Street 1".into()],
            city: "Berlin".into(),
            postal_code: "10115".into(),
            country_code: "DE".into(),
        }),
        contact_email: "ada@example.com".into(),
        expected_total: None,
    };
    let response = OrderServiceClient::new(channel.clone()).create_order(with_token(request, token)).await?;
    Ok(response.into_inner().order.unwrap_or_default().order_id)
}

/// Makes calls at a fixed rate for this long, independent of earlier ones.
pub(crate) async fn phase(caller: &Arc<Caller>, length: Duration) -> Phase {
    let interval = Duration::from_millis(if caller.call == Call::Login { 1_000 } else { 200 });
    let mut ticks = tokio::time::interval(interval);
    let mut calls = tokio::task::JoinSet::new();
    let end = Instant::now() + length;
    while Instant::now() < end {
        ticks.tick().await;
        let caller = caller.clone();
        calls.spawn(async move {
            let began = Instant::now();
            let response = tokio::time::timeout(TIMEOUT, caller.try_once()).await;
            (matches!(response, Ok(Ok(()))), began.elapsed().as_millis())
        });
    }
    let mut all = calls.join_all().await;
    all.sort_by_key(|(_, millis)| *millis);
    let served = all.iter().filter(|(is_served, _)| *is_served).count();
    let at = |percent: usize| all[(all.len() - 1) * percent / 100].1;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred calls")]
    let served_percent = served as f64 * 100.0 / all.len() as f64;
    Phase { served_percent, p50_ms: at(50), p99_ms: at(99) }
}
