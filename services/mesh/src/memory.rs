//! Admission by memory. Request frames are charged as they arrive, at what they cost until the call ends (gRPC does not
//! send the length in advance). Responses are charged from encoding until the HTTP/2 stack has sent or dropped their
//! bytes, which carry the charge. A response that does not fit is replaced by an error. A caller that already holds
//! responses is rejected before its handler begins if a response as long as the method's last one does not fit. What is
//! read from a database is not charged: the number of connections bounds it. A call that waits for its request is charged
//! for its headers, to a budget of its own. Requests of health and reflection never compete with calls: they are short,
//! and have a small budget of their own. Reflection's responses are charged like those of calls.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::admitted::{AdmittedBody, Prefixes};
use crate::memory_budget::{Account, Held};
use crate::policy::PolicyTable;
use crate::refusals::{Cause, Refusals};
use crate::shares::{Full, Holder, Shares};
use crate::status::{OUT_OF_MEMORY, mesh_status_retry};
use crate::wire::{Answer, Request, Response, is_infrastructure, is_reflection, respond};

/// The buffer that a response is encoded into grows by doubling, and is kept whole until its last byte is sent.
const ANSWER_COST_FACTOR: usize = 2;
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A message for health or reflection is only a name.
const INFRASTRUCTURE_MESSAGE_BYTES: usize = 4 * 1024;
/// For calls that wait for their requests: a quarter of the budget, and at least so much.
const MIN_WAITING_BUDGET_BYTES: usize = 1024 * 1024;
/// For the requests of health and reflection.
const INFRASTRUCTURE_BUDGET_BYTES: usize = 16 * 1024 * 1024;

#[derive(Clone)]
pub(crate) struct Memory<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// State shared by all calls.
struct Shared {
    policies: PolicyTable,
    /// The cost of the last response of each method.
    last_answer_bytes: Vec<AtomicUsize>,
    budget: Arc<Shares>,
    waiting: Arc<Shares>,
    infrastructure: Arc<Shares>,
    max_message_bytes: usize,
    refusals: Arc<Refusals>,
}

pub(crate) fn memory<S>(
    policies: PolicyTable,
    budget: Arc<Shares>,
    max_message_bytes: usize,
    refusals: Arc<Refusals>,
) -> impl Layer<S, Service = Memory<S>> + Clone {
    let last_answer_bytes = policies.0.iter().map(|_| AtomicUsize::new(0)).collect();
    let infrastructure = Shares::new(INFRASTRUCTURE_BUDGET_BYTES, 0);
    let waiting = Shares::new((budget.limit / 4).max(MIN_WAITING_BUDGET_BYTES), 0);
    let shared =
        Arc::new(Shared { policies, last_answer_bytes, budget, waiting, infrastructure, max_message_bytes, refusals });
    layer_fn(move |inner| Memory { inner, shared: shared.clone() })
}

impl<S> Service<Request> for Memory<S>
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
        let path = request.uri().path();
        let (is_infrastructure, is_reflection) = (is_infrastructure(path), is_reflection(path));
        let index = self.shared.policies.index(path);
        let policy = index.map(|index| &self.shared.policies.0[index]);
        let account = Arc::new(Account::new(self.shared.budget.clone(), Holder::of(&request)));
        let last_answer_bytes = index.map(|index| self.shared.last_answer_bytes[index].load(Ordering::Relaxed));
        if last_answer_bytes.is_some_and(|bytes| account.is_beyond_share(bytes)) {
            self.shared.refusals.count(Cause::Memory);
            return Box::pin(std::future::ready(Ok(respond(out_of_memory(Full::Share)))));
        }
        let (headers, holder) = (request.headers().len(), is_infrastructure.then(|| Holder::of(&request)));
        let request = request.map(|body| {
            if let Some(holder) = holder {
                let prefixes = Prefixes::new(INFRASTRUCTURE_MESSAGE_BYTES, is_reflection);
                let budget = &self.shared.infrastructure;
                let account = Arc::new(Account::new(budget.clone(), holder));
                let refusals = self.shared.refusals.clone();
                return Body::new(AdmittedBody::new(body, headers, prefixes, &[], account, budget.clone(), refusals));
            }
            // Client streaming is not supported: the build rejects it in the policies.
            let of_method = policy.and_then(|policy| policy.max_message_bytes);
            let prefixes = Prefixes::new(of_method.unwrap_or(self.shared.max_message_bytes), false);
            let limits = policy.map_or(&[][..], |policy| policy.limits);
            let refusals = self.shared.refusals.clone();
            let waiting = self.shared.waiting.clone();
            Body::new(AdmittedBody::new(body, headers, prefixes, limits, account.clone(), waiting, refusals))
        });
        let (work, shared) = (self.inner.call(request), self.shared.clone());
        Box::pin(async move {
            let response = work.await?;
            if response.body().is_end_stream() || (is_infrastructure && !is_reflection) {
                return Ok(response);
            }
            let mut charge = Charge { account: Some(account), refusals: shared.refusals.clone() };
            if is_reflection || policy.is_some_and(|policy| policy.streaming) {
                return Ok(response.map(|inner| Body::new(ChargedBody { first: None, inner, charge })));
            }
            let (head, mut inner) = response.into_parts();
            let first = charge.encoded(&mut inner).await;
            let bytes = first.as_ref().and_then(|first| first.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            if let Some(index) = index {
                shared.last_answer_bytes[index].store(bytes.saturating_mul(ANSWER_COST_FACTOR), Ordering::Relaxed);
            }
            Ok(match charge.frame(first) {
                Ok(first) => Response::from_parts(head, Body::new(ChargedBody { first: Some(first), inner, charge })),
                Err(refusal) => respond(refusal),
            })
        })
    }
}

