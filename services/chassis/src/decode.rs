//! From messages to values. All violations are collected, so that a caller gets them in one response.

use std::str::FromStr;

use contracts::common::v1 as common;
use kernel::{Currency, Money, Timestamp, text};
use mesh::Violation;

use crate::postal;

/// A message with fields that break the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", summary(.0))]
pub struct Invalid(pub Vec<Violation>);

/// Only the first few: a status message travels in a header. All of them are in the details.
fn summary(violations: &[Violation]) -> String {
    const MAX_LISTED: usize = 3;
    let listed = violations.iter().take(MAX_LISTED).map(|v| format!("{}: {} ({})", v.field, v.description, v.reason));
    let mut text = listed.collect::<Vec<_>>().join("; ");
    if violations.len() > MAX_LISTED {
        text.push_str(&format!("; and {} more", violations.len() - MAX_LISTED));
    }
    text
}

/// Maximum violations of one message; the last one says that there are more.
const MAX_VIOLATIONS: usize = 100;

/// The violations found so far.
#[derive(Debug, Default)]
pub struct Fields {
    found: Vec<Violation>,
    /// How many there are, including those that are not kept.
    count: usize,
    /// How many of them are of rules that an earlier release did not have: these do not prevent the value.
    newer: usize,
}

fn more() -> Violation {
    let description = format!("there are more violations than the {} before this one", MAX_VIOLATIONS - 1);
    Violation { field: String::new(), reason: "MORE_VIOLATIONS", description }
}

/// A command, and why it would be rejected if it were new.
#[derive(Clone, Debug)]
pub struct Decoded<T> {
    /// The command, as an earlier release would have accepted it.
    pub command: T,
    /// Its violations of rules that an earlier release did not have.
    pub violations: Option<Invalid>,
}

impl Fields {
    pub fn reject(&mut self, field: impl Into<String>, reason: &'static str, description: impl Into<String>) {
        self.count += 1;
        match self.found.len() {
            0..MAX_VIOLATIONS => {
                self.found.push(Violation { field: field.into(), reason, description: description.into() });
            }
            _ if self.count == MAX_VIOLATIONS + 1 => self.found[MAX_VIOLATIONS - 1] = more(),
            _ => {}
        }
    }

    /// Adds a violation of a rule that an earlier release did not have.
    fn reject_newer(&mut self, field: impl Into<String>, reason: &'static str, description: impl Into<String>) {
        self.reject(field, reason, description);
        self.newer += 1;
    }

    /// The violations found so far.
    pub fn violations(&self) -> &[Violation] {
        &self.found
    }

    /// The number of violations of rules that every release had.
    fn older(&self) -> usize {
        self.count - self.newer
    }

