//! The accounts, the clients and the checks of a scenario: through the public API alone.

use std::sync::Arc;
use std::time::Duration;

use contracts::common::v1::Address;
use contracts::data::v1 as data_v1;
use contracts::data::v1::trace_event_service_client::TraceEventServiceClient;
use contracts::order::v1 as order_v1;
use contracts::order::v1::order_service_client::OrderServiceClient;
use contracts::payment::v1 as payment_v1;
use contracts::payment::v1::payment_service_client::PaymentServiceClient;
use contracts::user::v1 as user_v1;
use contracts::user::v1::user_service_client::UserServiceClient;
use kernel::{IdSource, SystemIds};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use crate::data_dir::Login;
use crate::demo::expected::ExpectedEvent;
use crate::demo::scenario::Failure;
use crate::error::Error;
use crate::system::{System, request};
use crate::text;
use crate::trace::Trace;

/// Timeout of an order's transition, or of an event.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Before the absence of events is checked.
const SETTLE_TIME: Duration = Duration::from_millis(500);

/// A running system, a new customer, and an operator.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) system: System,
    pub(crate) email: String,
    customer: String,
    operator: String,
}

impl Setup {
    /// Registers a customer, and logs in both accounts.
    pub(crate) async fn open(system: System) -> Result<Self, Error> {
        let (email, customer) = new_customer(&system).await?;
        let operator = system.operator_token().await?;
        Ok(Self { system, email, customer, operator })
    }
}

/// A new customer's e-mail and access token.
pub(crate) async fn new_customer(system: &System) -> Result<(String, String), Error> {
    let id = SystemIds.uuid();
    let email = format!("demo-{}@example.com", id.simple());
    let login = Login { email: email.clone(), password: "correct horse battery".to_owned() };
    let message = user_v1::RegisterRequest {
        request_id: id.to_string(),
        email: login.email.clone(),
        password: login.password.clone(),
        display_name: "Demo".to_owned(),
    };
    let mut users = UserServiceClient::new(system.user.clone());
    users.register(request(message, "", None)).await.map_err(Error::rejected("Register"))?;
    Ok((email, system.login(&login).await?))
}

/// One run of a scenario, in a trace of its own.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) setup: Arc<Setup>,
    pub(crate) trace: Trace,
}

impl Run {
    pub(crate) fn new(setup: Arc<Setup>) -> Self {
        Self { setup, trace: Trace::random() }
    }

    /// A valid order of one mug, with a payment method.
    pub(crate) fn order(&self, payment_method: &str) -> order_v1::CreateOrderRequest {
        order_v1::CreateOrderRequest {
            request_id: SystemIds.uuid().to_string(),
            items: vec![item("MUG-BLUE", 1)],
            payment_method: payment_method.to_owned(),
            shipping_address: Some(Address {
                recipient: "Ada Lovelace".to_owned(),
                lines: vec!["Chausseestr. 1".to_owned()],
                city: "Berlin".to_owned(),
                postal_code: "10115".to_owned(),
                country_code: "DE".to_owned(),
            }),
            contact_email: self.setup.email.clone(),
            expected_total: None,
        }
    }

    pub(crate) async fn create(&self, message: order_v1::CreateOrderRequest) -> Result<order_v1::Order, Status> {
        let response = self.orders().create_order(request(message, &self.setup.customer, Some(self.trace))).await?;
        Ok(response.into_inner().order.unwrap_or_default())
    }

    /// Creates an order that must be accepted; returns its id.
    pub(crate) async fn accepted(&self, message: order_v1::CreateOrderRequest) -> Result<String, Failure> {
        let order = self.create(message).await.map_err(Failure::rejected("CreateOrder"))?;
        if order.trace_id != self.trace.id() {
            return Err(Failure::Unexpected(format!(
                "the order is in trace {:?}, not in its customer's",
                order.trace_id
            )));
        }
        Ok(order.order_id)
    }

