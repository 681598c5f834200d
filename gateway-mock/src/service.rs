//! The gRPC handlers: decode, domain, encode.

use contracts::gateway::v1 as proto;
use contracts::gateway::v1::payment_gateway_service_server::PaymentGatewayService;
use mesh::SharedSecret;
use tonic::{Request, Response, Status, async_trait};

use crate::charge::Gateway;
use crate::convert::{self, ChargeKey, Page};
use crate::error::{Error, status};

/// The metadata key of a merchant's API key.
const API_KEY: &str = "x-api-key";

/// The handlers of gateway.v1.PaymentGatewayService.
pub(crate) struct GatewayHandlers {
    gateway: Gateway,
    api_key: SharedSecret,
}

impl GatewayHandlers {
    pub(crate) fn new(gateway: Gateway, api_key: SharedSecret) -> Self {
        Self { gateway, api_key }
    }

    /// Authenticates a request by its API key, and returns its message.
    fn authenticate<M>(&self, request: Request<M>) -> Result<M, Error> {
        let key = request.metadata().get(API_KEY).and_then(|key| key.to_str().ok());
        let key = SharedSecret::new(key.unwrap_or_default().to_owned());
        // Secrets are compared in constant time; the configured key is never empty.
        if key == self.api_key { Ok(request.into_inner()) } else { Err(Error::InvalidApiKey) }
    }

    async fn create(&self, request: Request<proto::CreateChargeRequest>) -> Result<proto::CreateChargeResponse, Error> {
        let command = self.authenticate(request)?.try_into()?;
        let charge = self.gateway.create_charge(command).await?;
        Ok(proto::CreateChargeResponse { charge: Some(charge.into()) })
    }

    async fn get(&self, request: Request<proto::GetChargeRequest>) -> Result<proto::GetChargeResponse, Error> {
        let ChargeKey(key) = self.authenticate(request)?.try_into()?;
        let charge = self.gateway.get_charge(&key).await?;
        Ok(proto::GetChargeResponse { charge: Some(charge.into()) })
    }

    async fn cancel(&self, request: Request<proto::CancelChargeRequest>) -> Result<proto::CancelChargeResponse, Error> {
        let ChargeKey(key) = self.authenticate(request)?.try_into()?;
        let charge = self.gateway.cancel_charge(key).await?;
        Ok(proto::CancelChargeResponse { charge: Some(charge.into()) })
    }

    async fn refund(&self, request: Request<proto::RefundChargeRequest>) -> Result<proto::RefundChargeResponse, Error> {
        let command = self.authenticate(request)?.try_into()?;
        Ok(self.gateway.refund_charge(command).await?.into())
    }

    async fn list(&self, request: Request<proto::ListChargesRequest>) -> Result<proto::ListChargesResponse, Error> {
        let Page { after, size } = self.authenticate(request)?.try_into()?;
        let charges = self.gateway.list_charges(after, u64::from(size) + 1).await?;
        Ok(convert::page(charges, size))
    }
}

fn respond<M>(result: Result<M, Error>) -> Result<Response<M>, Status> {
    result.map(Response::new).map_err(status)
}

#[async_trait]
impl PaymentGatewayService for GatewayHandlers {
    async fn create_charge(
        &self,
        request: Request<proto::CreateChargeRequest>,
    ) -> Result<Response<proto::CreateChargeResponse>, Status> {
        respond(self.create(request).await)
    }

    async fn get_charge(
        &self,
        request: Request<proto::GetChargeRequest>,
    ) -> Result<Response<proto::GetChargeResponse>, Status> {
        respond(self.get(request).await)
    }

    async fn cancel_charge(
        &self,
        request: Request<proto::CancelChargeRequest>,
    ) -> Result<Response<proto::CancelChargeResponse>, Status> {
        respond(self.cancel(request).await)
    }

    async fn refund_charge(
        &self,
        request: Request<proto::RefundChargeRequest>,
    ) -> Result<Response<proto::RefundChargeResponse>, Status> {
        respond(self.refund(request).await)
    }

    async fn list_charges(
        &self,
        request: Request<proto::ListChargesRequest>,
    ) -> Result<Response<proto::ListChargesResponse>, Status> {
        respond(self.list(request).await)
    }
}
