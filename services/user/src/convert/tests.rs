use super::*;

fn reasons(invalid: &Invalid) -> Vec<(&str, &str)> {
    invalid.0.iter().map(|violation| (violation.field.as_str(), violation.reason)).collect()
}

fn registration() -> proto::RegisterRequest {
    proto::RegisterRequest {
        request_id: "0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e".into(),
        email: "Ada@Example.com".into(),
        password: "correct horse".into(),
        display_name: "Ada".into(),
    }
}

fn update(profile: proto::Profile, paths: &[&str]) -> proto::UpdateProfileRequest {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    proto::UpdateProfileRequest { profile: Some(profile), update_mask: Some(prost_types::FieldMask { paths }) }
}

fn valid_address() -> common::Address {
    common::Address {
        recipient: "Ada".into(),
        lines: vec!["1 Engine Street".into()],
        city: "London".into(),
        postal_code: "N1 9GU".into(),
        country_code: "GB".into(),
    }
}

#[test]
fn a_registration_is_accepted_with_its_email_in_lower_case() {
    let registration = Registration::try_from(registration()).expect("valid");
    assert_eq!((registration.email.as_str(), registration.display_name.as_str()), ("ada@example.com", "Ada"));
    assert!(!format!("{registration:?}").contains("correct horse"));
}

#[test]
fn a_display_name_is_not_blank() {
    for (name, expected) in [
        ("  ", Some("REQUIRED")),
        ("\u{200b}\u{3164}", Some("REQUIRED")),
        ("Ada\u{202e}", Some("MISLEADING_CHARACTER")),
        ("نگار می\u{200c}آید 👩\u{200d}🚀", None),
    ] {
        let request = proto::RegisterRequest { display_name: name.into(), ..registration() };
        assert_eq!(Registration::try_from(request).err().map(|invalid| invalid.0[0].reason), expected, "{name:?}");
    }
}

#[test]
fn all_violations_of_a_registration_are_reported_together() {
    let invalid = Registration::try_from(proto::RegisterRequest::default()).expect_err("an empty request");
    assert_eq!(
        reasons(&invalid),
        [
            ("request_id", "REQUEST_ID_REQUIRED"),
            ("email", "INVALID_EMAIL"),
            ("password", "PASSWORD_TOO_SHORT"),
            ("display_name", "REQUIRED"),
        ]
    );
}

#[test]
fn a_rejected_password_is_not_in_the_error() {
    for password in ["correct".to_owned(), "correct\0horse".to_owned(), "correct".repeat(20)] {
        let invalid =
            Registration::try_from(proto::RegisterRequest { password, ..registration() }).expect_err("invalid");
        assert_eq!(invalid.0.len(), 1, "the password's violation");
        assert!(!format!("{invalid} {invalid:?}").contains("correct"), "{invalid}");
    }
}

#[test]
fn a_password_has_eight_characters_to_seventy_one_bytes() {
    let cases = [
        ("1234567".to_owned(), Some("PASSWORD_TOO_SHORT")),
        ("12345678".to_owned(), None),
        // The minimum is in characters, the maximum in bytes: 7 and 8 of three bytes each, 24 of them are 72 bytes.
        ("€".repeat(7), Some("PASSWORD_TOO_SHORT")),
        ("€".repeat(8), None),
        ("€".repeat(23), None),
        ("€".repeat(24), Some("PASSWORD_TOO_LONG")),
        ("x".repeat(71), None),
        ("x".repeat(72), Some("PASSWORD_TOO_LONG")),
        // Both are measured in Normalization Form C: 7 and 8 letters, and 60 of the 90 typed bytes.
        ("e\u{301}".repeat(7), Some("PASSWORD_TOO_SHORT")),
        ("e\u{301}".repeat(8), None),
        ("e\u{301}".repeat(30), None),
        ("correct\0horse".to_owned(), Some("CONTROL_CHARACTER")),
        ("correct\thorse".to_owned(), Some("CONTROL_CHARACTER")),
    ];
    for (password, expected) in cases {
        let result = Registration::try_from(proto::RegisterRequest { password: password.clone(), ..registration() });
        assert_eq!(result.err().map(|invalid| invalid.0[0].reason), expected, "{password}");
    }
}

