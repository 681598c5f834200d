//! Every decoder, with what a rude client may send: it answers.

use proptest::prelude::*;
use wirefuzz::rude;

use super::*;

const ID: &str = "0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e";

fn sound() -> proto::ProcessPaymentRequest {
    proto::ProcessPaymentRequest {
        order_id: ID.into(),
        user_id: ID.into(),
        amount: Some(common::Money { currency_code: "EUR".into(), minor_units: 1_999 }),
        payment_method: "pm_card_visa".into(),
        contact_email: "ada@example.com".into(),
    }
}

#[test]
fn the_sound_payment_is_accepted() {
    let command = ProcessCommand::try_from(sound()).expect("it is sound");
    assert!(command.are_details_sound && command.amount.is_some());
}

#[test]
fn an_email_that_an_earlier_release_of_the_order_service_took_is_paid_for() {
    let request = proto::ProcessPaymentRequest { contact_email: "ada@-example.7".into(), ..sound() };
    assert!(ProcessCommand::try_from(request).expect("it is sound").are_details_sound);
}

proptest! {
    #[test]
    fn a_payment_is_refused_or_recorded_as_it_was_asked_for(request in rude(sound())) {
        let asked = request.clone();
        match ProcessCommand::try_from(request) {
            Ok(command) => {
                prop_assert_eq!(command.order_id.to_string(), asked.order_id.to_lowercase());
                let amount = asked.amount.map(|amount| amount.minor_units);
                prop_assert!(command.amount.is_none_or(|money| Some(money.minor_units()) == amount));
                let again = ProcessCommand::try_from(proto::ProcessPaymentRequest {
                    order_id: command.order_id.to_string(), ..sound()
                });
                prop_assert!(again.is_ok());
            }
            Err(invalid) => prop_assert!(!invalid.0.is_empty(), "a refusal names a field"),
        }
    }

    #[test]
    fn a_cancellation_is_refused_or_is_of_an_order(
        request in rude(proto::CancelPaymentRequest { order_id: ID.into(), refund_attempt: 1 }),
        get in rude(proto::GetPaymentRequest { order_id: ID.into() }),
    ) {
        if let Ok(command) = CancelCommand::try_from(request) {
            prop_assert!(command.refund_n >= 1);
        }
        let _ = order_id(&get);
    }
}
