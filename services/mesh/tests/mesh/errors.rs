//! Every error leaves as a status with ErrorInfo, and the next call works.

use tonic::Code;
use tonic_types::StatusExt;

use crate::deadlines::raw;
use crate::echo::{SAY, STREAM};
use crate::world::{World, reason, say};

#[tokio::test]
async fn a_panic_answers_internal_and_the_next_call_works() {
    let world = World::new().await;
    let channel = world.anonymous();
    let status = say(&channel, SAY, "panic").await.expect_err("panics");
    assert_eq!((status.code(), status.message()), (Code::Internal, "internal error"));
    assert_eq!(reason(&status), "PANIC");
    assert_eq!(say(&channel, SAY, "hello").await.expect("works"), "hello");
}

#[tokio::test]
async fn an_unknown_method_gets_error_info() {
    let world = World::new().await;
    for path in ["/test.v1.Echo/Nothing", "/no.such.v1.Service/Nothing", "/"] {
        let response = raw::send(world.address, raw::unary(path, "hello", &[])).await;
        assert_eq!((response.code(), reason(&response).as_str()), (Code::Unimplemented, "METHOD_NOT_FOUND"), "{path}");
    }
}

#[tokio::test]
async fn a_malformed_message_is_an_invalid_argument() {
    let world = World::new().await;
    let response = raw::send(world.address, raw::framed(SAY, &[0x0a, 0x7f, 0x01], &[])).await;
    assert_eq!((response.code(), reason(&response).as_str()), (Code::InvalidArgument, "MALFORMED_MESSAGE"));
    assert_eq!(world.handlers_started(), 0);
}

#[tokio::test]
async fn a_request_of_no_message_or_of_more_than_one_is_rejected_and_starts_no_handler() {
    let world = World::new().await;
    let one = b"\0\0\0\0\x04\x0a\x02hi";
    for path in [SAY, STREAM] {
        for wrong in [vec![], [&one[..], one].concat(), [&one[..], b"\0"].concat(), [&one[..], b"garbage"].concat()] {
            let response = raw::send(world.address, raw::with_body(path, wrong.clone().into(), &[])).await;
            assert_eq!(response.code(), Code::Unimplemented, "{path} {wrong:?}");
            assert_eq!(reason(&response), "REQUEST_CARDINALITY");
        }
        let half = raw::send(world.address, raw::with_body(path, bytes::Bytes::from_static(&one[..7]), &[])).await;
        assert_eq!((half.code(), reason(&half).as_str()), (Code::InvalidArgument, "MALFORMED_MESSAGE"), "half of one");
    }
    assert_eq!(world.handlers_started(), 0);
    let response = raw::send(world.address, raw::with_body(SAY, bytes::Bytes::from_static(one), &[])).await;
    assert_eq!((response.code(), world.handlers_started()), (Code::Ok, 1), "control");
}

#[tokio::test]
async fn a_status_without_details_gets_its_codes_name_as_the_reason() {
    let world = World::new().await;
    let status = say(&world.anonymous(), SAY, "bare").await.expect_err("rejected");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "nothing here"));
    assert_eq!(reason(&status), "NOT_FOUND");
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_stream_gets_error_info_too() {
    let world = World::new().await;
    let response = raw::send(world.address, raw::unary(STREAM, "break", &[])).await;
    assert_eq!((response.code(), reason(&response).as_str()), (Code::DataLoss, "DATA_LOSS"));
}

#[tokio::test]
async fn a_services_own_error_is_returned_unchanged() {
    let world = World::new().await;
    let status = say(&world.anonymous(), SAY, "reject").await.expect_err("rejected");
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!((info.domain.as_str(), info.reason.as_str()), ("test.ordermesh", "CLOSED"));
    let precondition = status.get_details_precondition_failure().expect("PreconditionFailure");
    assert_eq!(precondition.violations[0].description, "the shop is closed");
}
