//! The gRPC handlers: decode, domain, encode.

use contracts::gateway::v1 as proto;
use contracts::gateway::v1::payment_gateway_service_server::PaymentGatewayService;
use mesh::SharedSecret;
use tonic::{Request, Response, Status, async_trait};

use crate::charge::Gateway;
use crate::convert::{self, Page};
use crate::error::{Refused, SERVICE};

/// The metadata key of a merchant's API key.
const API_KEY: &str = "x-api-key";

pub(crate) struct Service {
    gateway: Gateway,
    api_key: SharedSecret,
}

impl Service {
    pub(crate) fn new(gateway: Gateway, api_key: SharedSecret) -> Self {
        Self { gateway, api_key }
    }

    /// Authenticates a request by its API key, and returns its message.
    fn admit<M>(&self, request: Request<M>) -> Result<M, Refused> {
        let key = request.metadata().get(API_KEY).and_then(|key| key.to_str().ok());
        let key = SharedSecret::new(key.unwrap_or_default().to_owned());
        // Secrets are compared in constant time; the configured key is never empty.
        if key == self.api_key { Ok(request.into_inner()) } else { Err(Refused::InvalidApiKey) }
    }

    async fn create(
        &self,
        request: Request<proto::CreateChargeRequest>,
    ) -> Result<proto::CreateChargeResponse, Refused> {
        let command = self.admit(request)?.try_into()?;
        let charge = self.gateway.create_charge(command).await?;
        Ok(proto::CreateChargeResponse { charge: Some(charge.into()) })
    }

    async fn get(&self, request: Request<proto::GetChargeRequest>) -> Result<proto::GetChargeResponse, Refused> {
        let key = convert::charge_key(self.admit(request)?.charge_key)?;
        let charge = self.gateway.get_charge(&key).await?;
        Ok(proto::GetChargeResponse { charge: Some(charge.into()) })
    }

    async fn cancel(
        &self,
        request: Request<proto::CancelChargeRequest>,
    ) -> Result<proto::CancelChargeResponse, Refused> {
        let key = convert::charge_key(self.admit(request)?.charge_key)?;
        let charge = self.gateway.cancel_charge(key).await?;
        Ok(proto::CancelChargeResponse { charge: Some(charge.into()) })
    }

    async fn refund(
        &self,
        request: Request<proto::RefundChargeRequest>,
    ) -> Result<proto::RefundChargeResponse, Refused> {
        let command = self.admit(request)?.try_into()?;
        Ok(self.gateway.refund_charge(command).await?.into())
    }

    async fn list(&self, request: Request<proto::ListChargesRequest>) -> Result<proto::ListChargesResponse, Refused> {
        let Page { after, size } = self.admit(request)?.try_into()?;
        let charges = self.gateway.list_charges(after, u64::from(size) + 1).await?;
        Ok(convert::page(charges, size))
    }
}

fn answer<M>(result: Result<M, Refused>) -> Result<Response<M>, Status> {
    result.map(Response::new).map_err(|refused| mesh::status(SERVICE, &refused))
}

#[async_trait]
impl PaymentGatewayService for Service {
    async fn create_charge(
        &self,
        request: Request<proto::CreateChargeRequest>,
    ) -> Result<Response<proto::CreateChargeResponse>, Status> {
        answer(self.create(request).await)
    }

    async fn get_charge(
        &self,
        request: Request<proto::GetChargeRequest>,
    ) -> Result<Response<proto::GetChargeResponse>, Status> {
        answer(self.get(request).await)
    }

    async fn cancel_charge(
        &self,
        request: Request<proto::CancelChargeRequest>,
    ) -> Result<Response<proto::CancelChargeResponse>, Status> {
        answer(self.cancel(request).await)
    }

    async fn refund_charge(
        &self,
        request: Request<proto::RefundChargeRequest>,
    ) -> Result<Response<proto::RefundChargeResponse>, Status> {
        answer(self.refund(request).await)
    }

    async fn list_charges(
        &self,
        request: Request<proto::ListChargesRequest>,
    ) -> Result<Response<proto::ListChargesResponse>, Status> {
        answer(self.list(request).await)
    }
}
