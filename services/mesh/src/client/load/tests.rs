use super::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_slow_response_counts_immediately_and_fast_ones_slowly() {
    let start = Instant::now();
    let load = Load::new();
    load.took(start, 200 * MS);
    assert!((load.now(start) - 0.2).abs() < 1e-9);
    load.took(start + 10 * MS, MS);
    assert!(load.now(start + 10 * MS) > 0.19, "one fast response changes little");
    for step in 2..10_000 {
        load.took(start + 10 * step * MS, MS);
    }
    assert!(load.now(start + 99_990 * MS) < 0.0011);
}

#[test]
fn an_instance_that_was_slow_once_is_better_than_one_that_is_always_slow() {
    let start = Instant::now();
    let (slow, held_up) = (Load::new(), Load::new());
    slow.took(start, 200 * MS);
    held_up.took(start, 200 * MS);
    for step in 1..=100 {
        held_up.took(start + 5 * step * MS, 5 * MS);
    }
    let later = start + 500 * MS;
    assert!(held_up.now(later) < 0.015, "{}", held_up.now(later));
    assert!(slow.now(later) > 0.15, "control: it has no further outcomes");
}

#[test]
fn silence_counts_while_it_lasts() {
    let start = Instant::now();
    let load = Load::new();
    load.took(start, MS);
    load.begin(start + 500 * MS);
    assert!(load.now(start + 500 * MS) < 0.002, "no call was waiting before");
    load.begin(start + 550 * MS);
    assert!((load.now(start + 600 * MS) - 3.0 * 0.1).abs() < 1e-9, "100 ms, and two calls wait");
    load.took(start + 600 * MS, 50 * MS);
    load.end();
    assert!(load.now(start + 601 * MS) < 2.0 * 0.051, "it has answered one of them");
    load.end();
    assert!(load.now(start + 1_000 * MS) < 0.05, "no call waits: the past has decayed");
}

#[test]
fn an_instance_without_recent_responses_or_after_a_failure_gets_one_call_at_a_time() {
    let start = Instant::now();
    let (quiet, hanging, failing) = (Load::new(), Load::new(), Load::new());
    quiet.took(start, MS);
    hanging.no_response(start, MS);
    let later = start + 2 * QUIET;
    failing.failed(later, MS);
    for load in [&quiet, &hanging, &failing] {
        assert!(load.now(later) < 0.011, "it gets a call");
        load.begin(later);
        assert!(load.now(later) >= 2.0 * QUIET_COSTS_SECONDS, "and no second one");
    }
    quiet.took(later, MS);
    assert!(quiet.now(later) < 0.003, "it has responded");
    hanging.no_response(later, MS);
    assert!(hanging.now(later) >= QUIET_COSTS_SECONDS, "control: no response");
}

#[test]
fn instances_without_outcomes_are_alike_however_old() {
    let load = Load::new();
    let start = Instant::now();
    assert_eq!(load.now(start).to_bits(), load.now(start + Duration::from_secs(60)).to_bits());
}

#[test]
fn calls_in_flight_multiply_the_load() {
    let start = Instant::now();
    let load = Load::new();
    load.took(start, 10 * MS);
    load.begin(start);
    load.begin(start);
    assert!((load.now(start) - 0.03).abs() < 1e-9);
    load.end();
    assert!((load.now(start) - 0.02).abs() < 1e-9);
}

#[test]
fn without_outcomes_the_past_decays_and_calls_in_flight_still_count() {
    let start = Instant::now();
    let load = Load::new();
    load.took(start, 1_000 * MS);
    let later = start + Duration::from_secs(3_600);
    let idle = load.now(later);
    assert!(idle < 0.001);
    load.begin(later);
    assert!(load.now(later) > idle);
}

#[test]
fn a_failure_is_not_a_fast_response_and_closing_the_breaker_forgets_it() {
    let start = Instant::now();
    let (good, bad) = (Load::new(), Load::new());
    good.took(start, 5 * MS);
    bad.failed(start, MS / 10);
    assert!(bad.now(start) > good.now(start));
    for _ in 0..10 {
        let before = bad.now(start);
        bad.failed(start, MS / 10);
        assert!(bad.now(start) > before || before >= MAX_FAILURE_SECONDS);
    }
    bad.recovered(start, MS);
    assert!(bad.now(start) < good.now(start));
}
