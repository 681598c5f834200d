//! The trace events of the Data Service.

use contracts::data::v1 as data;
use contracts::data::v1::trace_event_service_client::TraceEventServiceClient;
use kernel::OrderId;
use mesh::Channel;
use tonic::Status;

/// Soft limit of an order's events to read: the last page may exceed it.
const MAX_EVENTS: i32 = 500;

/// The trace events over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcEvents(TraceEventServiceClient<Channel>);

impl GrpcEvents {
    /// A client on a channel to the Data Service.
    pub fn new(data: Channel) -> Self {
        Self(TraceEventServiceClient::new(data))
    }

    /// The newest events of an order, and whether there are more.
    pub(crate) async fn of_order(&self, order: OrderId) -> Result<(Vec<data::TraceEvent>, bool), Status> {
        let (mut events, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = data::ListTraceEventsRequest {
                order_id: order.to_string(),
                page_size: MAX_EVENTS,
                page_token,
                ..Default::default()
            };
            let page = self.0.clone().list_trace_events(request).await?.into_inner();
            events.extend(page.events);
            page_token = page.next_page_token;
            // A page may be shorter than its requested size.
            if page_token.is_empty() || events.len() >= usize::try_from(MAX_EVENTS).unwrap_or(usize::MAX) {
                return Ok((events, !page_token.is_empty()));
            }
        }
    }
}
