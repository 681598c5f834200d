//! The reasons of errors are public: this table is the contract.

use chassis::Invalid;
use mesh::ServiceError;
use order::Error;
use telemetry::ErrorType;
use tonic::Code;

use crate::world::eur;

/// One of each. The match lists every variant, so that a new one does not compile until it is added here.
fn every() -> Vec<Error> {
    let text = || "x".to_owned();
    let all = vec![
        Error::Invalid(Invalid(vec![])),
        Error::UnknownSku(Invalid(vec![])),
        Error::MixedCurrencies { currencies: text() },
        Error::AmountTooLarge { total: Some(eur(10_000_001)), limit: eur(10_000_000) },
        Error::NoDeliveryZone { country: text() },
        Error::InsufficientStock { skus: text() },
        Error::TooMuchUnpaid { limit: order::store::UnpaidLimit::Orders(100) },
        Error::PriceChanged { total: text(), expected: text() },
        Error::LookupFailed { cause: telemetry::ErrorType::Timeout },
        Error::RequestIdReused,
        Error::OrderNotFound,
        Error::OrderNotCancellable { state: "CANCELLED" },
        Error::OrderNotRetryable { state: "CANCELLED" },
        Error::StockReserved { sku: text(), reserved: 1 },
        Error::StockNegative { sku: text(), on_hand: 1 },
        Error::Draining,
        Error::TokenExpired,
        Error::TooManyWatchers,
        Error::Storage(storage::Error::Panicked),
    ];
    let mut places: Vec<usize> = all.iter().map(place).collect();
    places.dedup();
    assert_eq!(places, (0..all.len()).collect::<Vec<_>>(), "one of each");
    all
}

fn place(error: &Error) -> usize {
    match error {
        Error::Invalid(_) => 0,
        Error::UnknownSku(_) => 1,
        Error::MixedCurrencies { .. } => 2,
        Error::AmountTooLarge { .. } => 3,
        Error::NoDeliveryZone { .. } => 4,
        Error::InsufficientStock { .. } => 5,
        Error::TooMuchUnpaid { .. } => 6,
        Error::PriceChanged { .. } => 7,
        Error::LookupFailed { .. } => 8,
        Error::RequestIdReused => 9,
        Error::OrderNotFound => 10,
        Error::OrderNotCancellable { .. } => 11,
        Error::OrderNotRetryable { .. } => 12,
        Error::StockReserved { .. } => 13,
        Error::StockNegative { .. } => 14,
        Error::Draining => 15,
        Error::TokenExpired => 16,
        Error::TooManyWatchers => 17,
        Error::Storage(_) => 18,
    }
}

#[test]
fn the_reasons_and_their_error_classes_are_stable() {
    let table: Vec<String> = every()
        .iter()
        .map(|error| {
            let rejection = error.error_status();
            let names: Vec<_> = rejection.metadata.iter().map(|(name, _)| *name).collect();
            let retry = if rejection.retry_after.is_some() { " +RetryInfo" } else { "" };
            let error_type = mesh::event_error(&mesh::status("order", error)).error_type;
            format!("{} {:?} {error_type} {}{retry}", rejection.reason, rejection.code, names.join(","))
                .replace("  ", " ")
                .trim()
                .to_owned()
        })
        .collect();
    let expected = [
        "INVALID_ARGUMENT InvalidArgument ValidationError",
        "UNKNOWN_SKU InvalidArgument ValidationError",
        "MIXED_CURRENCIES InvalidArgument ValidationError currencies",
        "AMOUNT_TOO_LARGE InvalidArgument ValidationError limit,currency_code,total",
        "NO_DELIVERY_ZONE FailedPrecondition FAILED_PRECONDITION country_code",
        "INSUFFICIENT_STOCK FailedPrecondition FAILED_PRECONDITION skus",
        "TOO_MUCH_UNPAID ResourceExhausted RESOURCE_EXHAUSTED max_unpaid_orders +RetryInfo",
        "PRICE_CHANGED FailedPrecondition FAILED_PRECONDITION total,expected_total",
        "LOOKUP_FAILED Unavailable TIMEOUT +RetryInfo",
        "REQUEST_ID_REUSED FailedPrecondition FAILED_PRECONDITION",
        "ORDER_NOT_FOUND NotFound NOT_FOUND",
        "ORDER_NOT_CANCELLABLE FailedPrecondition FAILED_PRECONDITION state",
        "ORDER_NOT_RETRYABLE FailedPrecondition FAILED_PRECONDITION state",
        "STOCK_RESERVED FailedPrecondition FAILED_PRECONDITION sku,reserved",
        "STOCK_NEGATIVE FailedPrecondition FAILED_PRECONDITION sku,on_hand",
        "DRAINING Unavailable UNAVAILABLE +RetryInfo",
        "TOKEN_EXPIRED Unauthenticated UNAUTHENTICATED",
        "TOO_MANY_WATCHERS ResourceExhausted RESOURCE_EXHAUSTED +RetryInfo",
        "STORE_FAILED Internal INTERNAL",
    ];
    assert_eq!(table, expected);
}

#[test]
fn a_known_cause_is_the_class_whatever_the_code() {
    for error_type in [ErrorType::Timeout, ErrorType::ConnectionError, ErrorType::MalformedAnswer] {
        let rejection = Error::LookupFailed { cause: error_type };
        let status = mesh::status("order", &rejection);
        assert_eq!(
            (status.code(), mesh::event_error(&status).error_type.as_str()),
            (tonic::Code::Unavailable, error_type.name())
        );
    }
    let timed_out = sea_orm::DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::Timeout);
    let status = mesh::status("order", &Error::Storage(timed_out.into()));
    assert_eq!((status.code(), mesh::event_error(&status).error_type.as_str()), (tonic::Code::Unavailable, "TIMEOUT"));
}

#[test]
fn an_unreachable_store_is_unavailable_and_a_corrupt_one_is_internal() {
    assert_eq!(Error::Storage(storage::Error::Closed).error_status().code, Code::Unavailable);
    let broken = Error::Storage(storage::Error::Corrupt { what: "state", value: "secret".into() });
    let status = mesh::status("order", &broken);
    assert_eq!((status.code(), status.message()), (tonic::Code::Internal, "internal error"));
    assert!(!format!("{status:?}").contains("secret"));
}

#[test]
fn every_reason_is_documented_in_the_contract() {
    let contract = include_str!("../../../../proto/order/v1/order.proto");
    let untold = ["STORE_FAILED"];
    for error in every() {
        let reason = error.error_status().reason;
        assert!(untold.contains(&reason) || contract.contains(reason), "{reason} is not in the contract");
    }
}
