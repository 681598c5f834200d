//! One call, from its beginning to its end, for the statistics of its method and for taps.

use std::sync::Arc;
use std::time::Duration;

use kernel::{Clock, SystemClock};
use parking_lot::Mutex;
use telemetry::Operation;
use tonic::{Code, Status};

use crate::call::caller_class::CallerClass;
use crate::call::wire::Side;
use crate::monitor::Monitor;
use crate::monitor::statistics::CallTable;
use crate::monitor::tap::{CallFacts, TapSide, TappedCall};
use crate::status::reason_of;

/// What the calls of one server or channel have in common.
pub(crate) struct Observer {
    monitor: Monitor,
    side: Side,
    /// The caller on the client's side.
    own: CallerClass,
    /// The service that is called.
    target: &'static str,
    pub(crate) calls: CallTable,
}

impl Observer {
    pub(crate) fn new(monitor: Monitor, side: Side, target: &'static str, calls: CallTable) -> Arc<Self> {
        let own = CallerClass::Service(monitor.service().into());
        Arc::new(Self { monitor, side, own, target, calls })
    }

    /// A call begins. `index` is that of its policy.
    pub(crate) fn begin(self: &Arc<Self>, index: Option<usize>, caller: Option<CallerClass>) -> Observed {
        self.calls.begin(index);
        let details = self.monitor.taps().is_open().then(Arc::default);
        Observed { observer: self.clone(), index, caller, details, attempts: None }
    }
}

/// A client's attempts at a call.
pub(crate) trait Attempts: Send + Sync {
    /// How many there were, and the address of the last one's instance; empty without one.
    fn count_and_last(&self) -> (usize, String);
}

/// What other layers know about a call. Exists only while a tap is open, in the call's extensions.
#[derive(Default)]
pub(crate) struct TapDetails(Mutex<Details>);

#[derive(Clone, Default)]
struct Details {
    /// On the server's side.
    attempt: Option<u32>,
    request_bytes: Option<u64>,
    would_be_denied: bool,
}

impl TapDetails {
    pub(crate) fn set_attempt(&self, attempt: u32) {
        self.0.lock().attempt = Some(attempt);
    }

    pub(crate) fn set_would_be_denied(&self) {
        self.0.lock().would_be_denied = true;
    }

    pub(crate) fn set_request_bytes(&self, bytes: usize) {
        self.0.lock().request_bytes = u64::try_from(bytes).ok();
    }
}

/// How a call ended.
pub(crate) struct End<'a> {
    pub(crate) method: &'static str,
    pub(crate) code: Code,
    pub(crate) took: Duration,
    pub(crate) response_bytes: u64,
    /// `None` unless a tap is open.
    pub(crate) tap: Option<TapEnd<'a>>,
}

/// What only taps need.
pub(crate) struct TapEnd<'a> {
    /// The error, if there is one.
    pub(crate) status: Option<&'a Status>,
    /// `None` if the call is not traced.
    pub(crate) operation: Option<&'a Operation>,
}

/// A call that has begun.
pub(crate) struct Observed {
    observer: Arc<Observer>,
    index: Option<usize>,
    /// `None` until it is known.
    caller: Option<CallerClass>,
    details: Option<Arc<TapDetails>>,
    /// On the client's side.
    attempts: Option<Arc<dyn Attempts>>,
}

impl Observed {
    /// A client's call, with its attempts.
    pub(crate) fn with_attempts(self, attempts: Arc<dyn Attempts>) -> Self {
        Self { attempts: Some(attempts), ..self }
    }

    /// To be put into the call's extensions, if a tap is open.
    pub(crate) fn details(&self) -> Option<&Arc<TapDetails>> {
        self.details.as_ref()
    }

    /// Sets the caller, once it is known; the first one stays.
    pub(crate) fn set_caller(&mut self, caller: impl FnOnce() -> CallerClass) {
        self.caller.get_or_insert_with(caller);
    }

    /// Whether a tap would report it: what only taps need is computed only then.
    pub(crate) fn is_tapped(&self) -> bool {
        self.observer.monitor.taps().is_open()
    }

    pub(crate) fn end(&self, end: End<'_>) {
        let Observer { monitor, side, own, target, calls } = &*self.observer;
        let caller = self.caller.as_ref().unwrap_or(own);
        calls.end(self.index, caller, end.code, end.took);
        let Some(tap) = end.tap else { return };
        let side = match side {
            Side::Server => TapSide::Server,
            Side::Client => TapSide::Client,
        };
        let facts = CallFacts { side, caller, target, method: end.method, code: end.code, latency: end.took };
        monitor.taps().offer(&facts, || {
            let details = self.details.as_ref().map(|details| details.0.lock().clone());
            let Details { attempt, request_bytes, would_be_denied } = details.unwrap_or_default();
            let (attempts, address) = self.attempts.as_ref().map(|attempts| attempts.count_and_last()).unzip();
            TappedCall {
                side,
                end: SystemClock.now(),
                caller: caller.clone(),
                target,
                address: address.unwrap_or_default(),
                method: end.method,
                code: end.code,
                reason: tap.status.and_then(reason_of).unwrap_or_default(),
                latency: end.took,
                attempt: attempts.and_then(|attempts| attempts.try_into().ok()).or(attempt),
                request_bytes,
                would_be_denied,
                response_bytes: end.response_bytes,
                trace_id: tap.operation.map(|operation| operation.traceparent().trace_id()).unwrap_or_default(),
            }
        });
    }
}
