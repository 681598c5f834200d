//! Admission by concurrency: a call takes a permit, and keeps it to the end of its answer's body. Nobody waits for one:
//! without a free permit the call is refused at once, and another instance may serve it. Streams, which are long and
//! mostly idle, have a limit of their own. So has the infrastructure (health, reflection): it never competes with calls.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::holding::hold;
use crate::policy::PolicyTable;
use crate::record::NoEvent;
use crate::refusals::{Cause, Refusals};
use crate::status::mesh_status_retry;
use crate::wire::{Answer, Request, Response, find, is_infrastructure, respond};

/// Health and reflection cost little, but their streams are open to strangers and never end.
const MAX_INFRASTRUCTURE_CALLS: usize = 1_024;
/// Another instance may take it at once; this one, hardly sooner.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// So many at once.
#[derive(Clone, Debug)]
pub(crate) struct Permits {
    pub(crate) limit: usize,
    semaphore: Arc<Semaphore>,
}

impl Permits {
    fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self { limit, semaphore: Arc::new(Semaphore::new(limit)) }
    }

    fn take(&self) -> Option<OwnedSemaphorePermit> {
        self.semaphore.clone().try_acquire_owned().ok()
    }

    pub(crate) fn used(&self) -> usize {
        self.limit - self.semaphore.available_permits()
    }
}

/// All the permits of a server.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(crate) calls: Permits,
    pub(crate) streams: Permits,
    infrastructure: Permits,
}

impl Admission {
    pub(crate) fn new(max_concurrency: usize, max_streams: usize) -> Self {
        Self {
            calls: Permits::new(max_concurrency),
            streams: Permits::new(max_streams),
            infrastructure: Permits::new(MAX_INFRASTRUCTURE_CALLS),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Concurrency<S> {
    inner: S,
    shared: Arc<Shared>,
}

struct Shared {
    policies: PolicyTable,
    admission: Admission,
    refusals: Arc<Refusals>,
}

pub(crate) fn concurrency<S>(
    policies: PolicyTable,
    admission: Admission,
    refusals: Arc<Refusals>,
) -> impl Layer<S, Service = Concurrency<S>> + Clone {
    let shared = Arc::new(Shared { policies, admission, refusals });
    layer_fn(move |inner| Concurrency { inner, shared: shared.clone() })
}

impl<S> Service<Request> for Concurrency<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Shared { policies, admission, refusals } = &*self.shared;
        let (permits, cause) = if is_infrastructure(request.uri().path()) {
            (&admission.infrastructure, Cause::Streams)
        } else if find(*policies, &request).is_some_and(|policy| policy.streaming) {
            (&admission.streams, Cause::Streams)
        } else {
            (&admission.calls, Cause::Concurrency)
        };
        let Some(permit) = permits.take() else {
            refusals.count(cause);
            return Box::pin(std::future::ready(Ok(overloaded())));
        };
        let work = self.inner.call(request);
        Box::pin(async move {
            // In the future until there is a response: a call that is dropped gives its permit back too.
            let permit = permit;
            Ok(hold(work.await?, permit))
        })
    }
}

/// Made once: under overload, refusing is most of the work.
fn overloaded() -> Response {
    static STATUS: LazyLock<Status> = LazyLock::new(|| {
        let message = "this instance is busy: another instance may serve you";
        mesh_status_retry(Code::Unavailable, "OVERLOADED", message, Some(RETRY_AFTER))
    });
    let mut response = respond(STATUS.clone());
    response.extensions_mut().insert(NoEvent);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{METHOD, MethodPolicy};
    use crate::status::reason_of;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use tonic::body::Body;
    use tonic_types::StatusExt;
    use tower_test::mock;

    const fn method(path: &'static str, streaming: bool) -> MethodPolicy {
        MethodPolicy { path, streaming, ..METHOD }
    }

    const POLICIES: PolicyTable = PolicyTable(&[method("/t.T/Call", false), method("/t.T/Stream", true)]);

    fn request(path: &str) -> Request {
        http::Request::post(path).body(Body::empty()).expect("a request")
    }

    fn full() -> Response {
        Response::new(Body::new(Full::new(Bytes::from_static(b"x")).map_err(|never| match never {})))
    }

    /// A stack with one permit of each kind over a handler that the test plays.
    fn stack() -> (mock::Spawn<Concurrency<Handler>>, mock::Handle<Request, Response>, Admission) {
        let admission = Admission::new(1, 1);
        let layer = concurrency(POLICIES, admission.clone(), Arc::new(Refusals::new("test")));
        let (handler, handle) = mock::pair();
        (mock::Spawn::new(layer.layer(Handler(handler))), handle, admission)
    }

    /// The mock, which may fail, as a handler, which may not.
    struct Handler(mock::Mock<Request, Response>);

    impl Service<Request> for Handler {
        type Response = Response;
        type Error = Infallible;
        type Future = BoxFuture<'static, Answer>;
        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            self.0.poll_ready(cx).map_err(|error| panic!("the mock is not ready: {error}"))
        }
        fn call(&mut self, request: Request) -> Self::Future {
            let work = self.0.call(request);
            Box::pin(async move { Ok(work.await.expect("the mock answers")) })
        }
    }

    #[tokio::test]
    async fn without_a_free_permit_a_call_is_refused_at_once_and_streams_have_their_own() {
        let (mut stack, mut handle, admission) = stack();
        handle.allow(9);
        let first = tokio::spawn(call(&mut stack, "/t.T/Call"));
        let (_, answer) = handle.next_request().await.expect("it reaches the handler");
        assert_eq!((admission.calls.used(), admission.streams.used()), (1, 0));

        let refused = call(&mut stack, "/t.T/Call").await.expect("an answer");
        let status = Status::from_header_map(refused.headers()).expect("a status");
        assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::Unavailable, Some("OVERLOADED")));
        assert_eq!(status.get_details_retry_info().and_then(|retry| retry.retry_delay), Some(RETRY_AFTER));
        assert!(refused.extensions().get::<NoEvent>().is_some(), "no event of a call that nobody served");

        let _stream = tokio::spawn(call(&mut stack, "/t.T/Stream"));
        let _health = tokio::spawn(call(&mut stack, "/grpc.health.v1.Health/Check"));
        handle.next_request().await.expect("the stream reaches the handler");
        handle.next_request().await.expect("health reaches the handler");
        assert_eq!((admission.calls.used(), admission.streams.used()), (1, 1));

        answer.send_response(full());
        let response = first.await.expect("no panic").expect("an answer");
        assert_eq!(admission.calls.used(), 1, "held to the end of the body");
        response.into_body().collect().await.expect("a body");
        assert_eq!(admission.calls.used(), 0);
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_gives_its_permit_back() {
        let (mut stack, mut handle, admission) = stack();
        handle.allow(1);
        let call = call(&mut stack, "/t.T/Call");
        assert_eq!(admission.calls.used(), 1);
        drop(call);
        assert_eq!(admission.calls.used(), 0);
    }

    fn call(stack: &mut mock::Spawn<Concurrency<Handler>>, path: &str) -> BoxFuture<'static, Answer> {
        assert!(stack.poll_ready::<Request>().is_ready());
        stack.call(request(path))
    }
}
