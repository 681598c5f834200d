//! Stock per SKU, as the contract's handlers see it. How orders take from it is the store's.

use chassis::Fingerprint;
use kernel::RequestId;
use telemetry::Operation;

use crate::error::Error;
use crate::store::{Adjustment, Store};

/// The stock of a SKU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stock {
    /// Stock keeping unit.
    pub sku: String,
    /// How many there are.
    pub on_hand: i64,
    /// How many of them are held by or allocated to orders.
    pub reserved: i64,
}

/// A change of stock, decoded.
#[derive(Clone, Debug)]
pub struct AdjustStock {
    /// The operator's id of the request.
    pub request_id: RequestId,
    /// Stock keeping unit.
    pub sku: String,
    /// Added to on_hand.
    pub delta: i64,
    /// Take stock away even where it is held for orders.
    pub write_off: bool,
}

impl AdjustStock {
    /// Is a repeated request the same command?
    pub(crate) fn fingerprint(&self) -> String {
        Fingerprint::of("AdjustStock/1")
            .part("sku", &self.sku)
            .part("delta", self.delta)
            .part("write_off", self.write_off)
            .finish()
    }
}

/// The inventory.
#[derive(Clone)]
pub struct Inventory {
    /// Its tables.
    pub store: Store,
}

impl Inventory {
    /// Stock by SKU, in the order asked.
    ///
    /// # Errors
    /// The database.
    pub async fn stock(&self, skus: &[String]) -> Result<Vec<Stock>, Error> {
        Ok(self.store.stock(skus).await?)
    }

    /// Changes a SKU's stock, once per request.
    ///
    /// # Errors
    /// It is reserved, or there is not so much.
    pub async fn adjust(&self, operation: &Operation, command: AdjustStock) -> Result<Adjustment, Error> {
        operation.set("sku", &command.sku);
        operation.set("delta", command.delta.to_string());
        operation.set("write_off", command.write_off.to_string());
        self.store.adjust(operation, command).await
    }
}
