//! Admission by memory: a call reserves four times each frame's bytes as the frames arrive (gRPC tells no length
//! beforehand, and decoding costs more than the wire), and gives them back at the end of its answer. A message that is
//! longer than the limit is refused by its five-byte prefix, before it is read; so is whatever follows the one message that a
//! request has (in gRPC's status codes "request cardinality violation"; tonic would drop it silently). Health and
//! reflection, open to strangers, never compete with calls: their messages are short, and their permits bound how many there are.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::holding::hold;
use crate::refusals::{Cause, Refusals};
use crate::status::{OUT_OF_MEMORY, REQUEST_CARDINALITY, mesh_status, mesh_status_retry};
use crate::wire::{Answer, Request, Response, is_infrastructure, is_reflection};

/// What a byte on the wire costs while its call is served.
const COST_FACTOR: usize = 4;
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A message for health or reflection is a name.
const INFRASTRUCTURE_MESSAGE_BYTES: usize = 4 * 1024;

/// The bytes that calls may hold at once.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) limit_bytes: usize,
    used_bytes: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, used_bytes: AtomicUsize::new(0) }
    }

    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Acquire)
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit_bytes);
        self.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }
}

/// What one call holds of its budget; given back in drop.
struct Held {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
}

impl Held {
    fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: budget.clone(), bytes: AtomicUsize::new(0) }
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = self.budget.take(bytes);
        if taken {
            self.bytes.fetch_add(bytes, Ordering::AcqRel);
        }
        taken
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(*self.bytes.get_mut(), Ordering::AcqRel);
    }
}

#[derive(Clone)]
pub(crate) struct Memory<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// What all calls share.
struct Shared {
    budget: Arc<Budget>,
    max_message_bytes: usize,
    refusals: Arc<Refusals>,
}

pub(crate) fn memory<S>(
    budget: Arc<Budget>,
    max_message_bytes: usize,
    refusals: Arc<Refusals>,
) -> impl Layer<S, Service = Memory<S>> + Clone {
    let shared = Arc::new(Shared { budget, max_message_bytes, refusals });
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
        if is_infrastructure(path) {
            let prefixes = Prefixes::new(INFRASTRUCTURE_MESSAGE_BYTES, is_reflection(path));
            let request = request.map(|body| self.shared.admitted(body, prefixes, None));
            return Box::pin(self.inner.call(request));
        }
        let held = Arc::new(Held::new(&self.shared.budget));
        // Requests that stream are not in the contract: the build of its policies refuses them.
        let prefixes = Prefixes::new(self.shared.max_message_bytes, false);
        let request = request.map(|body| self.shared.admitted(body, prefixes, Some(held.clone())));
        let work = self.inner.call(request);
        Box::pin(async move { Ok(hold(work.await?, held)) })
    }
}

impl Shared {
    fn admitted(self: &Arc<Self>, inner: Body, prefixes: Prefixes, held: Option<Arc<Held>>) -> Body {
        Body::new(AdmittedBody { inner, held, prefixes, shared: self.clone() })
    }
}

/// Reads the length of each message out of the frames that go by, however they are cut.
struct Prefixes {
    limit_bytes: usize,
    /// May another message follow?
    is_stream: bool,
    prefix: [u8; 5],
    read: usize,
    message_left: usize,
    has_message: bool,
}

/// What is wrong with a request's messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    /// A message of so many bytes.
    TooLong(usize),
    /// Something follows the one message.
    More,
}

impl Prefixes {
    fn new(limit_bytes: usize, is_stream: bool) -> Self {
        Self { limit_bytes, is_stream, prefix: [0; 5], read: 0, message_left: 0, has_message: false }
    }

    fn check(&mut self, mut data: &[u8]) -> Result<(), Wrong> {
        loop {
            let skipped = self.message_left.min(data.len());
            self.message_left -= skipped;
            data = &data[skipped..];
            if data.is_empty() {
                return Ok(());
            }
            if self.has_message && !self.is_stream {
                return Err(Wrong::More);
            }
            let wanted = (5 - self.read).min(data.len());
            self.prefix[self.read..self.read + wanted].copy_from_slice(&data[..wanted]);
            self.read += wanted;
            data = &data[wanted..];
            if self.read == 5 {
                let [_compressed, a, b, c, d] = self.prefix;
                self.message_left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                (self.read, self.has_message) = (0, true);
                if self.message_left > self.limit_bytes {
                    return Err(Wrong::TooLong(self.message_left));
                }
            }
        }
    }
}

