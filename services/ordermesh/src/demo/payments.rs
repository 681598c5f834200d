//! Orders whose final state depends on their payment's result.

use contracts::common::v1::EventType::{DataLookup, OrderCreation, OrderFulfillment, PaymentProcessing};
use contracts::order::v1::OrderState;

use crate::demo::scenario::{Report, Scenario, Wrong, same};
use crate::demo::stage::{Act, ExpectedEvent, failed, item, succeeded};

/// The paths.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        pays("success", "paid immediately; fulfilment starts", "pm_card_visa"),
        pays("gateway-slow", "the gateway takes 3 s", "pm_gateway_slow"),
        pays("gateway-unavailable", "the gateway is unavailable three times", "pm_gateway_unavailable3"),
        pays("answer-lost", "charged, but the gateway's answer is lost; found by a retry", "pm_gateway_answerLost"),
        declined("declined", "pm_card_visa_chargeDeclined", "GENERIC_DECLINE", "GENERIC_DECLINE", "USE_OTHER_METHOD"),
        declined(
            "insufficient-funds",
            "pm_card_visa_chargeDeclinedInsufficientFunds",
            "INSUFFICIENT_FUNDS",
            "INSUFFICIENT_FUNDS",
            "USE_OTHER_METHOD",
        ),
        declined(
            "expired-card",
            "pm_card_chargeDeclinedExpiredCard",
            "EXPIRED_CARD",
            "EXPIRED_CARD",
            "USE_OTHER_METHOD",
        ),
        declined(
            "incorrect-cvc",
            "pm_card_chargeDeclinedIncorrectCvc",
            "INCORRECT_CVC",
            "INCORRECT_CVC",
            "USE_OTHER_METHOD",
        ),
        declined(
            "lost-card",
            "pm_card_visa_chargeDeclinedLostCard",
            "GENERIC_DECLINE",
            "LOST_CARD",
            "USE_OTHER_METHOD",
        ),
        declined(
            "stolen-card",
            "pm_card_visa_chargeDeclinedStolenCard",
            "GENERIC_DECLINE",
            "STOLEN_CARD",
            "USE_OTHER_METHOD",
        ),
        declined(
            "processing-error",
            "pm_card_chargeDeclinedProcessingError",
            "PROCESSING_ERROR",
            "PROCESSING_ERROR",
            "RETRY_LATER",
        ),
        declined(
            "invalid-payment-details",
            "pm_card_nobody_knows",
            "INVALID_PAYMENT_DETAILS",
            "INVALID_PAYMENT_DETAILS",
            "USE_OTHER_METHOD",
        ),
        Scenario::new(
            "gateway-timeout",
            "the gateway never answers and never charges: GATEWAY_TIMEOUT",
            |act| async move {
                let event = failed(PaymentProcessing, "GATEWAY_TIMEOUT", "GATEWAY_TIMEOUT");
                fails(act, "pm_gateway_noAnswer", ["GATEWAY_TIMEOUT", "GATEWAY_TIMEOUT", "RETRY_LATER"], event).await
            },
        ),
    ]
}

fn pays(name: &'static str, about: &'static str, token: &'static str) -> Scenario {
    Scenario::new(name, about, move |act| async move {
        let order_id = act.accepted(act.order(token)).await?;
        let report = fulfilled(&act, &order_id).await?;
        let lookup = succeeded(DataLookup);
        act.expect_events(None, &[lookup]).await?;
        Ok(report.line(lookup.line()))
    })
}

/// Waits until an order's fulfilment has started, and all its events are stored.
pub(crate) async fn fulfilled(act: &Act, order_id: &str) -> Result<Report, Wrong> {
    let history = act.follow(order_id, OrderState::FulfillmentStarted).await?;
    let order = act.get(order_id).await?;
    if order.delivery_date.is_none() || order.fulfillment_id.is_empty() {
        return Err(Wrong::Unexpected("the fulfilment has no id or no date of delivery".to_owned()));
    }
    let events = [succeeded(OrderCreation), succeeded(PaymentProcessing), succeeded(OrderFulfillment)];
    act.expect_events(Some(order_id), &events).await?;
    let report = Report::default().history(order_id, &history);
    Ok(events.iter().fold(report, |report, event| report.line(event.line())))
}

/// `shown` is the code that the customer sees, `code` that in the event.
fn declined(
    name: &'static str,
    token: &'static str,
    shown: &'static str,
    code: &'static str,
    advice: &'static str,
) -> Scenario {
    let about = if shown == code { format!("declined: {code}") } else { format!("declined: {code}, shown as {shown}") };
    Scenario::new(name, about, move |act| async move {
        fails(act, token, ["PAYMENT_DECLINED", shown, advice], failed(PaymentProcessing, "PaymentDeclined", code)).await
    })
}

/// Waits until an order's payment has failed, and its event is stored.
pub(crate) async fn fails(act: Act, token: &str, failure: [&str; 3], event: ExpectedEvent) -> Result<Report, Wrong> {
    let mut message = act.order(token);
    message.items.push(item("COFFEE-500", 2));
    let order_id = act.accepted(message).await?;
    let history = act.follow(&order_id, OrderState::PaymentFailed).await?;
    let shown = act.get(&order_id).await?.payment_failure.unwrap_or_default();
    same("the failure", [shown.reason.as_str(), shown.decline_code.as_str(), shown.advice.as_str()], failure)?;
    act.expect_events(Some(&order_id), &[succeeded(OrderCreation), event]).await?;
    let line = format!("{} {}, {}: {}", shown.reason, shown.decline_code, shown.advice, shown.message);
    Ok(Report::default().history(&order_id, &history).line(line).line(event.line()))
}
