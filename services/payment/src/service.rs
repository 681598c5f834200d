//! The gRPC handlers: decode, domain, encode.

use contracts::payment::v1 as proto;
use contracts::payment::v1::payment_service_server::PaymentService;
use tonic::{Request, Response, Status, async_trait};

use crate::convert;
use crate::error::{Error, status};
use crate::process::Processor;
use crate::reconcile::Reconciler;

pub(crate) struct PaymentHandlers {
    pub(crate) processor: Processor,
    pub(crate) reconciler: Reconciler,
}

impl PaymentHandlers {
    async fn process(
        &self,
        request: Request<proto::ProcessPaymentRequest>,
    ) -> Result<proto::ProcessPaymentResponse, Error> {
        let operation = mesh::operation(request.extensions());
        let command = request.into_inner().try_into()?;
        let payment = self.processor.process(command, &operation).await?;
        Ok(proto::ProcessPaymentResponse { payment: Some(payment.into()) })
    }

    async fn cancel(
        &self,
        request: Request<proto::CancelPaymentRequest>,
    ) -> Result<proto::CancelPaymentResponse, Error> {
        let operation = mesh::operation(request.extensions());
        let command = request.into_inner().try_into()?;
        let payment = self.processor.cancel(command, &operation).await?;
        Ok(proto::CancelPaymentResponse { payment: Some(payment.into()) })
    }

    async fn get(&self, request: Request<proto::GetPaymentRequest>) -> Result<proto::GetPaymentResponse, Error> {
        let order_id = convert::order_id(request.get_ref())?;
        Ok(self.reconciler.details(order_id).await?.into())
    }
}

#[async_trait]
impl PaymentService for PaymentHandlers {
    async fn process_payment(
        &self,
        request: Request<proto::ProcessPaymentRequest>,
    ) -> Result<Response<proto::ProcessPaymentResponse>, Status> {
        self.process(request).await.map(Response::new).map_err(status)
    }

    async fn cancel_payment(
        &self,
        request: Request<proto::CancelPaymentRequest>,
    ) -> Result<Response<proto::CancelPaymentResponse>, Status> {
        self.cancel(request).await.map(Response::new).map_err(status)
    }

    async fn get_payment(
        &self,
        request: Request<proto::GetPaymentRequest>,
    ) -> Result<Response<proto::GetPaymentResponse>, Status> {
        self.get(request).await.map(Response::new).map_err(status)
    }

    async fn reconcile_payments(
        &self,
        _request: Request<proto::ReconcilePaymentsRequest>,
    ) -> Result<Response<proto::ReconcilePaymentsResponse>, Status> {
        self.reconciler.reconcile().await.map(|found| Response::new(found.into())).map_err(status)
    }
}
