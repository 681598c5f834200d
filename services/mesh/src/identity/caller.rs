//! The caller, and what else a handler finds in its request's extensions.

use std::sync::Arc;

use kernel::Timestamp;
use telemetry::{Kind, Operation};
use tonic::Extensions;
use uuid::Uuid;

use crate::call::OTHER_METHOD;

/// A user's role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Places orders.
    Customer,
    /// Operates the shop.
    Operator,
}

/// The authenticated caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Caller {
    /// Not authenticated: only public methods see this.
    Anonymous,
    /// A user with a verified access token.
    User {
        /// The token's subject.
        user_id: Uuid,
        /// The token's role.
        role: Role,
        /// When the token expires.
        token_expires: Timestamp,
        /// The log-in session, when the token names one (claim `sid`).
        session_id: Option<Uuid>,
    },
    /// A mesh service.
    Service {
        /// Its name, for example `order`.
        name: String,
    },
}

/// The service that a connection's certificate names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PeerService(pub(crate) Arc<str>);

/// Marks a *client* request in its extensions: the call has no span and sends no `traceparent`. For the relay of trace
/// events, whose own spans would be spans about spans.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Untraced;

/// A request marked [`Untraced`].
pub fn untraced<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.extensions_mut().insert(Untraced);
    request
}

/// The request's caller.
pub fn caller(extensions: &Extensions) -> Caller {
    extensions.get::<Caller>().cloned().unwrap_or(Caller::Anonymous)
}

/// The call's operation: its span and its event slot.
pub fn operation(extensions: &Extensions) -> Operation {
    extensions.get::<Operation>().cloned().unwrap_or_else(|| non_recording(OTHER_METHOD, None))
}

/// A non-recording operation: nothing is exported, and its ids are in no trace.
pub(crate) fn non_recording(name: &'static str, event: Option<(&'static str, crate::call::record::Sink)>) -> Operation {
    let (event_type, sink) = event.unzip();
    Operation::unseen(Kind::Server, name, event_type, sink)
}
