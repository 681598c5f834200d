//! One endpoint of a target: an instance's address, with the connections to it, its load and its circuit breaker.
//! It sends calls; `reconnect` makes its connections.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::uri::{Authority, Scheme};
use http::{Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::SendRequest;
use opentelemetry::KeyValue;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::body::Body;

use crate::body::incoming::incoming;
use crate::call::deadline::GRPC_TIMEOUT;
use crate::call::wire::{AttemptError, Reach, Request, Response, TRACEPARENT};
use crate::client::breaker::Breaker;
use crate::client::load::Load;
use crate::client::metrics::ClientMetrics;
use crate::client::rng::Rng;
use crate::client::subset::Subset;
use crate::monitor::statistics::AttemptStatistics;
use crate::status::{CONNECTION_LOST, mesh_status};

const USER_AGENT: http::HeaderValue = http::HeaderValue::from_static(concat!("mesh/", env!("CARGO_PKG_VERSION")));

/// The result of sending a request on a connection.
pub(crate) type SendResult = Result<http::Response<Incoming>, TrySendError<Request>>;

/// Why a request got no response.
pub(crate) enum Failure {
    /// It was not sent: another instance may take it.
    NotSent(Box<Request>, String),
    /// It was sent, and no response arrived.
    NoResponse(AttemptError),
}

/// One of the connections to an instance.
#[derive(Default)]
pub(crate) struct Connection {
    sender: Mutex<Option<SendRequest<Body>>>,
    /// Whether the peer's dynamic table of HPACK has the names `traceparent` and `grpc-timeout`.
    is_primed: AtomicBool,
    /// Notified when a call needs the connection: the next connection attempt begins before the backoff has elapsed.
    pub(crate) connect_now: Notify,
}

/// One endpoint of a target.
pub(crate) struct Endpoint {
    address: String,
    authority: Option<Authority>,
    scheme: Scheme,
    connections: Box<[Connection]>,
    /// For round robin.
    next_connection: AtomicUsize,
    /// The number of open connections.
    connected: AtomicUsize,
    /// The sequence number of the last connection failure, and its message.
    last_failure: Mutex<Option<(u64, String)>>,
    /// Cancelled when the instance is removed: no new calls, open streams continue.
    pub(crate) removed: CancellationToken,
    pub(crate) load: Load,
    pub(crate) breaker: Breaker,
    pub(crate) attempts: Mutex<AttemptStatistics>,
    pub(crate) metrics: Arc<ClientMetrics>,
    pub(crate) attributes: Box<[KeyValue]>,
}

/// The configuration that all endpoints of a target share.
pub(crate) struct EndpointConfig {
    pub(crate) connections: usize,
    pub(crate) subset: Subset,
    pub(crate) has_tls: bool,
    /// When the channel was created. All its statistics windows count from then, so they are equally long.
    pub(crate) created: Instant,
    /// Whether metrics have `server.address` and `server.port`: only where the number of addresses is bounded.
    pub(crate) has_address_attributes: bool,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) metrics: Arc<ClientMetrics>,
}

