//! One customer's order: CreateOrder retried until it is acknowledged, perhaps CancelOrder, WatchOrder until it
//! finishes.

use std::sync::Arc;

use std::time::{Duration, Instant};

use contracts::common::v1::Address;
use contracts::order::v1 as order_v1;
use contracts::order::v1::inventory_service_client::InventoryServiceClient;
use contracts::order::v1::order_service_client::OrderServiceClient;
use contracts::user::v1 as user_v1;
use contracts::user::v1::user_service_client::UserServiceClient;
use kernel::backoff::backoff;
use kernel::{IdSource, OrderId, SystemIds};
use mesh::Channel;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::catalog;
use crate::data_dir::Login;
use crate::error::{Error, reason};
use crate::load::mix::Behaviour;
use crate::load::statistics::Statistics;
use crate::system::{System, request};
use crate::text;

/// Maximum attempts at a call.
pub(crate) const MAX_ATTEMPTS: u32 = 6;
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_CAP: Duration = Duration::from_secs(1);
/// A customer that cancels does so within this time.
const CANCEL_WITHIN_MS: u64 = 40;
/// The stock of the SKU that customers compete for.
const SCARCE_UNITS: i64 = 50;

/// An account, and its newest access token.
pub(crate) struct Account {
    pub(crate) login: Login,
    token: Mutex<String>,
}

impl Account {
    /// Registers a new account, and logs in.
    ///
    /// # Errors
    /// The registration or the log-in is rejected.
    pub(crate) async fn register(system: &System) -> Result<Self, Error> {
        let id = SystemIds.uuid();
        let login = Login { email: format!("load-{id}@example.com"), password: id.to_string() };
        let message = user_v1::RegisterRequest {
            request_id: id.to_string(),
            email: login.email.clone(),
            password: login.password.clone(),
            display_name: "Load".into(),
        };
        let mut users = UserServiceClient::new(system.user.clone());
        users.register(request(message, "", None)).await.map_err(Error::rejected("the registration"))?;
        let token = Mutex::new(system.login(&login).await?);
        Ok(Self { login, token })
    }

    fn token(&self) -> String {
        self.token.lock().clone()
    }

    /// Logs in again: an access token lives for minutes.
    async fn renew(&self, system: &System) {
        if let Ok(token) = system.login(&self.login).await {
            *self.token.lock() = token;
        }
    }
}

/// Places orders at a system, within the customers' limits.
#[derive(Clone)]
pub(crate) struct OrderPlacer {
    pub(crate) system: System,
    statistics: Statistics,
    skus: Arc<Vec<String>>,
    scarce: bool,
    /// Every order has the first SKU in it.
    pub(crate) hot: bool,
    /// Maximum attempts at a call.
    pub(crate) max_attempts: u32,
    /// Maximum wait for an order to finish; `None`: unlimited.
    pub(crate) max_wait: Option<Duration>,
}

impl OrderPlacer {
    pub(crate) fn new(system: System, statistics: Statistics, scarce: bool) -> Self {
        let is_plenty = |sku: &String| sku != catalog::SCARCE && sku != catalog::FOREIGN;
        let plenty = catalog::stock().into_iter().map(|stock| stock.sku).filter(is_plenty).collect();
        let skus = if scarce { vec![catalog::SCARCE.to_owned()] } else { plenty };
        Self {
            system,
            statistics,
            skus: Arc::new(skus),
            scarce,
            hot: false,
            max_attempts: MAX_ATTEMPTS,
            max_wait: None,
        }
    }

    /// Adds the little stock that customers compete for.
    ///
    /// # Errors
    /// The operator cannot log in, or the stock cannot be changed.
    pub(crate) async fn add_scarce_stock(&self) -> Result<(), Error> {
        let message = order_v1::AdjustStockRequest {
            request_id: SystemIds.uuid().to_string(),
            sku: catalog::SCARCE.to_owned(),
            delta: SCARCE_UNITS,
            write_off: false,
        };
        let token = self.system.operator_token().await?;
        let mut inventory = InventoryServiceClient::new(self.system.order.clone());
        inventory.adjust_stock(request(message, &token, None)).await.map_err(Error::rejected("AdjustStock"))?;
        Ok(())
    }

