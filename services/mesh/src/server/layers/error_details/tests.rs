use super::*;
use tonic_types::StatusExt;

#[test]
fn tonics_own_errors_get_a_reason() {
    #[rustfmt::skip]
    let table = [
        (Status::unimplemented(""),                                                Code::Unimplemented,     "METHOD_NOT_FOUND"),
        (Status::out_of_range("Error, decoded message length too large: found 9"), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        (Status::out_of_range("Error, encoded message length too large: found 9"), Code::Internal,          "ANSWER_TOO_LARGE"),
        (Status::internal("failed to decode Protobuf message: X.y: bad"),          Code::InvalidArgument,   "MALFORMED_MESSAGE"),
        (Status::internal("Missing request message."),                             Code::Unimplemented,     "REQUEST_CARDINALITY"),
        (Status::deadline_exceeded("late"),                                        Code::DeadlineExceeded,  "DEADLINE_EXCEEDED"),
        (Status::not_found("service not registered"),                              Code::NotFound,          "NOT_FOUND"),
    ];
    for (status, code, reason) in table {
        let detailed = with_error_info(status);
        let info = detailed.get_details_error_info().expect("ErrorInfo");
        assert_eq!((detailed.code(), info.reason.as_str(), info.domain.as_str()), (code, reason, "mesh.ordermesh"));
    }
}

#[test]
fn a_status_with_error_info_is_left_unchanged() {
    let status = mesh_status(Code::Internal, "PANIC", "failed to decode Protobuf message");
    let detailed = with_error_info(status);
    assert_eq!((detailed.code(), reason_of(&detailed).as_deref()), (Code::Internal, Some("PANIC")));
}
