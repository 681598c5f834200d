use super::*;

fn reasons(invalid: &Invalid) -> Vec<(&str, &str)> {
    invalid.0.iter().map(|violation| (violation.field.as_str(), violation.reason)).collect()
}

fn registration() -> pb::RegisterRequest {
    pb::RegisterRequest {
        request_id: "0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e".into(),
        email: "Ada@Example.com".into(),
        password: "correct horse".into(),
        display_name: "Ada".into(),
    }
}

fn update(profile: pb::Profile, paths: &[&str]) -> pb::UpdateProfileRequest {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    pb::UpdateProfileRequest { profile: Some(profile), update_mask: Some(prost_types::FieldMask { paths }) }
}

fn sound_address() -> common::Address {
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
    let taken = Registration::try_from(registration()).expect("sound");
    assert_eq!((taken.email.as_str(), taken.display_name.as_str()), ("ada@example.com", "Ada"));
    assert!(!format!("{taken:?}").contains("correct horse"));
}

#[test]
fn a_display_name_is_not_blank() {
    for (name, expected) in [
        ("  ", Some("REQUIRED")),
        ("\u{200b}\u{3164}", Some("REQUIRED")),
        ("Ada\u{202e}", Some("MISLEADING_CHARACTER")),
        ("نگار می\u{200c}آید 👩\u{200d}🚀", None),
    ] {
        let request = pb::RegisterRequest { display_name: name.into(), ..registration() };
        assert_eq!(Registration::try_from(request).err().map(|invalid| invalid.0[0].reason), expected, "{name:?}");
    }
}

#[test]
fn all_violations_of_a_registration_are_reported_together() {
    let invalid = Registration::try_from(pb::RegisterRequest::default()).expect_err("an empty request");
    assert_eq!(
        reasons(&invalid),
        [
            ("request_id", "REQUEST_ID_REQUIRED"),
            ("email", "INVALID_EMAIL"),
            ("password", "PASSWORD_TOO_SHORT"),
            ("display_name", "REQUIRED"),
        ]
    );
    let request = pb::RegisterRequest { password: "correct horse".into(), ..pb::RegisterRequest::default() };
    let invalid = Registration::try_from(request).expect_err("everything else is missing");
    assert!(!format!("{invalid} {invalid:?}").contains("correct"), "the password is not in the error");
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
        let result = Registration::try_from(pb::RegisterRequest { password: password.clone(), ..registration() });
        assert_eq!(result.err().map(|invalid| invalid.0[0].reason), expected, "{password}");
    }
}

#[test]
fn a_log_in_does_not_reveal_that_a_password_is_short() {
    let request = |password: &str| pb::LoginRequest { email: "ada@example.com".into(), password: password.into() };
    assert!(login(request("short")).is_ok());
    assert_eq!(reasons(&login(request("")).expect_err("missing")), [("password", "REQUIRED")]);
    assert_eq!(reasons(&login(request(&"x".repeat(72))).expect_err("long")), [("password", "PASSWORD_TOO_LONG")]);
    assert!(login(request("correct\thorse")).is_ok(), "an earlier release accepted it");
    let old = pb::LoginRequest { email: "ada@-example.7".into(), password: "correct horse".into() };
    assert!(login(old).is_ok(), "and this e-mail too");
    let nothing = login(pb::LoginRequest::default()).expect_err("an empty request");
    assert_eq!(reasons(&nothing), [("email", "INVALID_EMAIL"), ("password", "REQUIRED")]);
}

#[test]
fn a_password_change_needs_both_passwords() {
    let nothing = password_change(pb::ChangePasswordRequest::default()).expect_err("an empty request");
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
    let profile = pb::Profile {
        display_name: "Ada L.".into(),
        phone: Some("+442012345678".into()),
        address: Some(sound_address()),
        ..pb::Profile::default()
    };
    let change = profile_change(update(profile.clone(), &["phone"])).expect("sound");
    let phone = Some(Some("+442012345678".to_owned()));
    assert_eq!(change, ProfileChange { phone, ..ProfileChange::default() });
    let change = profile_change(update(pb::Profile::default(), &["phone", "address"])).expect("sound");
    let cleared = ProfileChange { phone: Some(None), address: Some(None), ..ProfileChange::default() };
    assert_eq!(change, cleared);
    let change = profile_change(update(profile, &["display_name", "address"])).expect("sound");
    assert_eq!(change.address.flatten().map(|address| address.city).as_deref(), Some("London"));
    assert_eq!(change.display_name.as_deref(), Some("Ada L."));
}

