//! Fault injection: a slow or unavailable catalogue, as callers see it.

use std::str::FromStr;
use std::time::Duration;

use crate::error::Error;

/// The fault of every lookup (BatchGetProducts, GetDeliveryEstimate).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FaultLookup {
    /// No fault.
    #[default]
    None,
    /// Lookups are delayed: callers see a TIMEOUT.
    Slow(Duration),
    /// As if the database refused connections: callers see a CONNECTION_ERROR.
    Refuse,
}

impl FromStr for FaultLookup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("slow:")) {
            ("none", _) => Ok(Self::None),
            ("refuse", _) => Ok(Self::Refuse),
            (_, Some(wait)) => chassis::settings::duration(wait).map(Self::Slow),
            (_, None) => Err("not a fault; examples are none, slow:5s, refuse".to_owned()),
        }
    }
}

impl FaultLookup {
    /// Applies the fault: returns, returns late, or fails.
    pub(crate) async fn inject(self) -> Result<(), Error> {
        match self {
            Self::None => Ok(()),
            Self::Slow(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            Self::Refuse => Err(Error::InjectedFault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_parsed_as_in_the_help_text() {
        assert_eq!("none".parse(), Ok(FaultLookup::None));
        assert_eq!("refuse".parse(), Ok(FaultLookup::Refuse));
        assert_eq!("slow:5s".parse(), Ok(FaultLookup::Slow(Duration::from_secs(5))));
        for bad in ["", "slow", "slow:", "slow:fast", "Refuse"] {
            assert!(bad.parse::<FaultLookup>().is_err(), "{bad}");
        }
    }
}