impl Endpoint {
    pub(crate) fn new(address: String, config: &EndpointConfig, removed: CancellationToken) -> Self {
        let authority: Option<Authority> = address.parse().ok();
        Self {
            attributes: config.metrics.attributes(authority.as_ref().filter(|_| config.has_address_attributes)),
            authority,
            address,
            scheme: if config.has_tls { Scheme::HTTPS } else { Scheme::HTTP },
            connections: (0..config.connections.max(1)).map(|_| Connection::default()).collect(),
            next_connection: AtomicUsize::new(0),
            connected: AtomicUsize::new(0),
            last_failure: Mutex::new(None),
            removed,
            load: Load::new(),
            breaker: Breaker::new(config.rng.clone()),
            attempts: Mutex::new(AttemptStatistics::new(config.created)),
            metrics: config.metrics.clone(),
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    pub(crate) fn connections(&self) -> &[Connection] {
        &self.connections
    }

    /// Whether it has a connection.
    pub(crate) fn is_ready(&self) -> bool {
        self.connected.load(Ordering::Acquire) > 0
    }

    /// The last connection failure, if it has this number or a later one.
    pub(crate) fn failure_since(&self, since: u64) -> Option<String> {
        lock(&self.last_failure).as_ref().filter(|(number, _)| *number >= since).map(|(_, why)| why.clone())
    }

    /// Ends the connections' backoff early, because a call needs one.
    pub(crate) fn request_connection(&self) {
        self.connections.iter().for_each(|connection| connection.connect_now.notify_one());
    }

    pub(crate) fn connection_failed(&self, number: u64, why: String) {
        *lock(&self.last_failure) = Some((number, why));
    }

    pub(crate) fn connection_made(&self, connection: &Connection, sender: SendRequest<Body>) {
        connection.is_primed.store(false, Ordering::Relaxed);
        if lock(&connection.sender).replace(sender).is_none() && self.connected.fetch_add(1, Ordering::AcqRel) == 0 {
            self.metrics.ready(&self.attributes, 1);
        }
    }

    /// The connection accepts no more calls.
    pub(crate) fn connection_lost(&self, connection: &Connection) {
        self.clear(connection, |_| true);
    }

    fn clear(&self, connection: &Connection, is_lost: impl FnOnce(&SendRequest<Body>) -> bool) {
        let taken = lock(&connection.sender).take_if(|sender| is_lost(sender));
        if taken.is_some() && self.connected.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.metrics.ready(&self.attributes, -1);
        }
    }

    /// Sends a request on one of the connections: returns its index, and the future to await.
    pub(crate) fn send(
        &self,
        mut request: Request,
    ) -> Result<(usize, impl Future<Output = SendResult> + Send + use<>), Failure> {
        self.set_scheme_and_authority(&mut request);
        let first = if self.connections.len() == 1 { 0 } else { self.next_connection.fetch_add(1, Ordering::Relaxed) };
        for step in 0..self.connections.len() {
            let index = (first + step) % self.connections.len();
            if let Some(sender) = lock(&self.connections[index].sender).as_mut() {
                prime_header_names(&self.connections[index].is_primed, &mut request);
                return Ok((index, sender.try_send_request(request)));
            }
        }
        Err(Failure::NotSent(Box::new(request), format!("{}: not connected", self.address)))
    }

    /// The outcome of a request that was sent on a connection.
    pub(crate) fn outcome(&self, index: usize, sent: SendResult) -> Result<Response, Failure> {
        let mut error = match sent {
            Ok(response) => return Ok(response.map(|body| incoming(body, |error| attempt_error(error).status))),
            Err(error) => error,
        };
        Err(match error.take_message() {
            Some(unsent) => {
                // The task that maintains the connection will notice soon, or has already replaced it.
                self.clear(&self.connections[index], SendRequest::is_closed);
                Failure::NotSent(Box::new(unsent), format!("{}: {}", self.address, error.error()))
            }
            None => Failure::NoResponse(attempt_error(error.error())),
        })
    }

    /// HTTP/2 needs `:scheme` and `:authority`; a generated client sets only the path.
    fn set_scheme_and_authority(&self, request: &mut Request) {
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
        if self.breaker.is_open() {
            self.metrics.breakers_open(&self.attributes, -1);
        }
    }
}

/// Primes HPACK's dynamic table: a never-indexed value is written with its header's full name, unless the table has the
/// name. So the first value on each connection is sent as indexed. (Only the first: each further entry of a name makes
/// the encoder's lookups slower.)
fn prime_header_names(is_primed: &AtomicBool, request: &mut Request) {
    if is_primed.load(Ordering::Relaxed) || is_primed.swap(true, Ordering::Relaxed) {
        return;
    }
    for name in [TRACEPARENT, GRPC_TIMEOUT] {
        request.headers_mut().get_mut(name).into_iter().for_each(|value| value.set_sensitive(false));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// The status of a reset stream or a lost connection. A subset of gRPC's table of HTTP/2 error codes: any other code is
/// UNAVAILABLE.
fn attempt_error(error: &hyper::Error) -> AttemptError {
    let http2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    // HTTP/2 guarantees that streams above GOAWAY's last stream id, and refused streams, were not processed.
    let is_refused = http2.is_some_and(|error| {
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
    let status = mesh_status(code, CONNECTION_LOST, format!("the stream or its connection failed: {error}"));
    AttemptError { status, reach: if is_refused { Reach::Refused } else { Reach::Unknown } }
}

#[cfg(test)]
mod tests;
