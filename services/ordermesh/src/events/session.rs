//! The calls of the Data Service's trace events, as the operator.

use contracts::data::v1::trace_event_service_client::TraceEventServiceClient;
use contracts::data::v1::{
    ListTraceEventsRequest, ListTraceEventsResponse, WatchTraceEventsRequest, WatchTraceEventsResponse,
};
use tonic::{Status, Streaming};

use crate::error::Error;
use crate::operator_session::{LOG_IN, OperatorSession};
use crate::system::System;

pub(crate) struct Session {
    data: mesh::Channel,
    operator: OperatorSession,
}

impl Session {
    /// Logs in.
    ///
    /// # Errors
    /// The log-in is rejected.
    pub(crate) async fn open(system: System) -> Result<Self, Error> {
        Ok(Self { data: system.data.clone(), operator: system.operator_session().await? })
    }

    /// Logs in again.
    ///
    /// # Errors
    /// The log-in is rejected.
    pub(crate) async fn renew(&self) -> Result<(), Error> {
        self.operator.renew().await.map_err(Error::rejected(LOG_IN))
    }

    fn events(&self) -> TraceEventServiceClient<mesh::Channel> {
        TraceEventServiceClient::new(self.data.clone())
    }

    /// A page of events.
    ///
    /// # Errors
    /// The call is rejected, for another reason than an expired token.
    pub(crate) async fn list(&self, message: ListTraceEventsRequest) -> Result<ListTraceEventsResponse, Error> {
        let list = |request| {
            let mut events = self.events();
            async move { events.list_trace_events(request).await }
        };
        let listed = self.operator.call(message, list).await;
        listed.map_err(Error::rejected("ListTraceEvents"))
    }

    /// A stream of events.
    ///
    /// # Errors
    /// The call is rejected.
    pub(crate) async fn watch(
        &self,
        message: WatchTraceEventsRequest,
    ) -> Result<Streaming<WatchTraceEventsResponse>, Status> {
        Ok(self.events().watch_trace_events(self.operator.request(message)).await?.into_inner())
    }
}
