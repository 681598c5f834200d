//! The accounts, the clients and the checks of a path: through the public API alone.

use std::sync::Arc;
use std::time::Duration;

use contracts::common::v1::{Address, EventType};
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
use crate::demo::scenario::Wrong;
use crate::error::Error;
use crate::system::{System, request};
use crate::text;
use crate::trace::Trace;

/// Timeout of an order's transition, or of an event.
const TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A running system, a new customer, and an operator.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) system: System,
    pub(crate) email: String,
    customer: String,
    operator: String,
}

impl Stage {
    /// Registers a customer, and logs in both accounts.
    pub(crate) async fn open(system: System) -> Result<Self, Error> {
        let (email, customer) = arrival(&system).await?;
        let operator = system.operator_token().await?;
        Ok(Self { system, email, customer, operator })
    }
}

/// A new customer's e-mail and access token.
pub(crate) async fn arrival(system: &System) -> Result<(String, String), Error> {
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
    users.register(request(message, "", None)).await.map_err(Error::refused("Register"))?;
    Ok((email, system.login(&login).await?))
}

/// An expected event. An empty reason matches any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ExpectedEvent {
    kind: EventType,
    error: Option<(&'static str, &'static str)>,
}

/// A successful event.
pub(crate) const fn succeeded(kind: EventType) -> ExpectedEvent {
    ExpectedEvent { kind, error: None }
}

/// A failed event, with the error's type and reason.
pub(crate) const fn failed(kind: EventType, error_type: &'static str, reason: &'static str) -> ExpectedEvent {
    ExpectedEvent { kind, error: Some((error_type, reason)) }
}

impl ExpectedEvent {
    fn by(self, event: &data_v1::TraceEvent) -> bool {
        let right_status = match self.error {
            None => data_v1::EventStatus::Success,
            Some(_) => data_v1::EventStatus::Failed,
        };
        let right_error = self.error.is_none_or(|(error_type, reason)| {
            event
                .error
                .as_ref()
                .is_some_and(|error| error.r#type == error_type && (reason.is_empty() || error.reason == reason))
        });
        event.r#type == i32::from(self.kind) && event.status == i32::from(right_status) && right_error
    }

    /// The printed form.
    pub(crate) fn line(self) -> String {
        let kind = self.kind.as_str_name().trim_start_matches("EVENT_TYPE_").to_lowercase();
        match self.error {
            None => format!("event {kind} success"),
            Some((error_type, reason)) => format!("event {kind} failed: {error_type} {reason}").trim_end().to_owned(),
        }
    }
}

/// One run of a path, in a trace of its own.
#[derive(Clone, Debug)]
pub(crate) struct Act {
    pub(crate) stage: Arc<Stage>,
    pub(crate) trace: Trace,
}

impl Act {
    pub(crate) fn new(stage: Arc<Stage>) -> Self {
        Self { stage, trace: Trace::random() }
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
            contact_email: self.stage.email.clone(),
            expected_total: None,
        }
    }

    pub(crate) async fn create(&self, message: order_v1::CreateOrderRequest) -> Result<order_v1::Order, Status> {
        let answer = self.orders().create_order(request(message, &self.stage.customer, Some(self.trace))).await?;
        Ok(answer.into_inner().order.unwrap_or_default())
    }

    /// Creates an order that must be accepted; returns its id.
    pub(crate) async fn accepted(&self, message: order_v1::CreateOrderRequest) -> Result<String, Wrong> {
        let order = self.create(message).await.map_err(Wrong::refused("CreateOrder"))?;
        if order.trace_id != self.trace.id() {
            return Err(Wrong::Unexpected(format!(
                "the order is in trace {:?}, not in its customer's",
                order.trace_id
            )));
        }
        Ok(order.order_id)
    }

    /// Creates an order that must be rejected; returns the status.
    pub(crate) async fn refused(&self, message: order_v1::CreateOrderRequest) -> Result<Status, Wrong> {
        match self.create(message).await {
            Ok(order) => Err(Wrong::Unexpected(format!("the order was accepted: {}", order.order_id))),
            Err(status) => Ok(status),
        }
    }

