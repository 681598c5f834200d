//! The catalogue of the Data Service.

use contracts::data::v1 as data;
use contracts::data::v1::catalog_service_client::CatalogServiceClient;
use futures_util::future::BoxFuture;
use kernel::{Currency, Money};
use mesh::{CallAttributes, Channel};
use telemetry::ErrorType;
use tonic::{Code, Status};

use super::{Catalog, Product};
use crate::error::Error;
use crate::order::Transit;

/// The catalogue over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcCatalog(CatalogServiceClient<Channel>);

impl GrpcCatalog {
    /// A client on a channel to the Data Service.
    pub fn new(data: Channel) -> Self {
        Self(CatalogServiceClient::new(data))
    }
}

/// The error of a failed lookup, with its cause.
fn lookup_failed(status: &Status) -> Error {
    Error::LookupFailed { cause: ErrorType::named(&mesh::event_error(status).error_type).unwrap_or(ErrorType::Unknown) }
}

fn product(product: data::Product) -> Option<Product> {
    let price = product.price?;
    let currency: Currency = price.currency_code.parse().ok()?;
    Some(Product { sku: product.sku, name: product.name, price: Money::new(currency, price.minor_units) })
}

impl Catalog for GrpcCatalog {
    fn products(&self, attributes: CallAttributes, skus: Vec<String>) -> BoxFuture<'_, Result<Vec<Product>, Error>> {
        Box::pin(async move {
            let request = data::BatchGetProductsRequest { skus };
            let response = self
                .0
                .clone()
                .batch_get_products(attributes.request(request))
                .await
                .map_err(|status| lookup_failed(&status))?;
            let response = response.into_inner();
            let count = response.products.len();
            let products: Vec<Product> = response.products.into_iter().filter_map(product).collect();
            if products.len() < count {
                return Err(Error::LookupFailed { cause: ErrorType::MalformedAnswer });
            }
            Ok(products)
        })
    }

    fn transit(
        &self,
        attributes: CallAttributes,
        country: String,
        postal_code: String,
    ) -> BoxFuture<'_, Result<Transit, Error>> {
        Box::pin(async move {
            let request =
                data::GetDeliveryEstimateRequest { country_code: country.clone(), postal_code, dispatch_time: None };
            let estimate = match self.0.clone().get_delivery_estimate(attributes.request(request)).await {
                Ok(response) => response.into_inner(),
                Err(status) if status.code() == Code::NotFound => return Err(Error::NoDeliveryZone { country }),
                Err(status) => return Err(lookup_failed(&status)),
            };
            let malformed = || Error::LookupFailed { cause: ErrorType::MalformedAnswer };
            Ok(Transit {
                business_days: estimate.transit_business_days.try_into().map_err(|_| malformed())?,
                cutoff_hour: estimate.cutoff_hour_utc.try_into().map_err(|_| malformed())?,
            })
        })
    }
}
