use super::*;

#[test]
fn all_violations_are_reported_together() {
    let mut fields = Fields::default();
    let id = fields.id::<kernel::OrderId>("order_id", "seven");
    let email = fields.email("contact_email", "nobody");
    let Invalid(violations) = fields.finish(id.zip(email)).expect_err("two violations");
    let reasons: Vec<_> = violations.iter().map(|violation| violation.reason).collect();
    assert_eq!(reasons, ["INVALID_ID", "INVALID_EMAIL"]);
}

#[test]
fn violations_are_limited_to_a_hundred_and_the_last_one_says_so() {
    let rejected = |count: usize| {
        let mut fields = Fields::default();
        for index in 0..count {
            fields.reject(format!("items[{index}]"), "INVALID_SKU", "no SKU");
        }
        fields.finish::<()>(None).expect_err("rejected").0
    };
    assert!(rejected(100).iter().all(|violation| violation.reason == "INVALID_SKU"));
    for count in [101, 102, 349_000] {
        let violations = rejected(count);
        assert_eq!((violations.len(), violations[98].field.as_str()), (100, "items[98]"));
        assert_eq!((violations[99].field.as_str(), violations[99].reason), ("", "MORE_VIOLATIONS"));
    }
    let mut fields = Fields::default();
    (0..200).for_each(|_| fields.reject_newer("name", "REQUIRED", "is required"));
    assert!(fields.finish_known(Some(())).is_ok(), "only newer rules, however many");
    let mut fields = Fields::default();
    (0..200).for_each(|_| fields.reject_newer("name", "REQUIRED", "is required"));
    fields.reject("name", "REQUIRED", "is required");
    assert!(fields.finish_known(Some(())).is_err(), "the one after the hundredth counts");
}

#[test]
fn an_email_has_a_local_part_and_a_domain() {
    for good in ["ada@example.com", "Ada.L+shop@mail.example.co.uk", "a@localhost"] {
        assert_eq!(Fields::default().email("email", good), Some(good.to_ascii_lowercase()));
    }
    let long = format!("{}@example.com", "a".repeat(65));
    for bad in ["", "ada", "@example.com", "ada@", "a b@example.com", "ada@exa..com", "a@b@c", "ada@exämple.com", &long]
    {
        assert_eq!(Fields::default().email("email", bad), None, "{bad}");
    }
}

#[test]
fn the_domain_of_an_email_is_the_name_of_a_host() {
    let long = format!("ada@{}.com", "a".repeat(64));
    for bad in ["ada@-example.com", "ada@example-.com", "ada@example.-a", "ada@1.2.3.4", "ada@7", "ada@x.123", &long] {
        let mut fields = Fields::default();
        fields.email("email", bad);
        assert_eq!(fields.violations().first().map(|it| it.reason), Some("INVALID_EMAIL"), "{bad}");
        assert_eq!(
            Fields::default().known_email("email", bad),
            Some(bad.to_owned()),
            "an existing account may have it"
        );
    }
    let longest = format!("ada@{}.com", "a".repeat(63));
    for good in ["ada@xn--exmple-cua.com", "ada@1.example", "ada@3com.a1", "ada@a-b.co", &longest] {
        let mut fields = Fields::default();
        assert_eq!(fields.email("email", good), Some(good.to_owned()), "{good}");
        assert_eq!(fields.violations(), [], "{good}");
    }
}

#[test]
fn a_command_that_breaks_only_newer_rules_is_rejected_but_still_decoded() {
    let decode = |name: &str| {
        let mut fields = Fields::default();
        let name = fields.text("name", name, 1, 5);
        fields.finish_known(name)
    };
    let valid = decode("Ada").expect("valid");
    assert_eq!((valid.command.as_str(), valid.violations), ("Ada", None));
    let blank = decode("  ").expect("an earlier release accepted it");
    assert_eq!(blank.command, "  ");
    assert_eq!(blank.violations.expect("rejected now").0[0].reason, "REQUIRED");
    assert!(decode("").is_err() && decode("too long").is_err() && decode("\t").is_err());
    let mut fields = Fields::default();
    let name = fields.text("name", "  ", 1, 5);
    assert!(fields.finish(name).is_err(), "the rule applies to new commands");
}

