//! Cancelled orders: before the payment, after it, and too late.

use contracts::common::v1::EventType::{Audit, OrderFulfillment, PaymentProcessing};
use contracts::order::v1::OrderState;
use contracts::payment::v1::PaymentState;
use tonic::Code;

use crate::demo::expected::{failed, succeeded};
use crate::demo::payments::fulfilled;
use crate::demo::run::{Run, must_fail};
use crate::demo::scenario::{Failure, Scenario, ScenarioOutcome, expect_eq};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let cancelled = [succeeded(Audit), succeeded(PaymentProcessing), succeeded(OrderFulfillment)];
    vec![
        Scenario::new(
            "cancel-before-payment",
            "cancelled before the gateway has charged: it never charges",
            before_payment,
        )
        .state(OrderState::Cancelled)
        .events(&cancelled),
        Scenario::new("cancel-after-payment", "cancelled after the charge: it is refunded", after_payment)
            .state(OrderState::Cancelled)
            .events(&cancelled),
        Scenario::new("cancel-too-late", "cancelled after fulfilment has started", too_late)
            .state(OrderState::FulfillmentStarted)
            .rejected(Code::FailedPrecondition, &["ORDER_NOT_CANCELLABLE"])
            .events(&[failed(Audit, "FAILED_PRECONDITION", "ORDER_NOT_CANCELLABLE")]),
    ]
}

async fn before_payment(run: Run) -> Result<ScenarioOutcome, Failure> {
    let order_id = run.accepted(run.order("pm_gateway_noAnswer")).await?;
    run.cancel(&order_id).await.map_err(Failure::rejected("CancelOrder"))?;
    cancelled(&run, order_id, PaymentState::Cancelled).await
}

async fn after_payment(run: Run) -> Result<ScenarioOutcome, Failure> {
    // The gateway's response is lost: the order still waits although the charge is made. That is when it is cancelled.
    let order_id = run.accepted(run.order("pm_gateway_answerLost")).await?;
    run.until_ledger_shows(&order_id, "SUCCEEDED").await?;
    run.cancel(&order_id).await.map_err(Failure::rejected("CancelOrder"))?;
    let outcome = cancelled(&run, order_id.clone(), PaymentState::Refunded).await?;
    let ledger = run.payment(&order_id).await.map_err(Failure::rejected("GetPayment"))?.gateway_ledger;
    expect_eq("the gateway's ledger", ledger.as_str(), "REFUNDED")?;
    Ok(outcome)
}

/// Waits until an order is cancelled and nothing is charged; cancelling it again is OK.
async fn cancelled(run: &Run, order_id: String, expected: PaymentState) -> Result<ScenarioOutcome, Failure> {
    run.follow(&order_id, OrderState::Cancelled).await?;
    let payment = run.payment(&order_id).await.map_err(Failure::rejected("GetPayment"))?.payment.unwrap_or_default();
    expect_eq("the payment", payment.state(), expected)?;
    let again = run.cancel(&order_id).await.map_err(Failure::rejected("the second CancelOrder"))?;
    expect_eq("the order", again.state(), OrderState::Cancelled)?;
    Ok(ScenarioOutcome::order(order_id).line(format!("payment {}", expected.as_str_name())))
}

async fn too_late(run: Run) -> Result<ScenarioOutcome, Failure> {
    let order_id = run.accepted(run.order("pm_card_mastercard")).await?;
    fulfilled(&run, &order_id).await?;
    let status = must_fail(run.cancel(&order_id).await)?;
    Ok(ScenarioOutcome { order_id: Some(order_id), ..ScenarioOutcome::rejected(status) })
}
