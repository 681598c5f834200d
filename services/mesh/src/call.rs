//! What the server's outermost layer determines about a call, once: the other layers read it.

pub(crate) mod caller_class;
pub(crate) mod deadline;
pub(crate) mod inbound_headers;
pub(crate) mod metrics;
pub(crate) mod mirrored;
pub(crate) mod record;
pub(crate) mod wire;

use std::sync::Arc;

use tokio::time::Instant;

use crate::call::deadline::{Malformed, effective, requested_timeout};
use crate::call::wire::Request;
use crate::policy::{MethodPolicy, PolicyTable};

/// One name for all methods outside of the contract, or clients could create any number of metric series.
pub(crate) const OTHER_METHOD: &str = "_OTHER";

/// What the layers do differently for calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// A method of the contract with a single response.
    Unary,
    /// A method of the contract whose response is a stream.
    Stream,
    /// A unary health check.
    HealthCheck,
    /// Streams of health.
    HealthWatch,
    /// Reflection: its requests are streams too.
    Reflection,
    /// Not in the contract.
    Unknown,
}

impl Class {
    fn of(path: &str, policy: Option<&MethodPolicy>) -> Self {
        if let Some(policy) = policy {
            return if policy.streaming { Self::Stream } else { Self::Unary };
        }
        if path == "/grpc.health.v1.Health/Check" {
            return Self::HealthCheck;
        }
        if path.starts_with("/grpc.health.v1.Health/") {
            return Self::HealthWatch;
        }
        if path.starts_with("/grpc.reflection.v1") { Self::Reflection } else { Self::Unknown }
    }

    /// Health and reflection: no policy, no span, limits of their own, open to all.
    pub(crate) fn is_infrastructure(self) -> bool {
        match self {
            Self::HealthCheck | Self::HealthWatch | Self::Reflection => true,
            Self::Unary | Self::Stream | Self::Unknown => false,
        }
    }
}

/// A call, classified. In the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) class: Class,
    pub(crate) policy: Option<&'static MethodPolicy>,
    /// The policy's index in the server's table.
    pub(crate) index: Option<usize>,
    /// The earlier of the method's deadline and the caller's, both from arrival.
    pub(crate) deadline: Result<Option<Instant>, Malformed>,
    /// The mesh service that calls; `None` when the caller does not claim to be one.
    pub(crate) service: Option<Result<Arc<str>, WrongSecret>>,
}

/// A mesh service presented a wrong secret, or no name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WrongSecret;

/// Of a request that was not classified, as there is none in a server.
static UNCLASSIFIED: Call =
    Call { class: Class::Unknown, policy: None, index: None, deadline: Ok(None), service: None };

impl Call {
    /// Classifies a request that arrives now.
    pub(crate) fn classify(
        policies: PolicyTable,
        request: &Request,
        service: Option<Result<Arc<str>, WrongSecret>>,
        now: Instant,
    ) -> Self {
        let path = request.uri().path();
        let index = policies.index(path);
        let policy = index.map(|index| &policies.0[index]);
        let requested = requested_timeout(request.headers());
        let deadline =
            requested.map(|requested| effective(requested, policy).and_then(|timeout| now.checked_add(timeout)));
        Self { class: Class::of(path, policy), policy, index, deadline, service }
    }

    /// The call of a request.
    pub(crate) fn of(request: &Request) -> &Self {
        Self::in_extensions(request.extensions())
    }

    /// The call in a request's extensions.
    pub(crate) fn in_extensions(extensions: &http::Extensions) -> &Self {
        extensions.get().unwrap_or(&UNCLASSIFIED)
    }

    /// The name of a mesh service that calls with valid credentials.
    pub(crate) fn known_service(&self) -> Option<&str> {
        self.service.as_ref()?.as_deref().ok()
    }
}

/// The name of a method in spans and metrics.
pub(crate) fn method_name(policy: Option<&'static MethodPolicy>) -> &'static str {
    policy.map_or(OTHER_METHOD, MethodPolicy::name)
}

#[cfg(test)]
mod tests;
