//! The gateway over the real mesh, with a ledger in a file: its guarantees to merchants, and each injected fault.

mod merchant;

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use contracts::gateway::v1::{ChargeStatus, DeclineCode};
use merchant::{Merchant, reason};
use tonic::{Code, Status};
use tonic_types::StatusExt;

#[tokio::test]
async fn every_test_token_has_its_documented_result() {
    let merchant = Merchant::start(&[]).await;
    let declines = [
        ("chargeDeclined", DeclineCode::GenericDecline),
        ("chargeDeclinedInsufficientFunds", DeclineCode::InsufficientFunds),
        ("chargeDeclinedExpiredCard", DeclineCode::ExpiredCard),
        ("chargeDeclinedIncorrectCvc", DeclineCode::IncorrectCvc),
        ("chargeDeclinedLostCard", DeclineCode::LostCard),
        ("chargeDeclinedStolenCard", DeclineCode::StolenCard),
        ("chargeDeclinedProcessingError", DeclineCode::ProcessingError),
        ("chargeDeclinedFraudulent", DeclineCode::Fraudulent),
    ];
    let mut cases = vec![("no_such_token".to_owned(), DeclineCode::InvalidPaymentMethod)];
    for (name, code) in declines {
        cases.extend([(format!("pm_card_{name}"), code), (format!("pm_card_visa_{name}"), code)]);
    }
    for token in ["pm_card_visa", "pm_card_mastercard", "pm_card_amex"] {
        cases.push((token.to_owned(), DeclineCode::Unspecified));
    }
    for (token, decline) in &cases {
        let charge = merchant.charge(token, 1999, token).await.expect(token);
        let status =
            if *decline == DeclineCode::Unspecified { ChargeStatus::Succeeded } else { ChargeStatus::Declined };
        assert_eq!((charge.status(), charge.decline_code()), (status, *decline), "{token}");
        assert_eq!(merchant.get(token).await.expect("stored"), charge, "a decline is stored too");
    }
    assert_eq!(merchant.ledger().await.len(), cases.len());
}

#[tokio::test]
async fn a_repeated_key_replays_the_stored_response() {
    let merchant = Merchant::start(&[]).await;
    let first = merchant.charge("order-1", 1999, "pm_card_visa").await.expect("charged");
    let declined = merchant.charge("order-2", 1999, "pm_card_chargeDeclined").await.expect("declined");
    assert_eq!(merchant.charge("order-1", 1999, "pm_card_visa").await.expect("replayed"), first);
    // Even with a card that would be charged: the key has a response already.
    assert_eq!(merchant.charge("order-2", 1999, "pm_card_visa").await.expect("replayed"), declined);
    assert_eq!(merchant.ledger().await.len(), 2);
}

#[tokio::test]
async fn concurrent_charges_under_one_key_charge_once() {
    let merchant = Merchant::start(&[]).await;
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let merchant = merchant.clone();
            tokio::spawn(async move { merchant.charge("order-1", 1999, "pm_card_visa").await.expect("charged") })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    for call in calls {
        ids.insert(call.await.expect("no panic").charge_id);
    }
    assert_eq!((ids.len(), merchant.ledger().await.len()), (1, 1));
}

#[tokio::test]
async fn a_key_with_another_amount_is_rejected_and_changes_nothing() {
    let merchant = Merchant::start(&[]).await;
    let first = merchant.charge("order-1", 1999, "pm_card_visa").await.expect("charged");
    let rejected = merchant.charge("order-1", 2000, "pm_card_visa").await.expect_err("reused");
    assert_eq!((rejected.code(), reason(&rejected)), (Code::AlreadyExists, "CHARGE_KEY_REUSED".to_owned()));
    assert_eq!(merchant.ledger().await, [first]);
}

#[tokio::test]
async fn a_tombstone_prevents_every_later_charge() {
    let merchant = Merchant::start(&[]).await;
    let tombstone = merchant.cancel("order-1").await.expect("cancelled");
    assert_eq!((tombstone.status(), tombstone.amount.clone()), (ChargeStatus::Cancelled, None));
    let late = merchant.charge("order-1", 1999, "pm_card_visa").await.expect("a response");
    assert_eq!(late, tombstone);
    assert_eq!(merchant.cancel("order-1").await.expect("again"), tombstone);
    assert_eq!(merchant.ledger().await, [tombstone]);
}

