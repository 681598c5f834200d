use super::*;
use crate::client::rng::FixedRng;

/// Waits without jitter.
fn breaker() -> Breaker {
    Breaker::new(Arc::new(FixedRng(1.0)))
}

fn breakers_open(now: Instant) -> Breaker {
    let breaker = breaker();
    for _ in 1..THRESHOLD {
        assert_eq!(breaker.failed(breaker.permit(), now), BreakerTransition::None);
    }
    assert_eq!(breaker.failed(breaker.permit(), now), BreakerTransition::Opened);
    breaker
}

#[test]
fn consecutive_failures_open_it_but_not_with_a_success_between_them() {
    let now = Instant::now();
    assert_eq!(breakers_open(now).gate(now), Gate::Open);
    let breaker = breaker();
    for _ in 0..THRESHOLD {
        for _ in 1..THRESHOLD {
            breaker.failed(breaker.permit(), now);
        }
        breaker.succeeded(breaker.permit());
    }
    assert_eq!(breaker.gate(now), Gate::Closed);
}

#[test]
fn one_probe_at_a_time_and_its_success_closes_it() {
    let now = Instant::now();
    let breaker = breakers_open(now);
    assert_eq!(breaker.probe(now + OPEN - Duration::from_millis(1)), None, "not yet");
    assert_eq!(breaker.gate(now + OPEN), Gate::HalfOpen);
    let probe = breaker.probe(now + OPEN).expect("due");
    assert_eq!(breaker.probe(now + OPEN), None, "one at a time");
    assert_eq!(breaker.gate(now + MAX_OPEN), Gate::Open, "while the probe is in flight");
    assert_eq!(breaker.succeeded(probe), BreakerTransition::Closed);
    assert_eq!(breaker.gate(now + OPEN), Gate::Closed);
}

#[test]
fn each_failed_probe_doubles_the_wait_up_to_a_limit() {
    let mut now = Instant::now();
    let breaker = breakers_open(now);
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        assert_eq!(breaker.probe(now + Duration::from_secs(seconds) - Duration::from_millis(1)), None);
        now += Duration::from_secs(seconds);
        let probe = breaker.probe(now).expect("due");
        assert_eq!(breaker.failed(probe, now), BreakerTransition::None);
    }
}

#[test]
fn a_cancelled_probe_allows_another_one_after_a_wait() {
    let now = Instant::now();
    let breaker = breakers_open(now);
    let probe = breaker.probe(now + OPEN).expect("due");
    breaker.undecided(probe, now + OPEN);
    assert_eq!(breaker.probe(now + OPEN), None, "otherwise each call in turn would hang there");
    assert!(breaker.probe(now + 2 * OPEN).is_some(), "the wait has not grown");
}

#[test]
fn calls_that_began_before_it_opened_do_not_close_it() {
    let now = Instant::now();
    let breaker = breaker();
    let early = breaker.permit();
    for _ in 0..THRESHOLD {
        breaker.failed(breaker.permit(), now);
    }
    assert_eq!(breaker.succeeded(early), BreakerTransition::None);
    assert_eq!(breaker.gate(now), Gate::Open);
    // Control: a call sent despite the open breaker does.
    assert_eq!(breaker.succeeded(breaker.permit()), BreakerTransition::Closed);
}
