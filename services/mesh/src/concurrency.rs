//! Admission by concurrency. A call takes a permit when its request is there as a whole, for which it has a few seconds, and
//! gives it back when its answer is encoded: whoever sends nothing, or takes nothing, holds none. Nobody waits for a permit:
//! without a free one the call is refused at once, and another instance may serve it. Each caller has a share (`shares`).
//! Streams, which are long and mostly idle, have places of their own (`places`). So has the infrastructure (health,
//! reflection): it never competes with calls.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use telemetry::Operation;
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::edge::note;
use crate::holding::{hold, hold_until_encoded};
use crate::message::{NotWhole, Whole, whole};
use crate::places::{Place, Places};
use crate::policy::PolicyTable;
use crate::record::NoEvent;
use crate::refusals::{Cause, Refusals};
use crate::shares::{Full, Holder, Share, Shares};
use crate::stalled::ends_after;
use crate::status::mesh_status_retry;
use crate::stream_end::end_when;
use crate::wire::{Answer, Request, Response, find, is_infrastructure, is_reflection, respond};

/// Of the permits, what the platform's services have for themselves: a sixteenth.
const RESERVED_PART: usize = 16;
/// Checks of health that are answered at once: they take no time.
const MAX_CHECKS: usize = 256;
/// Health and reflection cost little, but their streams are open to strangers and never end.
const MAX_INFRASTRUCTURE_STREAMS: usize = 1_024;
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// Another instance may take it at once; this one, hardly sooner.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// All the permits and places of a server.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(crate) calls: Arc<Shares>,
    pub(crate) streams: Arc<Places>,
    checks: Arc<Shares>,
    infrastructure: Arc<Places>,
}

impl Admission {
    pub(crate) fn new(max_concurrency: usize, max_streams: usize) -> Self {
        Self {
            calls: Shares::new(max_concurrency, max_concurrency / RESERVED_PART),
            streams: Places::new(max_streams),
            checks: Shares::new(MAX_CHECKS, 0),
            infrastructure: Places::new(MAX_INFRASTRUCTURE_STREAMS),
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
    S: Service<Request, Response = Response, Error = Infallible, Future = BoxFuture<'static, Answer>>,
    S: Clone + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // Reflection's requests are a stream.
        if is_reflection(request.uri().path()) {
            return self.shared.serve(&mut self.inner, request);
        }
        let operation = request.extensions().get::<Operation>().cloned();
        let mut reading = whole(request);
        // Most requests are there already. (Without one's own waker: if not, it is asked again with it.)
        if let Some(read) = (&mut reading).now_or_never() {
            return self.shared.serve_whole(&mut self.inner, operation, read);
        }
        // The instance that was made ready serves; its clone waits for the next call.
        let clone = self.inner.clone();
        let (mut inner, shared) = (std::mem::replace(&mut self.inner, clone), self.shared.clone());
        Box::pin(async move {
            let read = reading.in_time().await;
            shared.serve_whole(&mut inner, operation, read).await
        })
    }
}

/// What a call needs to be served.
enum Admitted {
    Call(Share),
    Stream(Place),
}

impl Shared {
    fn serve_whole<S>(&self, inner: &mut S, operation: Option<Operation>, read: Whole) -> BoxFuture<'static, Answer>
    where
        S: Service<Request, Response = Response, Error = Infallible, Future = BoxFuture<'static, Answer>>,
    {
        // From here on the call is an event: one whose request never came is none, or strangers would fill the store with them.
        if let (Some(operation), Ok(_) | Err(NotWhole::Broken(_))) = (operation, &read) {
            operation.admit();
        }
        match read {
            Ok(request) => self.serve(inner, request),
            Err(NotWhole::Broken(status)) => Box::pin(std::future::ready(Ok(respond(status)))),
            Err(NotWhole::TooSlow(status)) => self.refuse(Cause::MessageTooSlow, status),
        }
    }

    fn serve<S>(&self, inner: &mut S, request: Request) -> BoxFuture<'static, Answer>
    where
        S: Service<Request, Response = Response, Error = Infallible, Future = BoxFuture<'static, Answer>>,
    {
        let admitted = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err((cause, status)) => return self.refuse(cause, status.clone()),
        };
        note(|edge| edge.is_admitted = true);
        let work = inner.call(request);
        let refusals = self.refusals.clone();
        Box::pin(async move {
            // In the future until there is a response: a call that is dropped gives back what it holds too.
            match admitted {
                Admitted::Call(permit) => {
                    let permit = permit;
                    Ok(hold_until_encoded(work.await?, permit))
                }
                Admitted::Stream(place) => {
                    let asked = place.leave();
                    ends_after(asked.clone());
                    let leave = async move {
                        asked.cancelled_owned().await;
                        refusals.count(Cause::GaveWay);
                        (*GAVE_WAY).clone()
                    };
                    Ok(hold(end_when(leave, work).await?, place))
                }
            }
        })
    }

    fn admit(&self, request: &Request) -> Result<Admitted, (Cause, &'static Status)> {
        let (path, holder) = (request.uri().path(), Holder::of(request));
        let admission = &self.admission;
        if !is_infrastructure(path) && find(self.policies, request).is_none_or(|policy| !policy.streaming) {
            return call(&admission.calls, holder);
        }
        if path == HEALTH_CHECK {
            return call(&admission.checks, holder);
        }
        let places = if is_infrastructure(path) { &admission.infrastructure } else { &admission.streams };
        places.take(holder.narrowest()).map(Admitted::Stream).ok_or((Cause::Streams, &*OVERLOADED))
    }

    fn refuse(&self, cause: Cause, status: Status) -> BoxFuture<'static, Answer> {
        self.refusals.count(cause);
        let mut response = respond(status);
        response.extensions_mut().insert(NoEvent);
        Box::pin(std::future::ready(Ok(response)))
    }
}

fn call(permits: &Arc<Shares>, holder: Holder) -> Result<Admitted, (Cause, &'static Status)> {
    permits.take(holder).map(Admitted::Call).map_err(|full| match full {
        Full::All => (Cause::Concurrency, &*OVERLOADED),
        Full::Share => (Cause::Share, &*OVER_SHARE),
    })
}

/// Made once: under overload, refusing is most of the work.
static OVERLOADED: LazyLock<Status> = LazyLock::new(|| {
    let message = "this instance is busy: another instance may serve you";
    mesh_status_retry(Code::Unavailable, "OVERLOADED", message, Some(RETRY_AFTER))
});

static OVER_SHARE: LazyLock<Status> = LazyLock::new(|| {
    let message = "as many of your calls are served here as may be: wait for some of them";
    mesh_status_retry(Code::ResourceExhausted, "TOO_MANY_CONCURRENT_CALLS", message, Some(RETRY_AFTER))
});

static GAVE_WAY: LazyLock<Status> = LazyLock::new(|| {
    let message = "this instance is busy, and you have more streams than others: go on at another one";
    mesh_status_retry(Code::Unavailable, "OVERLOADED", message, Some(RETRY_AFTER))
});

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
    #[derive(Clone)]
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
        assert_eq!(admission.calls.used(), 1, "held until it is encoded");
        let mut body = response.into_body();
        body.frame().await.expect("a frame").expect("a message");
        assert_eq!(admission.calls.used(), 0, "though the body is not at its end");
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
