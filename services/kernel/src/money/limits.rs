//! The maximum total of an order, by currency: a number of minor units means nothing without it.

use std::str::FromStr;

use super::{Currency, Money};

/// The limit of currencies without a setting.
const DEFAULT_EUROS: i64 = 100_000;

/// A limit for each currency: as set, or else [roughly](Currency::roughly) 100,000 euros.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AmountLimits(Vec<Money>);

impl AmountLimits {
    /// The limit in a currency.
    pub fn of(&self, currency: Currency) -> Money {
        let set = self.0.iter().find(|limit| limit.currency() == currency);
        set.copied().unwrap_or_else(|| currency.roughly(DEFAULT_EUROS))
    }

    /// Whether an amount is above the limit of its currency.
    pub fn are_exceeded_by(&self, amount: Money) -> bool {
        amount.minor_units() > self.of(amount.currency()).minor_units()
    }
}

/// An entry of the list is not a limit, or repeats a currency.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a limit, or repeats a currency; an example is EUR=50000,JPY=9000000,KWD=15000.500, in whole units"
)]
pub struct AmountLimitsError(String);

impl FromStr for AmountLimits {
    type Err = AmountLimitsError;

    fn from_str(text: &str) -> Result<Self, AmountLimitsError> {
        let mut limits: Vec<Money> = Vec::new();
        for each in text.split(',').map(str::trim).filter(|each| !each.is_empty()) {
            let limit = each.split_once('=').and_then(|(code, amount)| {
                let currency: Currency = code.parse().ok()?;
                currency.parse_amount(amount)
            });
            let is_new = |limit: &Money| limits.iter().all(|known| known.currency() != limit.currency());
            match limit.filter(|limit| limit.minor_units() > 0 && is_new(limit)) {
                Some(limit) => limits.push(limit),
                None => return Err(AmountLimitsError(each.to_owned())),
            }
        }
        Ok(Self(limits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn money(code: &str, minor_units: i64) -> Money {
        Money::new(code.parse().expect("a currency"), minor_units)
    }

    #[test]
    fn default_limits_have_the_right_magnitude_in_each_currency() {
        let limits = AmountLimits::default();
        for (code, ordinary, fortune) in [
            ("EUR", 10_000_000, 10_000_001),
            ("IDR", 25_000_000, 180_000_000_001),
            ("VND", 12_000_000, 3_000_000_001),
            ("KRW", 12_000_000, 160_000_001),
            ("JPY", 17_000_000, 17_000_001),
            ("KWD", 10_000_000, 35_000_001),
        ] {
            assert!(!limits.are_exceeded_by(money(code, ordinary)), "{code} {ordinary}");
            assert!(limits.are_exceeded_by(money(code, fortune)), "{code} {fortune}");
        }
    }

    #[test]
    fn a_limit_applies_only_to_its_currency() {
        let limits: AmountLimits = "KWD=5000.5, JPY=900".parse().expect("limits");
        assert_eq!(limits.of("KWD".parse().expect("a currency")), money("KWD", 5_000_500));
        assert_eq!(limits.of("JPY".parse().expect("a currency")), money("JPY", 900));
        assert_eq!(limits.of("EUR".parse().expect("a currency")), money("EUR", 10_000_000));
        assert_eq!("".parse(), Ok(AmountLimits::default()));
    }

    #[test]
    fn an_invalid_list_of_limits_is_rejected() {
        for invalid in ["10000000", "EUR", "EUR=", "EUR=0", "EUR=-1", "EUR=1.005", "GOLD=1", "EUR=1,EUR=2", "eur=1"] {
            assert!(invalid.parse::<AmountLimits>().is_err(), "{invalid}");
        }
    }
}
