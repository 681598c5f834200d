//! The Order Service's errors. Their reasons are public: a test lists them.

use std::time::Duration;

use chassis::Invalid;
use kernel::Money;
use mesh::{Kind, Refusal, Violation};
use telemetry::ErrorClass;

use crate::store::UnpaidLimit;

/// Why a call is rejected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fields are invalid.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// SKUs that are not in the catalogue, a violation for each.
    #[error("unknown SKU: {0}")]
    UnknownSku(Invalid),
    /// The products have prices in several currencies.
    #[error("the items have prices in several currencies: {currencies}")]
    MixedCurrencies {
        /// The currencies.
        currencies: String,
    },
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
    /// Not enough stock.
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
        /// The current total.
        total: String,
        /// The total the customer expected.
        expected: String,
    },
    /// The Data Service did not answer.
    #[error("the catalogue lookup failed: {cause}")]
    LookupFailed {
        /// For example TIMEOUT or CONNECTION_ERROR.
        cause: ErrorClass,
    },
    /// The request id was used for another command.
    #[error("the request_id was used for another command")]
    RequestIdReused,
    /// The order does not exist, or belongs to another customer.
    #[error("there is no such order")]
    OrderNotFound,
    /// The order's state does not permit cancellation.
    #[error("the order is {state} and can no longer be cancelled")]
    OrderNotCancellable {
        /// The current state.
        state: &'static str,
    },
    /// Only an order in NEEDS_ATTENTION can be retried.
    #[error("the order is {state}; only NEEDS_ATTENTION can be retried")]
    OrderNotRetryable {
        /// The current state.
        state: &'static str,
    },
    /// The stock is reserved for orders, and `write_off` is not set.
    #[error("{reserved} of {sku} are reserved; write_off takes them from their orders")]
    StockReserved {
        /// The SKU.
        sku: String,
        /// Units reserved.
        reserved: i64,
    },
    /// A negative adjustment exceeds the stock.
    #[error("only {on_hand} of {sku} are on hand")]
    StockNegative {
        /// The SKU.
        sku: String,
        /// Units in stock.
        on_hand: i64,
    },
    /// This instance is shutting down; another may serve.
    #[error("this instance is shutting down; watch again to be served by another")]
    Draining,
    /// The access token expired while the stream was open.
    #[error("the access token has expired; log in again and resume with after_version")]
    TokenExpired,
    /// The customer has as many open streams as one may.
    #[error("too many WatchOrder streams of this customer: close another one first")]
    TooManyWatchers,
    /// The database failed.
    #[error("the order store failed")]
    Storage(#[from] storage::Error),
}

