//! Money: an integer amount in a currency's minor unit. No floats, ever.

use std::fmt;
use std::str::FromStr;

/// What cannot be done with money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The text is not one of the currencies that are known here.
    #[error("not a currency code of ISO 4217 that is known here")]
    UnknownCurrency,
    /// Amounts of two currencies do not add up.
    #[error("two currencies cannot be added")]
    MixedCurrencies,
    /// The amount does not fit.
    #[error("the amount is too large")]
    Overflow,
}

/// A currency of ISO 4217.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency([u8; 3]);

/// Those of ISO 4217 with wide use in commerce.
const KNOWN: &str = "AED ARS AUD BGN BHD BRL CAD CHF CLP CNY COP CZK DKK EGP EUR GBP HKD HUF IDR ILS INR ISK \
    JOD JPY KRW KWD MAD MXN MYR NGN NOK NZD OMR PEN PHP PLN QAR RON SAR SEK SGD THB TND TRY TWD UAH USD UYU VND ZAR";

impl Currency {
    /// The three letters.
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XXX")
    }

    /// How many digits the minor unit has (ISO 4217).
    pub fn minor_digits(&self) -> usize {
        match self.code() {
            "CLP" | "ISK" | "JPY" | "KRW" | "VND" => 0,
            "BHD" | "JOD" | "KWD" | "OMR" | "TND" => 3,
            _ => 2,
        }
    }
}

impl FromStr for Currency {
    type Err = MoneyError;

    fn from_str(code: &str) -> Result<Self, MoneyError> {
        let bytes = <[u8; 3]>::try_from(code.as_bytes()).map_err(|_| MoneyError::UnknownCurrency)?;
        if KNOWN.split_ascii_whitespace().any(|known| known == code) {
            Ok(Self(bytes))
        } else {
            Err(MoneyError::UnknownCurrency)
        }
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

/// An amount in a currency. May be zero or negative: what is allowed is a rule of its place.
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

    /// The sum.
    ///
    /// # Errors
    /// Two currencies, or a sum that does not fit.
    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::MixedCurrencies);
        }
        let minor_units = self.minor_units.checked_add(other.minor_units).ok_or(MoneyError::Overflow)?;
        Ok(Self { minor_units, ..self })
    }

    /// So many of it.
    ///
    /// # Errors
    /// A product that does not fit.
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
        let scale = 10_u64.pow(u32::try_from(digits).unwrap_or(0));
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
    fn money_prints_with_the_currencys_own_digits() {
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
}
