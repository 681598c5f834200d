//! Delivery times: the rules are data, the choice among them is here.

use kernel::Timestamp;
use time::Date;

/// Postal codes are never longer; only this many characters are compared.
const MAX_POSTAL_CHARS: usize = 20;

/// The destination of a parcel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Destination {
    /// ISO 3166-1 alpha-2.
    pub(crate) country: String,
    /// In the country's form; may be empty.
    pub(crate) postal_code: String,
    /// When the parcel is ready; `None`: now.
    pub(crate) dispatch: Option<Timestamp>,
}

/// A rule for the addresses of a country whose postal code has a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rule {
    /// In upper case, without blanks and dashes; empty: the country's default.
    pub(crate) postal_prefix: String,
    pub(crate) zone: String,
    pub(crate) transit_business_days: u16,
    /// 0 to 24.
    pub(crate) cutoff_hour_utc: u8,
}

/// An estimate, and the rule that it follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Estimate {
    pub(crate) rule: Rule,
    pub(crate) date: Date,
}

/// The rule of a country for a postal code: the longest prefix wins. `None` if the country has no rules.
pub(crate) fn choose(rules: Vec<Rule>, postal_code: &str) -> Option<Rule> {
    let code: String = postal_code
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '-')
        .take(MAX_POSTAL_CHARS)
        .collect::<String>()
        .to_uppercase();
    rules.into_iter().filter(|rule| code.starts_with(&rule.postal_prefix)).max_by_key(|rule| rule.postal_prefix.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(postal_prefix: &str) -> Rule {
        let zone = format!("zone {postal_prefix}");
        Rule { postal_prefix: postal_prefix.into(), zone, transit_business_days: 1, cutoff_hour_utc: 15 }
    }

    fn chosen(prefixes: &[&str], postal_code: &str) -> Option<String> {
        choose(prefixes.iter().map(|prefix| rule(prefix)).collect(), postal_code).map(|rule| rule.postal_prefix)
    }

    #[test]
    fn the_longest_prefix_wins_whatever_the_order_of_the_rules() {
        for rules in [["", "2", "27498"], ["27498", "2", ""], ["2", "", "27498"]] {
            assert_eq!(chosen(&rules, "27498").as_deref(), Some("27498"));
            assert_eq!(chosen(&rules, "20095").as_deref(), Some("2"));
            assert_eq!(chosen(&rules, "80331").as_deref(), Some(""));
            assert_eq!(chosen(&rules, "").as_deref(), Some(""));
        }
    }

    #[test]
    fn a_postal_code_is_compared_without_blanks_dashes_and_case() {
        for code in ["KW15 1AA", "kw15 1aa", " k w-15"] {
            assert_eq!(chosen(&["", "KW15"], code).as_deref(), Some("KW15"), "{code}");
        }
        assert_eq!(chosen(&["", "KW15"], "KW1 4XX").as_deref(), Some(""));
    }

    #[test]
    fn without_a_matching_rule_there_is_no_zone() {
        assert_eq!(chosen(&[], "12345"), None);
        assert_eq!(chosen(&["9"], "12345"), None);
    }
}
