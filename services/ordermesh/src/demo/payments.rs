//! Orders whose final state depends on their payment's result.

use contracts::common::v1::EventType::{DataLookup, OrderCreation, OrderFulfillment, PaymentProcessing};
use contracts::order::v1::OrderState;

use crate::demo::expected::{ExpectedEvent, failed, succeeded};
use crate::demo::run::{Run, item};
use crate::demo::scenario::{Failure, Scenario, ScenarioOutcome};

/// The events of an order that is fulfilled.
pub(crate) const FULFILLED: [ExpectedEvent; 4] =
    [succeeded(DataLookup), succeeded(OrderCreation), succeeded(PaymentProcessing), succeeded(OrderFulfillment)];

const CHANGE: &str = "USE_OTHER_METHOD";

#[rustfmt::skip]
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        pays("success", "none: paid immediately, fulfilment starts", "pm_card_visa"),
        pays("gateway-slow", "the gateway takes three seconds", "pm_gateway_slow"),
        pays("gateway-unavailable", "the gateway is unavailable three times", "pm_gateway_unavailable3"),
        pays("answer-lost", "the gateway charges, and its response is lost: found by the retry", "pm_gateway_answerLost"),
        declined("declined", "declined without a reason", "pm_card_visa_chargeDeclined", "GENERIC_DECLINE", CHANGE),
        declined("insufficient-funds", "insufficient funds", "pm_card_visa_chargeDeclinedInsufficientFunds", "INSUFFICIENT_FUNDS", CHANGE),
        declined("expired-card", "an expired card", "pm_card_chargeDeclinedExpiredCard", "EXPIRED_CARD", CHANGE),
        declined("incorrect-cvc", "a wrong security code", "pm_card_chargeDeclinedIncorrectCvc", "INCORRECT_CVC", CHANGE),
        hidden("lost-card", "a lost card: the customer gets a generic reason, the event the real one", "pm_card_visa_chargeDeclinedLostCard", "LOST_CARD"),
        hidden("stolen-card", "a stolen card: the same", "pm_card_visa_chargeDeclinedStolenCard", "STOLEN_CARD"),
        declined("processing-error", "the issuer cannot process it", "pm_card_chargeDeclinedProcessingError", "PROCESSING_ERROR", "RETRY_LATER"),
        hidden("fraudulent", "the issuer suspects fraud: the same", "pm_card_visa_chargeDeclinedFraudulent", "FRAUDULENT"),
        declined("invalid-payment-details", "an unknown payment method", "pm_card_nobody_knows", "INVALID_PAYMENT_DETAILS", CHANGE),
        fails("gateway-timeout", "the gateway never responds, and has not charged", "pm_gateway_noAnswer",
              &["GATEWAY_TIMEOUT", "RETRY_LATER"], failed(PaymentProcessing, "GATEWAY_TIMEOUT", "GATEWAY_TIMEOUT")),
    ]
}

fn pays(name: &'static str, cause: &str, token: &'static str) -> Scenario {
    Scenario::new(name, with_token(cause, token), move |run| async move {
        let order_id = run.accepted(run.order(token)).await?;
        fulfilled(&run, &order_id).await?;
        Ok(ScenarioOutcome::order(order_id))
    })
    .state(OrderState::FulfillmentStarted)
    .events(&FULFILLED)
}

/// Waits until an order's fulfilment has started.
pub(crate) async fn fulfilled(run: &Run, order_id: &str) -> Result<(), Failure> {
    run.follow(order_id, OrderState::FulfillmentStarted).await?;
    let order = run.get(order_id).await?;
    if order.delivery_date.is_none() || order.fulfillment_id.is_empty() {
        return Err(Failure::Unexpected("the fulfilment has no id or no date of delivery".to_owned()));
    }
    Ok(())
}

/// The customer and the event get the same code.
fn declined(
    name: &'static str,
    cause: &str,
    token: &'static str,
    code: &'static str,
    advice: &'static str,
) -> Scenario {
    let event = failed(PaymentProcessing, "PaymentDeclined", code);
    fails(name, cause, token, &["PAYMENT_DECLINED", code, advice], event)
}

/// The customer gets a generic code, the event the gateway's.
fn hidden(name: &'static str, cause: &str, token: &'static str, code: &'static str) -> Scenario {
    let event = failed(PaymentProcessing, "PaymentDeclined", code);
    fails(name, cause, token, &["PAYMENT_DECLINED", "GENERIC_DECLINE", CHANGE], event)
}

/// A scenario whose order's payment fails.
pub(crate) fn fails(
    name: &'static str,
    cause: &str,
    token: &'static str,
    reasons: &[&'static str],
    event: ExpectedEvent,
) -> Scenario {
    Scenario::new(name, with_token(cause, token), move |run| async move {
        let mut message = run.order(token);
        message.items.push(item("COFFEE-500", 2));
        Ok(ScenarioOutcome::order(run.accepted(message).await?))
    })
    .state(OrderState::PaymentFailed)
    .reasons(reasons)
    .events(&[succeeded(DataLookup), succeeded(OrderCreation), event])
}

/// The cause, with the payment method if it is what makes the difference.
fn with_token(cause: &str, token: &str) -> String {
    if token == "pm_card_visa" { cause.to_owned() } else { format!("{cause} (`{token}`)") }
}
