//! Limits failed log-ins of one account from one address: a token bucket that refills with time. It rejects and never
//! sleeps, and is checked before a processor is spent on bcrypt.
//!
//! A log-in holds a permit while it is in flight, and returns it unless the password was wrong. So concurrent log-ins
//! are a burst and cannot evade the rate, and an empty bucket is full again after `failures` × `interval`, however many
//! attempts there were: a caller on the owner's address locks the owner out for no longer. Nothing else counts: a
//! log-in that the database or a full queue rejects, or that is cancelled before its password is checked, reveals
//! nothing and locks no account. Per instance, in memory: with n instances an attacker has n times as many attempts.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kernel::{Clock, Timestamp};
use mesh::network;
use opentelemetry::metrics::Counter;

/// The limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// Wrong passwords in a row that are admitted.
    pub(crate) failures: u32,
    /// The time to refill one attempt.
    pub(crate) interval: Duration,
    /// The most pairs of account and address that are remembered.
    pub(crate) max_remembered: usize,
}

/// An account's e-mail and the client's network.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Source {
    email: String,
    network: IpAddr,
}

impl Source {
    pub(crate) fn new(email: &str, address: IpAddr) -> Self {
        Self { email: email.to_owned(), network: network(address) }
    }
}

/// Rejected after too many failures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Throttled {
    /// When the next attempt is admitted.
    pub(crate) retry_after: Duration,
}

/// The state of a source. Full buckets without log-ins in flight are removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Bucket {
    /// When the bucket is full again.
    full_at: Timestamp,
    /// Log-ins in flight.
    under_way: u32,
}

struct Inner {
    limits: Limits,
    clock: Arc<dyn Clock>,
    buckets: Mutex<HashMap<Source, Bucket>>,
    refused: Counter<u64>,
}

/// Throttles log-ins by their failures. Clones share the state.
#[derive(Clone)]
pub(crate) struct Throttle(Arc<Inner>);

impl Throttle {
    pub(crate) fn new(limits: Limits, clock: Arc<dyn Clock>) -> Self {
        let refused = opentelemetry::global::meter("ordermesh")
            .u64_counter("ordermesh.logins.throttled")
            .with_description("Log-ins rejected after too many failures")
            .build();
        Self(Arc::new(Inner { limits, clock, buckets: Mutex::default(), refused }))
    }

    /// Admits a log-in; it counts against the account if [`Try::wrong`] is called.
    pub(crate) fn admit(&self, source: Source) -> Result<Try, Throttled> {
        let Limits { failures, interval, max_remembered } = self.0.limits;
        let now = self.0.clock.now();
        let mut buckets = self.0.buckets();
        let known = buckets.get(&source).copied().unwrap_or_default();
        let allowed = interval.saturating_mul(failures.saturating_sub(1));
        let held = interval.saturating_mul(known.under_way);
        let wait = known.full_at.since(now);
        if wait.saturating_add(held) > allowed {
            self.0.refused.add(1, &[]);
            return Err(Throttled { retry_after: wait.saturating_sub(allowed).max(Duration::from_secs(1)) });
        }
        if buckets.len() >= max_remembered && !buckets.contains_key(&source) {
            make_room(&mut buckets, now, max_remembered);
        }
        buckets.insert(source.clone(), Bucket { under_way: known.under_way + 1, ..known });
        drop(buckets);
        Ok(Try { throttle: self.clone(), source })
    }
}

