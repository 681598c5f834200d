//! Limits failed password checks (Login, ChangePassword, a repeated Register) of one account from one client network: a
//! token bucket that refills with time. It rejects and never
//! sleeps, and is checked before a processor is spent on bcrypt.
//!
//! A log-in reserves a token while it is in flight, and returns it unless the password was wrong. So concurrent log-ins
//! are a burst and cannot evade the rate, and an empty bucket is full again after `failures` × `interval`, however many
//! attempts there were: a caller on the owner's address locks the owner out for no longer. Nothing else counts: a
//! log-in that the database or a full queue rejects, or that is cancelled before its password is checked, reveals
//! nothing and locks no account. Per instance, in memory: with n instances an attacker has n times as many attempts.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kernel::{Clock, Limiter, Rate, Timestamp, client_network};
use opentelemetry::metrics::Counter;
use parking_lot::Mutex;

/// A retry delay is never shorter: the token may depend on log-ins in flight.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// The bucket's size: wrong passwords that are admitted as a burst.
    pub(crate) failures: u32,
    /// The time to refill one attempt.
    pub(crate) interval: Duration,
    /// How many pairs of account and client network are remembered.
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
        Self { email: email.to_owned(), network: client_network(address) }
    }
}

/// Rejected: too many password checks have failed or are in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Throttled {
    /// When the next attempt is admitted.
    pub(crate) retry_after: Duration,
}

struct Inner {
    clock: Arc<dyn Clock>,
    limiter: Mutex<Limiter<Source, Timestamp>>,
    rejected: Counter<u64>,
}

/// Throttles log-ins by their failures. Clones share the state.
#[derive(Clone)]
pub(crate) struct Throttle(Arc<Inner>);

impl Throttle {
    pub(crate) fn new(limits: Limits, clock: Arc<dyn Clock>) -> Self {
        let rejected = opentelemetry::global::meter("ordermesh")
            .u64_counter("ordermesh.logins.throttled")
            .with_description("Password checks rejected because too many have failed or are in flight")
            .build();
        let limiter = Limiter::new(Rate::new(limits.failures, limits.interval), limits.max_remembered);
        Self(Arc::new(Inner { clock, limiter: Mutex::new(limiter), rejected }))
    }

    /// Admits a log-in; it counts against the account if [`Attempt::failed`] is called.
    pub(crate) fn admit(&self, source: Source) -> Result<Attempt, Throttled> {
        let now = self.0.clock.now();
        let mut limiter = self.0.limiter.lock();
        limiter.make_room(&source, now);
        let reserved = limiter.reserve(source.clone(), now);
        drop(limiter);
        if let Err(wait) = reserved {
            self.0.rejected.add(1, &[]);
            return Err(Throttled { retry_after: wait.max(MIN_RETRY_DELAY) });
        }
        Ok(Attempt { throttle: self.clone(), source, has_failed: false })
    }
}

/// An admitted log-in, in flight until it is dropped.
pub(crate) struct Attempt {
    throttle: Throttle,
    source: Source,
    has_failed: bool,
}

impl Attempt {
    /// The password was wrong. Call it before the next await: the call may be cancelled there.
    pub(crate) fn failed(mut self) {
        self.has_failed = true;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Inner { clock, limiter, .. } = &*self.throttle.0;
        let now = clock.now();
        limiter.lock().release(&self.source, now, self.has_failed);
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
            throttle.admit(ada()).expect("admitted").failed();
        }
        assert_eq!(throttle.admit(ada()).err(), Some(Throttled { retry_after: Duration::from_secs(10) }));
        clock.advance(Duration::from_secs(9));
        assert_eq!(throttle.admit(ada()).err(), Some(Throttled { retry_after: Duration::from_secs(1) }));
        clock.advance(Duration::from_secs(1));
        throttle.admit(ada()).expect("one more").failed();
        assert!(throttle.admit(ada()).is_err());
        clock.advance(Duration::from_secs(30));
        for _ in 0..3 {
            throttle.admit(ada()).expect("full again").failed();
        }
        assert!(throttle.admit(ada()).is_err());
    }

    #[test]
    fn successful_and_cancelled_log_ins_do_not_count() {
        let (throttle, _) = throttle();
        for _ in 0..100 {
            drop(throttle.admit(ada()).expect("admitted"));
        }
        assert!(throttle.0.limiter.lock().is_empty(), "no bucket is kept");
    }

    #[test]
    fn concurrent_log_ins_are_bounded_and_all_failed_ones_are_counted() {
        let (throttle, clock) = throttle();
        let in_flight: Vec<Attempt> = (0..3).map(|_| throttle.admit(ada()).expect("admitted")).collect();
        assert_eq!(throttle.admit(ada()).err(), Some(Throttled { retry_after: Duration::from_secs(1) }));
        in_flight.into_iter().for_each(Attempt::failed);
        assert_eq!(throttle.admit(ada()).err(), Some(Throttled { retry_after: Duration::from_secs(10) }));
        clock.advance(Duration::from_secs(10));
        throttle.admit(ada()).expect("one more").failed();
        assert!(throttle.admit(ada()).is_err(), "control: no more than one");
    }

    #[test]
    fn the_bucket_is_full_after_its_intervals_however_many_attempts_were_wrong() {
        let (throttle, clock) = throttle();
        for burst in 0..40 {
            let in_flight: Vec<Attempt> = std::iter::from_fn(|| throttle.admit(ada()).ok()).collect();
            assert_eq!(in_flight.len(), if burst == 0 { 3 } else { 1 }, "no more concurrently than in sequence");
            in_flight.into_iter().for_each(Attempt::failed);
            clock.advance(Duration::from_secs(10));
        }
        clock.advance(Duration::from_secs(20));
        let full: Vec<Attempt> = std::iter::from_fn(|| throttle.admit(ada()).ok()).collect();
        assert_eq!(full.len(), 3);
        full.into_iter().for_each(Attempt::failed);
        clock.advance(Duration::from_secs(29));
        assert!(!throttle.0.limiter.lock().is_empty(), "control: not before");
        clock.advance(Duration::from_secs(1));
        for _ in 0..3 {
            throttle.admit(ada()).expect("full again").failed();
        }
    }

    #[test]
    fn other_accounts_and_addresses_are_not_throttled() {
        let (throttle, _) = throttle();
        for _ in 0..3 {
            throttle.admit(ada()).expect("admitted").failed();
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
            throttle.admit(ada()).expect("admitted").failed();
        }
        for number in 0..50 {
            throttle.admit(from(&format!("{number}@example.com"), "192.0.2.1")).expect("admitted").failed();
            assert!(throttle.0.limiter.lock().len() <= LIMITS.max_remembered);
        }
        assert!(throttle.admit(ada()).is_err(), "still remembered");
    }
}
