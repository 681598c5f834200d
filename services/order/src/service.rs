//! The handlers: decode, call the domain, encode. The policy table authorises the caller; the domain checks the order's
//! customer.

use std::pin::Pin;

use chassis::audit;
use contracts::order::v1 as proto;
use contracts::order::v1::inventory_service_server::InventoryService;
use contracts::order::v1::order_service_server::OrderService;
use contracts::order::v1::payment_confirmation_service_server::PaymentConfirmationService;
use futures_util::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait};

use crate::convert;
use crate::driver::{self, Driver};
use crate::error::{Error, status};
use crate::explain::Explainer;
use crate::inventory::Inventory;
use crate::order::Scope;
use crate::orders::Orders;
use crate::subscriptions::Subscriptions;
use crate::watch;

type WatchOrderStream = Pin<Box<dyn Stream<Item = Result<proto::WatchOrderResponse, Status>> + Send>>;

pub(crate) struct OrderHandlers {
    pub(crate) orders: Orders,
    pub(crate) explainer: Explainer,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) shutdown: CancellationToken,
}

impl OrderHandlers {
    async fn create(&self, request: Request<proto::CreateOrderRequest>) -> Result<proto::CreateOrderResponse, Error> {
        let operation = mesh::operation(request.extensions());
        let user = convert::caller_id(&mesh::caller(request.extensions()));
        let id = self.orders.new_id(&operation, user);
        let decoded = convert::create_order(request.into_inner())?;
        let order = self.orders.create_decoded(&operation, id, user, decoded).await?;
        Ok(proto::CreateOrderResponse { order: Some(convert::order(Scope::Of(user), &order)) })
    }

    async fn get(&self, request: Request<proto::GetOrderRequest>) -> Result<proto::GetOrderResponse, Error> {
        let scope = Scope::from(&mesh::caller(request.extensions()));
        let id = convert::order_id(&request.get_ref().order_id)?;
        let (order, history) = self.orders.get(scope, id).await?;
        let history = history.into_iter().map(Into::into).collect();
        Ok(proto::GetOrderResponse { order: Some(convert::order(scope, &order)), history })
    }

    async fn list(&self, request: Request<proto::ListOrdersRequest>) -> Result<proto::ListOrdersResponse, Error> {
        let scope = Scope::from(&mesh::caller(request.extensions()));
        let list = convert::list_orders(scope, request.get_ref())?;
        let one_more = u64::from(list.size) + 1;
        let orders = self.orders.list(scope, list.state, list.page.after, one_more).await?;
        Ok(convert::orders(scope, &orders, &list))
    }

    async fn watch(&self, request: Request<proto::WatchOrderRequest>) -> Result<WatchOrderStream, Error> {
        let caller = mesh::caller(request.extensions());
        let command = request.into_inner().try_into()?;
        Ok(Box::pin(watch::follow(&self.orders, &self.subscriptions, &self.shutdown, &caller, command).await?))
    }

    async fn cancel(&self, request: Request<proto::CancelOrderRequest>) -> Result<proto::CancelOrderResponse, Error> {
        let operation = audit::operation(request.extensions());
        let scope = Scope::from(&mesh::caller(request.extensions()));
        let id = convert::order_id(&request.get_ref().order_id)?;
        let order = self.orders.cancel(&operation, scope, id).await?;
        Ok(proto::CancelOrderResponse { order: Some(convert::order(scope, &order)) })
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainOrderRequest>,
    ) -> Result<proto::ExplainOrderResponse, Error> {
        let id = convert::order_id(&request.get_ref().order_id)?;
        self.explainer.explain(id).await
    }

    async fn retry(&self, request: Request<proto::RetryOrderRequest>) -> Result<proto::RetryOrderResponse, Error> {
        let operation = audit::operation(request.extensions());
        let id = convert::order_id(&request.get_ref().order_id)?;
        let order = self.orders.retry(&operation, id).await?;
        Ok(proto::RetryOrderResponse { order: Some(convert::order(Scope::All, &order)) })
    }
}

