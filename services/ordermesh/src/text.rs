//! Formatting of the contracts' values.

use contracts::common::v1::{self as common, EventType};
use contracts::data::v1::EventStatus;
use contracts::order::v1::{LineState, OrderState};
use kernel::Money;
use prost_types::Timestamp;

/// The order state's name without its prefix.
pub(crate) fn state(state: i32) -> &'static str {
    let name = OrderState::try_from(state).unwrap_or_default().as_str_name();
    name.strip_prefix("ORDER_STATE_").unwrap_or(name)
}

/// The line state's name without its prefix.
pub(crate) fn line_state(state: i32) -> &'static str {
    let name = LineState::try_from(state).unwrap_or_default().as_str_name();
    name.strip_prefix("LINE_STATE_").unwrap_or(name)
}

/// The name of an event type, for example `user_login`; the number of an unknown one.
pub(crate) fn event_type(number: i32) -> String {
    match EventType::try_from(number) {
        Ok(known) => known.as_str_name().trim_start_matches("EVENT_TYPE_").to_ascii_lowercase(),
        Err(_) => number.to_string(),
    }
}

/// `success` or `failed`.
pub(crate) fn event_status(status: i32) -> String {
    let name = EventStatus::try_from(status).unwrap_or_default().as_str_name();
    name.trim_start_matches("EVENT_STATUS_").to_ascii_lowercase()
}

/// An amount; `-` if there is none.
pub(crate) fn money(money: Option<&common::Money>) -> String {
    let Some(money) = money else { return "-".to_owned() };
    match money.currency_code.parse() {
        Ok(currency) => Money::new(currency, money.minor_units).to_string(),
        Err(_) => format!("{} minor units of {}", money.minor_units, money.currency_code),
    }
}

/// The time after `start`, for example `+12.5 ms`.
pub(crate) fn offset(start: Option<&Timestamp>, at: Option<&Timestamp>) -> String {
    let (Some(start), Some(at)) = (start, at) else { return "?".to_owned() };
    let micros = (at.seconds - start.seconds) * 1_000_000 + i64::from(at.nanos - start.nanos) / 1_000;
    if micros.abs() < 10_000_000 {
        format!("{:+}.{} ms", micros / 1_000, micros.abs() % 1_000 / 100)
    } else {
        format!("{:+}.{} s", micros / 1_000_000, micros.abs() % 1_000_000 / 100_000)
    }
}

/// Escapes control characters: untrusted texts must not move a terminal's cursor, or begin another line.
pub(crate) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut printable, letter| {
        if letter.is_control() {
            printable.extend(letter.escape_default());
        } else {
            printable.push(letter);
        }
        printable
    })
}

/// RFC 3339, always with milliseconds, to keep the columns aligned.
pub(crate) fn millis(time: &Timestamp) -> String {
    let second = Timestamp { seconds: time.seconds, nanos: 0 }.to_string();
    format!("{}.{:03}Z", second.trim_end_matches('Z'), time.nanos / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, nanos: i32) -> Timestamp {
        Timestamp { seconds, nanos }
    }

    #[test]
    fn offsets_are_in_milliseconds_below_ten_seconds() {
        let start = at(100, 900_000_000);
        assert_eq!(offset(Some(&start), Some(&start)), "+0.0 ms");
        assert_eq!(offset(Some(&start), Some(&at(101, 12_345_000))), "+112.3 ms");
        assert_eq!(offset(Some(&start), Some(&at(112, 0))), "+11.1 s");
        assert_eq!(offset(None, Some(&start)), "?");
    }

    #[test]
    fn states_have_no_prefix_and_money_is_in_major_units() {
        assert_eq!(state(OrderState::FulfillmentStarted.into()), "FULFILLMENT_STARTED");
        assert_eq!(line_state(LineState::Held.into()), "HELD");
        let price = common::Money { currency_code: "EUR".into(), minor_units: 1_250 };
        assert_eq!(money(Some(&price)), "12.50 EUR");
    }
}
