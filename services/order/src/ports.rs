//! The interfaces to other services: traits, and the gRPC clients that implement them.

use futures_util::future::BoxFuture;
use kernel::Money;
use mesh::CallAttributes;

use crate::error::Error;
use crate::order::{Order, PaymentFailure, Transit};

mod catalog;
mod events;
mod payments;

pub use catalog::GrpcCatalog;
pub use events::GrpcEvents;
pub use payments::{GrpcPayments, cancel_request, cancelled, process_request, processed};

/// A product, as it is in the catalogue now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Product {
    pub sku: String,
    pub name: String,
    pub price: Money,
}

/// The catalogue: the Data Service.
pub trait Catalog: Send + Sync + 'static {
    /// The requested products that exist.
    fn products(&self, attributes: CallAttributes, skus: Vec<String>) -> BoxFuture<'_, Result<Vec<Product>, Error>>;
    /// The delivery time to an address.
    fn transit(
        &self,
        attributes: CallAttributes,
        country: String,
        postal_code: String,
    ) -> BoxFuture<'_, Result<Transit, Error>>;
}

/// What the Payment Service decides about an order's payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PaymentOutcome {
    /// The effect is done: charged, or certainly not charged any more.
    Done,
    /// The effect is refused permanently.
    Refused(PaymentFailure),
    /// No definite result: the same effect is retried under the same key.
    Undecided(String),
}

pub trait Payments: Send + Sync + 'static {
    /// Charges for an order, once.
    fn process<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentOutcome>;
    /// Makes certain that nothing stays charged for an order.
    fn cancel<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, PaymentOutcome>;
}
