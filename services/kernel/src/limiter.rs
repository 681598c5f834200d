//! Rate limits per key: the generic cell rate algorithm (GCRA), a token bucket whose whole state is one instant, kept
//! for a bounded number of keys. Rejects and never sleeps; time is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::clock::Timestamp;

/// How often full buckets are removed at most: it scans all of them.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A point in time, on the wall clock or on the monotonic one.
pub trait Moment: Copy + Ord {
    /// The time since an earlier moment; zero if it is not earlier.
    fn since(self, earlier: Self) -> Duration;
    /// The moment after a duration.
    fn plus(self, duration: Duration) -> Self;
}

impl Moment for Timestamp {
    fn since(self, earlier: Self) -> Duration {
        Self::since(self, earlier)
    }

    fn plus(self, duration: Duration) -> Self {
        Self::plus(self, duration)
    }
}

impl Moment for Instant {
    fn since(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }

    fn plus(self, duration: Duration) -> Self {
        self + duration
    }
}

/// A rate, with a burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// The time in which one token is refilled.
    interval: Duration,
    /// How far ahead of the even rate a key may be: the burst without its first token.
    tolerance: Duration,
}

impl Rate {
    /// A bucket of `burst` tokens (at least one), of which one is refilled per `interval`.
    pub fn new(burst: u32, interval: Duration) -> Self {
        Self { interval, tolerance: interval.saturating_mul(burst.saturating_sub(1)) }
    }

    /// A bucket of `tokens` (at least one) that is refilled completely in `per`.
    pub fn per(tokens: u32, per: Duration) -> Self {
        let interval = per / tokens.max(1);
        Self { interval, tolerance: per.saturating_sub(interval) }
    }

    /// When a bucket is full again after a token was taken from it.
    pub fn take<T: Moment>(self, full_at: T, now: T) -> T {
        full_at.max(now).plus(self.interval)
    }

    /// The time until a token is available; zero if one is.
    pub fn wait<T: Moment>(self, full_at: T, now: T) -> Duration {
        full_at.since(now).saturating_sub(self.tolerance)
    }

    /// Whether a token is available beside those that are reserved.
    fn is_available<T: Moment>(self, full_at: T, now: T, reserved: u32) -> bool {
        full_at.since(now).saturating_add(self.interval.saturating_mul(reserved)) <= self.tolerance
    }
}

/// The state of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bucket<T> {
    full_at: T,
    /// Tokens of requests in flight: taken or returned when these end.
    reserved: u32,
}

impl<T: Moment> Bucket<T> {
    fn is_idle(&self, now: T) -> bool {
        self.full_at <= now && self.reserved == 0
    }
}

/// The buckets of many keys. A key without one has a full bucket.
#[derive(Clone, Debug)]
pub struct Limiter<K, T> {
    rate: Rate,
    max_keys: usize,
    buckets: HashMap<K, Bucket<T>>,
    swept: Option<T>,
}