#[async_trait]
impl OrderService for OrderHandlers {
    async fn create_order(
        &self,
        request: Request<proto::CreateOrderRequest>,
    ) -> Result<Response<proto::CreateOrderResponse>, Status> {
        self.create(request).await.map(Response::new).map_err(status)
    }

    async fn get_order(
        &self,
        request: Request<proto::GetOrderRequest>,
    ) -> Result<Response<proto::GetOrderResponse>, Status> {
        self.get(request).await.map(Response::new).map_err(status)
    }

    async fn list_orders(
        &self,
        request: Request<proto::ListOrdersRequest>,
    ) -> Result<Response<proto::ListOrdersResponse>, Status> {
        self.list(request).await.map(Response::new).map_err(status)
    }

    type WatchOrderStream = WatchOrderStream;

    async fn watch_order(
        &self,
        request: Request<proto::WatchOrderRequest>,
    ) -> Result<Response<WatchOrderStream>, Status> {
        self.watch(request).await.map(Response::new).map_err(status)
    }

    async fn cancel_order(
        &self,
        request: Request<proto::CancelOrderRequest>,
    ) -> Result<Response<proto::CancelOrderResponse>, Status> {
        self.cancel(request).await.map(Response::new).map_err(status)
    }

    async fn explain_order(
        &self,
        request: Request<proto::ExplainOrderRequest>,
    ) -> Result<Response<proto::ExplainOrderResponse>, Status> {
        self.explain(request).await.map(Response::new).map_err(status)
    }

    async fn retry_order(
        &self,
        request: Request<proto::RetryOrderRequest>,
    ) -> Result<Response<proto::RetryOrderResponse>, Status> {
        self.retry(request).await.map(Response::new).map_err(status)
    }
}

pub(crate) struct ConfirmationHandlers {
    pub(crate) driver: Driver,
}

impl ConfirmationHandlers {
    async fn confirm(
        &self,
        request: Request<proto::ConfirmPaymentRequest>,
    ) -> Result<proto::ConfirmPaymentResponse, Error> {
        let id = convert::order_id(&request.get_ref().order_id)?;
        driver::wake(&self.driver, id).await?;
        Ok(proto::ConfirmPaymentResponse {})
    }
}

#[async_trait]
impl PaymentConfirmationService for ConfirmationHandlers {
    async fn confirm_payment(
        &self,
        request: Request<proto::ConfirmPaymentRequest>,
    ) -> Result<Response<proto::ConfirmPaymentResponse>, Status> {
        self.confirm(request).await.map(Response::new).map_err(status)
    }
}

pub(crate) struct InventoryHandlers {
    pub(crate) inventory: Inventory,
}

impl InventoryHandlers {
    async fn stock(
        &self,
        request: Request<proto::BatchGetStockRequest>,
    ) -> Result<proto::BatchGetStockResponse, Error> {
        let skus = convert::skus(request.into_inner().skus)?;
        let stocks = self.inventory.stock(&skus).await?;
        Ok(proto::BatchGetStockResponse { stocks: stocks.into_iter().map(Into::into).collect() })
    }

    async fn adjust(&self, request: Request<proto::AdjustStockRequest>) -> Result<proto::AdjustStockResponse, Error> {
        let operation = audit::operation(request.extensions());
        let command = request.into_inner().try_into()?;
        Ok(self.inventory.adjust(&operation, command).await?.into())
    }
}

#[async_trait]
impl InventoryService for InventoryHandlers {
    async fn batch_get_stock(
        &self,
        request: Request<proto::BatchGetStockRequest>,
    ) -> Result<Response<proto::BatchGetStockResponse>, Status> {
        self.stock(request).await.map(Response::new).map_err(status)
    }

    async fn adjust_stock(
        &self,
        request: Request<proto::AdjustStockRequest>,
    ) -> Result<Response<proto::AdjustStockResponse>, Status> {
        self.adjust(request).await.map(Response::new).map_err(status)
    }
}
