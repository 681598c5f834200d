//! One address, one HTTP/2 connection: connects when it is needed, and again when the connection is gone.

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{Uri, header};
use http_body_util::BodyExt;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use telemetry::Operation;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::status::mesh_status;
use crate::wire::{Request, Response};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer may list a hundred field violations, in one header.
const MAX_HEADER_LIST_BYTES: u32 = 256 * 1_024;
const USER_AGENT: http::HeaderValue = http::HeaderValue::from_static(concat!("mesh/", env!("CARGO_PKG_VERSION")));

/// How a request came to nothing.
pub(crate) enum Failure {
    /// It never left: another address may have it.
    NotSent(Box<Request>, String),
    /// It left, and no answer came: it may have been served.
    Lost(Status),
}

/// One address of a target.
pub(crate) struct Endpoint {
    address: String,
    authority: Option<Authority>,
    connection: Mutex<Option<SendRequest<Body>>>,
    /// Held while connecting, so that one connects for all; when that last failed, and how.
    connecting: tokio::sync::Mutex<Option<(Instant, String)>>,
}

impl Endpoint {
    pub(crate) fn new(address: String) -> Self {
        let authority = address.parse().ok();
        Self { address, authority, connection: Mutex::default(), connecting: tokio::sync::Mutex::new(None) }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) async fn send(&self, mut request: Request) -> Result<Response, Failure> {
        let mut connection = match self.connection().await {
            Ok(connection) => connection,
            Err(why) => return Err(Failure::NotSent(Box::new(request), why)),
        };
        if let Some(operation) = request.extensions().get::<Operation>() {
            self.tell(operation);
        }
        self.address_request(&mut request);
        match connection.try_send_request(request).await {
            Ok(response) => Ok(response.map(|body| Body::new(body.map_err(|error| lost(&error))))),
            Err(mut error) => match error.take_message() {
                Some(request) => Err(Failure::NotSent(Box::new(request), error.error().to_string())),
                None => Err(Failure::Lost(lost(error.error()))),
            },
        }
    }

    fn tell(&self, operation: &Operation) {
        let Some(authority) = &self.authority else { return };
        operation.set_on_span("server.address", authority.host().to_owned());
        if let Some(port) = authority.port_u16() {
            operation.set_on_span("server.port", i64::from(port));
        }
    }

    /// HTTP/2 wants `:scheme` and `:authority`; a generated client gives a path alone.
    fn address_request(&self, request: &mut Request) {
        let mut parts = request.uri().clone().into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = self.authority.clone();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        request.headers_mut().entry(header::USER_AGENT).or_insert(USER_AGENT);
    }

    fn live(&self) -> Option<SendRequest<Body>> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.as_ref().is_some_and(SendRequest::is_closed) {
            *connection = None;
        }
        connection.clone()
    }

    async fn connection(&self) -> Result<SendRequest<Body>, String> {
        if let Some(live) = self.live() {
            return Ok(live);
        }
        let came = Instant::now();
        let mut last_failure = self.connecting.lock().await;
        if let Some(live) = self.live() {
            return Ok(live);
        }
        // Somebody tried while we waited for our turn: a dead address costs one timeout, not one per call.
        if let Some((when, why)) = last_failure.as_ref()
            && *when >= came
        {
            return Err(why.clone());
        }
        match self.connect().await {
            Ok(made) => {
                *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(made.clone());
                *last_failure = None;
                Ok(made)
            }
            Err(why) => {
                *last_failure = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Body>, String> {
        let connect = async {
            let stream = TcpStream::connect(&self.address).await.map_err(|error| error.to_string())?;
            // gRPC's frames are small and waited for: filling a packet only adds latency.
            let _ = stream.set_nodelay(true);
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
                .max_header_list_size(MAX_HEADER_LIST_BYTES)
                .handshake::<_, Body>(TokioIo::new(stream))
                .await
                .map_err(|error| error.to_string())
        };
        let timed = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
        let (sender, connection) = timed.map_err(|_| "connecting took more than a second".to_owned())??;
        let address = self.address.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(target: "ordermesh", %address, %error, "a connection ended badly");
            }
        });
        Ok(sender)
    }
}

/// What a broken stream or connection means (gRPC's table of HTTP/2 errors).
fn lost(error: &hyper::Error) -> Status {
    let reset = error.source().and_then(|source| source.downcast_ref::<h2::Error>()).filter(|error| error.is_reset());
    let code = match reset.and_then(h2::Error::reason) {
        Some(h2::Reason::CANCEL) => Code::Cancelled,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(h2::Reason::INTERNAL_ERROR | h2::Reason::PROTOCOL_ERROR | h2::Reason::FLOW_CONTROL_ERROR) => {
            Code::Internal
        }
        _ => Code::Unavailable,
    };
    mesh_status(code, "CONNECTION_LOST", format!("the connection was lost: {error}"))
}
