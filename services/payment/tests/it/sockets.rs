//! The whole service over TCP, with an SQLite file, against `gateway-mock`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::Parser;
use contracts::common::v1::Money;
use contracts::order::v1::payment_confirmation_service_server::{
    PaymentConfirmationService, PaymentConfirmationServiceServer,
};
use contracts::order::v1::{ConfirmPaymentRequest, ConfirmPaymentResponse};
use contracts::payment::v1::payment_service_client::PaymentServiceClient;
use contracts::payment::v1::{
    CancelPaymentRequest, DeclineAdvice, DeclineCode, GetPaymentRequest, GetPaymentResponse, Payment, PaymentState,
    ProcessPaymentRequest, ReconcilePaymentsRequest,
};
use kernel::{IdSource, SystemIds};
use mesh::{Authorizer, Channel, ClientConfig, Credentials, ServerConfig, SharedSecret};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, async_trait};
use tonic_types::StatusExt;

const SECRET: &str = "a secret of one machine";
const API_KEY: &str = "sk_test_0123456789";

#[derive(Parser)]
struct GatewayArgs {
    #[command(flatten)]
    config: gateway_mock::Config,
}

#[derive(Parser)]
struct PaymentArgs {
    #[command(flatten)]
    config: payment::Config,
}

/// Counts confirmations to the Order Service.
#[derive(Clone, Default)]
struct FakeOrderService(Arc<(AtomicU32, Notify)>);

impl FakeOrderService {
    async fn wait_for_confirmation(&self) {
        while self.0.0.load(Ordering::SeqCst) == 0 {
            self.0.1.notified().await;
        }
    }
}

#[async_trait]
impl PaymentConfirmationService for FakeOrderService {
    async fn confirm_payment(
        &self,
        _request: Request<ConfirmPaymentRequest>,
    ) -> Result<Response<ConfirmPaymentResponse>, Status> {
        self.0.0.fetch_add(1, Ordering::SeqCst);
        self.0.1.notify_one();
        Ok(Response::new(ConfirmPaymentResponse {}))
    }
}

struct World {
    folder: TempDir,
    addresses: Vec<String>,
    order_service: FakeOrderService,
    order: String,
    gateway: String,
    stop: CancellationToken,
    tasks: TaskTracker,
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

fn url(folder: &TempDir, name: &str) -> String {
    format!("sqlite://{}", folder.path().join(name).display())
}

impl World {
    /// A gateway, the Order Service's confirmation endpoint, and one instance, each with additional settings.
    async fn new(gateway_settings: &[&str], settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        testkit::write_secret(folder.path().join("mesh.secret"), SECRET);
        testkit::write_secret(folder.path().join("gateway.key"), &format!("{API_KEY}\n"));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (gateway, gateway_address) = listener().await;
        let ledger = url(&folder, "gateway.db");
        let fixed = ["gateway", "--api-key", API_KEY, "--database-url", &ledger];
        let config = GatewayArgs::parse_from(fixed.iter().chain(gateway_settings)).config;
        let token = stop.clone();
        tasks.spawn(async move { gateway_mock::run(config, gateway, None, token).await.expect("the gateway") });

        let (order, order_address) = listener().await;
        let order_service = FakeOrderService::default();
        let authorizer = Authorizer::new(contracts::POLICIES).with_mesh_secret(SharedSecret::new(SECRET));
        let server = mesh::server(
            ServerConfig {
                descriptors: &[contracts::DESCRIPTORS],
                trust_client_trace_context: true,
                drain_timeout: Duration::from_secs(1),
                ..ServerConfig::new("order", contracts::POLICIES, authorizer)
            },
            Routes::new(PaymentConfirmationServiceServer::new(order_service.clone())),
        );
        let token = stop.clone();
        tasks.spawn(async move {
            let (_ready, is_ready) = watch::channel(true);
            server.serve(order, is_ready, token).await.expect("the confirmation endpoint");
        });
        let mut world = Self {
            folder,
            addresses: vec![],
            order_service,
            order: order_address,
            gateway: gateway_address,
            stop,
            tasks,
        };
        world.instance("payment-1", settings).await;
        world
    }

