//! Randomness, injectable: for the choice between instances, and for jitter.

use rand::Rng;

/// A source of random numbers.
pub(crate) trait Chance: Send + Sync + 'static {
    /// A number in 0..1.
    fn fraction(&self) -> f64;
}

/// The thread's generator.
pub(crate) struct SystemChance;

impl Chance for SystemChance {
    fn fraction(&self) -> f64 {
        rand::rng().random()
    }
}

/// A random index below `many`; zero if `many` is zero.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a few instances"
)]
pub(crate) fn one_of(chance: &dyn Chance, many: usize) -> usize {
    ((chance.fraction() * many as f64) as usize).min(many.saturating_sub(1))
}

/// A source that always returns the same number.
#[cfg(test)]
pub(crate) struct Always(pub(crate) f64);

#[cfg(test)]
impl Chance for Always {
    fn fraction(&self) -> f64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_index_is_in_range() {
        assert_eq!(one_of(&Always(0.0), 3), 0);
        assert_eq!(one_of(&Always(0.999_999), 3), 2);
        assert_eq!(one_of(&Always(1.0), 3), 2, "a source that returns its upper bound is tolerated");
        assert_eq!(one_of(&Always(0.5), 0), 0);
        assert!((0..1_000).all(|_| one_of(&SystemChance, 3) < 3));
    }
}