impl Refusal for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid(_) | Self::UnknownSku(_) | Self::MixedCurrencies { .. } | Self::AmountTooLarge { .. } => {
                Kind::InvalidArgument
            }
            Self::NoDeliveryZone { .. }
            | Self::InsufficientStock { .. }
            | Self::PriceChanged { .. }
            | Self::RequestIdReused
            | Self::OrderNotCancellable { .. }
            | Self::OrderNotRetryable { .. }
            | Self::StockReserved { .. }
            | Self::StockNegative { .. } => Kind::FailedPrecondition,
            Self::TooMuchUnpaid { .. } => Kind::ResourceExhausted,
            Self::OrderNotFound => Kind::NotFound,
            Self::LookupFailed { .. } | Self::Draining => Kind::Unavailable,
            Self::TooManyWatchers => Kind::ResourceExhausted,
            Self::TokenExpired => Kind::Unauthenticated,
            Self::Storage(error) => chassis::storage_kind(error),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_ARGUMENT",
            Self::UnknownSku(_) => "UNKNOWN_SKU",
            Self::MixedCurrencies { .. } => "MIXED_CURRENCIES",
            Self::AmountTooLarge { .. } => "AMOUNT_TOO_LARGE",
            Self::NoDeliveryZone { .. } => "NO_DELIVERY_ZONE",
            Self::TooMuchUnpaid { .. } => "TOO_MUCH_UNPAID",
            Self::InsufficientStock { .. } => "INSUFFICIENT_STOCK",
            Self::PriceChanged { .. } => "PRICE_CHANGED",
            Self::LookupFailed { .. } => "LOOKUP_FAILED",
            Self::RequestIdReused => "REQUEST_ID_REUSED",
            Self::OrderNotFound => "ORDER_NOT_FOUND",
            Self::OrderNotCancellable { .. } => "ORDER_NOT_CANCELLABLE",
            Self::OrderNotRetryable { .. } => "ORDER_NOT_RETRYABLE",
            Self::StockReserved { .. } => "STOCK_RESERVED",
            Self::StockNegative { .. } => "STOCK_NEGATIVE",
            Self::Draining => "DRAINING",
            Self::TokenExpired => "TOKEN_EXPIRED",
            Self::TooManyWatchers => "TOO_MANY_WATCHERS",
            Self::Storage(_) => "STORE_FAILED",
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::MixedCurrencies { currencies } => vec![("currencies", currencies.clone())],
            Self::AmountTooLarge { total, limit } => {
                let total = total.iter().map(|total| ("total", total.to_string()));
                let limit = [("limit", limit.to_string()), ("currency_code", limit.currency().to_string())];
                total.chain(limit).collect()
            }
            Self::NoDeliveryZone { country } => vec![("country_code", country.clone())],
            Self::TooMuchUnpaid { limit: UnpaidLimit::Orders(most) } => vec![("max_unpaid_orders", most.to_string())],
            Self::TooMuchUnpaid { limit: UnpaidLimit::Units(most) } => vec![("max_unpaid_units", most.to_string())],
            Self::InsufficientStock { skus } => vec![("skus", skus.clone())],
            Self::PriceChanged { total, expected } => {
                vec![("total", total.clone()), ("expected_total", expected.clone())]
            }
            // The cause is in the metadata already: see `class`.
            Self::LookupFailed { .. } => vec![],
            Self::OrderNotCancellable { state } | Self::OrderNotRetryable { state } => {
                vec![("state", (*state).to_owned())]
            }
            Self::StockReserved { sku, reserved } => vec![("sku", sku.clone()), ("reserved", reserved.to_string())],
            Self::StockNegative { sku, on_hand } => vec![("sku", sku.clone()), ("on_hand", on_hand.to_string())],
            Self::Invalid(_)
            | Self::UnknownSku(_)
            | Self::RequestIdReused
            | Self::OrderNotFound
            | Self::Draining
            | Self::TokenExpired
            | Self::TooManyWatchers
            | Self::Storage(_) => vec![],
        }
    }

    fn class(&self) -> Option<ErrorClass> {
        match self {
            Self::LookupFailed { cause } => Some(*cause),
            Self::Storage(error) => error.class(),
            Self::Invalid(_)
            | Self::UnknownSku(_)
            | Self::MixedCurrencies { .. }
            | Self::AmountTooLarge { .. }
            | Self::NoDeliveryZone { .. }
            | Self::InsufficientStock { .. }
            | Self::TooMuchUnpaid { .. }
            | Self::PriceChanged { .. }
            | Self::RequestIdReused
            | Self::OrderNotFound
            | Self::OrderNotCancellable { .. }
            | Self::OrderNotRetryable { .. }
            | Self::StockReserved { .. }
            | Self::StockNegative { .. }
            | Self::Draining
            | Self::TokenExpired
            | Self::TooManyWatchers => None,
        }
    }

    fn violations(&self) -> &[Violation] {
        match self {
            Self::Invalid(invalid) | Self::UnknownSku(invalid) => &invalid.0,
            Self::MixedCurrencies { .. }
            | Self::AmountTooLarge { .. }
            | Self::NoDeliveryZone { .. }
            | Self::InsufficientStock { .. }
            | Self::TooMuchUnpaid { .. }
            | Self::PriceChanged { .. }
            | Self::LookupFailed { .. }
            | Self::RequestIdReused
            | Self::OrderNotFound
            | Self::OrderNotCancellable { .. }
            | Self::OrderNotRetryable { .. }
            | Self::StockReserved { .. }
            | Self::StockNegative { .. }
            | Self::Draining
            | Self::TokenExpired
            | Self::TooManyWatchers
            | Self::Storage(_) => &[],
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self.kind() {
            Kind::Unavailable => Some(Duration::from_secs(1)),
            // About the doubt limit of a payment.
            Kind::ResourceExhausted => Some(Duration::from_secs(10)),
            Kind::InvalidArgument
            | Kind::NotFound
            | Kind::AlreadyExists
            | Kind::PermissionDenied
            | Kind::Unauthenticated
            | Kind::FailedPrecondition
            | Kind::Aborted
            | Kind::DeadlineExceeded
            | Kind::OutOfRange
            | Kind::Internal => None,
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
