//! Scenarios that need settings of their own: each in a small dedicated system, on free ports, in a temporary folder.

use std::sync::Arc;
use std::time::{Duration, Instant};

use contracts::common::v1::EventType::{Audit, DataLookup, OrderCreation, OrderFulfillment, PaymentProcessing};
use contracts::order::v1 as order_v1;
use contracts::order::v1::OrderState;
use contracts::order::v1::inventory_service_client::InventoryServiceClient;
use contracts::payment::v1::PaymentState;
use kernel::{IdSource, SystemIds};
use tonic::Code;

use crate::catalog::SCARCE;
use crate::demo::expected::{failed, succeeded};
use crate::demo::payments::{fails, fulfilled};
use crate::demo::rejections::many;
use crate::demo::run::{Run, Setup, item};
use crate::demo::scenario::{Dedicated, Failure, Finished, Scenario, ScenarioOutcome, expect_eq};
use crate::error::Error;
use crate::forwarded_args;
use crate::ports::free_port_base;
use crate::supervisor::{Supervisor, SystemConfig};
use crate::system::{Location, Retries, System, request};

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A traffic policy with a fault of every lookup.
macro_rules! lookups {
    ($fault:literal) => {
        concat!(
            "rules: [{ matches: [{ method: { service: data.v1.CatalogService, method: BatchGetProducts } }], \
             ordermesh: { fault: { percent: 100, ",
            $fault,
            " } } }]\n"
        )
    };
}

#[rustfmt::skip]
pub(crate) fn scenarios() -> Vec<Scenario> {
    let over_the_limit = failed(PaymentProcessing, "PaymentDeclined", "INVALID_AMOUNT");
    vec![
        Scenario::new("out-of-memory", "an order over the memory budget (`--order.memory-budget 4KiB`); a small one is fulfilled", out_of_memory)
            .state(OrderState::FulfillmentStarted)
            .rejected(Code::ResourceExhausted, &["OUT_OF_MEMORY"])
            .events(&[failed(OrderCreation, "OutOfMemoryError", "OUT_OF_MEMORY"), succeeded(OrderCreation), succeeded(OrderFulfillment)])
            .with(&["--order.memory-budget", "4KiB"]),
        lookup_fails("lookup-timeout", "the lookup is slow (traffic policy: `fault: { percent: 100, delay: 5s }`)", "TIMEOUT")
            .with_traffic(lookups!("delay: 5s")),
        lookup_fails("lookup-refused", "the lookup fails (traffic policy: `fault: { percent: 100, code: UNAVAILABLE }`)", "CONNECTION_ERROR")
            .with_traffic(lookups!("code: UNAVAILABLE")),
        fails("payment-limit", "an amount over the Payment Service's own limit (`--payment.amount-limit EUR=10`): the gateway is never called",
              "pm_card_visa", &["PAYMENT_DECLINED", "INVALID_AMOUNT", "DO_NOT_RETRY"], over_the_limit)
            .with(&["--payment.amount-limit", "EUR=10"]),
        Scenario::new("refund-refused", "stock is written off during the payment (`--gateway.fault-latency-ms 1200`), and the refund is refused: NEEDS_ATTENTION, until RetryOrder", refund_refused)
            .state(OrderState::Cancelled)
            .events(&[
                failed(OrderFulfillment, "AllocationError", "STOCK_LOST"),
                failed(PaymentProcessing, "REFUND_REFUSED", "REFUND_REFUSED"),
                failed(OrderFulfillment, "NeedsAttention", "REFUND_REFUSED"),
                succeeded(Audit),
                succeeded(OrderFulfillment),
            ])
            .with(&["--gateway.fault-latency-ms", "1200"]),
    ]
}

/// Starts a system, runs the scenario, stops the system.
pub(crate) async fn execute(scenario: &Scenario, settings: Dedicated) -> Finished {
    let began = Instant::now();
    let result = match start(settings).await {
        Ok((system, setup, _folder)) => {
            let result = scenario.execute(Arc::new(setup)).await;
            system.stop().await;
            result
        }
        Err(error) => (crate::trace::Trace::random(), Err(Failure::System(error))),
    };
    scenario.finished(result, began.elapsed())
}

