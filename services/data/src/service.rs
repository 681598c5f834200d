//! The handlers: decode, call the domain, encode.

use std::pin::Pin;

use chassis::audit;
use contracts::data::v1 as proto;
use contracts::data::v1::catalog_service_server::CatalogService;
use contracts::data::v1::trace_event_service_server::TraceEventService;
use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::catalog::{Catalog, ListProducts, Upsert};
use crate::convert::{self, Skus};
use crate::convert_event;
use crate::delivery::Destination;
use crate::error::{Error, status};
use crate::trace_event::{ListTraceEvents, SummarizeTraceEvents, TraceEvents};
use crate::watch::{Watch, WatchTraceEvents};

/// The catalogue's handlers.
pub(crate) struct CatalogHandlers(pub(crate) Catalog);

#[tonic::async_trait]
impl CatalogService for CatalogHandlers {
    async fn batch_get_products(
        &self,
        request: Request<proto::BatchGetProductsRequest>,
    ) -> Result<Response<proto::BatchGetProductsResponse>, Status> {
        let operation = mesh::operation(request.extensions());
        let Skus(skus) = Skus::try_from(request.into_inner()).map_err(status)?;
        let lookup = self.0.lookup(skus, &operation).await.map_err(status)?;
        Ok(Response::new(lookup.into()))
    }

    async fn list_products(
        &self,
        request: Request<proto::ListProductsRequest>,
    ) -> Result<Response<proto::ListProductsResponse>, Status> {
        let operation = mesh::operation(request.extensions());
        let from = mesh::peer(request.extensions()).map(|peer| mesh::network(peer.ip()));
        let asked = ListProducts::try_from(request.into_inner()).map_err(status)?;
        let listed = self.0.list(&asked, from).await;
        if matches!(listed, Err(Error::TooManySearches)) {
            // A rejection by a limit (other than memory) is a metric and a span, but no event.
            operation.discard();
        }
        let page = convert::products(listed.map_err(status)?, &asked);
        operation.set("products", page.products.len().to_string());
        Ok(Response::new(page))
    }

    async fn upsert_product(
        &self,
        request: Request<proto::UpsertProductRequest>,
    ) -> Result<Response<proto::UpsertProductResponse>, Status> {
        let operation = audit::operation(request.extensions());
        let upsert = Upsert::try_from(request.into_inner()).map_err(status)?;
        let product = self.0.upsert(upsert, &operation).await.map_err(status)?;
        Ok(Response::new(product.into()))
    }

    async fn get_delivery_estimate(
        &self,
        request: Request<proto::GetDeliveryEstimateRequest>,
    ) -> Result<Response<proto::GetDeliveryEstimateResponse>, Status> {
        let operation = mesh::operation(request.extensions());
        let destination = Destination::try_from(request.into_inner()).map_err(status)?;
        let estimate = self.0.estimate(destination, &operation).await.map_err(status)?;
        Ok(Response::new(estimate.into()))
    }
}

/// The trace-event store's handlers.
pub(crate) struct TraceEventHandlers {
    pub(crate) events: TraceEvents,
    pub(crate) watch: Watch,
}

#[tonic::async_trait]
impl TraceEventService for TraceEventHandlers {
    async fn append_trace_events(
        &self,
        request: Request<proto::AppendTraceEventsRequest>,
    ) -> Result<Response<proto::AppendTraceEventsResponse>, Status> {
        let caller = mesh::caller(request.extensions());
        let sent = convert_event::append(&caller, request.into_inner()).map_err(status)?;
        let appended = self.events.append(sent).await.map_err(status)?;
        Ok(Response::new(convert_event::appended(appended)))
    }

    async fn list_trace_events(
        &self,
        request: Request<proto::ListTraceEventsRequest>,
    ) -> Result<Response<proto::ListTraceEventsResponse>, Status> {
        let asked = ListTraceEvents::try_from(request.into_inner()).map_err(status)?;
        let listed = self.events.list(&asked).await.map_err(status)?;
        Ok(Response::new(convert_event::events(&listed, &asked)))
    }

    type WatchTraceEventsStream = Pin<Box<dyn Stream<Item = Result<proto::WatchTraceEventsResponse, Status>> + Send>>;

    async fn watch_trace_events(
        &self,
        request: Request<proto::WatchTraceEventsRequest>,
    ) -> Result<Response<Self::WatchTraceEventsStream>, Status> {
        let caller = mesh::caller(request.extensions());
        let asked = WatchTraceEvents::try_from(request.into_inner()).map_err(status)?;
        let updates = self.watch.follow(&caller, asked).await.map_err(status)?;
        Ok(Response::new(Box::pin(updates.map(|update| update.map(Into::into).map_err(status)))))
    }

    async fn summarize_trace_events(
        &self,
        request: Request<proto::SummarizeTraceEventsRequest>,
    ) -> Result<Response<proto::SummarizeTraceEventsResponse>, Status> {
        let asked = SummarizeTraceEvents::try_from(request.into_inner()).map_err(status)?;
        let counts = self.events.summarize(asked).await.map_err(status)?;
        Ok(Response::new(convert_event::summary(counts)))
    }
}