#[test]
fn a_log_in_does_not_reveal_that_a_password_is_short() {
    let request = |password: &str| proto::LoginRequest { email: "ada@example.com".into(), password: password.into() };
    assert!(Login::try_from(request("short")).is_ok());
    assert_eq!(reasons(&Login::try_from(request("")).expect_err("missing")), [("password", "REQUIRED")]);
    assert_eq!(
        reasons(&Login::try_from(request(&"x".repeat(72))).expect_err("long")),
        [("password", "PASSWORD_TOO_LONG")]
    );
    assert!(Login::try_from(request("correct\thorse")).is_ok(), "an earlier release accepted it");
    let old = proto::LoginRequest { email: "ada@-example.7".into(), password: "correct horse".into() };
    assert!(Login::try_from(old).is_ok(), "and this e-mail too");
    let nothing = Login::try_from(proto::LoginRequest::default()).expect_err("an empty request");
    assert_eq!(reasons(&nothing), [("email", "INVALID_EMAIL"), ("password", "REQUIRED")]);
}

#[test]
fn a_password_change_needs_both_passwords() {
    let nothing = PasswordUpdate::try_from(proto::ChangePasswordRequest::default()).expect_err("an empty request");
    assert_eq!(reasons(&nothing), [("current_password", "REQUIRED"), ("new_password", "PASSWORD_TOO_SHORT")]);
}

#[test]
fn a_refresh_token_has_a_valid_form() {
    assert_eq!(reasons(&refresh_token("").expect_err("missing")), [("refresh_token", "REQUIRED")]);
    let invalid = refresh_token("not-ours").expect_err("malformed");
    assert_eq!(reasons(&invalid), [("refresh_token", "INVALID_REFRESH_TOKEN")]);
    assert!(!invalid.to_string().contains("not-ours"), "it may be a secret");
    assert!(refresh_token(&RefreshToken::random().expose()).is_ok());
}

#[test]
fn fields_of_the_mask_are_set_or_cleared_and_no_others() {
    let profile = proto::Profile {
        display_name: "Ada L.".into(),
        phone: Some("+442012345678".into()),
        address: Some(valid_address()),
        ..proto::Profile::default()
    };
    let change = ProfileChange::try_from(update(profile.clone(), &["phone"])).expect("valid");
    let phone = Some(Some("+442012345678".to_owned()));
    assert_eq!(change, ProfileChange { phone, ..ProfileChange::default() });
    let change = ProfileChange::try_from(update(proto::Profile::default(), &["phone", "address"])).expect("valid");
    let cleared = ProfileChange { phone: Some(None), address: Some(None), ..ProfileChange::default() };
    assert_eq!(change, cleared);
    let change = ProfileChange::try_from(update(profile, &["display_name", "address"])).expect("valid");
    assert_eq!(change.address.flatten().map(|address| address.city).as_deref(), Some("London"));
    assert_eq!(change.display_name.as_deref(), Some("Ada L."));
}

