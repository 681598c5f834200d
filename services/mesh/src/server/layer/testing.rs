//! Requests as the outer layers pass them on.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;
use tonic::body::Body;

use crate::call::Call;
use crate::call::wire::Request;
use crate::policy::PolicyTable;
use crate::server::limits::usage::ConnectionCallers;

/// An anonymous client.
pub(crate) struct Client {
    policies: PolicyTable,
    callers: Arc<ConnectionCallers>,
}

impl Client {
    pub(crate) fn new(policies: PolicyTable) -> Self {
        Self { policies, callers: ConnectionCallers::new(Arc::default()) }
    }

    pub(crate) fn request(&self, path: &str, body: Body) -> Request {
        self.classified(http::Request::post(path).body(body).expect("a request"))
    }

    pub(crate) fn classified(&self, mut request: Request) -> Request {
        let call = Call::classify(self.policies, &request, None, Instant::now());
        request.extensions_mut().insert(call);
        request.extensions_mut().insert(self.callers.peer(SocketAddr::from(([192, 0, 2, 1], 1))));
        request
    }
}
