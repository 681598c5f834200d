//! Exponential backoff with a cap and jitter, so that callers that failed together do not retry together.

use std::time::Duration;

use crate::id::IdSource;

/// A random number in 0..=1, from the last bits of a new id, which are random.
pub fn jitter(ids: &dyn IdSource) -> f64 {
    let bits = u32::try_from(ids.uuid().as_u128() & 0xffff_ffff).unwrap_or(0);
    f64::from(bits) / f64::from(u32::MAX)
}

/// The wait before attempt `attempt + 1`, after `attempt` failed ones (from 1). `jitter` is a random number in 0..1;
/// the result lies between a tenth of the ceiling and the ceiling `min(cap, base * 2^(attempt-1))`, so that it is never
/// a busy loop.
pub fn backoff(attempt: u32, base: Duration, cap: Duration, jitter: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(20);
    let ceiling = base.saturating_mul(1 << doublings).min(cap);
    ceiling.mul_f64(0.1 + 0.9 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_the_cap_and_jitter_only_shortens_it() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(60));
        assert_eq!(backoff(1, base, cap, 1.0), base);
        assert_eq!(backoff(3, base, cap, 1.0), base * 4);
        assert_eq!(backoff(4_000_000_000, base, cap, 1.0), cap);
        assert_eq!(backoff(1, base, cap, 0.0), base / 10);
    }
}
