//! The Order Service's errors. Their reasons are public: a test lists them.

use std::time::Duration;

use chassis::Invalid;
use kernel::Money;
use mesh::{ErrorStatus, ServiceError};
use telemetry::ErrorType;
use tonic::Code;

use crate::store::UnpaidLimit;

const RETRY_AFTER: Duration = Duration::from_secs(1);
/// About the doubt limit of a payment.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(10);

/// Why a call is rejected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// SKUs that are not in the catalogue, a violation for each.
    #[error("unknown SKU: {0}")]
    UnknownSku(Invalid),
    /// The products have prices in several currencies.
    #[error("the items have prices in several currencies: {currencies}")]
    MixedCurrencies { currencies: String },
    /// The total is above the limit of its currency.
    #[error("the order's total is above {limit}, the limit in {}", limit.currency())]
    AmountTooLarge {
        /// The total; `None` when it overflows.
        total: Option<Money>,
        /// The maximum total of an order.
        limit: Money,
    },
    /// There is no delivery to the address's country.
    #[error("we do not deliver to {country}")]
    NoDeliveryZone {
        /// ISO 3166-1 code.
        country: String,
    },
    #[error("not enough in stock: {skus}")]
    InsufficientStock {
        /// The SKUs that are short.
        skus: String,
    },
    /// The customer's orders with undecided payments reserve as much stock as they may.
    #[error("too many of your orders have an undecided payment: such orders may reserve at most {limit}")]
    TooMuchUnpaid {
        /// The limit that the order would exceed: of orders or of units.
        limit: UnpaidLimit,
    },
    /// The total differs from the one the customer expected.
    #[error("the total is {total} now, not {expected}")]
    PriceChanged {
        total: String,
        /// The total the customer expected.
        expected: String,
    },
    /// The Data Service did not respond.
    #[error("the catalogue lookup failed: {cause}")]
    LookupFailed {
        /// For example TIMEOUT or CONNECTION_ERROR.
        cause: ErrorType,
    },
    /// The request id was used for another command.
    #[error("the request_id was used for another command")]
    RequestIdReused,
    /// The order does not exist, or belongs to another customer.
    #[error("there is no such order")]
    OrderNotFound,
    /// The order's state does not permit cancellation.
    #[error("the order is {state} and can no longer be cancelled")]
    OrderNotCancellable { state: &'static str },
    /// Only an order in NEEDS_ATTENTION can be retried.
    #[error("the order is {state}; only NEEDS_ATTENTION can be retried")]
    OrderNotRetryable { state: &'static str },
    /// The stock is reserved for orders, and `write_off` is not set.
    #[error("{reserved} of {sku} are reserved; write_off takes them from their orders")]
    StockReserved { sku: String, reserved: i64 },
    /// A negative adjustment exceeds the stock.
    #[error("only {on_hand} of {sku} are on hand")]
    StockNegative { sku: String, on_hand: i64 },
    /// This instance is shutting down; another may serve.
    #[error("this instance is shutting down; watch again to be served by another")]
    Draining,
    /// The access token expired while the stream was open.
    #[error("the access token has expired; log in again and resume with after_version")]
    TokenExpired,
    /// The customer has as many open streams as one may.
    #[error("too many WatchOrder streams of this customer: close another one first")]
    TooManyWatchers,
    #[error("the order store failed")]
    Storage(#[from] storage::Error),
}

impl ServiceError for Error {
    fn error_status(&self) -> ErrorStatus<'_> {
        let failed_precondition = |reason| ErrorStatus::new(Code::FailedPrecondition, reason);
        let unavailable = |reason| ErrorStatus::new(Code::Unavailable, reason).retry_after(RETRY_AFTER);
        let exhausted = |reason| ErrorStatus::new(Code::ResourceExhausted, reason).retry_after(RETRY_AFTER_LIMIT);
        match self {
            Self::Invalid(invalid) => ErrorStatus::invalid("INVALID_ARGUMENT", &invalid.0),
            Self::UnknownSku(invalid) => ErrorStatus::invalid("UNKNOWN_SKU", &invalid.0),
            Self::MixedCurrencies { currencies } => {
                ErrorStatus::invalid("MIXED_CURRENCIES", &[]).with("currencies", currencies)
            }
            Self::AmountTooLarge { total, limit } => {
                let rejection = ErrorStatus::invalid("AMOUNT_TOO_LARGE", &[])
                    .with("limit", limit)
                    .with("currency_code", limit.currency());
                total.iter().fold(rejection, |rejection, total| rejection.with("total", total))
            }
            Self::NoDeliveryZone { country } => failed_precondition("NO_DELIVERY_ZONE").with("country_code", country),
            Self::InsufficientStock { skus } => failed_precondition("INSUFFICIENT_STOCK").with("skus", skus),
            Self::TooMuchUnpaid { limit: UnpaidLimit::Orders(max) } => {
                exhausted("TOO_MUCH_UNPAID").with("max_unpaid_orders", max)
            }
            Self::TooMuchUnpaid { limit: UnpaidLimit::Units(max) } => {
                exhausted("TOO_MUCH_UNPAID").with("max_unpaid_units", max)
            }
            Self::PriceChanged { total, expected } => {
                failed_precondition("PRICE_CHANGED").with("total", total).with("expected_total", expected)
            }
            Self::LookupFailed { cause } => unavailable("LOOKUP_FAILED").caused_by(*cause),
            Self::RequestIdReused => failed_precondition("REQUEST_ID_REUSED"),
            Self::OrderNotFound => ErrorStatus::new(Code::NotFound, "ORDER_NOT_FOUND"),
            Self::OrderNotCancellable { state } => failed_precondition("ORDER_NOT_CANCELLABLE").with("state", state),
            Self::OrderNotRetryable { state } => failed_precondition("ORDER_NOT_RETRYABLE").with("state", state),
            Self::StockReserved { sku, reserved } => {
                failed_precondition("STOCK_RESERVED").with("sku", sku).with("reserved", reserved)
            }
            Self::StockNegative { sku, on_hand } => {
                failed_precondition("STOCK_NEGATIVE").with("sku", sku).with("on_hand", on_hand)
            }
            Self::Draining => unavailable("DRAINING"),
            Self::TokenExpired => ErrorStatus::new(Code::Unauthenticated, "TOKEN_EXPIRED"),
            Self::TooManyWatchers => exhausted("TOO_MANY_WATCHERS"),
            Self::Storage(error) => chassis::store_failed(error),
        }
    }
}

impl storage::Failure for Error {
    fn storage(&self) -> Option<&storage::Error> {
        if let Self::Storage(error) = self { Some(error) } else { None }
    }
}

/// The error as a gRPC status.
pub(crate) fn status(error: Error) -> tonic::Status {
    mesh::status("order", &error)
}