    /// Creates an order that must be rejected; returns the status.
    pub(crate) async fn rejected(&self, message: order_v1::CreateOrderRequest) -> Result<Status, Failure> {
        match self.create(message).await {
            Ok(order) => Err(Failure::Unexpected(format!("the order was accepted: {}", order.order_id))),
            Err(status) => Ok(status),
        }
    }

    /// Watches an order until it reaches a state; returns all its transitions.
    pub(crate) async fn follow(
        &self,
        order_id: &str,
        until: order_v1::OrderState,
    ) -> Result<Vec<order_v1::OrderHistoryEntry>, Failure> {
        let mut seen = Vec::new();
        match timeout(TIMEOUT, self.watch(order_id, until, &mut seen)).await {
            Ok(watched) => watched.map(|()| seen),
            Err(_) => {
                let steps: Vec<_> = seen.iter().map(|entry| text::state(entry.state)).collect();
                Err(Failure::TimedOut(
                    format!("{} (seen: {})", text::state(until.into()), steps.join(", ")),
                    TIMEOUT.as_secs(),
                ))
            }
        }
    }

    async fn watch(
        &self,
        order_id: &str,
        until: order_v1::OrderState,
        seen: &mut Vec<order_v1::OrderHistoryEntry>,
    ) -> Result<(), Failure> {
        loop {
            let after_version = seen.last().map_or(0, |entry| entry.version);
            let message = order_v1::WatchOrderRequest { order_id: order_id.to_owned(), after_version };
            let watched = self.orders().watch_order(request(message, &self.setup.customer, Some(self.trace))).await;
            let mut steps = match watched {
                Ok(steps) => steps.into_inner(),
                Err(status) if status.code() == Code::Unavailable => {
                    sleep(POLL_INTERVAL).await;
                    continue;
                }
                Err(status) => return Err(Failure::rejected("WatchOrder")(status)),
            };
            loop {
                match steps.message().await {
                    Ok(Some(step)) => seen.extend(step.entry),
                    Ok(None) => {
                        let last = seen.last().map_or("nowhere", |entry| text::state(entry.state));
                        return Err(Failure::Unexpected(format!(
                            "the order ended {last}, not {}",
                            text::state(until.into())
                        )));
                    }
                    // The instance drains or has crashed: continue with another one.
                    Err(status) if status.code() == Code::Unavailable => break,
                    Err(status) => return Err(Failure::rejected("WatchOrder")(status)),
                }
                if seen.last().is_some_and(|entry| entry.state == i32::from(until)) {
                    return Ok(());
                }
            }
        }
    }

    /// The order as shown to its customer.
    pub(crate) async fn get(&self, order_id: &str) -> Result<order_v1::Order, Failure> {
        let message = order_v1::GetOrderRequest { order_id: order_id.to_owned() };
        let response = self.orders().get_order(request(message, &self.setup.customer, Some(self.trace))).await;
        Ok(response.map_err(Failure::rejected("GetOrder"))?.into_inner().order.unwrap_or_default())
    }

    pub(crate) async fn cancel(&self, order_id: &str) -> Result<order_v1::Order, Status> {
        let message = order_v1::CancelOrderRequest { order_id: order_id.to_owned() };
        let response = self.orders().cancel_order(request(message, &self.setup.customer, Some(self.trace))).await?;
        Ok(response.into_inner().order.unwrap_or_default())
    }

    pub(crate) async fn retry(&self, order_id: &str) -> Result<(), Failure> {
        let message = order_v1::RetryOrderRequest { order_id: order_id.to_owned() };
        let response = self.orders().retry_order(request(message, &self.setup.operator, Some(self.trace))).await;
        response.map(|_| ()).map_err(Failure::rejected("RetryOrder"))
    }

    /// The order's payment, as shown to the operator.
    pub(crate) async fn payment(&self, order_id: &str) -> Result<payment_v1::GetPaymentResponse, Status> {
        let message = payment_v1::GetPaymentRequest { order_id: order_id.to_owned() };
        let mut payments = PaymentServiceClient::new(self.setup.system.payment.clone());
        Ok(payments.get_payment(request(message, &self.setup.operator, Some(self.trace))).await?.into_inner())
    }