    /// Places one order and follows it to its final state.
    pub(crate) async fn order(&self, account: &Account, behaviour: Behaviour, mut random: StdRng, intended: Instant) {
        let message = self.order_request(behaviour, &mut random);
        let created =
            self.call_with_retries("CreateOrder", account, message, &mut random, |mut client, request| async move {
                client.create_order(request).await
            });
        let order_id = match created.await {
            Ok(created) => created.order.unwrap_or_default().order_id,
            Err(status) => {
                let reason = reason(&status);
                let is_expected = self.max_wait.is_some() || (self.scarce && reason == "INSUFFICIENT_STOCK");
                return self.statistics.ended(behaviour, &format!("no order: {reason}"), None, !is_expected);
            }
        };
        match order_id.parse::<OrderId>() {
            Ok(order) => self.statistics.acknowledged_after(order, intended.elapsed()),
            Err(_) => return self.statistics.ended(behaviour, "an answer without an order", None, true),
        }
        if behaviour.cancels() {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..CANCEL_WITHIN_MS))).await;
            let message = order_v1::CancelOrderRequest { order_id: order_id.clone() };
            // Too late is a valid response.
            let _ = self
                .call_with_retries("CancelOrder", account, message, &mut random, |mut client, request| async move {
                    client.cancel_order(request).await
                })
                .await;
        }
        let watched = self.watch_to_the_end(account, &order_id, &mut random);
        let end = match self.max_wait {
            Some(max) => tokio::time::timeout(max, watched).await.ok(),
            None => Some(watched.await),
        };
        match end {
            Some(Ok(state)) => {
                let is_unexpected = self.max_wait.is_none() && !behaviour.may_end(&state);
                self.statistics.ended(behaviour, &state, Some(intended.elapsed()), is_unexpected);
            }
            Some(Err(status)) => {
                self.statistics.ended(behaviour, &format!("not seen: {}", code_and_reason(&status)), None, true)
            }
            None => self.statistics.ended(behaviour, "not waited for", None, false),
        }
    }

    fn order_request(&self, behaviour: Behaviour, random: &mut StdRng) -> order_v1::CreateOrderRequest {
        let drawn = random.random_range(0..self.skus.len());
        let first = if self.hot { 0 } else { drawn };
        let count = random.random_range(1..=3.min(self.skus.len()));
        let items = self.skus.iter().cycle().skip(first).take(count);
        order_v1::CreateOrderRequest {
            request_id: SystemIds.uuid().to_string(),
            items: items.map(|sku| order_v1::OrderItem { sku: sku.clone(), quantity: 1 }).collect(),
            payment_method: behaviour.payment_method(random).to_owned(),
            shipping_address: Some(Address {
                recipient: "Load".into(),
                lines: vec!["Main Street 1".into()],
                city: "Berlin".into(),
                postal_code: "10115".into(),
                country_code: "DE".into(),
            }),
            contact_email: "load@example.com".into(),
            expected_total: None,
        }
    }

    /// Makes a call, and retries it with the same message: its request id, if it has one, makes it take effect once.
    async fn call_with_retries<M, T, F>(
        &self,
        name: &str,
        account: &Account,
        message: M,
        random: &mut StdRng,
        call: impl Fn(OrderServiceClient<Channel>, tonic::Request<M>) -> F,
    ) -> Result<T, Status>
    where
        M: Clone,
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut attempts = 1;
        loop {
            let client = OrderServiceClient::new(self.system.order.clone());
            let status = match call(client, request(message.clone(), &account.token(), None)).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            if !self.handle_rejection(account, &status, name).await || attempts >= self.max_attempts {
                return Err(status);
            }
            self.statistics.retried();
            let requested = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
            let wait = backoff(attempts, BACKOFF, BACKOFF_CAP, random.random());
            tokio::time::sleep(wait.max(requested.min(BACKOFF_CAP))).await;
            attempts = attempts.saturating_add(1);
        }
    }

    /// Counts a rejected call, and logs in again if it is unauthenticated; returns whether the call is retried, if attempts
    /// are left. With unlimited patience (`max_wait`), errors of the server are retried too.
    async fn handle_rejection(&self, account: &Account, status: &Status, name: &str) -> bool {
        let is_patient = self.max_wait.is_some();
        let is_retried = match status.code() {
            Code::Unauthenticated => {
                account.renew(&self.system).await;
                true
            }
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted | Code::Cancelled => {
                true
            }
            Code::Unknown | Code::Internal => is_patient,
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss => false,
        };
        // A CancelOrder that comes too late is expected: only the statuses that are retried are counted.
        if is_retried || name != "CancelOrder" {
            self.statistics.rejected(format!("{name}: {}", code_and_reason(status)));
        }
        is_retried
    }

    /// Watches an order to its final state, or NEEDS_ATTENTION.
    async fn watch_to_the_end(&self, account: &Account, order_id: &str, random: &mut StdRng) -> Result<String, Status> {
        let (mut after_version, mut last) = (0, order_v1::OrderState::Created);
        loop {
            let message = order_v1::WatchOrderRequest { order_id: order_id.to_owned(), after_version };
            let mut steps = self
                .call_with_retries("WatchOrder", account, message, random, |mut client, request| async move {
                    client.watch_order(request).await
                })
                .await?;
            loop {
                match steps.message().await {
                    Ok(Some(step)) => {
                        let entry = step.entry.unwrap_or_default();
                        (after_version, last) = (entry.version, entry.state());
                        // Not final, but without a pending effect: the stream stays open.
                        if last == order_v1::OrderState::NeedsAttention {
                            return Ok(text::state(last.into()).to_owned());
                        }
                    }
                    Ok(None) => return Ok(text::state(last.into()).to_owned()),
                    Err(status) => {
                        self.statistics.rewatched();
                        if !self.handle_rejection(account, &status, "WatchOrder").await {
                            return Err(status);
                        }
                        break;
                    }
                }
            }
        }
    }
}

/// Code and reason: few distinct texts, so that they can be counted.
fn code_and_reason(status: &Status) -> String {
    format!("{:?} {}", status.code(), reason(status)).trim_end().to_owned()
}