impl Inner {
    fn buckets(&self) -> MutexGuard<'_, HashMap<Source, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes buckets that are full again; if there are none, the one with the fewest failures.
fn make_room(buckets: &mut HashMap<Source, Bucket>, now: Timestamp, max_remembered: usize) {
    buckets.retain(|_, bucket| bucket.full_at > now || bucket.under_way > 0);
    if buckets.len() >= max_remembered
        && let Some(least) = buckets.iter().min_by_key(|(_, bucket)| bucket.full_at).map(|(source, _)| source.clone())
    {
        buckets.remove(&least);
    }
}

/// An admitted log-in, in flight until it is dropped.
pub(crate) struct Try {
    throttle: Throttle,
    source: Source,
}

impl Try {
    /// The password was wrong. Call it before the next await: the call may be cancelled there.
    pub(crate) fn wrong(self) {
        let Inner { limits, clock, .. } = &*self.throttle.0;
        let now = clock.now();
        if let Some(bucket) = self.throttle.0.buckets().get_mut(&self.source) {
            bucket.full_at = bucket.full_at.max(now).plus(limits.interval);
        }
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        let inner = &self.throttle.0;
        let now = inner.clock.now();
        let mut buckets = inner.buckets();
        let Some(bucket) = buckets.get_mut(&self.source) else { return };
        bucket.under_way = bucket.under_way.saturating_sub(1);
        if bucket.full_at <= now && bucket.under_way == 0 {
            buckets.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::ManualClock;

    const LIMITS: Limits = Limits { failures: 3, interval: Duration::from_secs(10), max_remembered: 4 };

    fn throttle() -> (Throttle, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::at(Timestamp::from_micros(1_000_000_000)));
        (Throttle::new(LIMITS, clock.clone()), clock)
    }

    fn from(email: &str, address: &str) -> Source {
        Source::new(email, address.parse().expect("an address"))
    }

    fn ada() -> Source {
        from("ada@example.com", "192.0.2.1")
    }

    #[test]
    fn failures_empty_the_bucket_and_time_refills_it() {
        let (throttle, clock) = throttle();
        for _ in 0..3 {
            throttle.admit(ada()).expect("admitted").wrong();
        }
        assert_eq!(throttle.admit(ada()).err(), Some(Throttled { retry_after: Duration::from_secs(10) }));
        clock.advance(Duration::from_secs(9));
        assert_eq!(throttle.admit(ada()).err(), Some(Throttled { retry_after: Duration::from_secs(1) }));
        clock.advance(Duration::from_secs(1));
        throttle.admit(ada()).expect("one more").wrong();
        assert!(throttle.admit(ada()).is_err());
        clock.advance(Duration::from_secs(30));
        for _ in 0..3 {
            throttle.admit(ada()).expect("full again").wrong();
        }
        assert!(throttle.admit(ada()).is_err());
    }

    #[test]
    fn successful_and_cancelled_log_ins_do_not_count() {
        let (throttle, _) = throttle();
        for _ in 0..100 {
            drop(throttle.admit(ada()).expect("admitted"));
        }
        assert!(throttle.0.buckets().is_empty(), "no bucket is kept");
    }

    #[test]
    fn concurrent_log_ins_are_bounded_and_all_wrong_ones_are_counted() {
        let (throttle, clock) = throttle();
        let under_way: Vec<Try> = (0..3).map(|_| throttle.admit(ada()).expect("admitted")).collect();
        assert_eq!(throttle.admit(ada()).err(), Some(Throttled { retry_after: Duration::from_secs(1) }));
        under_way.into_iter().for_each(Try::wrong);
        assert_eq!(throttle.admit(ada()).err(), Some(Throttled { retry_after: Duration::from_secs(10) }));
        clock.advance(Duration::from_secs(10));
        throttle.admit(ada()).expect("one more").wrong();
        assert!(throttle.admit(ada()).is_err(), "control: no more than one");
    }

    #[test]
    fn the_bucket_is_full_after_its_intervals_however_many_attempts_were_wrong() {
        let (throttle, clock) = throttle();
        for burst in 0..40 {
            let under_way: Vec<Try> = std::iter::from_fn(|| throttle.admit(ada()).ok()).collect();
            assert_eq!(under_way.len(), if burst == 0 { 3 } else { 1 }, "no more concurrently than in sequence");
            under_way.into_iter().for_each(Try::wrong);
            clock.advance(Duration::from_secs(10));
        }
        clock.advance(Duration::from_secs(20));
        let full: Vec<Try> = std::iter::from_fn(|| throttle.admit(ada()).ok()).collect();
        assert_eq!(full.len(), 3);
        full.into_iter().for_each(Try::wrong);
        clock.advance(Duration::from_secs(29));
        assert!(!throttle.0.buckets().is_empty(), "control: not before");
        clock.advance(Duration::from_secs(1));
        for _ in 0..3 {
            throttle.admit(ada()).expect("full again").wrong();
        }
    }

    #[test]
    fn other_accounts_and_addresses_are_not_throttled() {
        let (throttle, _) = throttle();
        for _ in 0..3 {
            throttle.admit(ada()).expect("admitted").wrong();
        }
        assert!(throttle.admit(ada()).is_err());
        assert!(throttle.admit(from("bob@example.com", "192.0.2.1")).is_ok());
        assert!(throttle.admit(from("ada@example.com", "192.0.2.2")).is_ok());
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        assert_eq!(from("a", "2001:db8::1"), from("a", "2001:db8::ffff"));
        assert_ne!(from("a", "2001:db8::1"), from("a", "2001:db8:0:1::1"));
        assert_eq!(from("a", "::ffff:192.0.2.1"), from("a", "192.0.2.1"));
    }

    #[test]
    fn buckets_are_bounded_and_those_with_the_most_failures_stay() {
        let (throttle, _) = throttle();
        for _ in 0..3 {
            throttle.admit(ada()).expect("admitted").wrong();
        }
        for number in 0..50 {
            throttle.admit(from(&format!("{number}@example.com"), "192.0.2.1")).expect("admitted").wrong();
            assert!(throttle.0.buckets().len() <= LIMITS.max_remembered);
        }
        assert!(throttle.admit(ada()).is_err(), "still remembered");
    }
}
