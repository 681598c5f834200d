//! Paths that need settings of their own: each in a small dedicated system, on free ports, in a temporary folder.

use std::sync::Arc;
use std::time::{Duration, Instant};

use contracts::common::v1::EventType::{DataLookup, OrderCreation, OrderFulfillment, PaymentProcessing};
use contracts::order::v1 as order_v1;
use contracts::order::v1::OrderState;
use contracts::order::v1::inventory_service_client::InventoryServiceClient;
use contracts::payment::v1::PaymentState;
use kernel::{IdSource, SystemIds};
use tonic::Code;

use crate::catalog::SCARCE;
use crate::demo::payments::{fails, fulfilled};
use crate::demo::refusals::many;
use crate::demo::scenario::{Played, Report, Scenario, Wrong, same};
use crate::demo::stage::{Act, Stage, failed, item, succeeded};
use crate::error::{Error, reason};
use crate::passed;
use crate::supervisor::{Plan, Supervisor, free_port_base};
use crate::system::{Location, Retries, System, request};

const START_LIMIT: Duration = Duration::from_secs(30);

/// The paths.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("out-of-memory", "--order.memory-budget 4KiB: OutOfMemoryError for 100 lines, one line is fine", out_of_memory)
            .with(&["--order.memory-budget", "4KiB"]),
        Scenario::new("lookup-timeout", "--data.fault-lookup slow:5s: the lookup's TIMEOUT", |act| lookup_fails(act, "TIMEOUT"))
            .with(&["--data.fault-lookup", "slow:5s"]),
        Scenario::new("lookup-refused", "--data.fault-lookup refuse: the lookup's CONNECTION_ERROR", |act| lookup_fails(act, "CONNECTION_ERROR"))
            .with(&["--data.fault-lookup", "refuse"]),
        Scenario::new("payment-limit", "--payment.amount-limit EUR=10: the payment is declined, INVALID_AMOUNT, and the gateway is never called", over_the_limit)
            .with(&["--payment.amount-limit", "EUR=10"]),
        Scenario::new(
            "refund-refused",
            "--gateway.fault-latency-ms 1200: stock is written off during the payment, the refund is refused: NEEDS_ATTENTION, then RetryOrder",
            refund_refused,
        )
        .with(&["--gateway.fault-latency-ms", "1200"]),
    ]
}

/// Starts a system, runs the path, stops the system.
pub(crate) async fn play(scenario: &Scenario, flags: &[&str]) -> Played {
    let began = Instant::now();
    let result = match start(flags).await {
        Ok((system, stage, _folder)) => {
            let result = scenario.play(Arc::new(stage)).await;
            system.stop().await;
            result
        }
        Err(error) => (crate::trace::Trace::random(), Err(Wrong::System(error))),
    };
    scenario.played(result, began.elapsed())
}

async fn start(flags: &[&str]) -> Result<(Supervisor, Stage, tempfile::TempDir), Error> {
    let temporary = std::env::temp_dir();
    let folder = tempfile::Builder::new().prefix("ordermesh-demo-").tempdir().map_err(|source| Error::File {
        path: temporary,
        deed: "used for temporary files",
        source,
    })?;
    // Cheap password hashes: the system exists for seconds only.
    let flags = flags.iter().chain(&["--user.bcrypt-cost", "4"]);
    let (_, passed) = passed::split(flags.map(std::ffi::OsString::from));
    let location = Location::local(free_port_base(1)?, folder.path().join("data"));
    let plan = Plan {
        port_base: location.port_base,
        instances: 1,
        data_dir: location.data_dir.clone(),
        database_url: None,
        tls: false,
        log: "error".to_owned(),
        passed,
        quiet: true,
        restarts_at_once: false,
    };
    let system = Supervisor::start(&plan)?;
    if tokio::time::timeout(START_LIMIT, system.ready()).await.is_err() {
        return Err(Error::NotReady(START_LIMIT.as_secs()));
    }
    let stage = Stage::open(System::find(&location, Retries::Off).await?).await?;
    Ok((system, stage, folder))
}

async fn out_of_memory(act: Act) -> Result<Report, Wrong> {
    let mut large = act.order("pm_card_visa");
    large.items = many(100);
    let status = act.refused(large).await?;
    same("the refusal", (status.code(), reason(&status)), (Code::ResourceExhausted, "OUT_OF_MEMORY".to_owned()))?;
    let event = failed(OrderCreation, "OutOfMemoryError", "OUT_OF_MEMORY");
    act.expect_events(None, &[event]).await?;
    let order_id = act.accepted(act.order("pm_card_visa")).await?;
    let small = fulfilled(&act, &order_id).await?;
    Ok(small.refusal(&status).line(event.line()))
}

async fn lookup_fails(act: Act, class: &'static str) -> Result<Report, Wrong> {
    let status = act.refused(act.order("pm_card_visa")).await?;
    same("the refusal", (status.code(), reason(&status)), (Code::Unavailable, "LOOKUP_FAILED".to_owned()))?;
    let events = [failed(DataLookup, class, ""), failed(OrderCreation, class, "LOOKUP_FAILED")];
    act.expect_events(None, &events).await?;
    let report = Report::default().refusal(&status);
    Ok(events.iter().fold(report, |report, event| report.line(event.line())))
}

async fn over_the_limit(act: Act) -> Result<Report, Wrong> {
    let event = failed(PaymentProcessing, "PaymentDeclined", "INVALID_AMOUNT");
    fails(act, "pm_card_visa", ["PAYMENT_DECLINED", "INVALID_AMOUNT", "DO_NOT_RETRY"], event).await
}

async fn refund_refused(act: Act) -> Result<Report, Wrong> {
    let mut order = act.order("pm_gateway_refundRefused");
    order.items = vec![item(SCARCE, 1)];
    let order_id = act.accepted(order).await?;
    // The gateway is slow: the write-off is committed before the payment's result is known.
    let write_off = order_v1::AdjustStockRequest {
        request_id: SystemIds.uuid().to_string(),
        sku: SCARCE.to_owned(),
        delta: -1,
        write_off: true,
    };
    let mut inventory = InventoryServiceClient::new(act.stage.system.order.clone());
    let answer = inventory.adjust_stock(request(write_off, act.operator(), Some(act.trace))).await;
    same("the lost lines", answer.map_err(Wrong::refused("AdjustStock"))?.into_inner().lost_line_count, 1)?;
    let before = act.follow(&order_id, OrderState::NeedsAttention).await?;
    let payment = act.payment(&order_id).await.map_err(Wrong::refused("GetPayment"))?.payment.unwrap_or_default();
    same("the payment", payment.state(), PaymentState::RefundRefused)?;
    let refused = [
        failed(OrderFulfillment, "AllocationError", "STOCK_LOST"),
        failed(PaymentProcessing, "REFUND_REFUSED", "REFUND_REFUSED"),
        failed(OrderFulfillment, "NeedsAttention", ""),
    ];
    act.expect_events(Some(&order_id), &refused).await?;
    act.retry(&order_id).await?;
    let after = act.follow(&order_id, OrderState::Cancelled).await?;
    let given_back = act.payment(&order_id).await.map_err(Wrong::refused("GetPayment"))?;
    same("the gateway's ledger", given_back.gateway_ledger.as_str(), "REFUNDED")?;
    act.expect_events(Some(&order_id), &[succeeded(OrderFulfillment)]).await?;
    let report = Report::default().history(&order_id, &after).line(format!("{} steps before RetryOrder", before.len()));
    Ok(refused.iter().fold(report, |report, event| report.line(event.line())))
}