impl<K: Clone + Eq + Hash, T: Moment> Limiter<K, T> {
    /// A limiter that keeps about `max_keys` keys: see [`Limiter::has_room`] and [`Limiter::make_room`].
    pub fn new(rate: Rate, max_keys: usize) -> Self {
        Self { rate, max_keys, buckets: HashMap::new(), swept: None }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// The time until one is available.
    pub fn take(&mut self, key: K, now: T) -> Result<(), Duration> {
        self.wait(&key, now).map_or(Ok(()), Err)?;
        let bucket = self.buckets.entry(key).or_insert(Bucket { full_at: now, reserved: 0 });
        bucket.full_at = self.rate.take(bucket.full_at, now);
        Ok(())
    }

    /// The time until a token is available; `None` if one is.
    pub fn wait(&self, key: &K, now: T) -> Option<Duration> {
        let wait = self.rate.wait(self.buckets.get(key)?.full_at, now);
        (!wait.is_zero()).then_some(wait)
    }

    /// Reserves a token for a request whose outcome decides whether it costs one: [`Limiter::release`] must follow.
    ///
    /// # Errors
    /// The time until a token is available; zero if it depends on the requests in flight.
    pub fn reserve(&mut self, key: K, now: T) -> Result<(), Duration> {
        let bucket = self.buckets.get(&key).copied().unwrap_or(Bucket { full_at: now, reserved: 0 });
        if !self.rate.is_available(bucket.full_at, now, bucket.reserved) {
            return Err(self.rate.wait(bucket.full_at, now));
        }
        self.buckets.insert(key, Bucket { reserved: bucket.reserved + 1, ..bucket });
        Ok(())
    }

    /// Ends a reservation: its token is taken, or returned.
    pub fn release(&mut self, key: &K, now: T, is_taken: bool) {
        let Some(bucket) = self.buckets.get_mut(key) else { return };
        bucket.reserved = bucket.reserved.saturating_sub(1);
        if is_taken {
            bucket.full_at = self.rate.take(bucket.full_at, now);
        }
        if bucket.is_idle(now) {
            self.buckets.remove(key);
        }
    }

    /// Whether a key has a bucket or can get one. If it cannot, the caller should count it under a shared key.
    pub fn has_room(&mut self, key: &K, now: T) -> bool {
        if self.buckets.len() < self.max_keys || self.buckets.contains_key(key) {
            return true;
        }
        if self.swept.is_none_or(|swept| now.since(swept) >= SWEEP_INTERVAL) {
            self.swept = Some(now);
            self.remove_idle(now);
        }
        self.buckets.len() < self.max_keys
    }

    /// Makes room for a key, by removing the bucket closest to full if no idle one can be removed.
    pub fn make_room(&mut self, key: &K, now: T) {
        if self.buckets.len() < self.max_keys || self.buckets.contains_key(key) {
            return;
        }
        self.remove_idle(now);
        if self.buckets.len() >= self.max_keys
            && let Some(fullest) =
                self.buckets.iter().min_by_key(|(_, bucket)| bucket.full_at).map(|(key, _)| key.clone())
        {
            self.buckets.remove(&fullest);
        }
    }

    /// The number of keys that have a bucket.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether no key has a bucket: all are full.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    fn remove_idle(&mut self, now: T) {
        self.buckets.retain(|_, bucket| !bucket.is_idle(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    fn limiter(max_keys: usize) -> Limiter<u32, Instant> {
        Limiter::new(Rate::new(3, INTERVAL), max_keys)
    }

    #[test]
    fn a_burst_is_taken_at_once_and_then_one_token_per_interval() {
        let (mut limiter, start) = (limiter(10), Instant::now());
        let at = |millis: u64| start + Duration::from_millis(millis);
        for _ in 0..3 {
            assert_eq!(limiter.take(1, at(0)), Ok(()));
        }
        assert_eq!(limiter.take(1, at(0)), Err(Duration::from_secs(1)));
        assert_eq!(limiter.take(1, at(400)), Err(Duration::from_millis(600)), "a rejected request costs nothing");
        assert_eq!(limiter.take(2, at(400)), Ok(()), "other keys have their own bucket");
        assert_eq!(limiter.take(1, at(1_000)), Ok(()));
        assert_eq!(limiter.wait(&1, at(1_000)), Some(Duration::from_secs(1)));
        assert_eq!(limiter.wait(&1, at(2_000)), None);
        for _ in 0..3 {
            assert_eq!(limiter.take(1, at(9_000)), Ok(()), "full again, and no more than that");
        }
        assert!(limiter.take(1, at(9_000)).is_err());
    }

    #[test]
    fn a_rate_by_its_period_equals_the_rate_by_its_interval() {
        assert_eq!(Rate::per(3, Duration::from_secs(3)), Rate::new(3, INTERVAL));
        assert_eq!(Rate::per(0, Duration::from_secs(1)), Rate::new(1, INTERVAL), "no tokens means one");
        assert_eq!(Rate::new(0, INTERVAL), Rate::new(1, INTERVAL));
    }

    #[test]
    fn reservations_count_until_they_end_and_cost_a_token_only_if_it_is_taken() {
        let (mut limiter, now) = (Limiter::new(Rate::new(3, INTERVAL), 10), Timestamp::from_micros(1_000_000));
        for _ in 0..3 {
            assert_eq!(limiter.reserve(1, now), Ok(()));
        }
        assert_eq!(limiter.reserve(1, now), Err(Duration::ZERO), "it depends on those in flight");
        limiter.release(&1, now, false);
        assert_eq!(limiter.reserve(1, now), Ok(()), "the token was returned");
        for _ in 0..3 {
            limiter.release(&1, now, true);
        }
        assert_eq!(limiter.reserve(1, now), Err(INTERVAL));
        assert_eq!(limiter.reserve(1, now.plus(INTERVAL)), Ok(()));
        limiter.release(&1, now.plus(INTERVAL * 3), false);
        assert!(limiter.is_empty(), "a full bucket is not kept");
    }

    #[test]
    fn a_full_limiter_has_room_again_when_buckets_are_full_and_sweeps_once_a_second() {
        let (mut limiter, start) = (limiter(2), Instant::now());
        assert!(limiter.take(1, start).is_ok() && limiter.take(2, start + INTERVAL).is_ok());
        assert!(!limiter.has_room(&3, start + Duration::from_millis(500)));
        assert!(limiter.has_room(&1, start), "control: a known key");
        assert!(!limiter.has_room(&3, start + Duration::from_millis(1_400)), "swept less than a second ago");
        assert!(limiter.has_room(&3, start + Duration::from_millis(1_500)));
        assert_eq!(limiter.len(), 1);
    }

    #[test]
    fn room_is_made_by_removing_the_bucket_closest_to_full() {
        let (mut limiter, start) = (limiter(2), Instant::now());
        for key in [1, 1, 1, 2] {
            assert!(limiter.take(key, start).is_ok());
        }
        limiter.make_room(&3, start);
        assert!(limiter.take(3, start).is_ok());
        assert!(limiter.take(1, start).is_err(), "control: the emptiest is remembered");
        assert_eq!(limiter.len(), 2);
    }
}
