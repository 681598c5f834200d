//! From messages to values. All violations are collected, so that a caller learns of them at once.

use std::str::FromStr;

use contracts::common::v1 as common;
use kernel::{Currency, Money, Timestamp};
use mesh::Violation;

/// A message whose fields break the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", summary(.0))]
pub struct Invalid(pub Vec<Violation>);

/// The first few: a status message travels in a header, and all of them are in the details.
fn summary(violations: &[Violation]) -> String {
    const SHOWN: usize = 3;
    let shown = violations.iter().take(SHOWN).map(|v| format!("{}: {} ({})", v.field, v.description, v.reason));
    let mut text = shown.collect::<Vec<_>>().join("; ");
    if violations.len() > SHOWN {
        text.push_str(&format!("; and {} more", violations.len() - SHOWN));
    }
    text
}

/// The violations found so far.
#[derive(Debug, Default)]
pub struct Fields(Vec<Violation>);

impl Fields {
    /// Notes a violation.
    pub fn refuse(&mut self, field: impl Into<String>, reason: &'static str, description: impl Into<String>) {
        self.0.push(Violation { field: field.into(), reason, description: description.into() });
    }

    /// What was found.
    pub fn violations(&self) -> &[Violation] {
        &self.0
    }

    /// The value, when nothing was found. Every field that gave `None` has noted why.
    ///
    /// # Errors
    /// All that was found.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Invalid> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            Some(_) | None => Err(Invalid(self.0)),
        }
    }

    /// A required id.
    pub fn id<T: FromStr>(&mut self, field: &str, text: &str) -> Option<T> {
        if text.is_empty() {
            self.refuse(field, "ID_REQUIRED", "a UUID is required");
            return None;
        }
        let id = text.parse().ok();
        if id.is_none() {
            self.refuse(field, "INVALID_ID", "not a UUID, for example 0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e");
        }
        id
    }

    /// A required id of a request.
    pub fn request_id(&mut self, text: &str) -> Option<kernel::RequestId> {
        if text.is_empty() {
            self.refuse(
                "request_id",
                "REQUEST_ID_REQUIRED",
                "a UUID of your own is required; send the same one to try the same command again",
            );
            return None;
        }
        self.id("request_id", text)
    }

    /// A text within limits, counted in characters; control characters are refused.
    pub fn text(&mut self, field: &str, text: &str, least: usize, most: usize) -> Option<String> {
        let length = text.chars().count();
        if length < least && length == 0 {
            self.refuse(field, "REQUIRED", "is required");
        } else if length < least || length > most {
            self.refuse(field, "INVALID_LENGTH", format!("must have {least} to {most} characters"));
        } else if text.chars().any(char::is_control) {
            self.refuse(field, "CONTROL_CHARACTER", "must not contain control characters");
        } else {
            return Some(text.to_owned());
        }
        None
    }

    /// An e-mail address, in lower case: something without blanks, one @, and a domain; at most 254 characters (RFC 5321).
    pub fn email(&mut self, field: &str, text: &str) -> Option<String> {
        let sound = text.len() <= 254
            && text.is_ascii()
            && text.bytes().all(|b| b.is_ascii_graphic())
            && text.split_once('@').is_some_and(|(local, domain)| {
                let labels = domain
                    .split('.')
                    .all(|label| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
                !local.is_empty() && local.len() <= 64 && labels
            });
        if sound {
            Some(text.to_ascii_lowercase())
        } else {
            self.refuse(field, "INVALID_EMAIL", "not an e-mail address, for example ada@example.com");
            None
        }
    }

    /// A stock keeping unit: 1 to 64 of A-Z, 0-9 and "-".
    pub fn sku(&mut self, field: impl Into<String>, text: &str) -> Option<String> {
        let allowed = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-';
        if !text.is_empty() && text.len() <= 64 && text.bytes().all(allowed) {
            Some(text.to_owned())
        } else {
            self.refuse(field, "INVALID_SKU", "a SKU has 1 to 64 of A-Z, 0-9 and \"-\", for example MUG-BLUE");
            None
        }
    }

    /// A required amount of money; its sign is not looked at.
    pub fn money(&mut self, field: &str, money: Option<&common::Money>) -> Option<Money> {
        let Some(money) = money else {
            self.refuse(field, "REQUIRED", "an amount is required");
            return None;
        };
        match money.currency_code.parse::<Currency>() {
            Ok(currency) => Some(Money::new(currency, money.minor_units)),
            Err(error) => {
                self.refuse(format!("{field}.currency_code"), "UNKNOWN_CURRENCY", error.to_string());
                None
            }
        }
    }

    /// A required postal address.
    pub fn address(&mut self, field: &str, address: Option<&common::Address>) -> Option<common::Address> {
        let Some(address) = address else {
            self.refuse(field, "REQUIRED", "an address is required");
            return None;
        };
        let before = self.0.len();
        self.text(&format!("{field}.recipient"), &address.recipient, 1, 200);
        if address.lines.is_empty() || address.lines.len() > 3 {
            self.refuse(format!("{field}.lines"), "INVALID_LENGTH", "must have 1 to 3 lines");
        }
        for (index, line) in address.lines.iter().take(3).enumerate() {
            self.text(&format!("{field}.lines[{index}]"), line, 1, 200);
        }
        self.text(&format!("{field}.city"), &address.city, 1, 200);
        self.text(&format!("{field}.postal_code"), &address.postal_code, 0, 20);
        self.country(&format!("{field}.country_code"), &address.country_code);
        (self.0.len() == before).then(|| address.clone())
    }

    /// A country code of ISO 3166-1 alpha-2: its form; whether we deliver there is another question.
    pub fn country(&mut self, field: &str, code: &str) -> Option<String> {
        if code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase()) {
            Some(code.to_owned())
        } else {
            self.refuse(field, "INVALID_COUNTRY_CODE", "two upper-case letters of ISO 3166-1, for example DE");
            None
        }
    }

    /// An instant, when given; outside the years 1970 to 9999 it is refused.
    pub fn instant(&mut self, field: &str, instant: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
        let instant = instant?;
        let sound = (0..253_402_300_800).contains(&instant.seconds) && (0..1_000_000_000).contains(&instant.nanos);
        if !sound {
            self.refuse(field, "INVALID_TIME", "must lie in the years 1970 to 9999, with nanos below a second");
            return None;
        }
        Some(Timestamp::from_micros(instant.seconds * 1_000_000 + i64::from(instant.nanos) / 1_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_violations_are_told_at_once() {
        let mut fields = Fields::default();
        let id = fields.id::<kernel::OrderId>("order_id", "seven");
        let email = fields.email("contact_email", "nobody");
        let Invalid(violations) = fields.finish(id.zip(email)).expect_err("two violations");
        let reasons: Vec<_> = violations.iter().map(|violation| violation.reason).collect();
        assert_eq!(reasons, ["INVALID_ID", "INVALID_EMAIL"]);
    }

    #[test]
    fn an_email_has_a_local_part_and_a_domain_and_nothing_odd() {
        for good in ["ada@example.com", "Ada.L+shop@mail.example.co.uk", "a@localhost"] {
            assert_eq!(Fields::default().email("email", good), Some(good.to_ascii_lowercase()));
        }
        let long = format!("{}@example.com", "a".repeat(65));
        for bad in
            ["", "ada", "@example.com", "ada@", "a b@example.com", "ada@exa..com", "a@b@c", "ada@exämple.com", &long]
        {
            assert_eq!(Fields::default().email("email", bad), None, "{bad}");
        }
    }

    #[test]
    fn a_sku_is_upper_case_letters_digits_and_dashes() {
        for (text, sound) in [("MUG-BLUE", true), ("A", true), ("", false), ("mug", false), ("A B", false)] {
            assert_eq!(Fields::default().sku("sku", text).is_some(), sound, "{text}");
        }
    }

    #[test]
    fn an_instant_outside_the_calendar_is_refused() {
        let mut fields = Fields::default();
        for seconds in [i64::MIN, -1, 253_402_300_800, i64::MAX] {
            assert_eq!(fields.instant("t", Some(&prost_types::Timestamp { seconds, nanos: 0 })), None);
        }
        assert_eq!(fields.violations().len(), 4);
    }
}