    /// The value, if there are no violations. Every field that returned `None` has added one.
    ///
    /// # Errors
    /// All violations found.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Invalid> {
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            Some(_) | None => Err(Invalid(self.found)),
        }
    }

    /// The value of a command that an earlier release may have accepted: its repetition gets the same response as
    /// before.
    ///
    /// # Errors
    /// All violations found, when one of them is of a rule that every release had.
    pub fn finish_known<T>(self, value: Option<T>) -> Result<Decoded<T>, Invalid> {
        match value {
            Some(command) if self.older() == 0 => {
                let violations = (!self.found.is_empty()).then_some(Invalid(self.found));
                Ok(Decoded { command, violations })
            }
            Some(_) | None => Err(Invalid(self.found)),
        }
    }

    /// A required id.
    pub fn id<T: FromStr>(&mut self, field: &str, text: &str) -> Option<T> {
        if text.is_empty() {
            self.reject(field, "ID_REQUIRED", "a UUID is required");
            return None;
        }
        let id = text.parse().ok();
        if id.is_none() {
            self.reject(field, "INVALID_ID", "not a UUID, for example 0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e");
        }
        id
    }

    /// A required id of a request.
    pub fn request_id(&mut self, text: &str) -> Option<kernel::RequestId> {
        if text.is_empty() {
            self.reject(
                "request_id",
                "REQUEST_ID_REQUIRED",
                "a UUID of your own is required; send the same one to try the same command again",
            );
            return None;
        }
        self.id("request_id", text)
    }

    /// A text within limits, counted in characters (code points). A required one (`min` above 0) is not blank;
    /// control characters and characters that change how the surrounding text reads are rejected.
    pub fn text(&mut self, field: &str, text: &str, min: usize, max: usize) -> Option<String> {
        let length = text.chars().count();
        if min > 0 && text.is_empty() {
            self.reject(field, "REQUIRED", "is required");
            return None;
        }
        if length < min || length > max {
            self.reject(field, "INVALID_LENGTH", format!("must have {min} to {max} characters"));
            return None;
        }
        if text.chars().any(char::is_control) {
            self.reject(field, "CONTROL_CHARACTER", "must not contain control characters");
            return None;
        }
        if let Some(c) = text::misleading(text) {
            let code_point = u32::from(c);
            let description =
                format!("must not contain U+{code_point:04X}, which changes how the text around it reads");
            self.reject_newer(field, "MISLEADING_CHARACTER", description);
        } else if min > 0 && text::is_blank(text) {
            self.reject_newer(field, "REQUIRED", "is required: blanks and invisible characters say nothing");
        }
        Some(text.to_owned())
    }

    /// An e-mail address, in lower case, at most 254 characters (RFC 5321): no blanks, one @, and a host name. Its
    /// labels have 1 to 63 letters, digits and hyphens, no hyphen first or last, and the last label is not all digits
    /// (RFC 1123, RFC 3696). An internationalised name is in its A-label form (RFC 5890).
    pub fn email(&mut self, field: &str, text: &str) -> Option<String> {
        let email = self.known_email(field, text)?;
        if !email.split_once('@').is_some_and(|(_, domain)| is_host(domain)) {
            self.reject_newer(field, "INVALID_EMAIL", "the part after the @ is not the name of a host");
        }
        Some(email)
    }

    /// An e-mail address that an earlier release may have accepted: the host name is not checked.
    pub fn known_email(&mut self, field: &str, text: &str) -> Option<String> {
        if is_email(text) {
            Some(text.to_ascii_lowercase())
        } else {
            self.reject(field, "INVALID_EMAIL", "not an e-mail address, for example ada@example.com");
            None
        }
    }

    /// The token of a payment method, which is never logged or returned in an error: see [`is_payment_method`].
    pub fn payment_method(&mut self, field: &str, token: &str) -> Option<String> {
        const DESCRIPTION: &str = "a token has 1 to 255 of a-z, A-Z, 0-9 and \"_\"";
        if token.is_empty() {
            self.reject(field, "REQUIRED", "is required");
            return None;
        }
        if token.chars().count() > 255 || token.chars().any(char::is_control) {
            self.reject(field, "INVALID_PAYMENT_METHOD", DESCRIPTION);
            return None;
        }
        if !is_payment_method(token) {
            self.reject_newer(field, "INVALID_PAYMENT_METHOD", DESCRIPTION);
        }
        Some(token.to_owned())
    }

    /// A stock keeping unit: 1 to 64 of A-Z, 0-9 and "-".
    pub fn sku(&mut self, field: impl Into<String>, text: &str) -> Option<String> {
        if is_sku(text) {
            Some(text.to_owned())
        } else {
            self.reject(field, "INVALID_SKU", "a SKU has 1 to 64 of A-Z, 0-9 and \"-\", for example MUG-BLUE");
            None
        }
    }

    /// A required amount of money of any sign.
    pub fn money(&mut self, field: &str, money: Option<&common::Money>) -> Option<Money> {
        let Some(money) = money else {
            self.reject(field, "REQUIRED", "an amount is required");
            return None;
        };
        match money.currency_code.parse::<Currency>() {
            Ok(currency) => Some(Money::new(currency, money.minor_units)),
            Err(error) => {
                self.reject(format!("{field}.currency_code"), "UNKNOWN_CURRENCY", error.to_string());
                None
            }
        }
    }

    /// A required postal address.
    pub fn address(&mut self, field: &str, address: Option<&common::Address>) -> Option<common::Address> {
        let Some(address) = address else {
            self.reject(field, "REQUIRED", "an address is required");
            return None;
        };
        let before = self.older();
        self.text(&format!("{field}.recipient"), &address.recipient, 1, 200);
        if address.lines.is_empty() || address.lines.len() > 3 {
            self.reject(format!("{field}.lines"), "INVALID_LENGTH", "must have 1 to 3 lines");
        }
        for (index, line) in address.lines.iter().take(3).enumerate() {
            self.text(&format!("{field}.lines[{index}]"), line, 1, 200);
        }
        self.text(&format!("{field}.city"), &address.city, 1, 200);
        let postal_code = self.text(&format!("{field}.postal_code"), &address.postal_code, 0, 20);
        let country = self.country(&format!("{field}.country_code"), &address.country_code);
        let fault = postal_code.zip(country).and_then(|(code, country)| postal::fault(&country, &code));
        if let Some((reason, description)) = fault {
            self.reject_newer(format!("{field}.postal_code"), reason, description);
        }
        (self.older() == before).then(|| address.clone())
    }

    /// A country code of ISO 3166-1 alpha-2. Only its form is checked, not whether there are deliveries to it.
    pub fn country(&mut self, field: &str, code: &str) -> Option<String> {
        if code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase()) {
            Some(code.to_owned())
        } else {
            self.reject(field, "INVALID_COUNTRY_CODE", "two upper-case letters of ISO 3166-1, for example DE");
            None
        }
    }

    /// An optional instant; outside the years 1970 to 9999 it is rejected.
    pub fn instant(&mut self, field: &str, instant: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
        let instant = instant?;
        let is_valid = (0..253_402_300_800).contains(&instant.seconds) && (0..1_000_000_000).contains(&instant.nanos);
        if !is_valid {
            self.reject(field, "INVALID_TIME", "must lie in the years 1970 to 9999, with nanos below a second");
            return None;
        }
        Some(Timestamp::from_micros(instant.seconds * 1_000_000 + i64::from(instant.nanos) / 1_000))
    }
}

/// Whether a text has the form of a stock keeping unit.
pub fn is_sku(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// Whether a text has the form of a payment method's token.
pub fn is_payment_method(token: &str) -> bool {
    (1..=255).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn is_email(text: &str) -> bool {
    text.len() <= 254
        && text.bytes().all(|b| b.is_ascii_graphic())
        && text.split_once('@').is_some_and(|(local, domain)| {
            let is_label =
                |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            !local.is_empty() && local.len() <= 64 && domain.split('.').all(is_label)
        })
}

/// Of a domain whose labels have only letters, digits and hyphens.
fn is_host(domain: &str) -> bool {
    let is_label = |label: &str| label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-');
    let last = domain.rsplit('.').next().unwrap_or_default();
    domain.split('.').all(is_label) && !last.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests;
