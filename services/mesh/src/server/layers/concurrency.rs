//! Admission by concurrency. A call takes a permit once its request has been read completely, for which it has a few
//! seconds, and returns it when its response is encoded: a slow sender or reader holds none. There is no queue: without
//! a free permit the call is rejected immediately, and another instance may serve it. Each caller has a fair share
//! (`shares`). Streams, which are long and mostly idle, have slots of their own (`slots`), and so has the
//! infrastructure (health, reflection): it never competes with calls.

pub(crate) mod request_buffer;

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

use crate::body::holding::{hold, hold_until_encoded};
use crate::call::record::NoEvent;
use crate::call::{Request, Response, ServerResult, find, is_infrastructure, is_reflection, respond};
use crate::policy::PolicyTable;
use crate::server::edge::note;
use crate::server::layers::concurrency::request_buffer::{BufferError, Buffered, whole};
use crate::server::layers::stream_drain::end_when;
use crate::server::rejections::{Cause, Rejections};
use crate::server::shares::{Full, Holder, Share, Shares};
use crate::server::slots::{Slot, Slots};
use crate::server::write_timeout::end_after_eviction;
use crate::status::mesh_status_retry;

/// The part of the permits that is reserved for mesh services: one sixteenth.
const RESERVED_PART: usize = 16;
/// Unary health checks in progress; they take no time.
const MAX_CHECKS: usize = 256;
/// Health and reflection cost little, but their streams are open to anonymous clients and never end.
const MAX_INFRASTRUCTURE_STREAMS: usize = 1_024;
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// Another instance may accept the call immediately; this one, hardly sooner.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// All permits and slots of a server.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(crate) calls: Arc<Shares>,
    pub(crate) streams: Arc<Slots>,
    checks: Arc<Shares>,
    infrastructure: Arc<Slots>,
}

impl Admission {
    pub(crate) fn new(max_concurrency: usize, max_streams: usize) -> Self {
        Self {
            calls: Shares::new(max_concurrency, max_concurrency / RESERVED_PART),
            streams: Slots::new(max_streams),
            checks: Shares::new(MAX_CHECKS, 0),
            infrastructure: Slots::new(MAX_INFRASTRUCTURE_STREAMS),
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
    rejections: Arc<Rejections>,
}

pub(crate) fn concurrency<S>(
    policies: PolicyTable,
    admission: Admission,
    rejections: Arc<Rejections>,
) -> impl Layer<S, Service = Concurrency<S>> + Clone {
    let shared = Arc::new(Shared { policies, admission, rejections });
    layer_fn(move |inner| Concurrency { inner, shared: shared.clone() })
}

impl<S> Service<Request> for Concurrency<S>
where
    S: Service<Request, Response = Response, Error = Infallible, Future = BoxFuture<'static, ServerResult>>,
    S: Clone + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, ServerResult>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // A reflection request is a stream.
        if is_reflection(request.uri().path()) {
            return self.shared.serve(&mut self.inner, request);
        }
        let operation = request.extensions().get::<Operation>().cloned();
        let mut reading = whole(request);
        // Most requests have arrived already. (Polled without a waker: if pending, it is polled again with one.)
        if let Some(read) = (&mut reading).now_or_never() {
            return self.shared.serve_whole(&mut self.inner, operation, read);
        }
        // The instance that is ready serves; its clone is for the next call.
        let clone = self.inner.clone();
        let (mut inner, shared) = (std::mem::replace(&mut self.inner, clone), self.shared.clone());
        Box::pin(async move {
            let read = reading.in_time().await;
            shared.serve_whole(&mut inner, operation, read).await
        })
    }
}

/// What an admitted call holds.
enum Admitted {
    Call(Share),
    Stream(Slot),
}

impl Shared {
    fn serve_whole<S>(
        &self,
        inner: &mut S,
        operation: Option<Operation>,
        read: Buffered,
    ) -> BoxFuture<'static, ServerResult>
    where
        S: Service<Request, Response = Response, Error = Infallible, Future = BoxFuture<'static, ServerResult>>,
    {
        // From here on the call gets an event. Without a complete request it gets none, or anonymous clients could fill
        // the store.
        if let (Some(operation), Ok(_) | Err(BufferError::Broken(_))) = (operation, &read) {
            operation.admit();
        }
        match read {
            Ok(request) => self.serve(inner, request),
            Err(BufferError::Broken(status)) => Box::pin(std::future::ready(Ok(respond(status)))),
            Err(BufferError::TooSlow(status)) => self.reject(Cause::MessageTooSlow, status),
        }
    }

    fn serve<S>(&self, inner: &mut S, request: Request) -> BoxFuture<'static, ServerResult>
    where
        S: Service<Request, Response = Response, Error = Infallible, Future = BoxFuture<'static, ServerResult>>,
    {
        let admitted = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err((cause, status)) => return self.reject(cause, status.clone()),
        };
        note(|edge| edge.is_admitted = true);
        let work = inner.call(request);
        let rejections = self.rejections.clone();
        Box::pin(async move {
            // Held by the future until there is a response: a dropped call releases it too.
            match admitted {
                Admitted::Call(permit) => {
                    let permit = permit;
                    Ok(hold_until_encoded(work.await?, permit))
                }
                Admitted::Stream(slot) => {
                    let evicted = slot.leave();
                    end_after_eviction(evicted.clone());
                    let leave = async move {
                        evicted.cancelled_owned().await;
                        rejections.count(Cause::Evicted);
                        (*EVICTED).clone()
                    };
                    Ok(hold(end_when(leave, work).await?, slot))
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
        let slots = if is_infrastructure(path) { &admission.infrastructure } else { &admission.streams };
        slots.take(holder.narrowest()).map(Admitted::Stream).ok_or((Cause::Streams, &*OVERLOADED))
    }

    fn reject(&self, cause: Cause, status: Status) -> BoxFuture<'static, ServerResult> {
        self.rejections.count(cause);
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

/// Built once: under overload, most of the work is rejecting.
static OVERLOADED: LazyLock<Status> = LazyLock::new(|| {
    let message = "this instance is overloaded: retry on another one";
    mesh_status_retry(Code::Unavailable, "OVERLOADED", message, Some(RETRY_AFTER))
});

static OVER_SHARE: LazyLock<Status> = LazyLock::new(|| {
    let message = "too many concurrent calls of this caller: wait for some to complete";
    mesh_status_retry(Code::ResourceExhausted, "TOO_MANY_CONCURRENT_CALLS", message, Some(RETRY_AFTER))
});

static EVICTED: LazyLock<Status> = LazyLock::new(|| {
    let message = "this instance is overloaded and this caller has the most streams: continue on another instance";
    mesh_status_retry(Code::Unavailable, "OVERLOADED", message, Some(RETRY_AFTER))
});

#[cfg(test)]
mod tests;