fn reason(check: impl FnOnce(&mut Fields)) -> Option<&'static str> {
    let mut fields = Fields::default();
    check(&mut fields);
    fields.violations().first().map(|violation| violation.reason)
}

#[test]
fn a_required_text_is_not_blank_and_has_no_misleading_characters() {
    for (text, expected) in [
        ("", Some("REQUIRED")),
        ("   ", Some("REQUIRED")),
        ("\u{a0}\u{3000}", Some("REQUIRED")),
        ("\u{200b}\u{feff}", Some("REQUIRED")),
        ("\u{3164}", Some("REQUIRED")),
        ("Ada\u{7}", Some("CONTROL_CHARACTER")),
        ("Ada\u{85}", Some("CONTROL_CHARACTER")),
        ("\u{202e}adA", Some("MISLEADING_CHARACTER")),
        ("Ada\u{2066}", Some("MISLEADING_CHARACTER")),
        ("Ada\u{2028}Eve", Some("MISLEADING_CHARACTER")),
        ("نگار می\u{200c}آید", None),
        ("👩\u{200d}🚀", None),
        ("Jo\u{308}rg", None),
    ] {
        assert_eq!(reason(|fields| drop(fields.text("name", text, 1, 100))), expected, "{text:?}");
    }
    assert_eq!(reason(|fields| drop(fields.text("text", "  ", 0, 100))), None, "nothing is required");
    assert_eq!(reason(|fields| drop(fields.text("text", "\u{202e}", 0, 100))), Some("MISLEADING_CHARACTER"));
}

#[test]
fn an_address_is_complete_and_its_postal_code_fits_its_country() {
    let valid = common::Address {
        recipient: "Ada".into(),
        lines: vec!["Chausseestr. 1".into()],
        city: "Berlin".into(),
        postal_code: "10115".into(),
        country_code: "DE".into(),
    };
    let found = |change: fn(&mut common::Address)| {
        let mut address = valid.clone();
        change(&mut address);
        let mut fields = Fields::default();
        fields.address("to", Some(&address));
        fields.violations().iter().map(|it| (it.field.clone(), it.reason)).collect::<Vec<_>>()
    };
    let one = |field: &str, reason| vec![(format!("to.{field}"), reason)];
    assert_eq!(found(|_| {}), []);
    assert_eq!(found(|to| to.recipient = " ".into()), one("recipient", "REQUIRED"));
    assert_eq!(found(|to| to.lines = vec!["\u{200b}".into()]), one("lines[0]", "REQUIRED"));
    assert_eq!(found(|to| to.city = "\u{2067}".into()), one("city", "MISLEADING_CHARACTER"));
    assert_eq!(found(|to| to.postal_code = "1011".into()), one("postal_code", "INVALID_POSTAL_CODE"));
    assert_eq!(found(|to| to.postal_code.clear()), one("postal_code", "REQUIRED"));
    assert_eq!(found(|to| to.country_code = "HK".into()), []);
    assert_eq!(found(|to| to.country_code = "GB".into()), one("postal_code", "INVALID_POSTAL_CODE"));
}

#[test]
fn a_payment_method_has_the_form_of_a_token() {
    assert_eq!(reason(|fields| drop(fields.payment_method("method", ""))), Some("REQUIRED"));
    for invalid in [" ", "pm card", "pm-card", "pm_kärte", &"x".repeat(256)] {
        let found = reason(|fields| drop(fields.payment_method("method", invalid)));
        assert_eq!(found, Some("INVALID_PAYMENT_METHOD"), "{invalid}");
    }
    assert_eq!(reason(|fields| drop(fields.payment_method("method", "pm_card_visa"))), None);
}

#[test]
fn a_sku_is_upper_case_letters_digits_and_dashes() {
    for (text, is_valid) in [("MUG-BLUE", true), ("A", true), ("", false), ("mug", false), ("A B", false)] {
        assert_eq!(Fields::default().sku("sku", text).is_some(), is_valid, "{text}");
    }
}

#[test]
fn an_instant_outside_the_calendar_is_rejected() {
    let mut fields = Fields::default();
    for seconds in [i64::MIN, -1, 253_402_300_800, i64::MAX] {
        assert_eq!(fields.instant("t", Some(&prost_types::Timestamp { seconds, nanos: 0 })), None);
    }
    assert_eq!(fields.violations().len(), 4);
}
