//! Randomness, as an argument: which two instances are compared, and how long a wait is.

use rand::Rng;

/// Where chance comes from.
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

/// One of so many; zero of none.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a few instances"
)]
pub(crate) fn one_of(chance: &dyn Chance, many: usize) -> usize {
    ((chance.fraction() * many as f64) as usize).min(many.saturating_sub(1))
}

/// Chance that a test has arranged: always the same.
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
    fn one_of_some_is_one_of_them() {
        assert_eq!(one_of(&Always(0.0), 3), 0);
        assert_eq!(one_of(&Always(0.999_999), 3), 2);
        assert_eq!(one_of(&Always(1.0), 3), 2, "a source that is not quite fair is survived");
        assert_eq!(one_of(&Always(0.5), 0), 0);
        assert!((0..1_000).all(|_| one_of(&SystemChance, 3) < 3));
    }
}
