//! Keeps one connection to an instance: connects, reconnects when it is lost, and backs off exponentially when that
//! fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kernel::backoff::backoff;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::connect::{Connect, Connected};
use crate::client::endpoint::Endpoint;
use crate::client::rng::Rng;

const BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Waiting calls may cut an instance's backoff short, but not below this: a restarted instance is found immediately, and
/// one that is down is tried at most twenty times a second, however many calls there are.
const MIN_INTERVAL: Duration = Duration::from_millis(50);
/// A connection that ends sooner counts as a failure: the next one backs off.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// What the connections of a target share.
#[derive(Clone)]
pub(crate) struct Reconnect {
    pub(crate) connect: Arc<dyn Connect>,
    pub(crate) rng: Arc<dyn Rng>,
    /// Notified when an instance became ready, or failed to connect.
    pub(crate) changed: Arc<Notify>,
    /// Numbers the connection failures: a call considers those that happened after it began.
    pub(crate) failures: Arc<AtomicU64>,
}

/// Maintains the endpoint's connection `index` until the endpoint is removed.
pub(crate) async fn maintain(endpoint: Arc<Endpoint>, index: usize, reconnect: Reconnect) {
    let mut failures = 0;
    loop {
        let began = Instant::now();
        let connecting = reconnect.connect.connect(endpoint.address());
        match endpoint.removed.run_until_cancelled(connecting).await {
            None => return,
            Some(Ok(connected)) => {
                use_until_closed(&endpoint, index, connected, &reconnect).await;
                failures = if began.elapsed() < STABLE_AFTER { failures + 1 } else { 0 };
            }
            Some(Err(why)) => {
                endpoint.connection_failed(reconnect.failures.fetch_add(1, Ordering::AcqRel), why);
                failures += 1;
                reconnect.changed.notify_waiters();
            }
        }
        if failures > 0 {
            let backoff = backoff(failures, BACKOFF, MAX_BACKOFF, reconnect.rng.fraction());
            let connect_now = async {
                endpoint.connections()[index].connect_now.notified().await;
                sleep_until(began + MIN_INTERVAL).await;
            };
            tokio::select! {
                () = sleep(backoff) => {}
                () = connect_now => {}
                () = endpoint.removed.cancelled() => {}
            }
        }
    }
}

/// Uses a connection until it accepts no more calls.
async fn use_until_closed(endpoint: &Endpoint, index: usize, connected: Connected, reconnect: &Reconnect) {
    let connection = &endpoint.connections()[index];
    let mut until_closed = connected.until_closed;
    endpoint.connection_made(connection, connected.sender);
    reconnect.changed.notify_waiters();
    let is_closed = tokio::select! {
        biased;
        () = &mut until_closed => true,
        () = endpoint.removed.cancelled() => false,
    };
    endpoint.connection_lost(connection);
    if !is_closed {
        // Calls that were sent before continue on it.
        until_closed.await;
    }
}

#[cfg(test)]
mod tests;
