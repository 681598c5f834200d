//! Admission by concurrency. A call takes a permit once its request has been read completely, for which it has a few
//! seconds, and returns it when its response is encoded: a slow sender or reader holds none. There is no queue: without
//! a free permit the call is rejected immediately, and another instance may serve it. Each caller has a fair share
//! (`shares`). Streams, which are long and mostly idle, have slots of their own (`slots`), and so has the
//! infrastructure (health, reflection): it never competes with calls.

pub(crate) mod request_buffer;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::FutureExt;
use telemetry::Operation;
use tonic::{Code, Status};

use crate::body::holding::{hold, hold_until_encoded};
use crate::call::wire::{Request, ServerFuture, respond};
use crate::call::{Call, Class};
use crate::server::call_state::update;
use crate::server::layer::{Next, ServerLayer, TowerLayer, layer, ready, rejected};
use crate::server::layers::concurrency::request_buffer::{BufferError, Buffered, buffer};
use crate::server::layers::stream_drain::end_with;
use crate::server::limits::shares::{Full, Share, Shares};
use crate::server::limits::slots::{Slot, Slots};
use crate::server::limits::usage::{Holder, Resource};
use crate::server::rejections::{Cause, Rejections};
use crate::server::write_timeout::end_after_eviction;
use crate::status::mesh_status_retry;

/// The part of the permits that is reserved for mesh services: one sixteenth.
const RESERVED_PART: usize = 16;
/// Unary health checks in progress; they take no time.
const MAX_CHECKS: usize = 256;
/// Health and reflection cost little, but their streams are open to anonymous clients and never end.
const MAX_INFRASTRUCTURE_STREAMS: usize = 1_024;
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
            calls: Shares::new(Resource::Calls, max_concurrency, max_concurrency / RESERVED_PART),
            streams: Slots::new(max_streams),
            checks: Shares::new(Resource::Checks, MAX_CHECKS, 0),
            infrastructure: Slots::new(MAX_INFRASTRUCTURE_STREAMS),
        }
    }
}

pub(crate) struct Concurrency {
    admission: Admission,
    rejections: Arc<Rejections>,
}

pub(crate) fn concurrency(admission: Admission, rejections: Arc<Rejections>) -> TowerLayer<Concurrency> {
    layer(Concurrency { admission, rejections })
}

impl ServerLayer for Concurrency {
    fn call<N: Next>(self: &Arc<Self>, request: Request, next: &mut N) -> ServerFuture {
        // A reflection request is a stream.
        if Call::of(&request).class == Class::Reflection {
            return self.serve(request, next);
        }
        let operation = request.extensions().get::<Operation>().cloned();
        let mut buffering = buffer(request);
        // Most requests have arrived already. (Polled without a waker: if pending, it is polled again with one.)
        if let Some(buffered) = (&mut buffering).now_or_never() {
            return self.serve_buffered(operation, buffered, next);
        }
        let (mut next, this) = (next.take(), self.clone());
        Box::pin(async move {
            let buffered = buffering.in_time().await;
            this.serve_buffered(operation, buffered, &mut next).await
        })
    }
}

/// What an admitted call holds.
enum Admitted {
    Call(Share),
    Stream(Slot),
}

impl Concurrency {
    fn serve_buffered(&self, operation: Option<Operation>, buffered: Buffered, next: &mut impl Next) -> ServerFuture {
        // From here on the call gets an event. Without a complete request it gets none, or anonymous clients could fill
        // the store.
        if let (Some(operation), Ok(_) | Err(BufferError::Broken(_))) = (operation, &buffered) {
            operation.admit();
        }
        match buffered {
            Ok(request) => self.serve(request, next),
            Err(BufferError::Broken(status)) => ready(respond(status)),
            Err(BufferError::TooSlow(status)) => self.reject(Cause::MessageTooSlow, status),
        }
    }

    fn serve(&self, request: Request, next: &mut impl Next) -> ServerFuture {
        let admitted = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err((cause, status)) => return self.reject(cause, status.clone()),
        };
        update(|state| state.is_admitted = true);
        let work = next.call(request);
        let rejections = self.rejections.clone();
        Box::pin(async move {
            // Held by the future until there is a response: a dropped call releases it too.
            match admitted {
                Admitted::Call(permit) => {
                    let permit = permit;
                    Ok(hold_until_encoded(work.await?, permit))
                }
                Admitted::Stream(slot) => {
                    let evicted = slot.evicted();
                    end_after_eviction(evicted.clone());
                    let end = async move {
                        evicted.cancelled_owned().await;
                        rejections.count(Cause::Evicted);
                        (*EVICTED).clone()
                    };
                    Ok(hold(end_with(end, work).await?, slot))
                }
            }
        })
    }

    fn admit(&self, request: &Request) -> Result<Admitted, (Cause, &'static Status)> {
        let (admission, holder) = (&self.admission, Holder::of(request));
        match Call::of(request).class {
            Class::Unary | Class::Unknown => permit(&admission.calls, holder),
            Class::HealthCheck => permit(&admission.checks, holder),
            Class::Stream => slot(&admission.streams, &holder),
            Class::HealthWatch | Class::Reflection => slot(&admission.infrastructure, &holder),
        }
    }

    fn reject(&self, cause: Cause, status: Status) -> ServerFuture {
        self.rejections.count(cause);
        ready(rejected(status))
    }
}

fn permit(permits: &Arc<Shares>, holder: Holder) -> Result<Admitted, (Cause, &'static Status)> {
    permits.take(holder).map(Admitted::Call).map_err(|full| match full {
        Full::All => (Cause::Concurrency, &*OVERLOADED),
        Full::Share => (Cause::FairShare, &*OVER_SHARE),
    })
}

fn slot(slots: &Arc<Slots>, holder: &Holder) -> Result<Admitted, (Cause, &'static Status)> {
    slots.take(holder.narrowest()).map(Admitted::Stream).ok_or((Cause::Streams, &*OVERLOADED))
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