    /// Another instance on the same store.
    async fn instance(&mut self, name: &str, settings: &[&str]) {
        let (payment, address) = listener().await;
        let data = self.folder.path().display().to_string();
        let fixed = [
            "payment",
            "--data-dir",
            &data,
            "--instance",
            name,
            "--gateway-addresses",
            &self.gateway,
            "--order-addresses",
            &self.order,
            "--drain-timeout",
            "2s",
        ];
        let config = PaymentArgs::parse_from(fixed.iter().chain(settings)).config;
        let token = self.stop.clone();
        self.tasks.spawn(async move { payment::run(config, payment, None, token).await.expect("the service") });
        self.addresses.push(address);
    }

    fn client_of(&self, service: &str, index: usize) -> PaymentServiceClient<Channel> {
        let addresses = vec![self.addresses[index].clone()];
        PaymentServiceClient::new(mesh::client(ClientConfig {
            credentials: Credentials::MeshSecret { service: service.to_owned(), secret: SharedSecret::new(SECRET) },
            ..ClientConfig::new("payment", addresses, contracts::POLICIES)
        }))
    }

    fn client(&self) -> PaymentServiceClient<Channel> {
        self.client_of("order", 0)
    }

    async fn process(&self, request: ProcessPaymentRequest) -> Payment {
        let answer = self.client().process_payment(request).await.expect("a response");
        answer.into_inner().payment.expect("a payment")
    }

    async fn cancel(&self, order_id: &str, refund_attempt: i32) -> Payment {
        let request = CancelPaymentRequest { order_id: order_id.to_owned(), refund_attempt };
        let answer = self.client().cancel_payment(request).await.expect("a response");
        answer.into_inner().payment.expect("a payment")
    }

    async fn get(&self, order_id: &str) -> GetPaymentResponse {
        let request = GetPaymentRequest { order_id: order_id.to_owned() };
        self.client().get_payment(request).await.expect("a response").into_inner()
    }

