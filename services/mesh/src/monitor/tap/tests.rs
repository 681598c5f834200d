use std::sync::Arc;
use std::time::Duration;

use tokio::time::advance;
use tonic::Code;

use super::{
    CLOSE_AFTER, CallFacts, MAX_TAPS, MAX_WAITING, TapFilter, TapNotRead, TapSide, TappedCall, Taps, TooManyTaps,
};
use crate::call::caller_class::CallerClass;

fn call() -> TappedCall {
    TappedCall {
        side: TapSide::Client,
        end: kernel::Timestamp::default(),
        caller: CallerClass::Service("order".into()),
        target: "payment",
        address: "127.0.0.1:7301".into(),
        method: "payment.v1.PaymentService/ProcessPayment",
        code: Code::Unavailable,
        reason: "OVERLOADED".into(),
        latency: Duration::from_millis(100),
        attempt: Some(2),
        request_bytes: Some(7),
        would_be_denied: false,
        response_bytes: 9,
        trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
    }
}

fn facts(call: &TappedCall) -> CallFacts<'_> {
    let TappedCall { side, caller, target, method, code, latency, .. } = call;
    CallFacts { side: *side, caller, target, method, code: *code, latency: *latency }
}

fn offer(taps: &Taps) {
    taps.offer(&facts(&call()), call);
}

#[test]
fn a_call_matches_when_every_criterion_of_the_filter_does() {
    let all = TapFilter::default();
    assert!(all.matches(&facts(&call())));
    let text = |text: &str| vec![text.to_owned()];
    let matching = [
        TapFilter { side: Some(TapSide::Client), ..all.clone() },
        TapFilter { callers: text("order"), ..all.clone() },
        TapFilter { targets: vec!["data".into(), "payment".into()], ..all.clone() },
        TapFilter { methods: text("ProcessPayment"), ..all.clone() },
        TapFilter { codes: vec![Code::Unavailable], ..all.clone() },
        TapFilter { min_latency: Duration::from_millis(100), ..all.clone() },
    ];
    let others = [
        TapFilter { side: Some(TapSide::Server), ..all.clone() },
        TapFilter { callers: text("customer"), ..all.clone() },
        TapFilter { targets: text("pay"), ..all.clone() },
        TapFilter { methods: text("CancelPayment"), ..all.clone() },
        TapFilter { codes: vec![Code::Ok], ..all.clone() },
        TapFilter { min_latency: Duration::from_millis(101), ..all.clone() },
    ];
    for (matching, other) in matching.iter().zip(&others) {
        assert!(matching.matches(&facts(&call())), "{matching:?}");
        assert!(!other.matches(&facts(&call())), "{other:?}");
    }
}

#[tokio::test]
async fn calls_are_reported_while_a_tap_is_open() {
    let taps = Arc::new(Taps::default());
    assert!(!taps.is_open());
    let mut tap = taps.open(TapFilter::default()).expect("a tap");
    assert!(taps.is_open());
    offer(&taps);
    assert_eq!(tap.next().await, Ok((call(), 0)));
    drop(tap);
    assert!(!taps.is_open(), "closed when it is dropped");
}

#[tokio::test(start_paused = true)]
async fn a_tap_that_is_not_read_drops_calls_and_is_closed_with_their_count() {
    let taps = Arc::new(Taps::default());
    let mut unread = taps.open(TapFilter::default()).expect("a tap");
    let mut other = taps.open(TapFilter::default()).expect("another");
    let mut offer_and_read = async |count: usize| {
        for _ in 0..count {
            offer(&taps);
            other.next().await.expect("the other tap is not affected");
        }
    };
    offer_and_read(MAX_WAITING + 5).await;
    advance(CLOSE_AFTER - Duration::from_millis(1)).await;
    offer_and_read(1).await;
    assert_eq!(unread.next().await, Ok((call(), 6)), "the count goes with the next call");
    // It was read in time: the wait begins anew.
    offer_and_read(2).await;
    advance(CLOSE_AFTER).await;
    offer_and_read(1).await;
    for _ in 0..MAX_WAITING {
        assert_eq!(unread.next().await, Ok((call(), 8)));
    }
    assert_eq!(unread.next().await, Err(TapNotRead { dropped: 8 }));
    assert!(TapNotRead { dropped: 8 }.to_string().contains("8 calls were dropped"));
    offer_and_read(1).await;
    assert!(taps.is_open(), "the other tap is still open");
}

#[tokio::test]
async fn the_number_of_taps_is_bounded() {
    let taps = Arc::new(Taps::default());
    let open: Vec<_> = (0..MAX_TAPS).map(|_| taps.open(TapFilter::default()).expect("a tap")).collect();
    assert_eq!(taps.open(TapFilter::default()).err(), Some(TooManyTaps));
    drop(open);
    assert!(taps.open(TapFilter::default()).is_ok());
}
