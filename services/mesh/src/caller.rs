//! Who calls, and what a handler finds in its request's extensions.

use std::net::SocketAddr;

use kernel::Timestamp;
use telemetry::{Kind, Operation};
use tonic::Extensions;
use uuid::Uuid;

use crate::wire::OTHER_METHOD;

/// A person's role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Buys.
    Customer,
    /// Runs the shop.
    Operator,
}

/// Who calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Caller {
    /// Nobody knows: only public methods see this.
    Anonymous,
    /// A person with a verified access token.
    Person {
        /// The token's subject.
        user_id: Uuid,
        /// The token's role.
        role: Role,
        /// When the token ends.
        token_expires: Timestamp,
        /// The log-in's session, when the token names one (claim `sid`).
        session_id: Option<Uuid>,
    },
    /// A service of the platform.
    Service {
        /// Its name, for example `order`.
        name: String,
    },
}

/// The service that a connection's certificate names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PeerService(pub(crate) String);

/// A mark in a *client* request's extensions: the call makes no span and sends no `traceparent`. For the relay of trace
/// events, whose own spans would be spans about spans.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Untraced;

/// A request with the mark [`Untraced`].
pub fn untraced<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.extensions_mut().insert(Untraced);
    request
}

/// Which order and user a call is about: for the facts of its client operation, and so of its event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct About {
    /// The order.
    pub order_id: Option<Uuid>,
    /// The user.
    pub user_id: Option<Uuid>,
    /// Of a call that is made again after others came to nothing: the how-manieth it is, from 2.
    pub attempt: Option<u32>,
}

/// The attribute of a call's operation and event that has [`About::attempt`].
pub const ATTEMPT: &str = "attempt";

impl About {
    /// A request that says what it is about.
    pub fn request<T>(self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.extensions_mut().insert(self);
        request
    }
}

/// Who calls.
pub fn caller(extensions: &Extensions) -> Caller {
    extensions.get::<Caller>().cloned().unwrap_or(Caller::Anonymous)
}

/// The call's operation: its span and its event slot.
pub fn operation(extensions: &Extensions) -> Operation {
    extensions.get::<Operation>().cloned().unwrap_or_else(|| unseen(OTHER_METHOD, None))
}

/// The address that the call comes from: the peer's, or whom a trusted proxy names.
pub fn peer(extensions: &Extensions) -> Option<SocketAddr> {
    extensions.get::<SocketAddr>().copied()
}

/// An operation without a span: nothing is exported of it, and its ids lead nowhere.
pub(crate) fn unseen(name: &'static str, event: Option<(&'static str, crate::record::Sink)>) -> Operation {
    let (event_type, sink) = event.unzip();
    Operation::unseen(Kind::Server, name, event_type, sink)
}
