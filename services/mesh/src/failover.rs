//! The addresses of one target: stays with the one that works; a request that never left goes to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rand::Rng;
use tonic::{Code, Status};
use tower::Service;

use crate::endpoint::{Endpoint, Failure};
use crate::status::mesh_status_retry;
use crate::wire::{Request, Response};

const RETRY_AFTER: Duration = Duration::from_secs(1);

/// All addresses of one target.
#[derive(Clone)]
pub(crate) struct Failover(Arc<Shared>);

struct Shared {
    target: &'static str,
    endpoints: Vec<Endpoint>,
    /// The one that worked last.
    current: AtomicUsize,
}

impl Failover {
    /// Begins anywhere: instances that start together do not all begin with the same one.
    pub(crate) fn new(target: &'static str, addresses: Vec<String>) -> Self {
        let start = if addresses.is_empty() { 0 } else { rand::rng().random_range(0..addresses.len()) };
        Self::starting_at(target, addresses, start)
    }

    fn starting_at(target: &'static str, addresses: Vec<String>, start: usize) -> Self {
        let endpoints = addresses.into_iter().map(Endpoint::new).collect();
        Self(Arc::new(Shared { target, endpoints, current: AtomicUsize::new(start) }))
    }
}

/// An instance that does not answer (it hangs, or was lost) is left for the next one: also when the caller gives up, and
/// drops the call.
struct Silence<'a> {
    shared: &'a Shared,
    index: usize,
    answered: bool,
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let next = (self.index + 1) % self.shared.endpoints.len();
            // Unless another call has moved on already.
            let _ = self.shared.current.compare_exchange(self.index, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl Shared {
    async fn send(&self, mut request: Request) -> Result<Response, Status> {
        let start = self.current.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for step in 0..self.endpoints.len() {
            let index = (start + step) % self.endpoints.len();
            let endpoint = &self.endpoints[index];
            let mut silence = Silence { shared: self, index, answered: false };
            let sent = endpoint.send(request).await;
            silence.answered = !matches!(sent, Err(Failure::Lost(_)));
            match sent {
                Ok(response) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(Failure::Lost(status)) => return Err(status),
                Err(Failure::NotSent(unsent, why)) => {
                    failures.push(format!("{}: {why}", endpoint.address()));
                    request = *unsent;
                }
            }
        }
        let message = format!("no instance of {} can be reached ({})", self.target, failures.join("; "));
        Err(mesh_status_retry(Code::Unavailable, "UNREACHABLE", message, Some(RETRY_AFTER)))
    }
}

impl Service<Request> for Failover {
    type Response = Response;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response, Status>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move { shared.send(request).await })
    }
}