/// The status of a call that exceeds the memory budget.
pub(crate) fn out_of_memory(full: Full) -> Status {
    let message = match full {
        Full::All => "the memory budget for requests and answers is used up",
        Full::Share => "this caller holds its share of the memory budget: read the pending responses first",
    };
    mesh_status_retry(Code::ResourceExhausted, OUT_OF_MEMORY, message, Some(RETRY_AFTER))
}

/// Charges the frames of a response.
struct Charge {
    /// `None` after the end of the response.
    account: Option<Arc<Account>>,
    refusals: Arc<Refusals>,
}

impl Charge {
    /// A unary response's first frame. It is encoded before the headers are sent, so that they can carry an error
    /// instead.
    async fn encoded(&self, inner: &mut Body) -> NextFrame {
        // The handler has completed.
        if let Some(account) = &self.account {
            account.give_back_request();
        }
        std::future::poll_fn(|cx| Pin::new(&mut *inner).poll_frame(cx)).await
    }

    /// The same frame, which holds its memory until its bytes are dropped.
    fn frame(&mut self, frame: NextFrame) -> Result<NextFrame, Status> {
        let Some(Ok(frame)) = frame else {
            self.account = None;
            return Ok(frame);
        };
        match (frame.into_data(), &self.account) {
            (Ok(data), Some(account)) => {
                let held = account.take(data.len().saturating_mul(ANSWER_COST_FACTOR)).map_err(|full| {
                    self.refusals.count(Cause::Memory);
                    out_of_memory(full)
                })?;
                Ok(Some(Ok(Frame::data(Bytes::from_owner(Charged { data, _held: held })))))
            }
            (Ok(data), None) => Ok(Some(Ok(Frame::data(data)))),
            (Err(trailers), _) => {
                // They are the end, and the caller may send its next call before the body is dropped.
                self.account = None;
                Ok(Some(Ok(trailers)))
            }
        }
    }
}