#[tokio::test]
async fn a_slow_charge_finds_the_tombstone_written_in_the_meantime() {
    let slow = Duration::from_secs(2);
    let merchant = Merchant::start(&["--fault-slow-ms=2000"]).await;
    let late = merchant.clone();
    let late = tokio::spawn(async move {
        let started = Instant::now();
        (late.charge("order-1", 1999, "pm_gateway_slow").await, started.elapsed())
    });
    // Enough round trips for the charge to be in progress; its duration below shows that it was.
    for _ in 0..20 {
        merchant.get("order-1").await.expect_err("not yet");
    }
    let tombstone = merchant.cancel("order-1").await.expect("cancelled");
    assert_eq!(tombstone.status(), ChargeStatus::Cancelled, "the charge had not committed");
    let (response, took) = late.await.expect("no panic");
    assert!(took >= slow, "expected it in progress before the tombstone: {took:?}");
    assert_eq!(response.expect("a response"), tombstone);
    assert_eq!(merchant.ledger().await, [tombstone]);
}

#[tokio::test]
async fn a_slow_charge_is_made_although_its_client_has_disconnected() {
    let merchant = Merchant::start(&["--fault-slow-ms=300"]).await;
    // On a busy machine a call may end before it has arrived: repeated under the same key until one has.
    let stored = loop {
        match merchant.charge_within(Duration::from_millis(100), "order-1", "pm_gateway_slow").await {
            Err(status) => assert_eq!(status.code(), Code::DeadlineExceeded),
            Ok(charge) => break charge,
        }
    };
    assert_eq!(stored.status(), ChargeStatus::Succeeded);
}

#[tokio::test]
async fn cancelling_a_charged_key_changes_nothing_and_returns_the_charge() {
    let merchant = Merchant::start(&[]).await;
    let charge = merchant.charge("order-1", 1999, "pm_card_visa").await.expect("charged");
    assert_eq!(merchant.cancel("order-1").await.expect("a response"), charge);
    assert_eq!(merchant.ledger().await, [charge]);
}

#[tokio::test]
async fn a_lost_response_is_replayed_and_charged_once() {
    let merchant = Merchant::start(&[]).await;
    let lost = merchant.clone();
    let lost = tokio::spawn(async move { lost.charge("order-1", 1999, "pm_gateway_answerLost").await });
    let stored = merchant.until_stored("order-1").await;
    assert!(!lost.is_finished(), "the response is not sent");
    lost.abort();
    let replayed = merchant.charge("order-1", 1999, "pm_gateway_answerLost").await.expect("replayed");
    assert_eq!((replayed.status(), &replayed), (ChargeStatus::Succeeded, &stored));
    assert_eq!(merchant.ledger().await, [stored]);
}

#[tokio::test]
async fn a_call_without_a_response_charges_nothing_and_leaves_nothing_behind() {
    let merchant = Merchant::start(&["--drain-timeout=60s"]).await;
    let call = merchant.charge_within(Duration::from_millis(200), "order-1", "pm_gateway_noAnswer").await;
    assert_eq!(call.expect_err("no response").code(), Code::DeadlineExceeded);
    assert_eq!(merchant.ledger().await, []);
    // The hanging call was cancelled: the drain, of up to a minute, has nothing to wait for.
    tokio::time::timeout(Duration::from_secs(20), merchant.stop()).await.expect("nothing hangs");
}

#[tokio::test]
async fn an_unavailable_key_is_served_in_the_end_and_charged_once() {
    let merchant = Merchant::start(&[]).await;
    let mut rejections = 0;
    // The mesh may retry a call on its own; a merchant retries until there is a response.
    let charge = loop {
        match merchant.charge("order-1", 1999, "pm_gateway_unavailable3").await {
            Ok(charge) => break charge,
            Err(rejected) => {
                assert_eq!((rejected.code(), reason(&rejected)), (Code::Unavailable, "GATEWAY_UNAVAILABLE".to_owned()));
                rejections += 1;
                assert!(rejections <= 3, "three times per key");
            }
        }
    };
    assert_eq!(charge.status(), ChargeStatus::Succeeded);
    assert_eq!(merchant.ledger().await, [charge]);
}

