//! What the client's layers share about a call. In the request's extensions.

use std::sync::Arc;

use http::HeaderMap;
use telemetry::Operation;
use tokio::time::Instant;

use crate::call::deadline::{GRPC_TIMEOUT, format};
use crate::call::wire::{Request, never_indexed};
use crate::client::attempted::AttemptedEndpoints;
use crate::monitor::observed::TapDetails;
use crate::policy::MethodPolicy;
use crate::traffic::TrafficRule;

/// A call, as the outermost layer has looked it up.
#[derive(Clone, Default)]
pub(crate) struct ClientCall {
    pub(crate) policy: Option<&'static MethodPolicy>,
    /// `None` for an untraced call.
    pub(crate) operation: Option<Operation>,
    /// Set by the deadline layer.
    pub(crate) deadline: Option<CallDeadline>,
    /// What the traffic policy changes of it.
    pub(crate) rule: Option<Arc<TrafficRule>>,
    /// The affinity key of a split: calls with the same key go to the same backend. Derived from the order id.
    pub(crate) affinity_key: Option<u64>,
    /// The instances that it was sent to.
    pub(crate) attempted: AttemptedEndpoints,
    /// While a tap is open.
    pub(crate) tap: Option<Arc<TapDetails>>,
}

impl ClientCall {
    /// The policy of a request's call.
    pub(crate) fn policy_of(request: &Request) -> Option<&'static MethodPolicy> {
        request.extensions().get::<Self>().and_then(|call| call.policy)
    }

    /// What the traffic policy changes of a request's call.
    pub(crate) fn rule_of(request: &Request) -> Option<&TrafficRule> {
        request.extensions().get::<Self>().and_then(|call| call.rule.as_deref())
    }
}

/// When a call ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CallDeadline {
    pub(crate) at: Instant,
    /// Whether the call has its method's full timeout, and no earlier deadline.
    pub(crate) is_method_timeout: bool,
}

impl CallDeadline {
    /// Writes the time left into the headers; `false` when none is left.
    pub(crate) fn write_to(self, now: Instant, headers: &mut HeaderMap) -> bool {
        let left = self.at.saturating_duration_since(now);
        headers.insert(GRPC_TIMEOUT, never_indexed(format(left)));
        left.as_micros() > 0
    }
}