#[test]
fn without_a_mask_the_present_fields_are_set() {
    let profile = pb::Profile {
        display_name: "Ada L.".into(),
        phone: Some("+442012345678".into()),
        // As sent by a client that changes what it has read.
        user_id: "0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e".into(),
        email: "Ada@example.com".into(),
        role: pb::Role::Customer.into(),
        ..pb::Profile::default()
    };
    let expected = ProfileChange {
        display_name: Some("Ada L.".into()),
        phone: Some(Some("+442012345678".into())),
        address: None,
        known_email: Some("ada@example.com".into()),
    };
    for update_mask in [None, Some(prost_types::FieldMask::default())] {
        let request = pb::UpdateProfileRequest { profile: Some(profile.clone()), update_mask };
        assert_eq!(profile_change(request).expect("sound"), expected);
    }
    let nothing = pb::UpdateProfileRequest { profile: Some(pb::Profile::default()), update_mask: None };
    assert_eq!(profile_change(nothing).expect("it changes nothing"), ProfileChange::default());
    let blank = pb::Profile { display_name: " ".into(), ..pb::Profile::default() };
    let invalid = profile_change(update(blank, &[])).expect_err("a blank name");
    assert_eq!(reasons(&invalid), [("profile.display_name", "REQUIRED")]);
}

#[test]
fn a_wildcard_replaces_the_whole_profile() {
    let profile = pb::Profile { display_name: "Ada L.".into(), ..pb::Profile::default() };
    let change = profile_change(update(profile, &["*"])).expect("sound");
    let expected = ProfileChange {
        display_name: Some("Ada L.".into()),
        phone: Some(None),
        address: Some(None),
        known_email: None,
    };
    assert_eq!(change, expected);
    let invalid = profile_change(update(pb::Profile::default(), &["*"])).expect_err("a required field is missing");
    assert_eq!(reasons(&invalid), [("profile.display_name", "REQUIRED")]);
}

#[test]
fn unknown_fields_in_a_mask_are_rejected_and_output_only_ones_are_ignored() {
    let invalid = profile_change(pb::UpdateProfileRequest::default()).expect_err("an empty request");
    assert_eq!(reasons(&invalid), [("profile", "REQUIRED")]);
    let paths = ["role", "shoe_size", "address.city", "*", "phone", ""];
    let invalid = profile_change(update(pb::Profile::default(), &paths)).expect_err("four violations");
    assert_eq!(
        reasons(&invalid),
        [
            ("update_mask.paths[1]", "UNKNOWN_FIELD"),
            ("update_mask.paths[2]", "UNKNOWN_FIELD"),
            ("update_mask.paths[3]", "WILDCARD_NOT_ALONE"),
            ("update_mask.paths[5]", "UNKNOWN_FIELD"),
        ]
    );
    let values = pb::Profile { role: pb::Role::Operator.into(), user_id: "x".into(), ..pb::Profile::default() };
    let change = profile_change(update(values, &["role", "user_id", "create_time", "update_time"])).expect("ignored");
    assert_eq!(change, ProfileChange::default());
    let change = profile_change(update(pb::Profile::default(), &["email"])).expect("checked against the account");
    assert_eq!(change, ProfileChange { known_email: Some(String::new()), ..ProfileChange::default() });
}

#[test]
fn all_violations_of_a_profile_are_reported_together() {
    let profile = pb::Profile {
        display_name: String::new(),
        phone: Some("030 123456".into()),
        address: Some(common::Address { country_code: "Germany".into(), ..sound_address() }),
        ..pb::Profile::default()
    };
    let invalid = profile_change(update(profile, &["display_name", "phone", "address"])).expect_err("three violations");
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
    for (text, sound) in [
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
        assert_eq!(phone(&mut Fields::default(), text).is_some(), sound, "{text}");
    }
}