async fn start(settings: Dedicated) -> Result<(Supervisor, Setup, tempfile::TempDir), Error> {
    let temporary = std::env::temp_dir();
    let folder = tempfile::Builder::new().prefix("ordermesh-demo-").tempdir().map_err(|source| Error::File {
        path: temporary,
        action: "used for temporary files; set TMPDIR to another folder",
        source,
    })?;
    let mut traffic = chassis::TrafficSettings::default();
    if let Some(policy) = settings.traffic {
        let path = folder.path().join("traffic.yaml");
        std::fs::write(&path, policy).map_err(|source| Error::File {
            path: path.clone(),
            action: "written",
            source,
        })?;
        traffic = chassis::TrafficSettings { traffic_policy: Some(path), allow_faults: true };
    }
    // Cheap password hashes: the system exists for seconds only.
    let flags = settings.flags.iter().chain(&["--user.bcrypt-cost", "4"]);
    let (_, forwarded) = forwarded_args::split(flags.map(std::ffi::OsString::from));
    let location = Location::local(free_port_base(1).ok_or(Error::NoFreePorts)?, folder.path().join("data"));
    let config = SystemConfig {
        port_base: location.port_base,
        instances: 1,
        data_dir: location.data_dir.clone(),
        database_url: None,
        tls: false,
        log: "error".to_owned(),
        traffic,
        forwarded,
        quiet: true,
        restarts_at_once: false,
    };
    let system = Supervisor::start(&config)?;
    if tokio::time::timeout(START_TIMEOUT, system.ready()).await.is_err() {
        return Err(Error::NotReady(START_TIMEOUT.as_secs()));
    }
    let setup = Setup::open(System::find(&location, Retries::Off).await?).await?;
    Ok((system, setup, folder))
}

async fn out_of_memory(run: Run) -> Result<ScenarioOutcome, Failure> {
    let mut large = run.order("pm_card_visa");
    large.items = many(100);
    let status = run.rejected(large).await?;
    let order_id = run.accepted(run.order("pm_card_visa")).await?;
    fulfilled(&run, &order_id).await?;
    Ok(ScenarioOutcome { order_id: Some(order_id), ..ScenarioOutcome::rejected(status) })
}

fn lookup_fails(name: &'static str, cause: &str, error_type: &'static str) -> Scenario {
    Scenario::new(name, cause, |run| async move {
        Ok(ScenarioOutcome::rejected(run.rejected(run.order("pm_card_visa")).await?))
    })
    .rejected(Code::Unavailable, &["LOOKUP_FAILED"])
    .events(&[failed(DataLookup, error_type, "INJECTED_FAULT"), failed(OrderCreation, error_type, "LOOKUP_FAILED")])
}

async fn refund_refused(run: Run) -> Result<ScenarioOutcome, Failure> {
    let mut order = run.order("pm_gateway_refundRefused");
    order.items = vec![item(SCARCE, 1)];
    let order_id = run.accepted(order).await?;
    // The gateway is slow: the write-off is committed before the payment's result is known.
    let write_off = order_v1::AdjustStockRequest {
        request_id: SystemIds.uuid().to_string(),
        sku: SCARCE.to_owned(),
        delta: -1,
        write_off: true,
    };
    let mut inventory = InventoryServiceClient::new(run.setup.system.order.clone());
    let response = inventory.adjust_stock(request(write_off, run.operator(), Some(run.trace))).await;
    let adjusted = response.map_err(Failure::rejected("AdjustStock"))?.into_inner();
    expect_eq("the lost lines", adjusted.lost_line_count, 1)?;
    let before = run.follow(&order_id, OrderState::NeedsAttention).await?;
    let payment = run.payment(&order_id).await.map_err(Failure::rejected("GetPayment"))?.payment.unwrap_or_default();
    expect_eq("the payment", payment.state(), PaymentState::RefundRefused)?;
    run.retry(&order_id).await?;
    run.follow(&order_id, OrderState::Cancelled).await?;
    let refunded = run.payment(&order_id).await.map_err(Failure::rejected("GetPayment"))?;
    expect_eq("the gateway's ledger", refunded.gateway_ledger.as_str(), "REFUNDED")?;
    Ok(ScenarioOutcome::order(order_id).line(format!("{} transitions before RetryOrder", before.len())))
}