    /// Watches an order until it reaches a state; returns all its transitions.
    pub(crate) async fn follow(
        &self,
        order_id: &str,
        until: order_v1::OrderState,
    ) -> Result<Vec<order_v1::OrderHistoryEntry>, Wrong> {
        let mut seen = Vec::new();
        match timeout(TIMEOUT, self.watch(order_id, until, &mut seen)).await {
            Ok(watched) => watched.map(|()| seen),
            Err(_) => {
                let steps: Vec<_> = seen.iter().map(|entry| text::state(entry.state)).collect();
                Err(Wrong::Late(
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
    ) -> Result<(), Wrong> {
        loop {
            let after_version = seen.last().map_or(0, |entry| entry.version);
            let message = order_v1::WatchOrderRequest { order_id: order_id.to_owned(), after_version };
            let watched = self.orders().watch_order(request(message, &self.stage.customer, Some(self.trace))).await;
            let mut steps = match watched {
                Ok(steps) => steps.into_inner(),
                Err(status) if status.code() == Code::Unavailable => {
                    sleep(LOOK_AGAIN).await;
                    continue;
                }
                Err(status) => return Err(Wrong::refused("WatchOrder")(status)),
            };
            loop {
                match steps.message().await {
                    Ok(Some(step)) => seen.extend(step.entry),
                    Ok(None) => {
                        let last = seen.last().map_or("nowhere", |entry| text::state(entry.state));
                        return Err(Wrong::Unexpected(format!(
                            "the order ended {last}, not {}",
                            text::state(until.into())
                        )));
                    }
                    // The instance drains or has crashed: continue with another one.
                    Err(status) if status.code() == Code::Unavailable => break,
                    Err(status) => return Err(Wrong::refused("WatchOrder")(status)),
                }
                if seen.last().is_some_and(|entry| entry.state == i32::from(until)) {
                    return Ok(());
                }
            }
        }
    }

    /// The order as shown to its customer.
    pub(crate) async fn get(&self, order_id: &str) -> Result<order_v1::Order, Wrong> {
        let message = order_v1::GetOrderRequest { order_id: order_id.to_owned() };
        let answer = self.orders().get_order(request(message, &self.stage.customer, Some(self.trace))).await;
        Ok(answer.map_err(Wrong::refused("GetOrder"))?.into_inner().order.unwrap_or_default())
    }

    pub(crate) async fn cancel(&self, order_id: &str) -> Result<order_v1::Order, Status> {
        let message = order_v1::CancelOrderRequest { order_id: order_id.to_owned() };
        let answer = self.orders().cancel_order(request(message, &self.stage.customer, Some(self.trace))).await?;
        Ok(answer.into_inner().order.unwrap_or_default())
    }

    pub(crate) async fn retry(&self, order_id: &str) -> Result<(), Wrong> {
        let message = order_v1::RetryOrderRequest { order_id: order_id.to_owned() };
        let answer = self.orders().retry_order(request(message, &self.stage.operator, Some(self.trace))).await;
        answer.map(|_| ()).map_err(Wrong::refused("RetryOrder"))
    }

    /// The order's payment, as shown to the operator.
    pub(crate) async fn payment(&self, order_id: &str) -> Result<payment_v1::GetPaymentResponse, Status> {
        let message = payment_v1::GetPaymentRequest { order_id: order_id.to_owned() };
        let mut payments = PaymentServiceClient::new(self.stage.system.payment.clone());
        Ok(payments.get_payment(request(message, &self.stage.operator, Some(self.trace))).await?.into_inner())
    }

    /// Waits until the gateway's ledger has this status for the order's charge.
    pub(crate) async fn until_ledger_says(&self, order_id: &str, word: &str) -> Result<(), Wrong> {
        let end = Instant::now() + TIMEOUT;
        while Instant::now() < end {
            if self.payment(order_id).await.is_ok_and(|payment| payment.gateway_ledger == word) {
                return Ok(());
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(Wrong::Late(format!("{word} in the gateway's ledger"), TIMEOUT.as_secs()))
    }

    /// Waits until all these events of the order, or else of the trace, are stored.
    pub(crate) async fn expect_events(&self, order_id: Option<&str>, events: &[ExpectedEvent]) -> Result<(), Wrong> {
        let filter = match order_id {
            Some(order_id) => data_v1::ListTraceEventsRequest { order_id: order_id.to_owned(), ..Default::default() },
            None => data_v1::ListTraceEventsRequest { trace_id: self.trace.id(), ..Default::default() },
        };
        let end = Instant::now() + TIMEOUT;
        loop {
            let mut store = TraceEventServiceClient::new(self.stage.system.data.clone());
            let answer = store.list_trace_events(request(filter.clone(), &self.stage.operator, None)).await;
            let stored = answer.map_err(Wrong::refused("ListTraceEvents"))?.into_inner().events;
            let missing = events.iter().find(|event| !stored.iter().any(|candidate| event.by(candidate)));
            match missing {
                None => return Ok(()),
                Some(missing) if Instant::now() > end => {
                    let there: Vec<_> = stored.iter().map(summary).collect();
                    let text = format!("{} (stored: {})", missing.line(), there.join("; "));
                    return Err(Wrong::Late(text, TIMEOUT.as_secs()));
                }
                Some(_) => sleep(LOOK_AGAIN).await,
            }
        }
    }

    pub(crate) fn orders(&self) -> OrderServiceClient<mesh::Channel> {
        OrderServiceClient::new(self.stage.system.order.clone())
    }

    pub(crate) fn operator(&self) -> &str {
        &self.stage.operator
    }

    pub(crate) fn customer(&self) -> &str {
        &self.stage.customer
    }
}

fn summary(event: &data_v1::TraceEvent) -> String {
    let error = event.error.clone().unwrap_or_default();
    format!("{:?} {:?} {} {}", event.r#type(), event.status(), error.r#type, error.reason)
}

/// An item with this quantity.
pub(crate) fn item(sku: &str, quantity: i32) -> order_v1::OrderItem {
    order_v1::OrderItem { sku: sku.to_owned(), quantity }
}
