//! Fuzzes every decoder with malformed input: it never panics.

use proptest::prelude::*;
use testkit::{mutations, text};

use super::*;

fn sound() -> proto::CreateChargeRequest {
    proto::CreateChargeRequest {
        charge_key: "order-1-charge".into(),
        amount: Some(common::Money { currency_code: "EUR".into(), minor_units: 1_999 }),
        payment_method: "pm_card_visa".into(),
        receipt_email: "ada@example.com".into(),
    }
}

#[test]
fn the_valid_charge_is_accepted() {
    assert!(ChargeCommand::try_from(sound()).is_ok());
}

proptest! {
    #[test]
    fn a_charge_is_rejected_or_has_a_key_and_a_positive_amount(request in mutations(sound())) {
        if let Ok(command) = ChargeCommand::try_from(request) {
            prop_assert!(command.amount.minor_units() > 0);
            prop_assert!((1..=255).contains(&command.key.chars().count()));
        }
    }

    #[test]
    fn the_other_decoders_never_panic(
        refund in mutations(proto::RefundChargeRequest { charge_key: "a".into(), refund_key: "b".into() }),
        list in mutations(proto::ListChargesRequest { page_size: 5, page_token: "YQ".into() }), key in text("a"),
    ) {
        let _ = RefundCommand::try_from(refund);
        let _ = Page::try_from(list);
        let _ = ChargeKey::new(key);
    }
}