    /// Drains everything.
    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn request(payment_method: &str) -> ProcessPaymentRequest {
    ProcessPaymentRequest {
        order_id: SystemIds.uuid().to_string(),
        user_id: SystemIds.uuid().to_string(),
        amount: Some(Money { currency_code: "EUR".into(), minor_units: 1_999 }),
        payment_method: payment_method.into(),
        contact_email: "ada@example.com".into(),
    }
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("ErrorInfo").reason
}

#[tokio::test]
async fn a_payment_is_charged_and_refunded_at_the_gateway() {
    let world = World::new(&[], &[]).await;
    let command = request("pm_card_visa");
    let payment = world.process(command.clone()).await;
    assert_eq!(payment.state(), PaymentState::Succeeded);
    assert_eq!(payment.amount, command.amount);
    assert!(!payment.charge_id.is_empty());
    assert_eq!(world.process(command.clone()).await, payment, "the same command, the same response");
    let known = world.get(&command.order_id).await;
    assert_eq!((known.gateway_ledger.as_str(), known.attempts.len()), ("SUCCEEDED", 1));
    assert_eq!(known.attempts[0].trace_id.len(), 32);
    let refunded = world.cancel(&command.order_id, 1).await;
    assert_eq!(refunded.state(), PaymentState::Refunded);
    assert_eq!(world.get(&command.order_id).await.gateway_ledger, "REFUNDED");
    world.end().await;
}

#[tokio::test]
async fn each_decline_has_its_code_and_its_advice() {
    let world = World::new(&[], &[]).await;
    let cases = [
        ("pm_card_visa_chargeDeclined", DeclineCode::GenericDecline, DeclineAdvice::UseOtherMethod),
        ("pm_card_visa_chargeDeclinedInsufficientFunds", DeclineCode::InsufficientFunds, DeclineAdvice::UseOtherMethod),
        ("pm_card_chargeDeclinedExpiredCard", DeclineCode::ExpiredCard, DeclineAdvice::UseOtherMethod),
        ("pm_card_chargeDeclinedIncorrectCvc", DeclineCode::IncorrectCvc, DeclineAdvice::UseOtherMethod),
        ("pm_card_visa_chargeDeclinedLostCard", DeclineCode::LostCard, DeclineAdvice::DoNotRetry),
        ("pm_card_visa_chargeDeclinedStolenCard", DeclineCode::StolenCard, DeclineAdvice::DoNotRetry),
        ("pm_card_chargeDeclinedProcessingError", DeclineCode::ProcessingError, DeclineAdvice::RetryLater),
        ("pm_unknown", DeclineCode::InvalidPaymentDetails, DeclineAdvice::UseOtherMethod),
        ("not a token", DeclineCode::InvalidPaymentDetails, DeclineAdvice::UseOtherMethod),
        ("", DeclineCode::InvalidPaymentDetails, DeclineAdvice::UseOtherMethod),
    ];
    for (method, code, advice) in cases {
        let payment = world.process(request(method)).await;
        assert_eq!(payment.state(), PaymentState::Declined, "{method}");
        assert_eq!((payment.decline_code(), payment.advice()), (code, advice), "{method}");
    }
    let mut no_email = request("pm_card_visa");
    no_email.contact_email = "nobody".into();
    let rejected = world.process(no_email.clone()).await;
    assert_eq!(rejected.decline_code(), DeclineCode::InvalidPaymentDetails);
    assert_eq!(world.get(&no_email.order_id).await.gateway_ledger, "no row");
    let mut unknown_currency = request("pm_card_visa");
    unknown_currency.amount = Some(Money { currency_code: "DOGE".into(), minor_units: 5 });
    assert_eq!(world.process(unknown_currency).await.decline_code(), DeclineCode::InvalidAmount);
    world.end().await;
}

#[tokio::test]
async fn a_lost_response_is_resolved_and_the_order_is_confirmed() {
    let world = World::new(&[], &["--gateway-timeout", "500ms", "--wait-timeout", "100ms"]).await;
    let command = request("pm_gateway_answerLost");
    let pending = world.process(command.clone()).await;
    let known_so_far = [PaymentState::Pending, PaymentState::InDoubt];
    assert!(known_so_far.contains(&pending.state()), "expected the known state as the response: {pending:?}");
    world.order_service.wait_for_confirmation().await;
    let known = world.get(&command.order_id).await;
    assert_eq!(known.payment.expect("a payment").state(), PaymentState::Succeeded);
    let outcomes: Vec<_> = known.attempts.iter().map(|attempt| attempt.outcome.as_str()).collect();
    // A busy machine may need more attempts.
    let [doubts @ .., last] = &outcomes[..] else { panic!("no attempts") };
    assert!(!doubts.is_empty() && doubts.iter().all(|doubt| doubt.starts_with("no response: ")), "{outcomes:?}");
    assert_eq!(*last, "SUCCEEDED");
    world.end().await;
}

#[tokio::test]
async fn a_gateway_that_never_answers_ends_in_a_timeout_and_a_tombstone() {
    let world = World::new(&[], &["--gateway-timeout", "200ms", "--doubt-limit", "500ms", "--backoff", "50ms"]).await;
    let command = request("pm_gateway_noAnswer");
    let failed = world.process(command.clone()).await;
    assert_eq!((failed.state(), failed.decline_code()), (PaymentState::Failed, DeclineCode::GatewayTimeout));
    assert_eq!(failed.advice(), DeclineAdvice::RetryLater);
    assert_eq!(world.get(&command.order_id).await.gateway_ledger, "CANCELLED");
    world.end().await;
}

#[tokio::test]
async fn a_temporarily_unavailable_gateway_is_retried() {
    let world = World::new(&[], &["--backoff", "20ms"]).await;
    assert_eq!(world.process(request("pm_gateway_unavailable3")).await.state(), PaymentState::Succeeded);
    world.end().await;
}

#[tokio::test]
async fn a_cancellation_before_the_payment_wins() {
    let world = World::new(&[], &[]).await;
    let command = request("pm_card_visa");
    assert_eq!(world.cancel(&command.order_id, 1).await.state(), PaymentState::Cancelled);
    assert_eq!(world.process(command.clone()).await.state(), PaymentState::Cancelled);
    assert_eq!(world.get(&command.order_id).await.gateway_ledger, "no row");
    world.end().await;
}

#[tokio::test]
async fn a_refused_refund_needs_a_larger_number() {
    let world = World::new(&[], &[]).await;
    let command = request("pm_gateway_refundRefused");
    world.process(command.clone()).await;
    assert_eq!(world.cancel(&command.order_id, 1).await.state(), PaymentState::RefundRefused);
    assert_eq!(world.cancel(&command.order_id, 2).await.state(), PaymentState::Refunded);
    world.end().await;
}

#[tokio::test]
async fn concurrent_calls_to_two_instances_charge_once_and_get_the_same_response() {
    let mut world = World::new(&[], &[]).await;
    world.instance("payment-2", &[]).await;
    let command = request("pm_card_visa");
    let (mut one, mut two) = (world.client_of("order", 0), world.client_of("order", 1));
    let (first, second) = tokio::join!(one.process_payment(command.clone()), two.process_payment(command.clone()));
    for answer in [first, second] {
        let payment = answer.expect("a response").into_inner().payment.expect("a payment");
        assert_eq!(payment.state(), PaymentState::Succeeded);
    }
    assert_eq!(world.get(&command.order_id).await.attempts.len(), 1);
    world.end().await;
}

#[tokio::test]
async fn invalid_input_is_rejected_field_by_field_and_changes_nothing() {
    let world = World::new(&[], &[]).await;
    let mut client = world.client();
    let mut bad = request("pm_card_visa");
    (bad.order_id, bad.user_id) = ("seven".into(), String::new());
    let rejected = client.process_payment(bad).await.expect_err("two bad ids");
    assert_eq!((rejected.code(), reason(&rejected).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
    let fields: Vec<_> = rejected
        .get_details_bad_request()
        .expect("BadRequest")
        .field_violations
        .into_iter()
        .map(|violation| (violation.field, violation.reason))
        .collect();
    assert_eq!(fields, [("order_id".into(), "INVALID_ID".into()), ("user_id".into(), "ID_REQUIRED".into())]);

    let no_number = CancelPaymentRequest { order_id: SystemIds.uuid().to_string(), refund_attempt: 0 };
    let rejected = client.cancel_payment(no_number.clone()).await.expect_err("no number");
    assert_eq!(rejected.code(), Code::InvalidArgument);
    let rejected =
        client.get_payment(GetPaymentRequest { order_id: no_number.order_id }).await.expect_err("nothing was stored");
    assert_eq!((rejected.code(), reason(&rejected).as_str()), (Code::NotFound, "PAYMENT_NOT_FOUND"));

    let command = request("pm_card_visa");
    world.process(command.clone()).await;
    let other =
        ProcessPaymentRequest { amount: Some(Money { currency_code: "EUR".into(), minor_units: 1 }), ..command };
    let rejected = client.process_payment(other).await.expect_err("another amount");
    assert_eq!((rejected.code(), reason(&rejected).as_str()), (Code::FailedPrecondition, "REQUEST_ID_REUSED"));

    let rejected = world.client_of("user", 0).process_payment(request("pm_card_visa")).await.expect_err("not for user");
    assert_eq!(rejected.code(), Code::PermissionDenied);
    let rejected = client.reconcile_payments(ReconcilePaymentsRequest {}).await.expect_err("for operators");
    assert_eq!(rejected.code(), Code::PermissionDenied);
    world.end().await;
}

#[test]
fn secrets_are_not_printed_with_the_settings() {
    let args = ["payment", "--gateway-api-key", API_KEY];
    let config = PaymentArgs::parse_from(args).config;
    assert!(!format!("{config:?}").contains(API_KEY));
    assert!(PaymentArgs::try_parse_from(["payment", "--gateway-api-key", "two words"]).is_err());
    assert!(PaymentArgs::try_parse_from(["payment", "--max-in-flight", "0"]).is_err());
}
