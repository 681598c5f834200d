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
mod tests;