#[tokio::test]
async fn a_refund_is_made_once_per_refund_key() {
    let merchant = Merchant::start(&[]).await;
    merchant.charge("order-1", 1999, "pm_card_visa").await.expect("charged");
    let first = merchant.refund("order-1", "refund-1").await.expect("a response");
    let charge = first.charge.clone().expect("a charge");
    assert_eq!((first.refunded, charge.status()), (true, ChargeStatus::Refunded));
    assert!(charge.refund_time.is_some());
    assert_eq!(merchant.refund("order-1", "refund-1").await.expect("replayed"), first);
    assert_eq!(merchant.refund("order-1", "refund-2").await.expect("refunded already"), first);
    assert_eq!(merchant.charge("order-1", 1999, "pm_card_visa").await.expect("replayed"), charge);
    assert_eq!(merchant.ledger().await, [charge]);
}

#[tokio::test]
async fn a_refused_refund_is_replayed_and_a_later_key_is_accepted() {
    let merchant = Merchant::start(&[]).await;
    let charge = merchant.charge("order-1", 1999, "pm_gateway_refundRefused").await.expect("charged");
    for _ in 0..2 {
        let refused = merchant.refund("order-1", "refund-1").await.expect("a response");
        assert!(!refused.refunded && !refused.refusal.is_empty());
        assert_eq!(refused.charge.as_ref(), Some(&charge), "still charged");
    }
    let given = merchant.refund("order-1", "refund-2").await.expect("a response");
    assert_eq!((given.refunded, given.charge.expect("a charge").status()), (true, ChargeStatus::Refunded));
    let first = merchant.refund("order-1", "refund-1").await.expect("replayed");
    assert!(!first.refunded, "the first key's response stays what it was");
}

#[tokio::test]
async fn a_refund_that_is_always_refused_is_refused_for_every_key() {
    let merchant = Merchant::start(&[]).await;
    merchant.charge("order-1", 1999, "pm_gateway_refundRefusedAlways").await.expect("charged");
    for key in ["refund-1", "refund-2", "refund-3"] {
        assert!(!merchant.refund("order-1", key).await.expect("a response").refunded);
    }
    assert_eq!(merchant.get("order-1").await.expect("stored").status(), ChargeStatus::Succeeded);
}

#[tokio::test]
async fn what_was_not_charged_is_not_refunded() {
    let merchant = Merchant::start(&[]).await;
    merchant.charge("declined", 1999, "pm_card_chargeDeclined").await.expect("declined");
    merchant.cancel("cancelled").await.expect("cancelled");
    for key in ["declined", "cancelled"] {
        let rejected = merchant.refund(key, "refund-1").await.expect_err(key);
        assert_eq!(
            (rejected.code(), reason(&rejected)),
            (Code::FailedPrecondition, "CHARGE_NOT_REFUNDABLE".to_owned())
        );
    }
    for rejected in [
        merchant.refund("nothing", "refund-1").await.expect_err("no row"),
        merchant.get("nothing").await.expect_err("no row"),
    ] {
        assert_eq!((rejected.code(), reason(&rejected)), (Code::NotFound, "CHARGE_NOT_FOUND".to_owned()));
    }
}

#[tokio::test]
async fn a_wrong_api_key_changes_nothing() {
    let merchant = Merchant::start(&[]).await;
    for key in [None, Some(""), Some("wrong"), Some("test-key-and-more"), Some("test-ke")] {
        let other_client = merchant.with_key(key);
        let rejections = [
            other_client.charge("order-1", 1999, "pm_card_visa").await.expect_err("rejected"),
            other_client.cancel("order-1").await.expect_err("rejected"),
            other_client.refund("order-1", "refund-1").await.expect_err("rejected"),
            other_client.get("order-1").await.expect_err("rejected"),
            other_client.page(0, "").await.expect_err("rejected"),
        ];
        for rejected in rejections {
            assert_eq!((rejected.code(), reason(&rejected)), (Code::Unauthenticated, "INVALID_API_KEY".to_owned()));
        }
    }
    assert_eq!(merchant.ledger().await, []);
}

