//! Stock per SKU, for the contract's handlers. Reservations by orders are made in the store.

use chassis::Fingerprint;
use kernel::RequestId;
use telemetry::Operation;

use crate::error::Error;
use crate::store::{Adjustment, Store};

/// The stock of a SKU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stock {
    pub sku: String,
    pub on_hand: i64,
    /// Units held by or allocated to orders.
    pub reserved: i64,
}

/// A change of stock, decoded.
#[derive(Clone, Debug)]
pub struct AdjustStock {
    /// The request id chosen by the operator.
    pub request_id: RequestId,
    pub sku: String,
    /// Added to on_hand.
    pub delta: i64,
    /// Remove stock even where it is reserved for orders.
    pub write_off: bool,
}

impl AdjustStock {
    /// The command's content: equal for retries of the same command.
    pub(crate) fn fingerprint(&self) -> String {
        Fingerprint::of("AdjustStock/1")
            .part("sku", &self.sku)
            .part("delta", self.delta)
            .part("write_off", self.write_off)
            .finish()
    }
}

/// Reads and adjusts stock.
#[derive(Clone)]
pub struct Inventory {
    /// The stock tables.
    pub store: Store,
}

impl Inventory {
    /// Stock by SKU, in the requested order.
    pub async fn stock(&self, skus: &[String]) -> Result<Vec<Stock>, Error> {
        Ok(self.store.stock(skus).await?)
    }

    /// Changes a SKU's stock, once per request.
    ///
    /// # Errors
    /// The stock is reserved, or there is not enough of it.
    pub async fn adjust(&self, operation: &Operation, command: AdjustStock) -> Result<Adjustment, Error> {
        operation.set("sku", &command.sku);
        operation.set("delta", command.delta.to_string());
        operation.set("write_off", command.write_off.to_string());
        self.store.adjust(operation, command).await
    }
}
