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
mod response;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body::Body as _;

use crate::body::wrap;
use crate::call::wire::{Request, Response, ServerFuture, ServerResult, respond};
use crate::call::{Call, Class};
use crate::policy::{MethodPolicy, PolicyTable};
use crate::server::layer::{Next, ServerLayer, TowerLayer, layer, ready};
use crate::server::layers::memory::budget::{Account, out_of_memory};
use crate::server::layers::memory::request_body::{AdmittedBody, Prefixes};
use crate::server::layers::memory::response::{Charge, RESPONSE_COST_FACTOR};
use crate::server::limits::shares::{Full, Shares};
use crate::server::limits::usage::{Holder, Resource};
use crate::server::rejections::{Cause, Rejections};

/// A message for health or reflection is only a name.
const INFRASTRUCTURE_MESSAGE_BYTES: usize = 4 * 1024;
/// For calls that wait for their requests: a quarter of the budget, and at least so much.
const MIN_WAITING_BUDGET_BYTES: usize = 1024 * 1024;
/// For the requests of health and reflection.
const INFRASTRUCTURE_BUDGET_BYTES: usize = 16 * 1024 * 1024;

pub(crate) struct Memory {
    /// The cost of the last response of each method.
    last_response_bytes: Vec<AtomicUsize>,
    budget: Arc<Shares>,
    waiting: Arc<Shares>,
    infrastructure: Arc<Shares>,
    max_message_bytes: usize,
    rejections: Arc<Rejections>,
}

pub(crate) fn memory(
    policies: PolicyTable,
    budget: Arc<Shares>,
    max_message_bytes: usize,
    rejections: Arc<Rejections>,
) -> TowerLayer<Memory> {
    let last_response_bytes = policies.0.iter().map(|_| AtomicUsize::new(0)).collect();
    let infrastructure = Shares::new(Resource::InfrastructureMemory, INFRASTRUCTURE_BUDGET_BYTES, 0);
    let waiting = Shares::new(Resource::WaitingMemory, (budget.limit / 4).max(MIN_WAITING_BUDGET_BYTES), 0);
    layer(Memory { last_response_bytes, budget, waiting, infrastructure, max_message_bytes, rejections })
}

impl ServerLayer for Memory {
    fn call<N: Next>(self: &Arc<Self>, request: Request, next: &mut N) -> ServerFuture {
        let Call { class, policy, index, .. } = *Call::of(&request);
        let account = Arc::new(Account::new(self.budget.clone(), Holder::of(&request)));
        let last_bytes = self.last_response(index).map(|bytes| bytes.load(Ordering::Relaxed));
        if last_bytes.is_some_and(|bytes| account.is_beyond_share(bytes)) {
            self.rejections.count(Cause::Memory);
            return ready(respond(out_of_memory(Full::Share)));
        }
        let work = next.call(self.charged(request, class, policy, &account));
        let this = self.clone();
        Box::pin(async move {
            let response = work.await?;
            if response.body().is_end_stream() {
                return Ok(response);
            }
            let charge = Charge::new(account, this.rejections.clone());
            match class {
                Class::HealthCheck | Class::HealthWatch => Ok(response),
                Class::Stream | Class::Reflection => Ok(response.map(|inner| charge.stream(inner))),
                Class::Unary | Class::Unknown => this.unary(response, charge, index).await,
            }
        })
    }
}

impl Memory {
    fn last_response(&self, index: Option<usize>) -> Option<&AtomicUsize> {
        self.last_response_bytes.get(index?)
    }

    /// The request, whose frames are charged as they are read.
    fn charged(
        &self,
        request: Request,
        class: Class,
        policy: Option<&'static MethodPolicy>,
        account: &Arc<Account>,
    ) -> Request {
        let headers = request.headers().len();
        let rejections = self.rejections.clone();
        if class.is_infrastructure() {
            let prefixes = Prefixes::new(INFRASTRUCTURE_MESSAGE_BYTES, class == Class::Reflection);
            let budget = self.infrastructure.clone();
            let account = Arc::new(Account::new(budget.clone(), account.caller().clone()));
            let body = AdmittedBody::new(headers, prefixes, &[], account, budget, rejections);
            return request.map(|inner| wrap(inner, body));
        }
        // Client streaming is not supported: the build rejects it in the policies.
        let of_method = policy.and_then(|policy| policy.max_message_bytes);
        let prefixes = Prefixes::new(of_method.unwrap_or(self.max_message_bytes), false);
        let limits = policy.map_or(&[][..], |policy| policy.limits);
        let waiting = self.waiting.clone();
        let body = AdmittedBody::new(headers, prefixes, limits, account.clone(), waiting, rejections);
        request.map(|inner| wrap(inner, body))
    }

    /// A unary response's message is encoded before the headers are sent, so that they can carry an error instead.
    async fn unary(&self, response: Response, charge: Charge, index: Option<usize>) -> ServerResult {
        let (head, mut inner) = response.into_parts();
        let first = charge.encoded(&mut inner).await;
        let bytes = first.as_ref().and_then(|first| first.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        if let Some(last) = self.last_response(index) {
            last.store(bytes.saturating_mul(RESPONSE_COST_FACTOR), Ordering::Relaxed);
        }
        Ok(match charge.unary(first, inner) {
            Ok(body) => Response::from_parts(head, body),
            Err(status) => respond(status),
        })
    }
}

#[cfg(test)]
mod tests;