#[test]
fn without_a_mask_the_present_fields_are_set() {
    let profile = proto::Profile {
        display_name: "Ada L.".into(),
        phone: Some("+442012345678".into()),
        // As sent by a client that changes what it has read.
        user_id: "0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e".into(),
        email: "Ada@example.com".into(),
        role: proto::Role::Customer.into(),
        ..proto::Profile::default()
    };
    let expected = ProfileChange {
        display_name: Some("Ada L.".into()),
        phone: Some(Some("+442012345678".into())),
        address: None,
        known_email: Some("ada@example.com".into()),
    };
    for update_mask in [None, Some(prost_types::FieldMask::default())] {
        let request = proto::UpdateProfileRequest { profile: Some(profile.clone()), update_mask };
        assert_eq!(ProfileChange::try_from(request).expect("valid"), expected);
    }
    let nothing = proto::UpdateProfileRequest { profile: Some(proto::Profile::default()), update_mask: None };
    assert_eq!(ProfileChange::try_from(nothing).expect("it changes nothing"), ProfileChange::default());
    let blank = proto::Profile { display_name: " ".into(), ..proto::Profile::default() };
    let invalid = ProfileChange::try_from(update(blank, &[])).expect_err("a blank name");
    assert_eq!(reasons(&invalid), [("profile.display_name", "REQUIRED")]);
}

#[test]
fn a_wildcard_replaces_the_whole_profile() {
    let profile = proto::Profile { display_name: "Ada L.".into(), ..proto::Profile::default() };
    let change = ProfileChange::try_from(update(profile, &["*"])).expect("valid");
    let expected = ProfileChange {
        display_name: Some("Ada L.".into()),
        phone: Some(None),
        address: Some(None),
        known_email: None,
    };
    assert_eq!(change, expected);
    let invalid =
        ProfileChange::try_from(update(proto::Profile::default(), &["*"])).expect_err("a required field is missing");
    assert_eq!(reasons(&invalid), [("profile.display_name", "REQUIRED")]);
}

#[test]
fn unknown_fields_in_a_mask_are_rejected_and_output_only_ones_are_ignored() {
    let invalid = ProfileChange::try_from(proto::UpdateProfileRequest::default()).expect_err("an empty request");
    assert_eq!(reasons(&invalid), [("profile", "REQUIRED")]);
    let paths = ["role", "shoe_size", "address.city", "*", "phone", ""];
    let invalid = ProfileChange::try_from(update(proto::Profile::default(), &paths)).expect_err("four violations");
    assert_eq!(
        reasons(&invalid),
        [
            ("update_mask.paths[1]", "UNKNOWN_FIELD"),
            ("update_mask.paths[2]", "UNKNOWN_FIELD"),
            ("update_mask.paths[3]", "WILDCARD_NOT_ALONE"),
            ("update_mask.paths[5]", "UNKNOWN_FIELD"),
        ]
    );
    let values =
        proto::Profile { role: proto::Role::Operator.into(), user_id: "x".into(), ..proto::Profile::default() };
    let change =
        ProfileChange::try_from(update(values, &["role", "user_id", "create_time", "update_time"])).expect("ignored");
    assert_eq!(change, ProfileChange::default());
    let change =
        ProfileChange::try_from(update(proto::Profile::default(), &["email"])).expect("checked against the account");
    assert_eq!(change, ProfileChange { known_email: Some(String::new()), ..ProfileChange::default() });
}

#[test]
fn all_violations_of_a_profile_are_reported_together() {
    let profile = proto::Profile {
        display_name: String::new(),
        phone: Some("030 123456".into()),
        address: Some(common::Address { country_code: "Germany".into(), ..valid_address() }),
        ..proto::Profile::default()
    };
    let invalid =
        ProfileChange::try_from(update(profile, &["display_name", "phone", "address"])).expect_err("three violations");
    assert_eq!(
        reasons(&invalid),
        [
            ("profile.display_name", "REQUIRED"),
            ("profile.phone", "INVALID_PHONE"),
            ("profile.address.country_code", "INVALID_COUNTRY_CODE"),
        ]
    );
}

#[test]
fn a_telephone_number_is_e164() {
    for (text, is_valid) in [
        ("+4930123456", true),
        ("+123456789012345", true),
        ("+1234567890123456", false),
        ("+123456", false),
        ("+0123456789", false),
        ("4930123456", false),
        ("+49 30 123456", false),
        ("", false),
        ("+", false),
    ] {
        assert_eq!(phone(&mut Fields::default(), text).is_some(), is_valid, "{text}");
    }
}
