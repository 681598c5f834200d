//! A gateway on port 0, and a merchant that calls it through the mesh.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use contracts::common::v1::Money;
use contracts::gateway::v1::payment_gateway_service_client::PaymentGatewayServiceClient;
use contracts::gateway::v1::{
    CancelChargeRequest, Charge, CreateChargeRequest, GetChargeRequest, ListChargesRequest, ListChargesResponse,
    RefundChargeRequest, RefundChargeResponse,
};
use gateway_mock::Config;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

struct Running {
    folder: TempDir,
    shutdown: CancellationToken,
    served: Mutex<Option<JoinHandle<Result<(), chassis::Error>>>>,
}

/// A running gateway and a merchant. Clones share both.
#[derive(Clone)]
pub(crate) struct Merchant {
    client: PaymentGatewayServiceClient<mesh::Channel>,
    key: Option<String>,
    running: Arc<Running>,
}

/// The reason in a status's ErrorInfo.
pub(crate) fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("every error has an ErrorInfo");
    assert_eq!(info.domain, "gateway.ordermesh");
    info.reason
}

impl Merchant {
    pub(crate) async fn start(flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"), flags).await
    }

    async fn start_in(folder: TempDir, flags: &[&str]) -> Self {
        let database = format!("--database-url=sqlite://{}/gateway.db", folder.path().display());
        let fixed = ["gateway", "--api-key=test-key", &database];
        let config = Cli::try_parse_from(fixed.iter().chain(flags)).expect("flags").config;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(gateway_mock::run(config, listener, None, shutdown.clone()));
        let channel = mesh::client(mesh::ClientConfig::new("gateway", vec![address], contracts::POLICIES));
        Self {
            client: PaymentGatewayServiceClient::new(channel),
            key: Some("test-key".to_owned()),
            running: Arc::new(Running { folder, shutdown, served: Mutex::new(Some(served)) }),
        }
    }

    /// The same gateway, called with another API key.
    pub(crate) fn with_key(&self, key: Option<&str>) -> Self {
        Self { key: key.map(str::to_owned), ..self.clone() }
    }

    /// Requests a shutdown, and waits until it is complete.
    pub(crate) async fn stop(&self) {
        self.running.shutdown.cancel();
        let served = self.running.served.lock().await.take().expect("stopped once");
        served.await.expect("no panic").expect("a clean end");
    }

    /// A new process on the same ledger.
    pub(crate) async fn restart(self, flags: &[&str]) -> Self {
        self.stop().await;
        let Self { client, running, .. } = self;
        drop(client);
        let running = Arc::into_inner(running).expect("the only reference");
        Self::start_in(running.folder, flags).await
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        if let Some(key) = &self.key {
            request.metadata_mut().insert("x-api-key", key.parse().expect("ASCII"));
        }
        request
    }

    pub(crate) async fn charge(&self, key: &str, minor_units: i64, token: &str) -> Result<Charge, Status> {
        let request = self.request(charge_request(key, minor_units, token));
        let response = self.client.clone().create_charge(request).await?;
        Ok(response.into_inner().charge.expect("a charge"))
    }

    /// A charge whose client cancels after a timeout.
    pub(crate) async fn charge_within(&self, timeout: Duration, key: &str, token: &str) -> Result<Charge, Status> {
        let mut request = self.request(charge_request(key, 1999, token));
        request.set_timeout(timeout);
        let response = self.client.clone().create_charge(request).await?;
        Ok(response.into_inner().charge.expect("a charge"))
    }

    pub(crate) async fn charge_raw(
        &self,
        key: &str,
        amount: Option<(&str, i64)>,
        email: &str,
    ) -> Result<Charge, Status> {
        let amount = amount.map(|(code, minor_units)| Money { currency_code: code.to_owned(), minor_units });
        let message = CreateChargeRequest {
            charge_key: key.to_owned(),
            amount,
            payment_method: "pm_card_visa".to_owned(),
            receipt_email: email.to_owned(),
        };
        let response = self.client.clone().create_charge(self.request(message)).await?;
        Ok(response.into_inner().charge.expect("a charge"))
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Charge, Status> {
        let request = self.request(GetChargeRequest { charge_key: key.to_owned() });
        Ok(self.client.clone().get_charge(request).await?.into_inner().charge.expect("a charge"))
    }

    /// Polls until the key has a row.
    pub(crate) async fn until_stored(&self, key: &str) -> Charge {
        loop {
            match self.get(key).await {
                Ok(charge) => return charge,
                Err(status) => assert_eq!(status.code(), Code::NotFound),
            }
        }
    }

    pub(crate) async fn cancel(&self, key: &str) -> Result<Charge, Status> {
        let request = self.request(CancelChargeRequest { charge_key: key.to_owned() });
        Ok(self.client.clone().cancel_charge(request).await?.into_inner().charge.expect("a charge"))
    }

    pub(crate) async fn refund(&self, key: &str, refund_key: &str) -> Result<RefundChargeResponse, Status> {
        let message = RefundChargeRequest { charge_key: key.to_owned(), refund_key: refund_key.to_owned() };
        Ok(self.client.clone().refund_charge(self.request(message)).await?.into_inner())
    }

    pub(crate) async fn page(&self, page_size: i32, page_token: &str) -> Result<ListChargesResponse, Status> {
        let message = ListChargesRequest { page_size, page_token: page_token.to_owned() };
        Ok(self.client.clone().list_charges(self.request(message)).await?.into_inner())
    }

    /// The whole of a small ledger.
    pub(crate) async fn ledger(&self) -> Vec<Charge> {
        self.page(1000, "").await.expect("a page").charges
    }
}

fn charge_request(key: &str, minor_units: i64, token: &str) -> CreateChargeRequest {
    CreateChargeRequest {
        charge_key: key.to_owned(),
        amount: Some(Money { currency_code: "EUR".to_owned(), minor_units }),
        payment_method: token.to_owned(),
        receipt_email: "buyer@example.com".to_owned(),
    }
}
