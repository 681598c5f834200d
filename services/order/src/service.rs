//! The handlers: decode, call the domain, encode. The policy table authorises the caller; the domain checks the order's
//! owner.

use std::pin::Pin;

use chassis::audit;
use contracts::order::v1 as proto;
use contracts::order::v1::inventory_service_server::InventoryService;
use contracts::order::v1::order_service_server::OrderService;
use contracts::order::v1::payment_confirmation_service_server::PaymentConfirmationService;
use futures_util::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::convert;
use crate::effects::{self, Driver};
use crate::error::{Error, status};
use crate::explain::Explainer;
use crate::inventory::Inventory;
use crate::order::Scope;
use crate::orders::Orders;
use crate::watch::{self, Watchers};

pub(crate) struct OrderHandlers {
    pub(crate) orders: Orders,
    pub(crate) explainer: Explainer,
    pub(crate) watchers: Watchers,
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl OrderService for OrderHandlers {
    async fn create_order(
        &self,
        request: Request<proto::CreateOrderRequest>,
    ) -> Result<Response<proto::CreateOrderResponse>, Status> {
        let operation = mesh::operation(request.extensions());
        let user = convert::user(&mesh::caller(request.extensions()));
        let id = self.orders.begin(&operation, user);
        let decoded = convert::create_order(request.into_inner()).map_err(Error::from).map_err(status)?;
        let order = self.orders.create_decoded(&operation, id, user, decoded).await.map_err(status)?;
        Ok(Response::new(proto::CreateOrderResponse { order: Some(convert::order(Scope::Of(user), &order)) }))
    }

    async fn get_order(
        &self,
        request: Request<proto::GetOrderRequest>,
    ) -> Result<Response<proto::GetOrderResponse>, Status> {
        let scope = convert::scope(&mesh::caller(request.extensions()));
        let id = convert::order_id(&request.get_ref().order_id).map_err(Error::from).map_err(status)?;
        let (order, history) = self.orders.get(scope, id).await.map_err(status)?;
        let history = history.iter().map(convert::history).collect();
        Ok(Response::new(proto::GetOrderResponse { order: Some(convert::order(scope, &order)), history }))
    }

    async fn list_orders(
        &self,
        request: Request<proto::ListOrdersRequest>,
    ) -> Result<Response<proto::ListOrdersResponse>, Status> {
        let scope = convert::scope(&mesh::caller(request.extensions()));
        let list = convert::list_orders(scope, request.get_ref()).map_err(Error::from).map_err(status)?;
        let one_more = u64::from(list.size) + 1;
        let orders = self.orders.list(scope, list.state, list.page.after, one_more).await.map_err(status)?;
        Ok(Response::new(convert::orders(scope, &orders, &list)))
    }

    type WatchOrderStream = Pin<Box<dyn Stream<Item = Result<proto::WatchOrderResponse, Status>> + Send>>;

    async fn watch_order(
        &self,
        request: Request<proto::WatchOrderRequest>,
    ) -> Result<Response<Self::WatchOrderStream>, Status> {
        let caller = mesh::caller(request.extensions());
        let (id, after) = convert::watch_order(request.get_ref()).map_err(Error::from).map_err(status)?;
        let steps = watch::follow(&self.orders, &self.watchers, &self.shutdown, &caller, id, after);
        Ok(Response::new(Box::pin(steps.await.map_err(status)?)))
    }

    async fn cancel_order(
        &self,
        request: Request<proto::CancelOrderRequest>,
    ) -> Result<Response<proto::CancelOrderResponse>, Status> {
        let operation = audit::operation(request.extensions());
        let scope = convert::scope(&mesh::caller(request.extensions()));
        let id = convert::order_id(&request.get_ref().order_id).map_err(Error::from).map_err(status)?;
        let order = self.orders.cancel(&operation, scope, id).await.map_err(status)?;
        Ok(Response::new(proto::CancelOrderResponse { order: Some(convert::order(scope, &order)) }))
    }

    async fn explain_order(
        &self,
        request: Request<proto::ExplainOrderRequest>,
    ) -> Result<Response<proto::ExplainOrderResponse>, Status> {
        let id = convert::order_id(&request.get_ref().order_id).map_err(Error::from).map_err(status)?;
        Ok(Response::new(self.explainer.explain(id).await.map_err(status)?))
    }

    async fn retry_order(
        &self,
        request: Request<proto::RetryOrderRequest>,
    ) -> Result<Response<proto::RetryOrderResponse>, Status> {
        let operation = audit::operation(request.extensions());
        let id = convert::order_id(&request.get_ref().order_id).map_err(Error::from).map_err(status)?;
        let order = self.orders.retry(&operation, id).await.map_err(status)?;
        Ok(Response::new(proto::RetryOrderResponse { order: Some(convert::order(Scope::All, &order)) }))
    }
}

pub(crate) struct ConfirmationHandlers {
    pub(crate) driver: Driver,
}

#[tonic::async_trait]
impl PaymentConfirmationService for ConfirmationHandlers {
    async fn confirm_payment(
        &self,
        request: Request<proto::ConfirmPaymentRequest>,
    ) -> Result<Response<proto::ConfirmPaymentResponse>, Status> {
        let id = convert::order_id(&request.get_ref().order_id).map_err(Error::from).map_err(status)?;
        effects::wake(&self.driver, id).await.map_err(Error::from).map_err(status)?;
        Ok(Response::new(proto::ConfirmPaymentResponse {}))
    }
}

pub(crate) struct InventoryHandlers {
    pub(crate) inventory: Inventory,
}

#[tonic::async_trait]
impl InventoryService for InventoryHandlers {
    async fn batch_get_stock(
        &self,
        request: Request<proto::BatchGetStockRequest>,
    ) -> Result<Response<proto::BatchGetStockResponse>, Status> {
        let skus = convert::skus(request.into_inner().skus).map_err(Error::from).map_err(status)?;
        let stocks = self.inventory.stock(&skus).await.map_err(status)?;
        Ok(Response::new(proto::BatchGetStockResponse { stocks: stocks.into_iter().map(convert::stock).collect() }))
    }

    async fn adjust_stock(
        &self,
        request: Request<proto::AdjustStockRequest>,
    ) -> Result<Response<proto::AdjustStockResponse>, Status> {
        let operation = audit::operation(request.extensions());
        let command = convert::adjust_stock(request.get_ref()).map_err(Error::from).map_err(status)?;
        let adjustment = self.inventory.adjust(&operation, command).await.map_err(status)?;
        Ok(Response::new(proto::AdjustStockResponse {
            stock: Some(convert::stock(adjustment.stock)),
            lost_line_count: adjustment.lost_lines,
        }))
    }
}
