//! The customers' behaviour, by weight.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rand::Rng;
use rand::rngs::StdRng;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Behaviour {
    /// Pays; fulfilment starts.
    Happy,
    /// The payment is declined.
    Declined,
    /// Cancels shortly after creating the order.
    Cancel,
    /// The gateway never responds, and has not charged.
    Silent,
    /// The gateway charges, but its response is lost.
    Lost,
    /// The gateway is unavailable three times.
    Flaky,
    /// The gateway takes three seconds.
    Slow,
    /// Cancels, and the first refund is refused.
    Refund,
}

impl Behaviour {
    const ALL: [Self; 8] =
        [Self::Happy, Self::Declined, Self::Cancel, Self::Silent, Self::Lost, Self::Flaky, Self::Slow, Self::Refund];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Happy => "happy",
            Self::Declined => "declined",
            Self::Cancel => "cancel",
            Self::Silent => "silent",
            Self::Lost => "lost",
            Self::Flaky => "flaky",
            Self::Slow => "slow",
            Self::Refund => "refund",
        }
    }

    /// The payment method that causes it.
    pub(crate) fn payment_method(self, random: &mut StdRng) -> &'static str {
        const DECLINED: [&str; 4] = [
            "pm_card_visa_chargeDeclined",
            "pm_card_visa_chargeDeclinedInsufficientFunds",
            "pm_card_chargeDeclinedExpiredCard",
            "pm_card_nobody_knows",
        ];
        match self {
            Self::Happy | Self::Cancel => "pm_card_visa",
            Self::Declined => DECLINED[random.random_range(0..DECLINED.len())],
            Self::Silent => "pm_gateway_noAnswer",
            Self::Lost => "pm_gateway_answerLost",
            Self::Flaky => "pm_gateway_unavailable3",
            Self::Slow => "pm_gateway_slow",
            Self::Refund => "pm_gateway_refundRefused",
        }
    }

    /// Whether the customer cancels.
    pub(crate) const fn cancels(self) -> bool {
        matches!(self, Self::Cancel | Self::Refund)
    }

    /// Whether an order may end in this state, if the gateway and all services are up.
    pub(crate) fn may_end(self, state: &str) -> bool {
        match self {
            Self::Happy | Self::Lost | Self::Flaky | Self::Slow => state == "FULFILLMENT_STARTED",
            Self::Declined | Self::Silent => state == "PAYMENT_FAILED",
            // A cancellation that is too late is expected.
            Self::Cancel => matches!(state, "CANCELLED" | "FULFILLMENT_STARTED"),
            Self::Refund => matches!(state, "CANCELLED" | "FULFILLMENT_STARTED" | "NEEDS_ATTENTION"),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mix(BTreeMap<Behaviour, u32>);

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = BTreeMap::new();
        for part in text.split(',') {
            let wrong = || format!("{part:?} is not NAME=WEIGHT, as in happy=90,declined=5,cancel=3,silent=2");
            let (name, weight) = part.split_once('=').ok_or_else(wrong)?;
            let known = || Behaviour::ALL.map(Behaviour::name).join(", ");
            let behaviour = Behaviour::ALL.into_iter().find(|behaviour| behaviour.name() == name.trim());
            let behaviour = behaviour.ok_or_else(|| format!("unknown behaviour {name:?}; one of {}", known()))?;
            weights.insert(behaviour, weight.trim().parse::<u16>().map_err(|_| wrong())?.into());
        }
        if weights.values().sum::<u32>() == 0 {
            return Err("at least one weight must not be 0".to_owned());
        }
        Ok(Self(weights))
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> =
            self.0.iter().map(|(behaviour, weight)| format!("{}={weight}", behaviour.name())).collect();
        f.write_str(&parts.join(","))
    }
}

impl Mix {
    /// Draws a behaviour at random.
    pub(crate) fn draw(&self, random: &mut StdRng) -> Behaviour {
        let mut left = random.random_range(0..self.0.values().sum::<u32>());
        for (behaviour, weight) in &self.0 {
            if left < *weight {
                return *behaviour;
            }
            left -= weight;
        }
        Behaviour::Happy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_mix_round_trips_and_is_drawn_by_weight() {
        let mix: Mix = "happy=90,declined=5,cancel=3,silent=2".parse().expect("a mix");
        assert_eq!(mix.to_string(), "happy=90,declined=5,cancel=3,silent=2");
        let mut random = StdRng::seed_from_u64(7);
        let happy = (0..10_000).filter(|_| mix.draw(&mut random) == Behaviour::Happy).count();
        assert!((8_800..9_200).contains(&happy), "{happy}");
        let mut again = (StdRng::seed_from_u64(7), StdRng::seed_from_u64(7));
        assert!((0..100).all(|_| mix.draw(&mut again.0) == mix.draw(&mut again.1)), "the same seed draws the same");
    }

    #[test]
    fn an_invalid_mix_is_rejected() {
        for text in ["", "happy", "happy=", "happy=-1", "sad=1", "happy=0"] {
            assert!(text.parse::<Mix>().is_err(), "{text}");
        }
    }
}
