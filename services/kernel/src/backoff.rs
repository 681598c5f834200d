//! How long to wait before the next try: exponential, capped, with full jitter, so that those who
//! failed together do not come back together.

use std::time::Duration;

use crate::id::IdSource;

/// A random number in 0..=1, out of the last bits of a new id: they are random.
pub fn jitter(ids: &dyn IdSource) -> f64 {
    let bits = u32::try_from(ids.uuid().as_u128() & 0xffff_ffff).unwrap_or(0);
    f64::from(bits) / f64::from(u32::MAX)
}

/// The wait before try number `attempt + 1`, after `attempt` tries came to nothing (from 1).
/// `jitter` is a random number in 0..1; the result lies between a tenth of the ceiling and the ceiling
/// `min(cap, base * 2^(attempt-1))`, so that it is never a busy loop.
pub fn full_jitter(attempt: u32, base: Duration, cap: Duration, jitter: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(20);
    let ceiling = base.saturating_mul(1 << doublings).min(cap);
    ceiling.mul_f64(0.1 + 0.9 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_cap_and_jitter_only_shortens() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(60));
        assert_eq!(full_jitter(1, base, cap, 1.0), base);
        assert_eq!(full_jitter(3, base, cap, 1.0), base * 4);
        assert_eq!(full_jitter(4_000_000_000, base, cap, 1.0), cap);
        assert_eq!(full_jitter(1, base, cap, 0.0), base / 10);
    }
}