#[tokio::test]
async fn the_ledger_is_listed_by_key_a_page_at_a_time() {
    let merchant = Merchant::start(&[]).await;
    let keys: Vec<String> = (0..7).map(|n| format!("order-{n}")).collect();
    for key in keys.iter().rev() {
        merchant.charge(key, 1999, "pm_card_visa").await.expect("charged");
    }
    let mut seen = Vec::new();
    let mut sizes = Vec::new();
    let mut token = String::new();
    loop {
        let page = merchant.page(3, &token).await.expect("a page");
        sizes.push(page.charges.len());
        seen.extend(page.charges.into_iter().map(|charge| charge.charge_key));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((seen, sizes), (keys, vec![3, 3, 1]));
    let all = merchant.page(i32::MAX, "").await.expect("a too large page size is reduced");
    assert_eq!((all.charges.len(), all.next_page_token.as_str()), (7, ""));
}

/// Page tokens are not signed: a client can construct one.
#[tokio::test]
async fn a_page_token_with_an_invalid_key_is_rejected() {
    let merchant = Merchant::start(&[]).await;
    let long = "k".repeat(256);
    for (key, is_sound) in [("order-1", true), ("a\0b", false), ("", false), (&long, false)] {
        let token = URL_SAFE_NO_PAD.encode(format!("1:charges:{key}"));
        let page = merchant.page(3, &token).await;
        assert_eq!(page.as_ref().err().map(Status::code), (!is_sound).then_some(Code::InvalidArgument), "{key:?}");
    }
}

#[tokio::test]
async fn invalid_input_is_reported_field_by_field_and_changes_nothing() {
    let merchant = Merchant::start(&[]).await;
    let long = "k".repeat(256);
    let cases = [
        (merchant.charge_raw("", None, "").await, vec!["charge_key", "amount"]),
        (merchant.charge_raw(&long, Some(("EUR", 0)), "").await, vec!["charge_key", "amount.minor_units"]),
        (
            merchant.charge_raw("k", Some(("eur", -1)), "x").await,
            vec!["amount.minor_units", "amount.currency_code", "receipt_email"],
        ),
        (merchant.charge_raw("a\nb", Some(("EUR", 1)), "a@b").await, vec!["charge_key"]),
        (merchant.cancel("").await, vec!["charge_key"]),
        (merchant.get(&long).await, vec!["charge_key"]),
        (merchant.refund("", "").await.map(|_| Default::default()), vec!["charge_key", "refund_key"]),
        (merchant.page(-1, "").await.map(|_| Default::default()), vec!["page_size"]),
        (merchant.page(0, "no token").await.map(|_| Default::default()), vec!["page_token"]),
    ];
    for (result, fields) in cases {
        let rejected = result.expect_err("bad input");
        assert_eq!((rejected.code(), reason(&rejected)), (Code::InvalidArgument, "INVALID_ARGUMENT".to_owned()));
        let violations = rejected.get_details_bad_request().expect("BadRequest").field_violations;
        assert_eq!(violations.iter().map(|violation| violation.field.as_str()).collect::<Vec<_>>(), fields);
    }
    assert_eq!(merchant.ledger().await, []);
    // The control case: a key of the maximum length, in characters, is valid.
    merchant.charge(&"ü".repeat(255), 1, "pm_card_visa").await.expect("charged");
}

#[tokio::test]
async fn faults_by_settings_affect_every_writing_call() {
    let merchant = Merchant::start(&["--fault-unavailable-per-mille=1000"]).await;
    let rejections = [
        merchant.charge("order-1", 1999, "pm_card_visa").await.expect_err("unavailable"),
        merchant.cancel("order-1").await.expect_err("unavailable"),
        merchant.refund("order-1", "refund-1").await.map(|_| ()).expect_err("unavailable"),
    ];
    for rejected in rejections {
        assert_eq!(reason(&rejected), "GATEWAY_UNAVAILABLE");
    }
    assert_eq!(merchant.ledger().await, [], "reads are fine, and nothing is stored");
}

#[tokio::test]
async fn refunds_are_refused_by_settings() {
    let merchant = Merchant::start(&["--fault-refund-refused-per-mille=1000"]).await;
    merchant.charge("order-1", 1999, "pm_card_visa").await.expect("charged");
    assert!(!merchant.refund("order-1", "refund-1").await.expect("a response").refunded);
}

#[tokio::test]
async fn the_ledger_outlives_the_process() {
    let merchant = Merchant::start(&[]).await;
    let charge = merchant.charge("order-1", 1999, "pm_card_visa").await.expect("charged");
    let merchant = merchant.restart(&[]).await;
    assert_eq!(merchant.charge("order-1", 1999, "pm_card_visa").await.expect("replayed"), charge);
}