    /// Waits until the gateway's ledger has this status for the order's charge.
    pub(crate) async fn until_ledger_shows(&self, order_id: &str, status: &str) -> Result<(), Failure> {
        let end = Instant::now() + TIMEOUT;
        while Instant::now() < end {
            if self.payment(order_id).await.is_ok_and(|payment| payment.gateway_ledger == status) {
                return Ok(());
            }
            sleep(POLL_INTERVAL).await;
        }
        Err(Failure::TimedOut(format!("{status} in the gateway's ledger"), TIMEOUT.as_secs()))
    }

    /// Waits until the stored events of the trace are those expected: all of these, and no other failed one.
    pub(crate) async fn expect_events(&self, expected: &[ExpectedEvent]) -> Result<(), Failure> {
        if expected.is_empty() {
            sleep(SETTLE_TIME).await;
        }
        let end = Instant::now() + TIMEOUT;
        loop {
            let stored = self.stored_events().await?;
            let missing = expected.iter().find(|event| !stored.iter().any(|candidate| event.matches(candidate)));
            match missing {
                None => return only_expected(&stored, expected),
                Some(missing) if Instant::now() > end => {
                    let text = format!("the event {} (stored: {})", missing.text(), summary(&stored));
                    return Err(Failure::TimedOut(text, TIMEOUT.as_secs()));
                }
                Some(_) => sleep(POLL_INTERVAL).await,
            }
        }
    }

    async fn stored_events(&self) -> Result<Vec<data_v1::TraceEvent>, Failure> {
        let filter = data_v1::ListTraceEventsRequest { trace_id: self.trace.id(), ..Default::default() };
        let mut store = TraceEventServiceClient::new(self.setup.system.data.clone());
        let response = store.list_trace_events(request(filter, &self.setup.operator, None)).await;
        Ok(response.map_err(Failure::rejected("ListTraceEvents"))?.into_inner().events)
    }

    pub(crate) fn orders(&self) -> OrderServiceClient<mesh::Channel> {
        OrderServiceClient::new(self.setup.system.order.clone())
    }

    pub(crate) fn operator(&self) -> &str {
        &self.setup.operator
    }

    pub(crate) fn customer(&self) -> &str {
        &self.setup.customer
    }
}

/// Fails if an event that is not expected has failed, or, if none is expected, if there is one.
fn only_expected(stored: &[data_v1::TraceEvent], expected: &[ExpectedEvent]) -> Result<(), Failure> {
    let is_surplus = |event: &&data_v1::TraceEvent| {
        let failed = event.status == i32::from(data_v1::EventStatus::Failed);
        (failed || expected.is_empty()) && !expected.iter().any(|one| one.matches(event))
    };
    let surplus: Vec<_> = stored.iter().filter(is_surplus).cloned().collect();
    if surplus.is_empty() { Ok(()) } else { Err(Failure::Unexpected(format!("events: {}", summary(&surplus)))) }
}

fn summary(events: &[data_v1::TraceEvent]) -> String {
    let text = |event: &data_v1::TraceEvent| {
        let error = event.error.clone().unwrap_or_default();
        format!(
            "{} {} {} {}",
            text::event_type(event.r#type),
            text::event_status(event.status),
            error.r#type,
            error.reason
        )
    };
    events.iter().map(text).collect::<Vec<_>>().join("; ")
}

/// The status of a call that must be rejected.
pub(crate) fn must_fail<T>(response: Result<T, Status>) -> Result<Status, Failure> {
    match response {
        Ok(_) => Err(Failure::Unexpected("the call succeeded".to_owned())),
        Err(status) => Ok(status),
    }
}

/// An item with this quantity.
pub(crate) fn item(sku: &str, quantity: i32) -> order_v1::OrderItem {
    order_v1::OrderItem { sku: sku.to_owned(), quantity }
}
