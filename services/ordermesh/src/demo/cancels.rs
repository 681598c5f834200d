//! Cancelled orders: before the payment, after it, and too late.

use contracts::common::v1::EventType::{OrderFulfillment, PaymentProcessing};
use contracts::order::v1::OrderState;
use contracts::payment::v1::PaymentState;
use tonic::Code;

use crate::demo::payments::fulfilled;
use crate::demo::scenario::{Report, Scenario, Wrong, same};
use crate::demo::stage::{Act, succeeded};
use crate::error::reason;

/// The paths.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "cancel-before-payment",
            "cancelled while the gateway does not answer: nothing is ever charged",
            before_payment,
        ),
        Scenario::new(
            "cancel-after-payment",
            "cancelled after the gateway has charged: the payment is refunded",
            after_payment,
        ),
        Scenario::new("cancel-too-late", "cancelled after fulfilment has started: ORDER_NOT_CANCELLABLE", too_late),
    ]
}

async fn before_payment(act: Act) -> Result<Report, Wrong> {
    let order_id = act.accepted(act.order("pm_gateway_noAnswer")).await?;
    act.cancel(&order_id).await.map_err(Wrong::refused("CancelOrder"))?;
    cancelled(&act, &order_id, PaymentState::Cancelled).await
}

async fn after_payment(act: Act) -> Result<Report, Wrong> {
    // The answer is lost: the order is still waiting although the charge is made. That is when it is cancelled.
    let order_id = act.accepted(act.order("pm_gateway_answerLost")).await?;
    act.until_ledger_says(&order_id, "SUCCEEDED").await?;
    act.cancel(&order_id).await.map_err(Wrong::refused("CancelOrder"))?;
    let report = cancelled(&act, &order_id, PaymentState::Refunded).await?;
    let ledger = act.payment(&order_id).await.map_err(Wrong::refused("GetPayment"))?.gateway_ledger;
    same("the gateway's ledger", ledger.as_str(), "REFUNDED")?;
    Ok(report)
}

/// Waits until an order is cancelled and nothing is charged; cancelling it again is OK.
async fn cancelled(act: &Act, order_id: &str, payment: PaymentState) -> Result<Report, Wrong> {
    let history = act.follow(order_id, OrderState::Cancelled).await?;
    let is = act.payment(order_id).await.map_err(Wrong::refused("GetPayment"))?.payment.unwrap_or_default();
    same("the payment", is.state(), payment)?;
    let again = act.cancel(order_id).await.map_err(Wrong::refused("the second CancelOrder"))?;
    same("the order", again.state(), OrderState::Cancelled)?;
    let events = [succeeded(PaymentProcessing), succeeded(OrderFulfillment)];
    act.expect_events(Some(order_id), &events).await?;
    let report = Report::default().history(order_id, &history).line(format!("payment {}", payment.as_str_name()));
    Ok(events.iter().fold(report, |report, event| report.line(event.line())))
}

async fn too_late(act: Act) -> Result<Report, Wrong> {
    let order_id = act.accepted(act.order("pm_card_mastercard")).await?;
    let report = fulfilled(&act, &order_id).await?;
    match act.cancel(&order_id).await {
        Ok(_) => Err(Wrong::Unexpected("the order was cancelled".to_owned())),
        Err(status) => {
            let refusal = (status.code(), reason(&status));
            same("the refusal", refusal, (Code::FailedPrecondition, "ORDER_NOT_CANCELLABLE".to_owned()))?;
            Ok(report.refusal(&status))
        }
    }
}
