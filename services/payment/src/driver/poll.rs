//! Finds due payments: those of other instances, retries, and those that found no permit.

use std::time::Duration;

use kernel::backoff::full_jitter;
use mesh::Seldom;
use tokio::time::Instant;

use super::{Driver, Permit, Step};

/// The maximum number of payments claimed by one statement.
const MAX_CLAIM: usize = 64;

impl Driver {
    /// Claims due payments and makes one attempt at each, sequentially: for tests that move the clock themselves.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tick(&self) -> Result<Vec<Step>, storage::Error> {
        let count = u32::try_from(MAX_CLAIM).unwrap_or(u32::MAX);
        let mut steps = vec![];
        for payment in self.0.parts.store.claim_due(count, self.lease(), self.longest_wait()).await? {
            let step = self.step(payment).await?;
            if let Step::Settled(settled) = &step {
                self.announce(settled).await;
            }
            steps.push(step);
        }
        Ok(steps)
    }

    /// Frees the leases of an earlier, crashed process of this name. To be called before anything is driven.
    ///
    /// # Errors
    /// The database failed.
    pub async fn recover(&self) -> Result<u64, storage::Error> {
        self.0.parts.store.free(&self.0.parts.options.instance).await
    }

    /// Claims due payments and drives them until shutdown; then waits for the drives in flight and frees the leases, so
    /// that other instances can continue immediately.
    pub async fn poll(self) {
        let parts = &self.0.parts;
        loop {
            if let Err(error) = self.claim_due().await {
                static SELDOM: Seldom = Seldom::new();
                if let Some(since_last_line) = SELDOM.count(Instant::now()) {
                    tracing::warn!(target: "ordermesh", error = ?error, since_last_line, "claiming due payments failed");
                }
            }
            // 0.6 to 1.5 times the interval: instances do not poll in step.
            let pause = full_jitter(1, parts.options.poll_interval, Duration::MAX, self.jitter())
                + parts.options.poll_interval / 2;
            tokio::select! {
                () = parts.shutdown.cancelled() => break,
                () = self.0.work.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        let all = u32::try_from(parts.options.max_drives).unwrap_or(u32::MAX);
        let _drives = self.0.permits.clone().acquire_many_owned(all).await;
        self.0.permits.close();
        if let Err(error) = parts.store.free(&parts.options.instance).await {
            tracing::warn!(target: "ordermesh", error = ?error, "leases not freed; they will expire");
        }
    }

    /// The maximum backoff: a payment in doubt waits until its doubt limit at most.
    fn longest_wait(&self) -> Duration {
        let options = &self.0.parts.options;
        options.backoff_cap.max(options.doubt_limit)
    }

    async fn claim_due(&self) -> Result<(), storage::Error> {
        loop {
            let mut permits: Vec<Permit> = std::iter::from_fn(|| self.permit()).take(MAX_CLAIM).collect();
            let asked = permits.len();
            if asked == 0 {
                return Ok(());
            }
            let count = u32::try_from(asked).unwrap_or(u32::MAX);
            let claimed = self.0.parts.store.claim_due(count, self.lease(), self.longest_wait()).await?;
            let is_all = claimed.len() < asked;
            for (payment, permit) in claimed.into_iter().zip(permits.drain(..)) {
                let driver = self.clone();
                self.0.parts.tasks.spawn(async move { driver.drive(payment, permit).await });
            }
            if is_all {
                return Ok(());
            }
        }
    }
}
