//! The gRPC handlers: decode, domain, encode.

use std::pin::Pin;

use chassis::audit;
use contracts::data::v1 as proto;
use contracts::data::v1::catalog_service_server::CatalogService;
use contracts::data::v1::trace_event_service_server::TraceEventService;
use futures_util::{Stream, StreamExt};
use kernel::client_network;
use tonic::{Request, Response, Status, async_trait};

use crate::catalog::{Catalog, ListProducts, Upsert};
use crate::convert::{self, Skus};
use crate::convert_event;
use crate::delivery::Destination;
use crate::error::{Error, status};
use crate::trace_event::{ListTraceEvents, SummarizeTraceEvents, TraceEvents};
use crate::watch::{Update, Watch, WatchTraceEvents};

/// The handlers of data.v1.CatalogService.
pub(crate) struct CatalogHandlers(pub(crate) Catalog);

impl CatalogHandlers {
    async fn lookup(
        &self,
        request: Request<proto::BatchGetProductsRequest>,
    ) -> Result<proto::BatchGetProductsResponse, Error> {
        let operation = mesh::operation(request.extensions());
        let Skus(skus) = request.into_inner().try_into()?;
        Ok(self.0.lookup(skus, &operation).await?.into())
    }

    async fn list(&self, request: Request<proto::ListProductsRequest>) -> Result<proto::ListProductsResponse, Error> {
        let operation = mesh::operation(request.extensions());
        let from = mesh::peer(request.extensions()).map(|peer| client_network(peer.ip()));
        let list = ListProducts::try_from(request.into_inner())?;
        let products = self.0.list(&list, from, &operation).await?;
        let page = convert::products(products, &list);
        operation.set("products", page.products.len().to_string());
        Ok(page)
    }

    async fn upsert(
        &self,
        request: Request<proto::UpsertProductRequest>,
    ) -> Result<proto::UpsertProductResponse, Error> {
        let operation = audit::operation(request.extensions());
        let upsert = Upsert::try_from(request.into_inner())?;
        Ok(self.0.upsert(upsert, &operation).await?.into())
    }

    async fn estimate(
        &self,
        request: Request<proto::GetDeliveryEstimateRequest>,
    ) -> Result<proto::GetDeliveryEstimateResponse, Error> {
        let operation = mesh::operation(request.extensions());
        let destination = Destination::try_from(request.into_inner())?;
        Ok(self.0.estimate(destination, &operation).await?.into())
    }
}

#[async_trait]
impl CatalogService for CatalogHandlers {
    async fn batch_get_products(
        &self,
        request: Request<proto::BatchGetProductsRequest>,
    ) -> Result<Response<proto::BatchGetProductsResponse>, Status> {
        self.lookup(request).await.map(Response::new).map_err(status)
    }

    async fn list_products(
        &self,
        request: Request<proto::ListProductsRequest>,
    ) -> Result<Response<proto::ListProductsResponse>, Status> {
        self.list(request).await.map(Response::new).map_err(status)
    }

    async fn upsert_product(
        &self,
        request: Request<proto::UpsertProductRequest>,
    ) -> Result<Response<proto::UpsertProductResponse>, Status> {
        self.upsert(request).await.map(Response::new).map_err(status)
    }

    async fn get_delivery_estimate(
        &self,
        request: Request<proto::GetDeliveryEstimateRequest>,
    ) -> Result<Response<proto::GetDeliveryEstimateResponse>, Status> {
        self.estimate(request).await.map(Response::new).map_err(status)
    }
}

/// The handlers of data.v1.TraceEventService.
pub(crate) struct TraceEventHandlers {
    pub(crate) events: TraceEvents,
    pub(crate) watch: Watch,
}

impl TraceEventHandlers {
    async fn append(
        &self,
        request: Request<proto::AppendTraceEventsRequest>,
    ) -> Result<proto::AppendTraceEventsResponse, Error> {
        let caller = mesh::caller(request.extensions());
        let received = convert_event::received(&caller, request.into_inner())?;
        let results = self.events.append(received).await?.into_iter().map(Into::into).collect();
        Ok(proto::AppendTraceEventsResponse { results })
    }

    async fn list(
        &self,
        request: Request<proto::ListTraceEventsRequest>,
    ) -> Result<proto::ListTraceEventsResponse, Error> {
        let list = ListTraceEvents::try_from(request.into_inner())?;
        let listed = self.events.list(&list).await?;
        Ok(convert_event::events(&listed, &list))
    }

    async fn follow(
        &self,
        request: Request<proto::WatchTraceEventsRequest>,
    ) -> Result<impl Stream<Item = Result<Update, Error>> + Send + use<>, Error> {
        let caller = mesh::caller(request.extensions());
        let watch = WatchTraceEvents::try_from(request.into_inner())?;
        self.watch.follow(&caller, watch).await
    }

    async fn summarize(
        &self,
        request: Request<proto::SummarizeTraceEventsRequest>,
    ) -> Result<proto::SummarizeTraceEventsResponse, Error> {
        let window = SummarizeTraceEvents::try_from(request.into_inner())?;
        let counts = self.events.summarize(window).await?.into_iter().map(Into::into).collect();
        Ok(proto::SummarizeTraceEventsResponse { counts })
    }
}

#[async_trait]
impl TraceEventService for TraceEventHandlers {
    async fn append_trace_events(
        &self,
        request: Request<proto::AppendTraceEventsRequest>,
    ) -> Result<Response<proto::AppendTraceEventsResponse>, Status> {
        self.append(request).await.map(Response::new).map_err(status)
    }

    async fn list_trace_events(
        &self,
        request: Request<proto::ListTraceEventsRequest>,
    ) -> Result<Response<proto::ListTraceEventsResponse>, Status> {
        self.list(request).await.map(Response::new).map_err(status)
    }

    type WatchTraceEventsStream = Pin<Box<dyn Stream<Item = Result<proto::WatchTraceEventsResponse, Status>> + Send>>;

    async fn watch_trace_events(
        &self,
        request: Request<proto::WatchTraceEventsRequest>,
    ) -> Result<Response<Self::WatchTraceEventsStream>, Status> {
        let updates = self.follow(request).await.map_err(status)?;
        Ok(Response::new(Box::pin(updates.map(|update| update.map(Into::into).map_err(status)))))
    }

    async fn summarize_trace_events(
        &self,
        request: Request<proto::SummarizeTraceEventsRequest>,
    ) -> Result<Response<proto::SummarizeTraceEventsResponse>, Status> {
        self.summarize(request).await.map(Response::new).map_err(status)
    }
}