struct Charged {
    data: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

type NextFrame = Option<Result<Frame<Bytes>, Status>>;

struct ChargedBody {
    /// Already encoded.
    first: Option<NextFrame>,
    inner: Body,
    charge: Charge,
}

impl http_body::Body for ChargedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<NextFrame> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(first);
        }
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        Poll::Ready(this.charge.frame(frame).unwrap_or_else(|refusal| {
            // A stream that has begun: it ends with the error in its trailers.
            this.inner = Body::empty();
            let mut trailers = HeaderMap::new();
            Some(refusal.add_header(&mut trailers).map(|()| Frame::trailers(trailers)))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.first.is_none() { self.inner.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_for_health_and_reflection_are_short_and_have_their_own_budget() {
        use http_body_util::{BodyExt, Full};
        let budget = Shares::new(0, 0);
        let handler = tower::service_fn(|request: Request| async move {
            let refused = request.into_body().collect().await.err();
            Ok::<_, Infallible>(crate::wire::respond(refused.unwrap_or_else(|| Status::ok(""))))
        });
        let mut stack = memory(PolicyTable(&[]), budget, 1 << 20, Arc::new(Refusals::new("test"))).layer(handler);
        let mut ask = async |path: &str, length: u32| {
            let mut message = vec![0];
            message.extend(length.to_be_bytes());
            message.resize(message.len() + 100, 7);
            let body = Body::new(Full::new(Bytes::from(message)).map_err(|never| match never {}));
            let response =
                stack.call(http::Request::post(path).body(body).expect("a request")).await.expect("answered");
            Status::from_header_map(response.headers()).map(|status| crate::status::reason_of(&status))
        };
        let check = "/grpc.health.v1.Health/Check";
        assert_eq!(ask(check, 100).await, Some(None), "despite the exhausted budget of the calls");
        assert_eq!(ask("/t.T/Call", 100).await, Some(Some(OUT_OF_MEMORY.to_owned())), "control");
        assert_eq!(ask(check, 5_000).await, Some(Some("MESSAGE_TOO_LARGE".to_owned())), "by its length prefix");
    }

    #[tokio::test]
    async fn a_field_with_too_many_elements_is_rejected_however_its_frames_are_cut_and_elements_are_charged() {
        use crate::policy::{FieldLimit, METHOD, MethodPolicy};
        use http_body_util::{BodyExt, StreamBody};
        use tonic_types::StatusExt;
        const LIMITS: &[FieldLimit] =
            &[FieldLimit { path: &[1], field: "skus", max_items: 3, reason: "INVALID_LENGTH" }];
        const POLICIES: PolicyTable = PolicyTable(&[MethodPolicy { path: "/t.T/Call", limits: LIMITS, ..METHOD }]);
        let budget = Shares::new(10_000, 0);
        let seen = budget.clone();
        let handler = tower::service_fn(move |request: Request| {
            let seen = seen.clone();
            async move {
                let refused = request.into_body().collect().await.err();
                let status = refused.unwrap_or_else(|| Status::not_found(seen.used().to_string()));
                Ok::<_, Infallible>(crate::wire::respond(status))
            }
        });
        let mut stack = memory(POLICIES, budget, 1 << 20, Arc::new(Refusals::new("shop"))).layer(handler);
        for cut in [1, 4, 5, 6, 100] {
            for elements in [3, 4_u8] {
                let message = [&[0, 0, 0, 0, 2 * elements][..], &[0x0a, 0].repeat(elements.into())].concat();
                let frames: Vec<_> = message
                    .chunks(cut)
                    .map(|frame| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(frame))))
                    .collect();
                let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
                let request = http::Request::post("/t.T/Call").body(body).expect("a request");
                let status = Status::from_header_map(stack.call(request).await.expect("answered").headers());
                let status = status.expect("a status");
                if elements == 3 {
                    assert_eq!(status.message(), (4 * 11 + 3 * 64).to_string(), "the bytes and the elements");
                    continue;
                }
                assert_eq!(status.code(), Code::InvalidArgument);
                let details = status.get_error_details();
                assert_eq!(details.error_info().map(|info| info.domain.as_str()), Some("shop.ordermesh"));
                assert_eq!(details.bad_request().map(|bad| bad.field_violations[0].field.as_str()), Some("skus"));
            }
        }
    }

    #[tokio::test]
    async fn a_response_is_charged_until_its_bytes_are_dropped_and_a_stream_ends_when_the_budget_is_exhausted() {
        use crate::policy::{METHOD, MethodPolicy};
        use http_body_util::{BodyExt, StreamBody};
        const POLICIES: PolicyTable = PolicyTable(&[
            MethodPolicy { path: "/t.T/Call", ..METHOD },
            MethodPolicy { path: "/t.T/Stream", streaming: true, ..METHOD },
        ]);
        let budget = Shares::new(1_000, 0);
        let begun = Arc::new(AtomicUsize::new(0));
        let seen = begun.clone();
        let handler = tower::service_fn(move |_: Request| {
            seen.fetch_add(1, Ordering::Relaxed);
            let frames = [400, 200].map(|length| Ok::<_, Status>(Frame::data(Bytes::from(vec![7; length]))));
            let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
            std::future::ready(Ok::<_, Infallible>(Response::new(body)))
        });
        let mut stack = memory(POLICIES, budget.clone(), 1 << 20, Arc::new(Refusals::new("test"))).layer(handler);
        let request = |path: &str| http::Request::post(path).body(Body::empty()).expect("a request");
        let answer = stack.call(request("/t.T/Call")).await.expect("answered");
        assert_eq!(budget.used(), 800, "encoded and charged before the headers are sent");
        let refused = stack.call(request("/t.T/Call")).await.expect("answered");
        let status = Status::from_header_map(refused.headers()).expect("in the headers");
        assert_eq!(crate::status::reason_of(&status).as_deref(), Some(OUT_OF_MEMORY));
        assert_eq!(begun.load(Ordering::Relaxed), 1, "a response as long as the last one would not fit");
        drop(answer);
        assert_eq!(budget.used(), 0);

        let mut body = stack.call(request("/t.T/Stream")).await.expect("answered").into_body();
        let frame = body.frame().await.expect("a frame").expect("well-formed").into_data().expect("data");
        let piece = frame.slice(..1);
        drop(frame);
        assert_eq!(budget.used(), 800, "a slice of it keeps all of it");
        let trailers = body.frame().await.expect("the end").expect("well-formed").into_trailers().expect("trailers");
        let status = Status::from_header_map(&trailers).expect("a status");
        assert_eq!(crate::status::reason_of(&status).as_deref(), Some(OUT_OF_MEMORY));
        assert!(body.frame().await.is_none());
        drop(piece);
        assert_eq!(budget.used(), 0);
    }
}
