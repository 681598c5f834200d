//! Randomness, injectable: for the choice between instances, and for jitter.

use rand::Rng as _;

/// A source of random numbers.
pub(crate) trait Rng: Send + Sync + 'static {
    /// A number in 0..1.
    fn fraction(&self) -> f64;
}

/// The thread's generator.
pub(crate) struct SystemRng;

impl Rng for SystemRng {
    fn fraction(&self) -> f64 {
        rand::rng().random()
    }
}

/// A random index below `count`; zero if `count` is zero.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a few instances"
)]
pub(crate) fn random_index(rng: &dyn Rng, count: usize) -> usize {
    ((rng.fraction() * count as f64) as usize).min(count.saturating_sub(1))
}

/// A source that always returns the same number.
#[cfg(test)]
pub(crate) struct FixedRng(pub(crate) f64);

#[cfg(test)]
impl Rng for FixedRng {
    fn fraction(&self) -> f64 {
        self.0
    }
}

#[cfg(test)]
mod tests;
