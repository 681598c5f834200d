//! A hand-written service: strings in, strings out; the text selects the behaviour.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream, StreamExt};
use mesh::{Access, Channel, ErrorStatus, Idempotency, MethodPolicy, PolicyTable, ServiceError};
use tokio::sync::{Notify, Semaphore};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

pub(crate) const SAY: &str = "/test.v1.Echo/Say";
/// May be retried.
pub(crate) const READ: &str = "/test.v1.Echo/Read";
pub(crate) const CUSTOMER: &str = "/test.v1.Echo/SayAsCustomer";
pub(crate) const OPERATOR: &str = "/test.v1.Echo/SayAsOperator";
pub(crate) const SERVICE: &str = "/test.v1.Echo/SayAsService";
pub(crate) const STREAM: &str = "/test.v1.Echo/Stream";
/// In the routes, but in no policy.
pub(crate) const UNLISTED: &str = "/test.v1.Echo/Unlisted";

const fn method(path: &'static str, allow: &'static [Access], callers: &'static [&'static str]) -> MethodPolicy {
    MethodPolicy {
        path,
        event: Some("test_event"),
        no_event: "",
        allow,
        callers,
        timeout: Some(Duration::from_secs(5)),
        idempotency: Idempotency::Unknown,
        streaming: false,
        max_message_bytes: None,
        limits: &[],
        infrastructure: false,
    }
}

pub(crate) const POLICIES: PolicyTable = PolicyTable(&[
    MethodPolicy { idempotency: Idempotency::NoSideEffects, ..method(READ, &[Access::Public], &[]) },
    method(SAY, &[Access::Public], &[]),
    method(CUSTOMER, &[Access::Customer], &[]),
    method(OPERATOR, &[Access::Operator], &[]),
    method(SERVICE, &[Access::Service], &["order"]),
    MethodPolicy { timeout: None, streaming: true, event: None, ..method(STREAM, &[Access::Public], &[]) },
]);

/// The service, and what a test observes of it.
#[derive(Clone)]
pub(crate) struct Echo {
    /// The number of handler invocations.
    pub(crate) handlers_started: Arc<AtomicUsize>,
    /// Notified when a "hold" handler begins, and when it is dropped.
    pub(crate) holding: Arc<Notify>,
    pub(crate) dropped: Arc<Notify>,
    /// The code that every call fails with; 0: normal behaviour.
    pub(crate) failing: Arc<AtomicI32>,
    /// Releases the "hold" handlers.
    pub(crate) release: Arc<Semaphore>,
    /// The target of "forward ...".
    pub(crate) next: Option<Channel>,
}

impl Echo {
    pub(crate) fn new(next: Option<Channel>) -> Self {
        let (handlers_started, holding, dropped, failing) = Default::default();
        Self { handlers_started, holding, dropped, failing, release: Arc::new(Semaphore::new(0)), next }
    }
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the shop is closed")]
struct Closed;

impl ServiceError for Closed {
    fn error_status(&self) -> ErrorStatus<'_> {
        ErrorStatus::new(Code::FailedPrecondition, "CLOSED")
    }
}

impl Echo {
    async fn say(self, request: Request<String>) -> Result<Response<String>, Status> {
        self.handlers_started.fetch_add(1, Ordering::SeqCst);
        let failing = Code::from_i32(self.failing.load(Ordering::SeqCst));
        if failing != Code::Ok {
            return Err(Status::new(failing, "as configured"));
        }
        let extensions = request.extensions();
        let text = request.get_ref().clone();
        let response = match text.as_str() {
            "panic" => panic!("at the disco"),
            "reject" => return Err(mesh::status("test", &Closed)),
            "bare" => return Err(Status::not_found("nothing here")),
            "time left" => mesh::time_left().map_or("none".into(), |left| left.as_micros().to_string()),
            "caller" => format!("{:?}", mesh::caller(extensions)),
            "peer" => mesh::peer(extensions).map_or("none".into(), |peer| peer.ip().to_string()),
            "span" => mesh::operation(extensions).traceparent().to_string(),
            "metadata" => {
                let keys = request.metadata().keys();
                let mut names: Vec<_> = keys.map(|key| format!("{key:?}").replace('"', "")).collect();
                names.sort();
                names.join(" ")
            }
            "traceparent" | "tracestate" | "baggage" => {
                let values = request.metadata().get_all(text.as_str()).iter();
                values.map(|value| value.to_str().unwrap_or("binary")).collect::<Vec<_>>().join("|")
            }
            "hold" => {
                let _notify = NotifyOnDrop(self.dropped.clone());
                self.holding.notify_one();
                let _permit = self.release.acquire().await;
                "released".into()
            }
            other => match (other.strip_prefix("forward "), &self.next) {
                (Some(text), Some(next)) => match text.strip_prefix("read ") {
                    Some(text) => crate::world::say(next, READ, text).await?,
                    None => crate::world::say(next, SAY, text).await?,
                },
                _ => other.to_owned(),
            },
        };
        Ok(Response::new(response))
    }

    async fn stream(self, request: Request<String>) -> Result<Response<Texts>, Status> {
        self.handlers_started.fetch_add(1, Ordering::SeqCst);
        let first = stream::iter([Ok("one".to_owned()), Ok("two".to_owned())]);
        let texts: Texts = match request.get_ref().as_str() {
            "break" => first.chain(stream::iter([Err(Status::data_loss("the middle is missing"))])).boxed(),
            "forever" => first.chain(stream::pending()).boxed(),
            _ => first.boxed(),
        };
        Ok(Response::new(texts))
    }
}

pub(crate) type Texts = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

struct Unary(Echo);

impl UnaryService<String> for Unary {
    type Response = String;
    type Future = BoxFuture<'static, Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        Box::pin(self.0.clone().say(request))
    }
}

struct Streamed(Echo);

impl ServerStreamingService<String> for Streamed {
    type Response = String;
    type ResponseStream = Texts;
    type Future = BoxFuture<'static, Result<Response<Texts>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        Box::pin(self.0.clone().stream(request))
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "test.v1.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::<String, String>::default());
            Ok(match request.uri().path() {
                STREAM => grpc.server_streaming(Streamed(echo), request).await,
                SAY | READ | CUSTOMER | OPERATOR | SERVICE | UNLISTED => grpc.unary(Unary(echo), request).await,
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}