struct AdmittedBody {
    inner: Body,
    held: Option<Arc<Held>>,
    prefixes: Prefixes,
    shared: Arc<Shared>,
}

impl AdmittedBody {
    fn admit(&mut self, data: &Bytes) -> Result<(), Status> {
        match self.prefixes.check(data) {
            Ok(()) => {}
            Err(Wrong::TooLong(length)) => {
                self.shared.refusals.count(Cause::MessageTooLarge);
                let limit = self.prefixes.limit_bytes;
                let message = format!("a message of {length} bytes is longer than the limit of {limit} bytes");
                return Err(mesh_status(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message));
            }
            Err(Wrong::More) => {
                let message = "a request of this method is one message, and more followed it";
                return Err(mesh_status(Code::Unimplemented, REQUEST_CARDINALITY, message));
            }
        }
        if self.held.as_ref().is_none_or(|held| held.take(data.len().saturating_mul(COST_FACTOR))) {
            return Ok(());
        }
        self.shared.refusals.count(Cause::Memory);
        let message = "the memory budget for requests is used up";
        Err(mesh_status_retry(Code::ResourceExhausted, OUT_OF_MEMORY, message, Some(RETRY_AFTER)))
    }
}

impl http_body::Body for AdmittedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(refusal) = this.admit(data)
        {
            return Poll::Ready(Some(Err(refusal)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in a stream of bytes that comes in frames of `cut` bytes.
    fn found(stream: &[u8], cut: usize, mut prefixes: Prefixes) -> Result<(), Wrong> {
        stream.chunks(cut).try_for_each(|frame| prefixes.check(frame))
    }

    #[test]
    fn a_message_that_is_too_long_is_seen_however_its_frames_are_cut() {
        let mut stream = vec![0, 0, 0, 0, 3, 1, 2, 3];
        stream.extend([0, 0, 0, 0, 9]);
        for cut in 1..=stream.len() {
            assert_eq!(found(&stream, cut, Prefixes::new(8, true)), Err(Wrong::TooLong(9)), "frames of {cut} bytes");
            assert_eq!(found(&stream, cut, Prefixes::new(9, true)), Ok(()), "at the limit it passes");
        }
    }

    #[test]
    fn what_follows_the_one_message_is_seen_however_its_frames_are_cut() {
        for one in [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0]] {
            for more in [&[][..], &[0], &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 3, 1, 2, 3]] {
                let stream = [one, more].concat();
                let expected = if more.is_empty() { Ok(()) } else { Err(Wrong::More) };
                for cut in 1..=stream.len() {
                    assert_eq!(found(&stream, cut, Prefixes::new(9, false)), expected, "{stream:?} by {cut}");
                    assert_eq!(found(&stream, cut, Prefixes::new(9, true)), Ok(()), "of a stream it is the next");
                }
            }
        }
    }

    #[test]
    fn what_a_call_holds_is_given_back() {
        let budget = Arc::new(Budget::new(100));
        let held = Held::new(&budget);
        assert!(held.take(60) && held.take(40));
        assert!(!held.take(1), "none left");
        drop(held);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn messages_for_health_and_reflection_are_short_and_have_no_budget() {
        use http_body_util::{BodyExt, Full};
        let budget = Arc::new(Budget::new(0));
        let handler = tower::service_fn(|request: Request| async move {
            let refused = request.into_body().collect().await.err();
            Ok::<_, Infallible>(crate::wire::respond(refused.unwrap_or_else(|| Status::ok(""))))
        });
        let mut stack = memory(budget, 1 << 20, Arc::new(Refusals::new("test"))).layer(handler);
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
        assert_eq!(ask(check, 100).await, Some(None), "though the calls' budget is used up");
        assert_eq!(ask("/t.T/Call", 100).await, Some(Some(OUT_OF_MEMORY.to_owned())), "the twin");
        assert_eq!(ask(check, 5_000).await, Some(Some("MESSAGE_TOO_LARGE".to_owned())), "by its prefix");
    }
}
