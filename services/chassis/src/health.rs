//! Ready is: the own database answers, and the service is not told to stop. Never a peer, or one failure would take all down.

use std::sync::Arc;
use std::time::Duration;

use kernel::Clock;
use opentelemetry::global;
use storage::Database;
use storage::outbox::Outbox;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How often the database is asked whether it answers, and the outbox is counted.
const INTERVAL: Duration = Duration::from_secs(2);

/// Says whether the service is ready, and how full its outbox is, until it is `told` to stop.
pub(crate) async fn watch(db: Database, clock: Arc<dyn Clock>, told: CancellationToken, ready: watch::Sender<bool>) {
    tokio::join!(watch_database(&db, &told, ready), watch_outbox(db.outbox(), clock, &told));
}

async fn watch_database(db: &Database, told: &CancellationToken, ready: watch::Sender<bool>) {
    let is_ready = global::meter("ordermesh")
        .u64_gauge("ordermesh.ready")
        .with_description("1 while the own database answers, 0 while it does not: then the other gauges stand still")
        .build();
    loop {
        let asking = timeout(INTERVAL, db.ping());
        let Some(answer) = told.run_until_cancelled(asking).await else { break };
        let answers = matches!(answer, Ok(Ok(())));
        db.record_connections();
        is_ready.record(u64::from(answers), &[]);
        ready.send_if_modified(|now| std::mem::replace(now, answers) != answers);
        if timeout(INTERVAL, told.cancelled()).await.is_ok() {
            break;
        }
    }
    // Draining: nobody is to be sent here any more.
    ready.send_replace(false);
}

/// Not a part of readiness: a table that is full, or locked, keeps nobody from serving. One question at a time, however long it takes.
async fn watch_outbox(outbox: Outbox, clock: Arc<dyn Clock>, told: &CancellationToken) {
    let meter = global::meter("ordermesh");
    let waiting = meter.i64_gauge("ordermesh.outbox.events").with_description("Events that wait to be sent").build();
    let age = meter
        .f64_gauge("ordermesh.outbox.oldest")
        .with_unit("s")
        .with_description("Age of the oldest waiting event")
        .build();
    let refused = meter
        .i64_gauge("ordermesh.outbox.refused")
        .with_description("Events that the store has refused for longer than a day")
        .build();
    while let Some(backlog) = told.run_until_cancelled(outbox.backlog()).await {
        if let Err(error) = &backlog {
            tracing::debug!(target: "ordermesh", %error, "the outbox could not be counted");
        }
        if let Ok(backlog) = backlog {
            let now = clock.now();
            waiting.record(backlog.waiting, &[]);
            age.record(backlog.oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64()), &[]);
            refused.record(backlog.refused, &[]);
        }
        if timeout(INTERVAL, told.cancelled()).await.is_ok() {
            return;
        }
    }
}
