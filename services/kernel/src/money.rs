//! Money: an integer amount in a currency's minor unit. No floats, ever.

use std::fmt;
use std::str::FromStr;

mod currencies;
mod limits;

pub use limits::{AmountLimits, AmountLimitsError};

/// An error of money arithmetic or parsing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The text is not one of the supported currencies.
    #[error("not a supported currency code of ISO 4217")]
    UnknownCurrency,
    /// Amounts of different currencies cannot be added.
    #[error("two currencies cannot be added")]
    MixedCurrencies,
    /// The amount is out of range.
    #[error("the amount is too large")]
    Overflow,
}

/// A currency of ISO 4217.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency([u8; 3]);

impl Currency {
    /// The three-letter code.
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XXX")
    }

    /// The number of digits of the minor unit (ISO 4217).
    pub fn minor_digits(&self) -> usize {
        currencies::find(self.code()).map_or(2, |row| row.minor_digits)
    }

    /// The number of minor units in a whole unit.
    fn minor_units(self) -> i64 {
        10_i64.pow(u32::try_from(self.minor_digits()).unwrap_or(0))
    }

    /// Approximately this amount of euros in the currency: for limits, never for prices.
    pub fn roughly(self, euros: i64) -> Money {
        let per_thousand = currencies::find(self.code()).map_or(1_000, |row| row.per_thousand_euros);
        let minor_units = per_thousand.saturating_mul(euros).saturating_mul(self.minor_units()) / 1_000;
        Money::new(self, minor_units)
    }

    /// Parses an amount in whole units, as people write it: `1000`, `99.90`. `None` if it is not one, or has more
    /// decimals than the currency.
    pub fn parse_amount(self, text: &str) -> Option<Money> {
        let (units, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let has_decimals = text.contains('.');
        if !digits(units) || !digits(decimals) || (has_decimals && decimals.len() > self.minor_digits()) {
            return None;
        }
        let missing = self.minor_digits().saturating_sub(decimals.len());
        let decimals: i64 = decimals.parse::<i64>().ok()?.checked_mul(10_i64.pow(u32::try_from(missing).ok()?))?;
        let units: i64 = units.parse().ok()?;
        Some(Money::new(self, units.checked_mul(self.minor_units())?.checked_add(decimals)?))
    }
}

impl FromStr for Currency {
    type Err = MoneyError;

    fn from_str(code: &str) -> Result<Self, MoneyError> {
        let bytes = <[u8; 3]>::try_from(code.as_bytes()).map_err(|_| MoneyError::UnknownCurrency)?;
        currencies::find(code).map(|_| Self(bytes)).ok_or(MoneyError::UnknownCurrency)
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// An amount in a currency. May be zero or negative: its range is up to its use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Money {
    currency: Currency,
    minor_units: i64,
}

impl Money {
    /// An amount in the currency's minor unit (cents, yen, fils).
    pub const fn new(currency: Currency, minor_units: i64) -> Self {
        Self { currency, minor_units }
    }

    /// The currency.
    pub const fn currency(self) -> Currency {
        self.currency
    }

    /// The amount in the currency's minor unit.
    pub const fn minor_units(self) -> i64 {
        self.minor_units
    }

    /// The sum of two amounts.
    ///
    /// # Errors
    /// The currencies differ, or the sum is out of range.
    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::MixedCurrencies);
        }
        let minor_units = self.minor_units.checked_add(other.minor_units).ok_or(MoneyError::Overflow)?;
        Ok(Self { minor_units, ..self })
    }

    /// The amount times a count.
    ///
    /// # Errors
    /// The product is out of range.
    pub fn checked_mul(self, count: u32) -> Result<Self, MoneyError> {
        let minor_units = self.minor_units.checked_mul(i64::from(count)).ok_or(MoneyError::Overflow)?;
        Ok(Self { minor_units, ..self })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.currency.minor_digits();
        let sign = if self.minor_units < 0 { "-" } else { "" };
        let units = self.minor_units.unsigned_abs();
        let scale = self.currency.minor_units().unsigned_abs();
        if digits == 0 {
            write!(f, "{sign}{units} {}", self.currency)
        } else {
            write!(f, "{sign}{}.{:0digits$} {}", units / scale, units % scale, self.currency)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn money(code: &str, minor_units: i64) -> Money {
        Money::new(code.parse().expect("a currency"), minor_units)
    }

    #[test]
    fn money_adds_within_one_currency_and_never_wraps() {
        assert_eq!(money("EUR", 199).checked_add(money("EUR", 1)), Ok(money("EUR", 200)));
        assert_eq!(money("EUR", 1).checked_add(money("USD", 1)), Err(MoneyError::MixedCurrencies));
        assert_eq!(money("EUR", i64::MAX).checked_add(money("EUR", 1)), Err(MoneyError::Overflow));
        assert_eq!(money("EUR", i64::MAX).checked_mul(2), Err(MoneyError::Overflow));
    }

    #[test]
    fn money_is_printed_with_the_digits_of_its_currency() {
        assert_eq!(money("EUR", 1999).to_string(), "19.99 EUR");
        assert_eq!(money("JPY", 1999).to_string(), "1999 JPY");
        assert_eq!(money("KWD", -1005).to_string(), "-1.005 KWD");
    }

    #[test]
    fn a_currency_is_one_of_iso_4217_in_upper_case() {
        for code in ["eur", "EURO", "XXX", "", "E R"] {
            assert_eq!(code.parse::<Currency>(), Err(MoneyError::UnknownCurrency), "{code}");
        }
    }

    #[test]
    fn an_amount_is_parsed_in_whole_units_with_the_decimals_of_its_currency() {
        let read = |code: &str, text: &str| code.parse::<Currency>().expect("a currency").parse_amount(text);
        for (code, text, minor_units) in
            [("EUR", "100000", 10_000_000), ("EUR", "0.5", 50), ("JPY", "1700", 1_700), ("KWD", "1.005", 1_005)]
        {
            assert_eq!(read(code, text), Some(money(code, minor_units)), "{code} {text}");
        }
        for (code, text) in [
            ("EUR", ""),
            ("EUR", "1.005"),
            ("EUR", "1."),
            ("EUR", ".5"),
            ("EUR", "-1"),
            ("EUR", "1e5"),
            ("JPY", "1.0"),
            ("EUR", "92233720368547759"),
        ] {
            assert_eq!(read(code, text), None, "{code} {text}");
        }
    }
}
