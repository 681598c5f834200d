//! Ready: the service's own database takes writes, and the service is not draining. Peers do not count, or one failure
//! would take down all.
//! Alive: the pool serves callers, or the database is unavailable to all. A restart cures neither an unavailable
//! database nor load.

use std::sync::Arc;
use std::time::Duration;

use kernel::Clock;
use opentelemetry::global;
use storage::Database;
use storage::outbox::Outbox;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How often the database is probed and the outbox is counted.
const INTERVAL: Duration = Duration::from_secs(2);
/// If the pool serves no caller for this long while the database takes writes, the process cannot recover by itself and
/// is not alive.
const STUCK_LIMIT: Duration = Duration::from_secs(5 * 60);

/// What the health service and the admin port report.
pub(crate) struct Health {
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) alive: watch::Sender<bool>,
}

/// Keeps `health` up to date and records the size of the outbox until shutdown is requested.
pub(crate) async fn watch(db: Database, clock: Arc<dyn Clock>, shutdown_requested: CancellationToken, health: Health) {
    tokio::join!(
        watch_database(&db, &shutdown_requested, health),
        watch_outbox(db.outbox(), clock, &shutdown_requested)
    );
}

async fn watch_database(db: &Database, shutdown_requested: &CancellationToken, health: Health) {
    let is_ready = global::meter("ordermesh")
        .u64_gauge("ordermesh.ready")
        .with_description(
            "1 while the service's own database takes writes, 0 while it does not: the other gauges are then not updated",
        )
        .build();
    let is_synchronous = global::meter("ordermesh")
        .u64_gauge("ordermesh.database.synchronous_replication")
        .with_description("PostgreSQL: 1 while commits wait for a synchronous standby, 0 while they do not")
        .build();
    let mut probe = db.probe();
    let mut stuck = Stuck::default();
    loop {
        let Some(probed) = shutdown_requested.run_until_cancelled(probe.check()).await else { break };
        let is_alive = stuck.is_alive(probed.is_ok(), probe.progress());
        db.record_connections();
        is_ready.record(u64::from(probed.is_ok()), &[]);
        if let Some(value) = probe.is_synchronous() {
            is_synchronous.record(u64::from(value), &[]);
        }
        if set(&health.ready, probed.is_ok()) {
            log_readiness(probed.err());
        }
        if set(&health.alive, is_alive) && !is_alive {
            tracing::error!(target: "ordermesh", "not alive: no caller has got a connection for {} s although the database takes writes", STUCK_LIMIT.as_secs());
        }
        if timeout(INTERVAL, shutdown_requested.cancelled()).await.is_ok() {
            break;
        }
    }
    // Draining.
    health.ready.send_replace(false);
}

/// Sets the value; true when it has changed.
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

/// Since when the pool has served no caller.
#[derive(Default)]
struct Stuck {
    served: u64,
    since: Option<Instant>,
}

impl Stuck {
    /// `progress`: how many callers have been served so far, and how many are waiting now (`storage::Probe::progress`).
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

/// Not part of readiness: a full or locked table prevents no request from being served. One query at a time, however
/// long it takes.
async fn watch_outbox(outbox: Outbox, clock: Arc<dyn Clock>, shutdown_requested: &CancellationToken) {
    let meter = global::meter("ordermesh");
    let waiting = meter.i64_gauge("ordermesh.outbox.events").with_description("Events waiting to be sent").build();
    let age = meter
        .f64_gauge("ordermesh.outbox.oldest")
        .with_unit("s")
        .with_description("Age of the oldest waiting event")
        .build();
    let rejected = meter
        .i64_gauge("ordermesh.outbox.refused")
        .with_description("Events that the store has rejected for longer than a day")
        .build();
    while let Some(backlog) = shutdown_requested.run_until_cancelled(outbox.backlog()).await {
        if let Err(error) = &backlog {
            tracing::debug!(target: "ordermesh", %error, "the outbox could not be counted");
        }
        if let Ok(backlog) = backlog {
            let now = clock.now();
            waiting.record(backlog.waiting, &[]);
            age.record(backlog.oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64()), &[]);
            rejected.record(backlog.refused, &[]);
        }
        if timeout(INTERVAL, shutdown_requested.cancelled()).await.is_ok() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stuck_pool_with_a_writable_database_is_not_alive() {
        let mut stuck = Stuck::default();
        assert!(stuck.is_alive(true, (7, 1)), "progress since the last check");
        for _ in 0..2 {
            assert!(stuck.is_alive(true, (7, 1)));
            tokio::time::advance(STUCK_LIMIT / 2).await;
        }
        assert!(!stuck.is_alive(true, (7, 3)), "no progress for the limit");
        assert!(stuck.is_alive(true, (8, 3)), "progress again");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unavailable_database_or_an_idle_pool_is_still_alive() {
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
