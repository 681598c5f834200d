//! One customer's order: CreateOrder retried until it is acknowledged, perhaps CancelOrder, WatchOrder until it
//! finishes.

use std::sync::{Arc, Mutex, PoisonError};
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
use rand::Rng;
use rand::rngs::StdRng;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::catalog;
use crate::data_dir::Login;
use crate::error::{Error, reason};
use crate::load::mix::Deed;
use crate::load::seen::Seen;
use crate::system::{System, request};
use crate::text;

/// Maximum attempts at a call.
const MOST_TRIES: u32 = 6;
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_CAP: Duration = Duration::from_secs(1);
/// A customer that cancels does so within this time.
const SECOND_THOUGHTS_MS: u64 = 40;
/// The stock of the SKU that customers compete for.
const FEW: i64 = 50;

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
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs in again: an access token lives for minutes.
    async fn renew(&self, system: &System) {
        if let Ok(token) = system.login(&self.login).await {
            *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
        }
    }
}

/// The shop's system, and the customers' limits.
#[derive(Clone)]
pub(crate) struct Shop {
    pub(crate) system: System,
    seen: Seen,
    skus: Arc<Vec<String>>,
    scarce: bool,
    /// Maximum attempts at a call.
    pub(crate) most_tries: u32,
    /// Maximum wait for an order to finish; `None`: unlimited.
    pub(crate) most_wait: Option<Duration>,
}

impl Shop {
    pub(crate) fn new(system: System, seen: Seen, scarce: bool) -> Self {
        let is_plenty = |sku: &String| sku != catalog::SCARCE && sku != catalog::FOREIGN;
        let plenty = catalog::stock().into_iter().map(|stock| stock.sku).filter(is_plenty).collect();
        let skus = if scarce { vec![catalog::SCARCE.to_owned()] } else { plenty };
        Self { system, seen, skus: Arc::new(skus), scarce, most_tries: MOST_TRIES, most_wait: None }
    }

    /// Adds the little stock that customers compete for.
    ///
    /// # Errors
    /// The operator cannot log in, or the stock cannot be changed.
    pub(crate) async fn stock_few(&self) -> Result<(), Error> {
        let message = order_v1::AdjustStockRequest {
            request_id: SystemIds.uuid().to_string(),
            sku: catalog::SCARCE.to_owned(),
            delta: FEW,
            write_off: false,
        };
        let token = self.system.operator_token().await?;
        let mut inventory = InventoryServiceClient::new(self.system.order.clone());
        inventory.adjust_stock(request(message, &token, None)).await.map_err(Error::rejected("AdjustStock"))?;
        Ok(())
    }

    /// Places one order and follows it to its final state.
    pub(crate) async fn order(&self, account: &Account, deed: Deed, mut random: StdRng, intended: Instant) {
        let wish = self.wish(deed, &mut random);
        let created = self.insist("CreateOrder", account, wish, &mut random, |mut client, request| async move {
            client.create_order(request).await
        });
        let order_id = match created.await {
            Ok(created) => created.order.unwrap_or_default().order_id,
            Err(status) => {
                let reason = reason(&status);
                let is_expected = self.most_wait.is_some() || (self.scarce && reason == "INSUFFICIENT_STOCK");
                return self.seen.ended(deed, &format!("no order: {reason}"), None, !is_expected);
            }
        };
        match order_id.parse::<OrderId>() {
            Ok(order) => self.seen.acknowledged_after(order, intended.elapsed()),
            Err(_) => return self.seen.ended(deed, "an answer without an order", None, true),
        }
        if deed.cancels() {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..SECOND_THOUGHTS_MS))).await;
            let message = order_v1::CancelOrderRequest { order_id: order_id.clone() };
            // Too late is a valid answer.
            let _ = self
                .insist("CancelOrder", account, message, &mut random, |mut client, request| async move {
                    client.cancel_order(request).await
                })
                .await;
        }
        let watched = self.watch_to_the_end(account, &order_id, &mut random);
        let end = match self.most_wait {
            Some(most) => tokio::time::timeout(most, watched).await.ok(),
            None => Some(watched.await),
        };
        match end {
            Some(Ok(state)) => {
                let is_surprise = self.most_wait.is_none() && !deed.may_end(&state);
                self.seen.ended(deed, &state, Some(intended.elapsed()), is_surprise);
            }
            Some(Err(status)) => self.seen.ended(deed, &format!("not seen: {}", describe(&status)), None, true),
            None => self.seen.ended(deed, "not waited for", None, false),
        }
    }

    fn wish(&self, deed: Deed, random: &mut StdRng) -> order_v1::CreateOrderRequest {
        let first = random.random_range(0..self.skus.len());
        let count = random.random_range(1..=3.min(self.skus.len()));
        let items = self.skus.iter().cycle().skip(first).take(count);
        order_v1::CreateOrderRequest {
            request_id: SystemIds.uuid().to_string(),
            items: items.map(|sku| order_v1::OrderItem { sku: sku.clone(), quantity: 1 }).collect(),
            payment_method: deed.payment_method(random).to_owned(),
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

    /// Makes a call, and retries it while that may help: with the same request, so that it is executed once.
    async fn insist<M, T, F>(
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
        let mut tries = 1;
        loop {
            let client = OrderServiceClient::new(self.system.order.clone());
            let status = match call(client, request(message.clone(), &account.token(), None)).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            if !self.may_help(account, &status, name).await || tries >= self.most_tries {
                return Err(status);
            }
            self.seen.tried_again();
            let asked = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
            let wait = backoff(tries, BACKOFF, BACKOFF_CAP, random.random());
            tokio::time::sleep(wait.max(asked.min(BACKOFF_CAP))).await;
            tries = tries.saturating_add(1);
        }
    }

    /// Counts a rejected call, and logs in again if its token has expired; returns whether a retry may help.
    async fn may_help(&self, account: &Account, status: &Status, name: &str) -> bool {
        let is_patient = self.most_wait.is_some();
        let may = match status.code() {
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
        // An order may be cancelled too late: a CancelOrder that is not retried is not counted.
        if may || name != "CancelOrder" {
            self.seen.refused(format!("{name}: {}", describe(status)));
        }
        may
    }

    /// Watches an order to its final state, or NEEDS_ATTENTION.
    async fn watch_to_the_end(&self, account: &Account, order_id: &str, random: &mut StdRng) -> Result<String, Status> {
        let (mut after_version, mut last) = (0, order_v1::OrderState::Created);
        loop {
            let message = order_v1::WatchOrderRequest { order_id: order_id.to_owned(), after_version };
            let mut steps = self
                .insist("WatchOrder", account, message, random, |mut client, request| async move {
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
                        self.seen.watched_again();
                        if !self.may_help(account, &status, "WatchOrder").await {
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
fn describe(status: &Status) -> String {
    format!("{:?} {}", status.code(), reason(status)).trim_end().to_owned()
}
