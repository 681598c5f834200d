//! Faults on purpose: what the traffic policy injects into a call before it is sent. The call's span, its event and a
//! metric say that it was.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status};
use tower::layer::layer_fn;
use tower::{Layer, Service};

use crate::call::wire::{Request, Response};
use crate::client::call::ClientCall;
use crate::client::rng::Rng;
use crate::status::{INJECTED_FAULT, code_name, mesh_status};
use crate::traffic::{Fault, duration};

/// The attribute of the span and the event of a call with an injected fault.
const FAULT: &str = "ordermesh.fault";
/// A call whose delay outlasts its deadline fails this long before it.
const BEFORE_DEADLINE: Duration = Duration::from_millis(2);

struct Shared {
    target: &'static str,
    rng: Arc<dyn Rng>,
    injected: Counter<u64>,
}

#[derive(Clone)]
pub(crate) struct InjectFaults<S> {
    inner: S,
    shared: Arc<Shared>,
}

pub(crate) fn inject_faults<S>(
    target: &'static str,
    rng: Arc<dyn Rng>,
) -> impl Layer<S, Service = InjectFaults<S>> + Clone {
    let meter = global::meter("mesh");
    let injected = meter.u64_counter("mesh.client.faults.injected");
    let injected = injected.with_description("Calls with a fault that the traffic policy has injected").build();
    let shared = Arc::new(Shared { target, rng, injected });
    layer_fn(move |inner| InjectFaults { inner, shared: shared.clone() })
}

impl Shared {
    /// The fault that this call gets.
    fn fault(&self, request: &Request) -> Option<Fault> {
        let call: &ClientCall = request.extensions().get()?;
        let fault = call.rule.as_ref()?.fault?;
        if self.rng.fraction() * 100.0 >= f64::from(fault.percent) {
            return None;
        }
        let what = match (fault.delay, fault.code) {
            (Some(delay), None) => format!("delay {}", duration::format(delay)),
            (Some(delay), Some(code)) => format!("delay {}, code {}", duration::format(delay), code_name(code)),
            (None, code) => format!("code {}", code.map_or("OK", code_name)),
        };
        if let Some(operation) = &call.operation {
            operation.set(FAULT, what);
        }
        let kind = if fault.code.is_some() { "code" } else { "delay" };
        self.injected.add(1, &[KeyValue::new("mesh.target", self.target), KeyValue::new("kind", kind)]);
        Some(fault)
    }
}

impl<S> Service<Request> for InjectFaults<S>
where
    S: Service<Request, Response = Response, Error = Status, Future = BoxFuture<'static, Result<Response, Status>>>
        + Clone
        + Send
        + 'static,
{
    type Response = Response;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Some(fault) = self.shared.fault(&request) else { return self.inner.call(request) };
        // The instance that is ready, for the call in the future; its clone is for the next call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let mut request = request;
            if let Some(delay) = fault.delay {
                delay_within_deadline(&mut request, delay).await?;
            }
            match fault.code {
                Some(code) => Err(injected(code)),
                None => inner.call(request).await,
            }
        })
    }
}

fn injected(code: Code) -> Status {
    mesh_status(code, INJECTED_FAULT, "a fault that the traffic policy injects on purpose")
}

/// Delays a call. What is left of its time is sent, and no longer the method's whole timeout: if the instance does not
/// respond in it, that is not the instance's failure.
async fn delay_within_deadline(request: &mut Request, delay: Duration) -> Result<(), Status> {
    let call = request.extensions_mut().get_mut::<ClientCall>();
    let deadline = call.and_then(|call| call.deadline.as_mut()).map(|deadline| {
        deadline.is_method_timeout = false;
        *deadline
    });
    let until = Instant::now() + delay;
    if let Some(deadline) = deadline.filter(|deadline| deadline.at <= until) {
        // Shortly before it, or the deadline's own status would be the result.
        sleep_until(deadline.at.checked_sub(BEFORE_DEADLINE).unwrap_or(deadline.at)).await;
        return Err(injected(Code::DeadlineExceeded));
    }
    sleep_until(until).await;
    match deadline {
        Some(deadline) if !deadline.write_to(Instant::now(), request.headers_mut()) => {
            Err(injected(Code::DeadlineExceeded))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
