//! Taps: calls as they end, each offered to all open taps. A tap never delays a call: calls that do not fit into its
//! buffer are dropped and counted, and a tap that is not read is closed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use kernel::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Code;

use crate::call::caller_class::CallerClass;

/// Open taps of an instance.
const MAX_TAPS: usize = 16;
/// The size of a tap's buffer, in calls.
const MAX_WAITING: usize = 1_024;
/// A tap whose buffer is full for this long counts as not read.
const CLOSE_AFTER: Duration = Duration::from_secs(10);

/// The side of a call that reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TapSide {
    /// The instance that served it.
    Server,
    /// The instance that made it.
    Client,
}

/// A call that has ended. Without any identifier of a user, without messages and metadata.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TappedCall {
    /// The side that reports it.
    pub side: TapSide,
    /// When it ended.
    pub end: Timestamp,
    /// The caller.
    pub caller: CallerClass,
    /// The service that was called.
    pub target: &'static str,
    /// The address of the instance that was called last; on the server's side empty.
    pub address: String,
    /// For example `order.v1.OrderService/CreateOrder`.
    pub method: &'static str,
    /// Its status code.
    pub code: Code,
    /// The reason of its ErrorInfo, if it has one.
    pub reason: String,
    /// From the beginning to the end of the response.
    pub latency: Duration,
    /// On the client's side how many attempts it took; on the server's the number of this attempt, `None` if the tap was opened
    /// after the call had begun.
    pub attempt: Option<u32>,
    /// The request's bytes with gRPC's framing, if known.
    pub request_bytes: Option<u64>,
    /// Whether the traffic policy's audited callers would not admit it.
    pub would_be_denied: bool,
    /// The response's bytes with gRPC's framing.
    pub response_bytes: u64,
    /// The trace, if the call is traced.
    pub trace_id: String,
}

/// Which calls a tap reports: those that match every criterion. An empty list matches all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TapFilter {
    /// Only this side.
    pub side: Option<TapSide>,
    /// Only these callers: `anonymous`, `customer`, `operator`, or services.
    pub callers: Vec<String>,
    /// Only calls of these services.
    pub targets: Vec<String>,
    /// Only methods whose full names contain one of these.
    pub methods: Vec<String>,
    /// Only these status codes.
    pub codes: Vec<Code>,
    /// Only calls at least this long.
    pub min_latency: Duration,
}

/// The properties of a call that filters compare.
pub(crate) struct CallFacts<'a> {
    pub(crate) side: TapSide,
    pub(crate) caller: &'a CallerClass,
    pub(crate) target: &'static str,
    pub(crate) method: &'static str,
    pub(crate) code: Code,
    pub(crate) latency: Duration,
}

impl TapFilter {
    fn matches(&self, call: &CallFacts<'_>) -> bool {
        let among = |names: &[String], name: &str| names.is_empty() || names.iter().any(|each| each == name);
        self.side.is_none_or(|side| side == call.side)
            && call.latency >= self.min_latency
            && (self.codes.is_empty() || self.codes.contains(&call.code))
            && among(&self.callers, call.caller.name())
            && among(&self.targets, call.target)
            && (self.methods.is_empty() || self.methods.iter().any(|part| call.method.contains(part.as_str())))
    }
}

/// The instance's limit of open taps is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{MAX_TAPS} taps are open at this instance, which is its limit")]
pub struct TooManyTaps;

/// The tap was not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the tap was not read for {} s and is closed; {dropped} calls were dropped", CLOSE_AFTER.as_secs())]
pub struct TapNotRead {
    /// Calls that matched and were not reported.
    pub dropped: u64,
}

/// The taps of an instance.
#[derive(Default)]
pub(crate) struct Taps {
    /// Read by each call: whether any tap is open.
    count: AtomicUsize,
    open: Mutex<Vec<Entry>>,
}

struct Entry {
    filter: TapFilter,
    to: mpsc::Sender<TappedCall>,
    dropped: Arc<AtomicU64>,
    full_since: Option<Instant>,
}

impl Entry {
    /// Offers a call that matches; `false`: the tap is to be closed.
    fn offer(&mut self, call: &TappedCall, now: Instant) -> bool {
        match self.to.try_send(call.clone()) {
            Ok(()) => {
                self.full_since = None;
                true
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                now.saturating_duration_since(*self.full_since.get_or_insert(now)) < CLOSE_AFTER
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

impl Taps {
    pub(crate) fn is_open(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn open(self: &Arc<Self>, filter: TapFilter) -> Result<Tap, TooManyTaps> {
        let (to, calls) = mpsc::channel(MAX_WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut open = self.open.lock();
        open.retain(|entry| !entry.to.is_closed());
        if open.len() >= MAX_TAPS {
            return Err(TooManyTaps);
        }
        open.push(Entry { filter, to, dropped: dropped.clone(), full_since: None });
        self.count.store(open.len(), Ordering::Relaxed);
        Ok(Tap { calls, dropped, taps: self.clone() })
    }

    /// Offers a call to the taps that it matches. It is built only if there is one.
    pub(crate) fn offer(&self, facts: &CallFacts<'_>, build: impl FnOnce() -> TappedCall) {
        let now = Instant::now();
        let mut open = self.open.lock();
        if !open.iter().any(|entry| entry.filter.matches(facts)) {
            return;
        }
        let call = build();
        open.retain_mut(|entry| !entry.filter.matches(facts) || entry.offer(&call, now));
        self.count.store(open.len(), Ordering::Relaxed);
    }

    fn close_abandoned(&self) {
        let mut open = self.open.lock();
        open.retain(|entry| !entry.to.is_closed());
        self.count.store(open.len(), Ordering::Relaxed);
    }
}

/// An open tap. Closed when it is dropped.
pub struct Tap {
    calls: mpsc::Receiver<TappedCall>,
    dropped: Arc<AtomicU64>,
    taps: Arc<Taps>,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").finish_non_exhaustive()
    }
}

impl Tap {
    /// The next call, and how many calls were dropped until now.
    ///
    /// # Errors
    /// The tap was not read, and is closed.
    pub async fn next(&mut self) -> Result<(TappedCall, u64), TapNotRead> {
        let next = self.calls.recv().await;
        let dropped = self.dropped.load(Ordering::Relaxed);
        next.map(|call| (call, dropped)).ok_or(TapNotRead { dropped })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.calls.close();
        self.taps.close_abandoned();
    }
}

#[cfg(test)]
mod tests;
