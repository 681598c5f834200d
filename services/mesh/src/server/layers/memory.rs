//! Admission by memory. Request frames are charged as they arrive, at what they cost until the call ends (gRPC does not
//! send the length in advance). Responses are charged from encoding until the HTTP/2 stack has sent or dropped their
//! bytes, which carry the charge. A response that does not fit is replaced by an error. A caller that already holds
//! responses is rejected before its handler begins if a response as long as the method's last one does not fit. What is
//! read from a database is not charged: the number of connections bounds it. A call that waits for its request is charged
//! for its headers, to a budget of its own. Requests of health and reflection never compete with calls: they are short,
//! and have a small budget of their own. Reflection's responses are charged like those of calls.

pub(crate) mod budget;
pub(crate) mod field_limits;
pub(crate) mod request_body;

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

use crate::call::{Request, Response, ServerResult, is_infrastructure, is_reflection, respond};
use crate::policy::PolicyTable;
use crate::server::layers::memory::budget::{Account, Held};
use crate::server::layers::memory::request_body::{AdmittedBody, Prefixes};
use crate::server::rejections::{Cause, Rejections};
use crate::server::shares::{Full, Holder, Shares};
use crate::status::{OUT_OF_MEMORY, mesh_status_retry};

/// The buffer that a response is encoded into grows by doubling, and is kept whole until its last byte is sent.
const RESPONSE_COST_FACTOR: usize = 2;
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
    last_response_bytes: Vec<AtomicUsize>,
    budget: Arc<Shares>,
    waiting: Arc<Shares>,
    infrastructure: Arc<Shares>,
    max_message_bytes: usize,
    rejections: Arc<Rejections>,
}

pub(crate) fn memory<S>(
    policies: PolicyTable,
    budget: Arc<Shares>,
    max_message_bytes: usize,
    rejections: Arc<Rejections>,
) -> impl Layer<S, Service = Memory<S>> + Clone {
    let last_response_bytes = policies.0.iter().map(|_| AtomicUsize::new(0)).collect();
    let infrastructure = Shares::new(INFRASTRUCTURE_BUDGET_BYTES, 0);
    let waiting = Shares::new((budget.limit / 4).max(MIN_WAITING_BUDGET_BYTES), 0);
    let shared = Arc::new(Shared {
        policies,
        last_response_bytes,
        budget,
        waiting,
        infrastructure,
        max_message_bytes,
        rejections,
    });
    layer_fn(move |inner| Memory { inner, shared: shared.clone() })
}

impl<S> Service<Request> for Memory<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, ServerResult>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let path = request.uri().path();
        let (is_infrastructure, is_reflection) = (is_infrastructure(path), is_reflection(path));
        let index = self.shared.policies.index(path);
        let policy = index.map(|index| &self.shared.policies.0[index]);
        let account = Arc::new(Account::new(self.shared.budget.clone(), Holder::of(&request)));
        let last_response_bytes = index.map(|index| self.shared.last_response_bytes[index].load(Ordering::Relaxed));
        if last_response_bytes.is_some_and(|bytes| account.is_beyond_share(bytes)) {
            self.shared.rejections.count(Cause::Memory);
            return Box::pin(std::future::ready(Ok(respond(out_of_memory(Full::Share)))));
        }
        let (headers, holder) = (request.headers().len(), is_infrastructure.then(|| Holder::of(&request)));
        let request = request.map(|body| {
            if let Some(holder) = holder {
                let prefixes = Prefixes::new(INFRASTRUCTURE_MESSAGE_BYTES, is_reflection);
                let budget = &self.shared.infrastructure;
                let account = Arc::new(Account::new(budget.clone(), holder));
                let rejections = self.shared.rejections.clone();
                return Body::new(AdmittedBody::new(body, headers, prefixes, &[], account, budget.clone(), rejections));
            }
            // Client streaming is not supported: the build rejects it in the policies.
            let of_method = policy.and_then(|policy| policy.max_message_bytes);
            let prefixes = Prefixes::new(of_method.unwrap_or(self.shared.max_message_bytes), false);
            let limits = policy.map_or(&[][..], |policy| policy.limits);
            let rejections = self.shared.rejections.clone();
            let waiting = self.shared.waiting.clone();
            Body::new(AdmittedBody::new(body, headers, prefixes, limits, account.clone(), waiting, rejections))
        });
        let (work, shared) = (self.inner.call(request), self.shared.clone());
        Box::pin(async move {
            let response = work.await?;
            if response.body().is_end_stream() || (is_infrastructure && !is_reflection) {
                return Ok(response);
            }
            let mut charge = Charge { account: Some(account), rejections: shared.rejections.clone() };
            if is_reflection || policy.is_some_and(|policy| policy.streaming) {
                return Ok(response.map(|inner| Body::new(ChargedBody { first: None, inner, charge })));
            }
            let (head, mut inner) = response.into_parts();
            let first = charge.encoded(&mut inner).await;
            let bytes = first.as_ref().and_then(|first| first.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            if let Some(index) = index {
                shared.last_response_bytes[index].store(bytes.saturating_mul(RESPONSE_COST_FACTOR), Ordering::Relaxed);
            }
            Ok(match charge.frame(first) {
                Ok(first) => Response::from_parts(head, Body::new(ChargedBody { first: Some(first), inner, charge })),
                Err(rejection) => respond(rejection),
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
    rejections: Arc<Rejections>,
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
                let held = account.take(data.len().saturating_mul(RESPONSE_COST_FACTOR)).map_err(|full| {
                    self.rejections.count(Cause::Memory);
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
        Poll::Ready(this.charge.frame(frame).unwrap_or_else(|rejection| {
            // A stream that has begun: it ends with the error in its trailers.
            this.inner = Body::empty();
            let mut trailers = HeaderMap::new();
            Some(rejection.add_header(&mut trailers).map(|()| Frame::trailers(trailers)))
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
mod tests;
