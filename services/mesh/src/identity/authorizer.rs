//! Authentication and authorization: the policy table decides; a method that is not in it is denied.

use std::sync::Arc;

use http::{Extensions, HeaderMap, header};
use tonic::{Code, Status};

use crate::call::caller_class::CallerClass;
use crate::call::wire::{SECRET_HEADER, SERVICE_HEADER};
use crate::call::{Call, WrongSecret};
use crate::identity::caller::{Caller, PeerService, Role};
use crate::identity::secret::SharedSecret;
use crate::identity::token::{KeySource, Tokens};
use crate::policy::{Access, MethodPolicy, PolicyTable};
use crate::server::call_state::update;
use crate::status::{mesh_status, no_such_method};

/// Presented credentials.
enum PresentedCredentials<'a> {
    /// Decided without waiting: the caller, or the error for invalid credentials.
    Caller(Result<Caller, Status>),
    /// A token, to be verified by these.
    Token(&'a Arc<Tokens>, &'a str),
}

/// Authenticates callers, and authorizes them by the policy table. Clones share their state.
#[derive(Clone)]
pub struct Authorizer {
    policies: PolicyTable,
    tokens: Option<Arc<Tokens>>,
    secret: Option<SharedSecret>,
}

impl Authorizer {
    /// Accepts no credentials yet: users and services are rejected, public methods are open.
    pub fn new(policies: PolicyTable) -> Self {
        Self { policies, tokens: None, secret: None }
    }

    /// Accepts access tokens (EdDSA JWT) of this issuer for this audience, signed by one of the source's keys.
    #[must_use]
    pub fn with_tokens(
        mut self,
        keys: Arc<dyn KeySource>,
        issuer: impl Into<String>,
        audience: impl Into<String>,
    ) -> Self {
        self.tokens = Some(Arc::new(Tokens::new(keys, issuer.into(), audience.into())));
        self
    }

    /// Accepts mesh services by their shared secret.
    #[must_use]
    pub fn with_mesh_secret(mut self, secret: SharedSecret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// The same, for a server with these methods.
    pub(crate) fn serving(mut self, policies: PolicyTable) -> Self {
        self.policies = policies;
        self
    }

    pub(crate) fn tokens(&self) -> Option<Arc<Tokens>> {
        self.tokens.clone()
    }

    pub(crate) fn accepts_secret(&self) -> bool {
        self.secret.is_some()
    }

    pub(crate) fn policies(&self) -> PolicyTable {
        self.policies
    }

    /// The mesh service that calls; `None` when the caller does not claim to be one. A certificate takes precedence.
    pub(crate) fn service(
        &self,
        headers: &HeaderMap,
        connection: &Extensions,
    ) -> Option<Result<Arc<str>, WrongSecret>> {
        if let Some(PeerService(name)) = connection.get() {
            return Some(Ok(name.clone()));
        }
        let presented = headers.get(SECRET_HEADER)?;
        let name = headers.get(SERVICE_HEADER).and_then(|name| name.to_str().ok()).filter(|name| !name.is_empty());
        let is_right = self.secret.as_ref().is_some_and(|secret| secret.matches(presented.as_bytes()));
        Some(name.filter(|_| is_right).map(Arc::from).ok_or(WrongSecret))
    }

    /// The caller if it is allowed, else the error. `None` when the decision must wait: see [`Authorizer::authorize`].
    pub(crate) fn authorize_now(&self, call: &Call, headers: &HeaderMap) -> Option<Result<Caller, Status>> {
        // Default deny; also the right answer for an unknown method: it never reaches the routes.
        let Some(policy) = call.policy else { return Some(Err(no_such_method())) };
        match self.presented(call, headers) {
            PresentedCredentials::Caller(caller) => Some(decide(policy, caller)),
            PresentedCredentials::Token(..) => None,
        }
    }

    /// The same for all credentials: a token may have to wait for the keys that verify it.
    pub(crate) async fn authorize(&self, call: &Call, headers: &HeaderMap) -> Result<Caller, Status> {
        let Some(policy) = call.policy else { return Err(no_such_method()) };
        let caller = match self.presented(call, headers) {
            PresentedCredentials::Caller(caller) => caller,
            PresentedCredentials::Token(tokens, token) => tokens.verify(token).await,
        };
        decide(policy, caller)
    }

    fn presented<'a>(&'a self, call: &Call, headers: &'a HeaderMap) -> PresentedCredentials<'a> {
        if let Some(service) = &call.service {
            let caller = service.as_ref().map(|name| Caller::Service { name: name.to_string() });
            return PresentedCredentials::Caller(caller.map_err(|_wrong_secret| wrong_secret()));
        }
        let Some(authorization) = headers.get(header::AUTHORIZATION) else {
            return PresentedCredentials::Caller(Ok(Caller::Anonymous));
        };
        // Of two headers, a proxy may have checked the other one.
        let is_only = headers.get_all(header::AUTHORIZATION).iter().count() == 1;
        let (reason, message) = match (bearer(authorization.as_bytes()).filter(|_| is_only), &self.tokens) {
            (Some(token), Some(tokens)) => return PresentedCredentials::Token(tokens, token),
            (None, _) => ("TOKEN_MALFORMED", "authorization must be one header of `Bearer` and an access token"),
            (Some(_), None) => ("TOKEN_INVALID", "no access tokens are accepted here"),
        };
        PresentedCredentials::Caller(Err(mesh_status(Code::Unauthenticated, reason, message)))
    }
}

fn wrong_secret() -> Status {
    mesh_status(Code::Unauthenticated, "INVALID_MESH_SECRET", "the mesh secret is wrong")
}

fn bearer(authorization: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(authorization).ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn decide(policy: &MethodPolicy, known: Result<Caller, Status>) -> Result<Caller, Status> {
    if let Ok(Caller::User { role, .. }) = &known {
        update(|state| state.caller_class = class_of(*role));
    }
    if policy.allow.contains(&Access::Public) {
        // Public methods need no credentials, so invalid ones are treated as none.
        return Ok(known.unwrap_or(Caller::Anonymous));
    }
    let caller = known?;
    allowed(policy, &caller).map(|()| caller)
}

/// For the statistics.
fn class_of(role: Role) -> CallerClass {
    match role {
        Role::Customer => CallerClass::Customer,
        Role::Operator => CallerClass::Operator,
    }
}

fn allowed(policy: &MethodPolicy, caller: &Caller) -> Result<(), Status> {
    match caller {
        Caller::Anonymous => {
            Err(mesh_status(Code::Unauthenticated, "TOKEN_MISSING", "this method needs credentials: log in first"))
        }
        Caller::User { role, .. } => {
            let needed = match role {
                Role::Customer => Access::Customer,
                Role::Operator => Access::Operator,
            };
            if policy.allow.contains(&needed) {
                return Ok(());
            }
            Err(mesh_status(Code::PermissionDenied, "ROLE_NOT_ALLOWED", "your role may not call this method"))
        }
        Caller::Service { name } => {
            if policy.allow.contains(&Access::Service) && policy.callers.contains(&name.as_str()) {
                return Ok(());
            }
            Err(mesh_status(Code::PermissionDenied, "CALLER_NOT_ALLOWED", "this service may not call this method"))
        }
    }
}

#[cfg(test)]
mod tests;
