//! Deletes expired sessions.

use std::sync::Arc;
use std::time::Duration;

use kernel::Clock;
use kernel::error::chain;
use tokio_util::sync::CancellationToken;

use crate::store::Store;

const INTERVAL: Duration = Duration::from_secs(600);
/// The size of a batch, which is one transaction.
const MAX_BATCH: u32 = 1_000;

/// Deletes at every interval until `stop`.
pub(crate) async fn run(store: Store, clock: Arc<dyn Clock>, stop: CancellationToken) {
    while tokio::time::timeout(INTERVAL, stop.cancelled()).await.is_err() {
        loop {
            match store.delete_expired_sessions(clock.now(), MAX_BATCH).await {
                Ok(deleted) if deleted == u64::from(MAX_BATCH) && !stop.is_cancelled() => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(target: "ordermesh", "expired sessions could not be deleted: {}", chain(&error));
                    break;
                }
            }
        }
    }
}
