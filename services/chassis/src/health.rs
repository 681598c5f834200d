//! Ready: the service's own database takes writes, and the service is not draining. Never a peer, or one failure would take all down.
//! Alive: the pool serves callers, or the database is away for everybody. A restart cures neither a database that is away nor load.

use std::sync::Arc;
use std::time::Duration;

use kernel::Clock;
use opentelemetry::global;
use storage::Database;
use storage::outbox::Outbox;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How often the database is probed, and the outbox is counted.
const INTERVAL: Duration = Duration::from_secs(2);
/// So long a pool may serve no caller while the database takes writes: the process does not recover by itself, and is not alive.
const STUCK_LIMIT: Duration = Duration::from_secs(5 * 60);

/// What the health service and the admin port say of the service.
pub(crate) struct Health {
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) alive: watch::Sender<bool>,
}

/// Keeps `health` up to date, and records how full the outbox is, until the service is `told` to stop.
pub(crate) async fn watch(db: Database, clock: Arc<dyn Clock>, told: CancellationToken, health: Health) {
    tokio::join!(watch_database(&db, &told, health), watch_outbox(db.outbox(), clock, &told));
}

async fn watch_database(db: &Database, told: &CancellationToken, health: Health) {
    let is_ready = global::meter("ordermesh")
        .u64_gauge("ordermesh.ready")
        .with_description(
            "1 while the service's own database takes writes, 0 while it does not: then the other gauges stand still",
        )
        .build();
    let mut probe = db.probe();
    let mut stuck = Stuck::default();
    loop {
        let Some(answer) = told.run_until_cancelled(probe.check()).await else { break };
        let is_alive = stuck.is_alive(answer.is_ok(), probe.progress());
        db.record_connections();
        is_ready.record(u64::from(answer.is_ok()), &[]);
        if set(&health.ready, answer.is_ok()) {
            log_readiness(answer.err());
        }
        if set(&health.alive, is_alive) && !is_alive {
            tracing::error!(target: "ordermesh", "not alive: for {} s no caller has got a connection although the database takes writes", STUCK_LIMIT.as_secs());
        }
        if timeout(INTERVAL, told.cancelled()).await.is_ok() {
            break;
        }
    }
    // Draining.
    health.ready.send_replace(false);
}

/// Has it changed?
fn set(watched: &watch::Sender<bool>, now: bool) -> bool {
    watched.send_if_modified(|before| std::mem::replace(before, now) != now)
}

fn log_readiness(error: Option<storage::Error>) {
    let Some(error) = error else {
        return tracing::info!(target: "ordermesh", "ready: the database takes writes");
    };
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    tracing::warn!(target: "ordermesh", "not ready: {error}{cause}");
}

/// Since when the pool serves no caller.
#[derive(Default)]
struct Stuck {
    served: u64,
    since: Option<Instant>,
}

impl Stuck {
    /// `progress`: how many callers were served so far, and how many ask now (`storage::Probe::progress`).
    fn is_alive(&mut self, is_writable: bool, progress: (u64, u64)) -> bool {
        let (served, waiting) = progress;
        let has_served = std::mem::replace(&mut self.served, served) != served;
        if has_served || waiting == 0 || !is_writable {
            self.since = None;
        }
        if waiting > 0 && !has_served && is_writable {
            let since = *self.since.get_or_insert_with(Instant::now);
            return since.elapsed() < STUCK_LIMIT;
        }
        true
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_serves_no_caller_for_long_while_the_database_is_there_is_not_alive() {
        let mut stuck = Stuck::default();
        assert!(stuck.is_alive(true, (7, 1)), "it has served");
        for _ in 0..2 {
            assert!(stuck.is_alive(true, (7, 1)));
            tokio::time::advance(STUCK_LIMIT / 2).await;
        }
        assert!(!stuck.is_alive(true, (7, 3)), "for as long as the limit");
        assert!(stuck.is_alive(true, (8, 3)), "it serves again");
    }

    #[tokio::test(start_paused = true)]
    async fn neither_a_database_that_is_away_nor_quiet_makes_it_not_alive() {
        for progress in [(0, 0), (0, 9)] {
            let mut stuck = Stuck::default();
            let is_away = progress.1 > 0;
            for _ in 0..10 {
                assert!(stuck.is_alive(!is_away, progress), "{progress:?}");
                tokio::time::advance(STUCK_LIMIT).await;
            }
        }
    }
}
