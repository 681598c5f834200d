//! One instance of a target: its address, its connections, how busy it is, and what its breaker says.
//! It sends calls; `keeper` makes its connections.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::uri::{Authority, Scheme};
use http::{Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::SendRequest;
use opentelemetry::KeyValue;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::body::Body;

use crate::breaker::Breaker;
use crate::chance::Chance;
use crate::client_metrics::ClientMetrics;
use crate::deadline::GRPC_TIMEOUT;
use crate::incoming::incoming;
use crate::load::Load;
use crate::status::{CONNECTION_LOST, mesh_status};
use crate::wire::{NoAnswer, Reach, Request, Response, TRACEPARENT};

const USER_AGENT: http::HeaderValue = http::HeaderValue::from_static(concat!("mesh/", env!("CARGO_PKG_VERSION")));

/// What a connection makes of a request.
pub(crate) type Sent = Result<http::Response<Incoming>, TrySendError<Request>>;

/// How a request came to nothing.
pub(crate) enum Failure {
    /// It never left: another instance may have it.
    NotSent(Box<Request>, String),
    /// It left, and no answer came.
    Lost(NoAnswer),
}

/// One of the connections to an instance.
#[derive(Default)]
pub(crate) struct Slot {
    sender: Mutex<Option<SendRequest<Body>>>,
    /// Does the connection's peer know the names of our headers?
    is_taught: AtomicBool,
    /// Somebody would like it to be connected now.
    pub(crate) wanted: Notify,
}

/// One instance of a target.
pub(crate) struct Endpoint {
    address: String,
    authority: Option<Authority>,
    scheme: Scheme,
    slots: Box<[Slot]>,
    turn: AtomicUsize,
    connected: AtomicUsize,
    /// The number of the last failure to connect, and what it was.
    last_failure: Mutex<Option<(u64, String)>>,
    /// Cancelled when it is no instance any more: no new calls, streams end by themselves.
    pub(crate) gone: CancellationToken,
    pub(crate) load: Load,
    pub(crate) breaker: Breaker,
    pub(crate) metrics: Arc<ClientMetrics>,
    pub(crate) labels: Box<[KeyValue]>,
}

/// What all endpoints of a target have in common.
pub(crate) struct EndpointConfig {
    pub(crate) connections: usize,
    pub(crate) has_tls: bool,
    /// Are there so few addresses that metrics may name them?
    pub(crate) is_bounded: bool,
    pub(crate) chance: Arc<dyn Chance>,
    pub(crate) metrics: Arc<ClientMetrics>,
}

impl Endpoint {
    pub(crate) fn new(address: String, config: &EndpointConfig, gone: CancellationToken) -> Self {
        let authority: Option<Authority> = address.parse().ok();
        Self {
            labels: config.metrics.labels(authority.as_ref().filter(|_| config.is_bounded)),
            authority,
            address,
            scheme: if config.has_tls { Scheme::HTTPS } else { Scheme::HTTP },
            slots: (0..config.connections.max(1)).map(|_| Slot::default()).collect(),
            turn: AtomicUsize::new(0),
            connected: AtomicUsize::new(0),
            last_failure: Mutex::new(None),
            gone,
            load: Load::new(),
            breaker: Breaker::new(config.chance.clone()),
            metrics: config.metrics.clone(),
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Has it a connection?
    pub(crate) fn is_ready(&self) -> bool {
        self.connected.load(Ordering::Acquire) > 0
    }

    /// How connecting failed last, if that has this number or a later one.
    pub(crate) fn failed_since(&self, since: u64) -> Option<String> {
        lock(&self.last_failure).as_ref().filter(|(number, _)| *number >= since).map(|(_, why)| why.clone())
    }

    /// A call is waiting for it.
    pub(crate) fn want(&self) {
        self.slots.iter().for_each(|slot| slot.wanted.notify_one());
    }

    pub(crate) fn connection_failed(&self, number: u64, why: String) {
        *lock(&self.last_failure) = Some((number, why));
    }

    pub(crate) fn connection_made(&self, slot: &Slot, sender: SendRequest<Body>) {
        slot.is_taught.store(false, Ordering::Relaxed);
        if lock(&slot.sender).replace(sender).is_none() && self.connected.fetch_add(1, Ordering::AcqRel) == 0 {
            self.metrics.ready(&self.labels, 1);
        }
    }

    /// The slot's connection takes no more calls.
    pub(crate) fn connection_lost(&self, slot: &Slot) {
        self.clear(slot, |_| true);
    }

    fn clear(&self, slot: &Slot, is_lost: impl FnOnce(&SendRequest<Body>) -> bool) {
        let taken = lock(&slot.sender).take_if(|sender| is_lost(sender));
        if taken.is_some() && self.connected.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.metrics.ready(&self.labels, -1);
        }
    }

    /// Gives a request to one of the connections, now: its number, and what is to be waited for.
    pub(crate) fn send(
        &self,
        mut request: Request,
    ) -> Result<(usize, impl Future<Output = Sent> + Send + use<>), Failure> {
        self.address_request(&mut request);
        let first = if self.slots.len() == 1 { 0 } else { self.turn.fetch_add(1, Ordering::Relaxed) };
        for step in 0..self.slots.len() {
            let slot = (first + step) % self.slots.len();
            if let Some(sender) = lock(&self.slots[slot].sender).as_mut() {
                teach_names(&self.slots[slot].is_taught, &mut request);
                return Ok((slot, sender.try_send_request(request)));
            }
        }
        Err(Failure::NotSent(Box::new(request), format!("{}: not connected", self.address)))
    }

    /// What became of a request that was given to a connection.
    pub(crate) fn outcome(&self, slot: usize, sent: Sent) -> Result<Response, Failure> {
        let mut error = match sent {
            Ok(response) => return Ok(response.map(|body| incoming(body, |error| lost(error).status))),
            Err(error) => error,
        };
        Err(match error.take_message() {
            Some(unsent) => {
                // Its keeper sees it a moment later, or has put a new one there already.
                self.clear(&self.slots[slot], SendRequest::is_closed);
                Failure::NotSent(Box::new(unsent), format!("{}: {}", self.address, error.error()))
            }
            None => Failure::Lost(lost(error.error())),
        })
    }

    /// HTTP/2 wants `:scheme` and `:authority`; a generated client gives a path alone.
    fn address_request(&self, request: &mut Request) {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = self.authority.clone();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        request.headers_mut().entry(header::USER_AGENT).or_insert(USER_AGENT);
    }

    #[cfg(test)]
    pub(crate) fn pretend_ready(&self, is_ready: bool) {
        self.connected.store(usize::from(is_ready), Ordering::Release);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if self.breaker.is_shut() {
            self.metrics.shut(&self.labels, -1);
        }
    }
}

/// A value that is never to be in HPACK's table is written with its header's name in full, unless the name is there: so it
/// is put there with the first value of a connection. (Not again: a table is searched through all values of a name.)
fn teach_names(is_taught: &AtomicBool, request: &mut Request) {
    if is_taught.load(Ordering::Relaxed) || is_taught.swap(true, Ordering::Relaxed) {
        return;
    }
    for name in [TRACEPARENT, GRPC_TIMEOUT] {
        request.headers_mut().get_mut(name).into_iter().for_each(|value| value.set_sensitive(false));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a broken stream or connection means (gRPC's table of HTTP/2 errors).
fn lost(error: &hyper::Error) -> NoAnswer {
    let http2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    // Streams that the peer's GOAWAY leaves out, and refused ones, were not begun: HTTP/2 promises it.
    let not_begun = http2.is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away() || error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
    });
    let code = match http2.filter(|error| error.is_reset()).and_then(h2::Error::reason) {
        Some(h2::Reason::CANCEL) => Code::Cancelled,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(h2::Reason::INTERNAL_ERROR | h2::Reason::PROTOCOL_ERROR | h2::Reason::FLOW_CONTROL_ERROR) => {
            Code::Internal
        }
        _ => Code::Unavailable,
    };
    let status = mesh_status(code, CONNECTION_LOST, format!("the connection was lost: {error}"));
    NoAnswer { status, reach: if not_begun { Reach::NotBegun } else { Reach::Unknown } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{SECRET_HEADER, once_only};
    use http::HeaderValue;

    #[test]
    fn names_are_taught_with_the_first_request_alone_and_a_secret_never() {
        let is_taught = AtomicBool::new(false);
        let kept_out = || {
            let names = [TRACEPARENT, GRPC_TIMEOUT, SECRET_HEADER];
            let mut request = Request::new(Body::empty());
            for name in &names {
                request.headers_mut().insert(name, once_only(HeaderValue::from_static("x")));
            }
            teach_names(&is_taught, &mut request);
            names.map(|name| request.headers()[name].is_sensitive())
        };
        assert_eq!(kept_out(), [false, false, true]);
        assert_eq!(kept_out(), [true, true, true]);
    }
}
