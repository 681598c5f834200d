//! Fuzzes every decoder with malformed input: it never panics.

use proptest::prelude::*;
use testkit::mutations;

use super::*;

const ID: &str = "0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e";

fn valid_request() -> proto::ProcessPaymentRequest {
    proto::ProcessPaymentRequest {
        order_id: ID.into(),
        user_id: ID.into(),
        amount: Some(common::Money { currency_code: "EUR".into(), minor_units: 1_999 }),
        payment_method: "pm_card_visa".into(),
        contact_email: "ada@example.com".into(),
    }
}

#[test]
fn the_valid_payment_is_accepted() {
    let command = ProcessCommand::try_from(valid_request()).expect("a valid payment");
    assert!(command.are_details_valid && command.amount.is_some());
}

#[test]
fn an_email_that_an_earlier_release_of_the_order_service_accepted_is_valid() {
    let request = proto::ProcessPaymentRequest { contact_email: "ada@-example.7".into(), ..valid_request() };
    assert!(ProcessCommand::try_from(request).expect("a valid payment").are_details_valid);
}

proptest! {
    #[test]
    fn a_payment_is_rejected_or_decoded_as_requested(request in mutations(valid_request())) {
        let requested = request.clone();
        match ProcessCommand::try_from(request) {
            Ok(command) => {
                prop_assert_eq!(command.order_id.to_string(), requested.order_id.to_lowercase());
                let amount = requested.amount.map(|amount| amount.minor_units);
                prop_assert!(command.amount.is_none_or(|money| Some(money.minor_units()) == amount));
                let again = ProcessCommand::try_from(proto::ProcessPaymentRequest {
                    order_id: command.order_id.to_string(), ..valid_request()
                });
                prop_assert!(again.is_ok());
            }
            Err(invalid) => prop_assert!(!invalid.0.is_empty(), "a rejection names a field"),
        }
    }

    #[test]
    fn a_cancellation_is_rejected_or_names_an_order(
        request in mutations(proto::CancelPaymentRequest { order_id: ID.into(), refund_attempt: 1 }),
        get in mutations(proto::GetPaymentRequest { order_id: ID.into() }),
    ) {
        if let Ok(command) = CancelCommand::try_from(request) {
            prop_assert!(command.refund_n >= 1);
        }
        let _ = order_id(&get);
    }
}
