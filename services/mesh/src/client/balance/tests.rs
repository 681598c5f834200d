//! How a call's outcome affects its instance's load and breaker.

use super::*;
use crate::client::breaker::{Gate, THRESHOLD};
use crate::client::endpoints::tests::endpoints_of;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

fn instance() -> Arc<Endpoint> {
    endpoints_of(&["a:1"]).list()[0].clone()
}

fn ticket(endpoint: &Arc<Endpoint>, deadline: Option<CallDeadline>) -> Ticket {
    Ticket::new(endpoint.clone(), endpoint.breaker.permit(), deadline)
}

fn until(millis: u64, is_method_timeout: bool) -> Option<CallDeadline> {
    Some(CallDeadline { at: Instant::now() + Duration::from_millis(millis), is_method_timeout })
}

/// Whether `THRESHOLD` calls that end like this open the breaker.
fn is_taken_out(end: impl Fn(&Arc<Endpoint>)) -> bool {
    let endpoint = instance();
    (1..THRESHOLD).for_each(|_| end(&endpoint));
    assert_eq!(endpoint.breaker.gate(Instant::now()), Gate::Closed, "one failure is missing");
    end(&endpoint);
    endpoint.breaker.gate(Instant::now()) != Gate::Closed
}

#[tokio::test(start_paused = true)]
async fn only_an_instances_own_failures_open_its_breaker() {
    for number in 0..=16 {
        let code = Code::from_i32(number);
        let expected = [Code::Unavailable, Code::Internal, Code::Unknown].contains(&code);
        assert_eq!(is_taken_out(|endpoint| ticket(endpoint, None).settle(code)), expected, "{code:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_counts_only_if_the_call_had_the_methods_full_timeout() {
    for (is_method_timeout, expected) in [(true, true), (false, false)] {
        let answered = |endpoint: &_| ticket(endpoint, until(5, is_method_timeout)).settle(Code::DeadlineExceeded);
        assert_eq!(is_taken_out(answered), expected, "reported by the instance");
        let cancelled_by_caller = |endpoint: &_| drop(ticket(endpoint, until(0, is_method_timeout)));
        assert_eq!(is_taken_out(cancelled_by_caller), expected, "elapsed at the client");
    }
    assert!(!is_taken_out(|endpoint| drop(ticket(endpoint, until(5, true)))), "cancelled before its deadline");
    assert!(!is_taken_out(|endpoint| ticket(endpoint, None).unprocessed()));
}

#[tokio::test(start_paused = true)]
async fn silence_and_failure_raise_an_instances_load_and_calls_in_flight_are_counted() {
    let endpoints = endpoints_of(&["a:1", "b:1"]).list();
    let load = |index: usize| endpoints[index].load.now(Instant::now());
    let silent = ticket(&endpoints[0], None);
    assert!(load(0) > 1.9 * load(1), "one call in flight");
    tokio::time::sleep(200 * MS).await;
    drop(silent);
    assert!(load(0) > 0.15, "200 ms without a response");
    ticket(&endpoints[1], None).settle(Code::Internal);
    assert!(load(1) > 0.009, "although it failed fast");
    let overloaded = instance();
    ticket(&overloaded, None).settle(Code::ResourceExhausted);
    assert!(overloaded.load.now(Instant::now()) > 0.009, "overloaded: no more calls for a while");
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_breaker_closed_is_as_good_as_any() {
    let endpoint = instance();
    (0..THRESHOLD).for_each(|_| ticket(&endpoint, None).settle(Code::Internal));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let probe = endpoint.breaker.probe(Instant::now()).expect("due");
    let probe = Ticket::new(endpoint.clone(), probe, None);
    tokio::time::sleep(2 * MS).await;
    probe.settle(Code::NotFound);
    assert_eq!(endpoint.breaker.gate(Instant::now()), Gate::Closed, "NOT_FOUND is a response");
    assert!(endpoint.load.now(Instant::now()) < 0.003);
}
