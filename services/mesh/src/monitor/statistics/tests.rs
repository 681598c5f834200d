use std::time::Duration;

use tokio::time::{Instant, advance};
use tonic::Code;

use super::{CallTable, MAX_CALLERS, Recent, by_caller};
use crate::call::caller_class::CallerClass;
use crate::policy::{METHOD, MethodPolicy, PolicyTable};

const POLICIES: PolicyTable = PolicyTable(&[MethodPolicy { path: "/shop.v1.Shop/Buy", ..METHOD }]);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test(start_paused = true)]
async fn a_window_has_the_calls_of_its_last_seconds_and_says_how_long_it_is() {
    let mut recent = Recent::new(Instant::now());
    advance(ms(1_000)).await;
    recent.record(Instant::now(), ms(100), true);
    let [short, long] = recent.windows(Instant::now()).summary();
    assert_eq!((short.calls, short.failures, short.length), (1, 1, ms(1_000)));
    assert_eq!(short, long, "after a start both windows are as long as the time since it");

    advance(ms(13_000)).await;
    let [short, long] = recent.windows(Instant::now()).summary();
    assert_eq!((short.calls, short.length), (1, ms(14_000)), "10 s and the begun interval");
    advance(ms(2_000)).await;
    let [short, long_later] = recent.windows(Instant::now()).summary();
    assert_eq!((short.calls, short.failures, short.length), (0, 0, ms(11_000)));
    assert_eq!((long_later.calls, long.calls, long_later.length), (1, 1, ms(16_000)));

    advance(ms(60_000)).await;
    let [_, long] = recent.windows(Instant::now()).summary();
    assert_eq!((long.calls, long.length), (0, ms(61_000)));
}

#[tokio::test(start_paused = true)]
async fn intervals_are_reused_and_their_number_is_bounded() {
    let mut recent = Recent::new(Instant::now());
    for _ in 0..1_000 {
        advance(ms(1_700)).await;
        recent.record(Instant::now(), ms(1), false);
    }
    assert!(recent.intervals.len() <= 14, "{}", recent.intervals.len());
    let [_, long] = recent.windows(Instant::now()).summary();
    assert!((35..=39).contains(&long.calls), "60 to 65 s of them: {}", long.calls);
}

#[tokio::test(start_paused = true)]
async fn percentiles_are_accurate_to_10_percent() {
    let mut recent = Recent::new(Instant::now());
    (1..=1_000).for_each(|millis| recent.record(Instant::now(), ms(millis), false));
    let [short, _] = recent.windows(Instant::now()).summary();
    for (quantile, exact) in [(short.p50, 500.0), (short.p90, 900.0), (short.p99, 990.0)] {
        let error = quantile.as_secs_f64() * 1_000.0 / exact - 1.0;
        assert!(error.abs() <= 0.1, "{quantile:?} for {exact} ms");
    }
    let sum: u64 = short.latencies.iter().map(|(_, calls)| calls).sum();
    assert!(sum == 1_000 && short.latencies.is_sorted() && short.latencies.len() < 200, "{:?}", short.latencies);
    let below = |limit: Duration| {
        short.latencies.iter().filter(|(latency, _)| *latency <= limit).map(|(_, calls)| calls).sum::<u64>()
    };
    assert_eq!(below(short.p50), 500.max(below(short.p50)), "the percentiles are those of the latencies");
    recent.record(Instant::now(), Duration::from_secs(3_600), false);
    let longest = recent.windows(Instant::now()).summary()[0].clone();
    assert_eq!(longest.calls, 1_001, "a call beyond the longest latency counts as that");
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_by_method_caller_and_code() {
    let table = CallTable::new(POLICIES);
    let order = CallerClass::Service("order".into());
    table.begin(Some(0));
    table.begin(Some(0));
    table.begin(None);
    table.end(Some(0), &order, Code::Ok, ms(2));
    let read = table.read(Instant::now());
    let in_flight: Vec<_> = read.iter().map(|method| (method.name, method.in_flight)).collect();
    assert_eq!(in_flight, [("shop.v1.Shop/Buy", 1), ("_OTHER", 1)]);

    table.end(Some(0), &CallerClass::Customer, Code::InvalidArgument, ms(2));
    table.begin(Some(0));
    table.end(Some(0), &order, Code::Unavailable, ms(2));
    let read = table.read(Instant::now()).remove(0);
    assert_eq!(read.in_flight, 0);
    let callers = by_caller(read.callers);
    let totals = |at: usize| {
        (callers[at].caller.name().to_owned(), callers[at].calls.by_code.clone(), callers[at].calls.last_10s.failures)
    };
    assert_eq!(totals(0), ("order".into(), vec![(Code::Ok, 1), (Code::Unavailable, 1)], 1));
    assert_eq!(
        totals(1),
        ("customer".into(), vec![(Code::InvalidArgument, 1)], 0),
        "the caller's mistake is no failure"
    );
}

#[tokio::test(start_paused = true)]
async fn the_number_of_callers_is_bounded() {
    let table = CallTable::new(POLICIES);
    for number in 0..100 {
        table.begin(Some(0));
        table.end(Some(0), &CallerClass::Service(format!("service-{number}").into()), Code::Ok, ms(1));
    }
    let callers = by_caller(table.read(Instant::now()).remove(0).callers);
    assert_eq!(callers.len(), MAX_CALLERS + 1);
    let others = callers.iter().find(|entry| entry.caller.name() == "others").expect("the others");
    assert_eq!(others.calls.by_code, [(Code::Ok, 100 - MAX_CALLERS as u64)]);
}
