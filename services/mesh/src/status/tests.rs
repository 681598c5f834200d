use super::*;

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the order has 2 mistakes")]
    Invalid(Vec<Violation>),
    #[error("the store is gone")]
    Store(#[source] std::io::Error),
}

impl ServiceError for Broken {
    fn error_status(&self) -> ErrorStatus<'_> {
        match self {
            Self::Invalid(violations) => ErrorStatus::invalid("INVALID_ORDER", violations)
                .with("order_id", 7)
                .retry_after(Duration::from_secs(3)),
            Self::Store(_) => ErrorStatus::new(Code::Internal, "INTERNAL").with("order_id", 7),
        }
    }
}

fn violation(number: usize) -> Violation {
    Violation {
        field: format!("items[{number}].quantity"),
        reason: "NOT_POSITIVE",
        description: "must be at least 1".into(),
    }
}

#[test]
fn a_status_carries_error_info_and_every_violation() {
    let status = status("order", &Broken::Invalid(vec![violation(0), violation(1)]));
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "the order has 2 mistakes"));
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INVALID_ORDER", "order.ordermesh"));
    assert_eq!(info.metadata.get("order_id").map(String::as_str), Some("7"));
    let fields = status.get_details_bad_request().expect("BadRequest").field_violations;
    let seen: Vec<_> = fields.iter().map(|field| (field.field.as_str(), field.reason.as_str())).collect();
    assert_eq!(seen, [("items[0].quantity", "NOT_POSITIVE"), ("items[1].quantity", "NOT_POSITIVE")]);
    assert_eq!(status.get_details_retry_info().and_then(|retry| retry.retry_delay), Some(Duration::from_secs(3)));
    assert_eq!(event_error(&status).error_type, "ValidationError");
    assert_eq!(event_error(&status).reason, "INVALID_ORDER");
}

#[test]
fn violations_that_do_not_fit_into_a_header_are_counted() {
    let status = status("order", &Broken::Invalid((0..250).map(violation).collect()));
    let reported = status.get_details_bad_request().expect("BadRequest").field_violations.len();
    assert!((10..250).contains(&reported), "{reported}");
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!(info.metadata.get("violations_left_out"), Some(&(250 - reported).to_string()));
    assert!(status.details().len() < 6_000, "{}", status.details().len());
}

#[test]
fn an_internal_error_discloses_nothing() {
    let status = status("order", &Broken::Store(std::io::Error::other("password=hunter2")));
    assert_eq!((status.code(), status.message()), (Code::Internal, "internal error"));
    assert!(status.get_details_error_info().expect("ErrorInfo").metadata.is_empty());
    assert!(!format!("{status:?}").contains("hunter2"));
}

#[derive(Debug, thiserror::Error)]
#[error("the catalogue could not be asked")]
struct LookupFailed;

impl ServiceError for LookupFailed {
    fn error_status(&self) -> ErrorStatus<'_> {
        ErrorStatus::new(Code::Unavailable, "LOOKUP_FAILED").caused_by(ErrorType::Timeout)
    }
}

#[test]
fn a_known_cause_determines_the_class_whatever_the_code() {
    let status = status("order", &LookupFailed);
    assert_eq!(status.code(), Code::Unavailable);
    let error = event_error(&status);
    assert_eq!((error.error_type.as_str(), error.reason.as_str()), ("TIMEOUT", "LOOKUP_FAILED"));
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!(info.metadata.get("cause").map(String::as_str), Some("TIMEOUT"));
}

#[test]
fn the_classes_of_events_are_those_of_the_design() {
    let error_type = |code, reason| event_error(&mesh_status(code, reason, "")).error_type;
    assert_eq!(error_type(Code::ResourceExhausted, OUT_OF_MEMORY), "OutOfMemoryError");
    assert_eq!(error_type(Code::ResourceExhausted, "MESSAGE_TOO_LARGE"), "RESOURCE_EXHAUSTED");
    assert_eq!(error_type(Code::DeadlineExceeded, "DEADLINE_EXCEEDED"), "TIMEOUT");
    assert_eq!(error_type(Code::Unavailable, "UNREACHABLE"), "CONNECTION_ERROR");
    assert_eq!(error_type(Code::Unavailable, "CONNECTION_LOST"), "CONNECTION_ERROR");
    assert_eq!(error_type(Code::Unavailable, "INJECTED_FAULT"), "CONNECTION_ERROR");
    assert_eq!(event_error(&Status::unavailable("of a proxy")).error_type, "CONNECTION_ERROR");
    assert_eq!(error_type(Code::Unavailable, "OVERLOADED"), "UNAVAILABLE", "the connection works");
    assert_eq!(error_type(Code::NotFound, "ORDER_NOT_FOUND"), "NOT_FOUND");
    assert_eq!(event_error(&Status::aborted("x")).reason, "ABORTED");
}
