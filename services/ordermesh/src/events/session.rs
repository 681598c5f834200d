//! The operator's calls for as long as the command runs: an access token lives for minutes, so the session logs in
//! again.

use contracts::data::v1::trace_event_service_client::TraceEventServiceClient;
use contracts::data::v1::{
    ListTraceEventsRequest, ListTraceEventsResponse, WatchTraceEventsRequest, WatchTraceEventsResponse,
};
use parking_lot::Mutex;
use tonic::{Code, Status, Streaming};

use crate::error::Error;
use crate::system::{System, request};

pub(crate) struct Session {
    system: System,
    token: Mutex<String>,
}

impl Session {
    /// Logs in.
    ///
    /// # Errors
    /// The log-in is rejected.
    pub(crate) async fn open(system: System) -> Result<Self, Error> {
        let token = system.operator_token().await?;
        Ok(Self { system, token: Mutex::new(token) })
    }

    /// Logs in again.
    ///
    /// # Errors
    /// The log-in is rejected.
    pub(crate) async fn renew(&self) -> Result<(), Error> {
        let token = self.system.operator_token().await?;
        *self.token.lock() = token;
        Ok(())
    }

    fn token(&self) -> String {
        self.token.lock().clone()
    }

    fn events(&self) -> TraceEventServiceClient<mesh::Channel> {
        TraceEventServiceClient::new(self.system.data.clone())
    }

    /// A page of events.
    ///
    /// # Errors
    /// The call is rejected, for another reason than an expired token.
    pub(crate) async fn list(&self, message: ListTraceEventsRequest) -> Result<ListTraceEventsResponse, Error> {
        let first = self.events().list_trace_events(request(message.clone(), &self.token(), None)).await;
        let response = match first {
            Err(status) if status.code() == Code::Unauthenticated => {
                self.renew().await?;
                self.events().list_trace_events(request(message, &self.token(), None)).await
            }
            response => response,
        };
        Ok(response.map_err(Error::rejected("ListTraceEvents"))?.into_inner())
    }

    /// A stream of events.
    ///
    /// # Errors
    /// The call is rejected.
    pub(crate) async fn watch(
        &self,
        message: WatchTraceEventsRequest,
    ) -> Result<Streaming<WatchTraceEventsResponse>, Status> {
        Ok(self.events().watch_trace_events(request(message, &self.token(), None)).await?.into_inner())
    }
}
