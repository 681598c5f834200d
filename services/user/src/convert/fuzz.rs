//! Every decoder, with input from a misbehaving client: it always returns.

use contracts::common::v1 as common;
use proptest::prelude::*;
use testkit::{mutations, text};

use super::*;

const ID: &str = "0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e";

fn registration() -> proto::RegisterRequest {
    proto::RegisterRequest {
        request_id: ID.into(),
        email: "ada@example.com".into(),
        password: "correct horse battery".into(),
        display_name: "Ada".into(),
    }
}

fn update() -> proto::UpdateProfileRequest {
    let address = common::Address {
        recipient: "Ada".into(),
        lines: vec!["Street 1".into()],
        city: "Berlin".into(),
        postal_code: "10115".into(),
        country_code: "DE".into(),
    };
    let profile = proto::Profile { display_name: "Ada".into(), address: Some(address), ..Default::default() };
    let paths = vec!["display_name".into(), "address".into()];
    proto::UpdateProfileRequest { profile: Some(profile), update_mask: Some(prost_types::FieldMask { paths }) }
}

#[test]
fn valid_messages_are_accepted() {
    assert!(Registration::try_from(registration()).is_ok());
    assert!(ProfileChange::try_from(update()).is_ok());
}

proptest! {
    #[test]
    fn a_registration_is_rejected_or_follows_the_rules(request in mutations(registration())) {
        match Registration::try_from(request) {
            Ok(made) => {
                prop_assert!(made.email.contains('@') && !made.display_name.is_empty());
                prop_assert!(made.display_name.chars().count() <= MAX_DISPLAY_NAME);
            }
            Err(invalid) => prop_assert!(!invalid.0.is_empty(), "a rejection names a field"),
        }
    }

    #[test]
    fn the_other_decoders_return_on_any_input(
        update in mutations(update()), email in text("ada@example.com"), password in text("correct horse battery"),
        token in text("AAAA"),
    ) {
        let _ = ProfileChange::try_from(update);
        let _ = Login::try_from(proto::LoginRequest { email, password: password.clone() });
        let _ = PasswordUpdate::try_from(proto::ChangePasswordRequest { current_password: password.clone(), new_password: password });
        if let Ok(read) = refresh_token(&token) {
            prop_assert_eq!(read.expose(), token, "a token has one spelling");
        }
    }
}
