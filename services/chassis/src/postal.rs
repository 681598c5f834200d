//! The form of postal codes by country. The patterns are those of the Unicode CLDR's postalCodeData and of the
//! Universal Postal Union's addressing guide, without what depends on which codes are in use.

struct Rule {
    country: &'static str,
    /// `9` is a digit, `A` a letter; a blank or a dash may be left out or exchanged; a lower-case letter is itself.
    patterns: &'static [&'static str],
}

const fn rule(country: &'static str, patterns: &'static [&'static str]) -> Rule {
    Rule { country, patterns }
}

const THREE: &[&str] = &["999"];
const FOUR: &[&str] = &["9999"];
const FIVE: &[&str] = &["99999"];
const SIX: &[&str] = &["999999"];
const THREE_TWO: &[&str] = &["999 99"];
const UNITED_KINGDOM: &[&str] = &["A9 9AA", "A99 9AA", "AA9 9AA", "AA99 9AA", "A9A 9AA", "AA9A 9AA"];
const UNITED_STATES: &[&str] = &["99999", "99999-9999"];

/// Every country whose addresses have a postal code with a known pattern. In other countries none is required.
#[rustfmt::skip]
const RULES: [Rule; 60] = [
    rule("AS", UNITED_STATES),         rule("AT", FOUR),      rule("AU", FOUR),
    rule("BE", FOUR),                  rule("BG", FOUR),      rule("BR", &["99999-999"]),
    rule("CA", &["A9A 9A9"]),          rule("CH", FOUR),      rule("CN", SIX),
    rule("CY", FOUR),                  rule("CZ", THREE_TWO), rule("DE", FIVE),
    rule("DK", FOUR),                  rule("EE", FIVE),      rule("ES", FIVE),
    rule("FI", FIVE),                  rule("FO", THREE),     rule("FR", &["99 999"]),
    rule("GB", UNITED_KINGDOM),        rule("GG", UNITED_KINGDOM), rule("GL", FOUR),
    rule("GR", THREE_TWO),             rule("GU", UNITED_STATES), rule("HR", FIVE),
    rule("HU", FOUR),                  rule("IL", &["99999", "9999999"]), rule("IM", UNITED_KINGDOM),
    rule("IN", &["999 999"]),          rule("IS", THREE),     rule("IT", FIVE),
    rule("JE", UNITED_KINGDOM),        rule("JP", &["999-9999"]), rule("KR", FIVE),
    rule("LI", FOUR),                  rule("LT", &["99999", "lt-99999"]), rule("LU", FOUR),
    rule("LV", &["9999", "lv-9999"]),  rule("MC", FIVE),      rule("MP", UNITED_STATES),
    rule("MT", &["AAA 9999", "AAA 999"]), rule("MX", FIVE),   rule("MY", FIVE),
    rule("NL", &["9999 AA"]),          rule("NO", FOUR),      rule("NZ", FOUR),
    rule("PL", &["99-999"]),           rule("PR", UNITED_STATES), rule("PT", &["9999", "9999-999"]),
    rule("RO", SIX),                   rule("SE", THREE_TWO), rule("SG", SIX),
    rule("SI", FOUR),                  rule("SK", THREE_TWO), rule("SM", FIVE),
    rule("TH", FIVE),                  rule("TR", FIVE),      rule("UA", FIVE),
    rule("US", UNITED_STATES),         rule("VA", FIVE),      rule("ZA", FOUR),
];

/// What is wrong with a country's postal code: `None` if it is valid, or if the country has no rule here.
pub(crate) fn fault(country: &str, code: &str) -> Option<(&'static str, String)> {
    let rule = RULES.iter().find(|rule| rule.country == country)?;
    if code.trim().is_empty() {
        return Some(("REQUIRED", format!("is required in {country}, {}", rule.expected())));
    }
    let is_valid = rule.patterns.iter().any(|pattern| fits(pattern, code));
    (!is_valid).then(|| ("INVALID_POSTAL_CODE", format!("is not a postal code of {country}, {}", rule.expected())))
}

impl Rule {
    fn expected(&self) -> String {
        let patterns: Vec<String> = self.patterns.iter().map(|pattern| pattern.to_ascii_uppercase()).collect();
        format!("which has the form {} (9: a digit, A: a letter)", patterns.join(" or "))
    }
}

/// Ignores case and surrounding blanks.
fn fits(pattern: &str, code: &str) -> bool {
    let is_separator = |c: &char| matches!(c, ' ' | '-');
    let mut rest = code.trim().chars().peekable();
    let all = pattern.chars().all(|expected| match expected {
        ' ' | '-' => {
            let _ = rest.next_if(is_separator);
            true
        }
        '9' => rest.next().is_some_and(|c| c.is_ascii_digit()),
        'A' => rest.next().is_some_and(|c| c.is_ascii_alphabetic()),
        letter => rest.next().is_some_and(|c| c.eq_ignore_ascii_case(&letter)),
    });
    all && rest.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_postal_code_has_the_form_of_its_country() {
        for (country, code) in [
            ("DE", "10115"),
            ("US", "94105"),
            ("US", "94105-1234"),
            ("US", "94105 1234"),
            ("GB", "SW1A 1AA"),
            ("GB", "sw1a1aa"),
            ("GB", "N1 9GU"),
            ("GB", "KW15 1AA"),
            ("FR", "75001"),
            ("NL", "1012 AB"),
            ("NL", "1012ab"),
            ("CA", "K1A 0B1"),
            ("JP", "100-0001"),
            ("JP", "1000001"),
            ("SE", "114 55"),
            ("PT", "1000-001"),
            ("LV", "LV-1010"),
            ("PL", " 00-950 "),
        ] {
            assert_eq!(fault(country, code), None, "{country} {code}");
        }
    }

    #[test]
    fn a_postal_code_of_another_form_is_rejected_and_the_form_is_named() {
        for (country, code) in [
            ("DE", "1011"),
            ("DE", "101155"),
            ("DE", "1O115"),
            ("DE", "10 115"),
            ("DE", "١٠١١٥"),
            ("US", "9410"),
            ("US", "94105-12"),
            ("GB", "10115"),
            ("GB", "N1"),
            ("NL", "1012"),
            ("CA", "K1A  0B1"),
            ("JP", "100-00011"),
            ("FR", "7500A"),
        ] {
            let (reason, description) = fault(country, code).expect("a violation");
            assert_eq!(reason, "INVALID_POSTAL_CODE", "{country} {code}");
            assert!(description.contains(country) && description.contains('9'), "{description}");
        }
        assert_eq!(fault("DE", "  ").map(|(reason, _)| reason), Some("REQUIRED"));
    }

    #[test]
    fn a_country_without_a_rule_requires_nothing() {
        for country in ["HK", "AE", "IE", "AQ", "XX", "Germany"] {
            assert_eq!(fault(country, ""), None);
            assert_eq!(fault(country, "whatever"), None);
        }
    }

    #[test]
    fn the_rules_are_sorted_and_unique() {
        assert!(RULES.is_sorted_by(|one, next| one.country < next.country));
    }
}
