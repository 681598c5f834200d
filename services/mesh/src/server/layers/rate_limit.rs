//! Rate limits per caller, on methods with a quota: a generic cell rate algorithm with one instant per caller. The key
//! is the authenticated subject, else the peer's address (IPv6: its /64, which belongs to one subscriber). On public
//! methods users are keyed by address even when authenticated: accounts are free to create. The number of callers is
//! bounded; when all entries are active, new callers share one quota.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tower::layer::layer_fn;
use tower::{Layer, Service};
use uuid::Uuid;

use crate::call::record::NoEvent;
use crate::call::{Request, Response, ServerResult, respond};
use crate::identity::caller::Caller;
use crate::policy::{Access, PolicyTable};
use crate::server::rejections::{Cause, Rejections};
use crate::server::resets::Resets;
use crate::status::MESH_DOMAIN;

/// Tracked callers, per method.
pub(crate) const MAX_CALLERS: usize = 10_000;
/// When the table is full, callers with a full quota are removed, at most this often: it scans all entries.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How often one caller may call one method of one instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// The number of calls, which may come as a burst; zero means one.
    pub calls: u32,
    /// The time in which the quota is refilled completely.
    pub per: Duration,
}

impl Quota {
    /// The time between two calls at an even rate.
    fn interval(self) -> Duration {
        self.per / self.calls.max(1)
    }

    /// Takes one call, or returns the time until one is available.
    pub(crate) fn take(self, used_until: &mut Instant, now: Instant) -> Result<(), Duration> {
        let over = self.over(*used_until, now);
        if !over.is_zero() {
            return Err(over);
        }
        *used_until = (*used_until).max(now) + self.interval();
        Ok(())
    }

    /// The time until a call is available.
    fn over(self, used_until: Instant, now: Instant) -> Duration {
        let next = used_until.max(now) + self.interval();
        next.saturating_duration_since(now).saturating_sub(self.per.max(self.interval()))
    }
}

/// The key that calls are counted by.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Key {
    User(Uuid),
    Service(String),
    Peer(IpAddr),
    /// All callers without an entry of their own.
    Others,
}

impl Key {
    pub(crate) fn of(request: &Request, is_public: bool) -> Self {
        let peer =
            || request.extensions().get::<SocketAddr>().map_or(Self::Others, |peer| Self::Peer(network(peer.ip())));
        match request.extensions().get::<Caller>() {
            Some(Caller::User { user_id, .. }) if !is_public => Self::User(*user_id),
            Some(Caller::Service { name }) => Self::Service(name.clone()),
            Some(Caller::User { .. } | Caller::Anonymous) | None => peer(),
        }
    }
}

/// The address's rate-limit key: itself, or its /64 for IPv6, which belongs to one subscriber.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The callers of one method.
#[derive(Debug)]
pub(crate) struct Callers {
    quota: Quota,
    /// The method allows anonymous callers.
    is_public: bool,
    max_callers: usize,
    /// Until when each caller's quota is used; instants in the past mean a full quota.
    used_until: HashMap<Key, Instant>,
    swept: Option<Instant>,
}

impl Callers {
    pub(crate) fn new(quota: Quota, max_callers: usize) -> Self {
        Self { quota, is_public: false, max_callers, used_until: HashMap::new(), swept: None }
    }

    /// Counts a call, or returns the time that the caller has to wait.
    pub(crate) fn count(&mut self, key: Key, now: Instant) -> Result<(), Duration> {
        let key = if self.has_room(&key, now) { key } else { Key::Others };
        self.quota.take(self.used_until.entry(key).or_insert(now), now)
    }

    /// The time that a caller has to wait, when its next call would exceed its quota.
    pub(crate) fn over(&self, key: &Key, now: Instant) -> Option<Duration> {
        let over = self.quota.over(*self.used_until.get(key)?, now);
        (!over.is_zero()).then_some(over)
    }

    fn has_room(&mut self, key: &Key, now: Instant) -> bool {
        if self.used_until.len() < self.max_callers || self.used_until.contains_key(key) {
            return true;
        }
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_INTERVAL) {
            self.swept = Some(now);
            self.used_until.retain(|_, until| *until > now);
        }
        self.used_until.len() < self.max_callers
    }
}

type Methods = HashMap<&'static str, Mutex<Callers>>;

#[derive(Clone)]
pub(crate) struct RateLimit<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// State shared by all calls.
struct Shared {
    methods: Methods,
    resets: Arc<Resets>,
    rejections: Arc<Rejections>,
}

pub(crate) fn rate_limit<S>(
    policies: PolicyTable,
    quotas: &[(&'static str, Quota)],
    resets: Arc<Resets>,
    rejections: Arc<Rejections>,
) -> impl Layer<S, Service = RateLimit<S>> + Clone {
    let callers = |path: &str, quota: Quota| {
        let is_public = policies.find(path).is_some_and(|policy| policy.allow.contains(&Access::Public));
        Mutex::new(Callers { is_public, ..Callers::new(quota, MAX_CALLERS) })
    };
    let methods = quotas.iter().map(|(path, quota)| (*path, callers(path, *quota))).collect();
    let shared = Arc::new(Shared { methods, resets, rejections });
    layer_fn(move |inner| RateLimit { inner, shared: shared.clone() })
}

impl<S> Service<Request> for RateLimit<S>
where
    S: Service<Request, Response = Response, Error = Infallible, Future = BoxFuture<'static, ServerResult>>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, ServerResult>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match self.shared.rejection(&request) {
            Some(rejection) => Box::pin(std::future::ready(Ok(rejection))),
            None => self.inner.call(request),
        }
    }
}

impl Shared {
    fn rejection(&self, request: &Request) -> Option<Response> {
        let path = request.uri().path();
        let (cause, status) = if let Some(wait) = self.resets.over() {
            (Cause::Resets, over_quota("TOO_MANY_CANCELLED", "calls that were cancelled", path, wait))
        } else {
            (Cause::RateLimit, over_quota("RATE_LIMITED", "calls of this method", path, self.over(path, request)?))
        };
        self.rejections.count(cause);
        let mut response = respond(status);
        response.extensions_mut().insert(NoEvent);
        Some(response)
    }

    /// The time that the caller has to wait, if it has used up the method's quota.
    fn over(&self, path: &str, request: &Request) -> Option<Duration> {
        let mut callers = self.methods.get(path)?.lock();
        let key = Key::of(request, callers.is_public);
        callers.count(key, Instant::now()).err()
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
