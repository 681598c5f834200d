//! Rate limits per caller, on methods with a quota. The key is the authenticated subject, else the peer's address (IPv6:
//! its /64, which belongs to one subscriber). On public methods users are keyed by address even when authenticated:
//! accounts are free to create.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::call::Call;
use crate::call::wire::{Request, ServerFuture};
use crate::identity::caller::Caller;
use crate::policy::{Access, PolicyTable};
use crate::server::layer::{Next, ServerLayer, TowerLayer, layer, ready, rejected};
use crate::server::limits::caller_key::CallerKey;
use crate::server::limits::quota::{Callers, MAX_CALLERS, Quota};
use crate::server::limits::resets::Resets;
use crate::server::limits::usage::Peer;
use crate::server::rejections::{Cause, Rejections};
use crate::status::MESH_DOMAIN;

pub(crate) struct RateLimit {
    /// By the policy's index; `None` without a quota.
    methods: Vec<Option<Method>>,
    resets: Arc<Resets>,
    rejections: Arc<Rejections>,
}

/// A method with a quota.
struct Method {
    is_public: bool,
    callers: Mutex<Callers>,
}

pub(crate) fn rate_limit(
    policies: PolicyTable,
    quotas: &[(&'static str, Quota)],
    resets: Arc<Resets>,
    rejections: Arc<Rejections>,
) -> TowerLayer<RateLimit> {
    let methods = policies.0.iter().map(|policy| {
        let (_, quota) = quotas.iter().rev().find(|(path, _)| *path == policy.path)?;
        let is_public = policy.allow.contains(&Access::Public);
        Some(Method { is_public, callers: Mutex::new(Callers::new(*quota, MAX_CALLERS)) })
    });
    layer(RateLimit { methods: methods.collect(), resets, rejections })
}

impl ServerLayer for RateLimit {
    fn call<N: Next>(self: &Arc<Self>, request: Request, next: &mut N) -> ServerFuture {
        match self.over(&request) {
            Some((cause, status)) => {
                self.rejections.count(cause);
                ready(rejected(status))
            }
            None => next.call(request),
        }
    }
}

impl RateLimit {
    fn over(&self, request: &Request) -> Option<(Cause, Status)> {
        let path = request.uri().path();
        if let Some(wait) = self.resets.over() {
            return Some((Cause::Resets, over_quota("TOO_MANY_CANCELLED", "calls that were cancelled", path, wait)));
        }
        let method = self.methods.get(Call::of(request).index?)?.as_ref()?;
        let wait = method.callers.lock().count(key_of(request, method.is_public), Instant::now()).err()?;
        Some((Cause::RateLimit, over_quota("RATE_LIMITED", "calls of this method", path, wait)))
    }
}

fn key_of(request: &Request, is_public: bool) -> CallerKey {
    let address = || {
        request.extensions().get::<Peer>().map_or(CallerKey::Others, |peer| CallerKey::of_address(peer.address.ip()))
    };
    match request.extensions().get::<Caller>() {
        Some(Caller::User { user_id, .. }) if !is_public => CallerKey::User(*user_id),
        Some(Caller::Service { name }) => CallerKey::Service(name.clone()),
        Some(Caller::User { .. } | Caller::Anonymous) | None => address(),
    }
}

fn over_quota(reason: &str, what: &str, path: &str, wait: Duration) -> Status {
    let message = format!("too many {what}: retry after the delay in retry_info");
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, MESH_DOMAIN, HashMap::new());
    details.set_retry_info(Some(wait));
    details.add_quota_failure_violation(path.trim_start_matches('/'), message.clone());
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

#[cfg(test)]
mod tests;
