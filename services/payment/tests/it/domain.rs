//! The payment's lifecycle, with a scripted gateway.

use std::sync::Arc;

use driver::AttemptOutcome;
use kernel::{Clock, FaultPoint, Money};
use parking_lot::Mutex;
use payment::error::Error;
use payment::lifecycle::State;
use payment::payment::{DECLINE_CODES, DeclineCode, charge_key};
use payment::ports::{Charge, ChargeStatus};
use payment::process::ProcessCommand;
use payment::reconcile::LedgerEntry;
use payment::store::Lease;

use crate::scripted::Reply;
use crate::world::{DOUBT_LIMIT, LEASE, LONG, StopAt, World};

fn ok(operation: &str) -> (String, Option<String>) {
    (operation.to_owned(), None)
}

fn failed(operation: &str, error: &str) -> (String, Option<String>) {
    (operation.to_owned(), Some(error.to_owned()))
}

#[tokio::test]
async fn a_payment_is_charged_once_however_often_it_is_requested() {
    let world = World::new().await;
    let one = world.instance("one");
    for _ in 0..3 {
        let payment = world.process(&one).await;
        assert_eq!((payment.state, payment.version), (State::Succeeded, 2));
        assert!(payment.charge_id.is_some());
        assert_eq!(payment.payment_method, None, "the secret is deleted once it is no longer needed");
    }
    assert_eq!(world.gateway.calls().len(), 1);
    assert_eq!(world.events().await, [ok("charge")]);
    assert_eq!(world.attempts().await, [("create_charge".to_owned(), State::Succeeded)]);
    assert!(!world.confirmed.was_confirmed(world.order_id), "the waiting call was answered");
}

#[tokio::test]
async fn a_decline_is_final_and_has_its_code() {
    for code in DECLINE_CODES {
        let world = World::new().await;
        world.gateway.declines(code);
        let payment = world.process(&world.instance("one")).await;
        assert_eq!((payment.state, payment.decline_code), (State::Declined, Some(code)));
        assert_eq!(world.events().await, [failed("charge", &format!("PaymentDeclined {}", code.name()))]);
    }
}

#[tokio::test]
async fn a_lost_response_is_retried_and_charges_once() {
    let world = World::new().await;
    let one = world.instance("one");
    world.gateway.script([Reply::ResponseLost, Reply::NoResponse]);
    assert_eq!(world.process(&one).await.state, State::InDoubt);
    assert_eq!(world.events().await, [], "doubt has no event");
    world.when_due(&one).await;
    assert_eq!(world.state().await, State::InDoubt);
    world.when_due(&one).await;
    assert_eq!(world.state().await, State::Succeeded);
    assert_eq!(world.gateway.money_taken(), 1);
    assert_eq!(world.events().await, [ok("charge")]);
    assert!(world.confirmed.was_confirmed(world.order_id), "no call was waiting, so the order is confirmed");
}

#[tokio::test]
async fn a_payment_in_doubt_past_the_limit_fails_only_if_certainly_not_charged() {
    let world = World::new().await;
    let one = world.instance("one");
    world.gateway.script([Reply::NoResponse; 2]);
    assert_eq!(world.process(&one).await.state, State::InDoubt);
    assert!(world.payment().await.payment_method.is_some(), "the charge may have to be retried");
    let steps = world.later(&one, 2).await;
    assert!(matches!(&steps[..], [AttemptOutcome::Advanced(on), ..] if on.state == State::Cancelling), "{steps:?}");
    let payment = world.payment().await;
    assert_eq!((payment.state, payment.decline_code), (State::Failed, Some(DeclineCode::GatewayTimeout)));
    assert_eq!(world.gateway.money_taken(), 0);
    assert_eq!(world.events().await, [failed("charge", "GATEWAY_TIMEOUT GATEWAY_TIMEOUT")]);
}

#[tokio::test]
async fn a_payment_in_doubt_past_the_limit_succeeds_if_it_turns_out_charged() {
    let world = World::new().await;
    let one = world.instance("one");
    world.gateway.script([Reply::ResponseLost, Reply::NoResponse]);
    world.process(&one).await;
    world.later(&one, 2).await;
    assert_eq!(world.state().await, State::Succeeded);
    let effects: Vec<String> = world.attempts().await.into_iter().map(|(effect, _)| effect).collect();
    assert_eq!(effects, ["create_charge", "create_charge", "cancel_charge"]);
    assert_eq!(world.events().await, [ok("charge")]);
}

#[tokio::test]
async fn an_attempt_in_doubt_is_due_no_later_than_the_limit() {
    let world = World::new().await;
    let one = world.instance("one");
    world.gateway.set_unresponsive(true);
    world.process(&one).await;
    let since = world.payment().await.doubt_since.expect("in doubt");
    for _ in 0..12 {
        let payment = world.payment().await;
        if payment.state != State::InDoubt {
            break;
        }
        let due = payment.next_attempt_time.expect("due");
        assert!(due <= since.plus(DOUBT_LIMIT), "the last attempt is made at the doubt limit");
        world.when_due(&one).await;
    }
    assert_eq!(world.state().await, State::Cancelling);
}

#[tokio::test]
async fn a_gateway_that_never_answers_decides_nothing() {
    let world = World::new().await;
    let one = world.instance("one");
    world.gateway.set_unresponsive(true);
    world.process(&one).await;
    world.later(&one, 30).await;
    assert_eq!(world.state().await, State::Cancelling);
    world.gateway.set_unresponsive(false);
    world.later(&one, 1).await;
    assert_eq!(world.state().await, State::Failed);
}

/// The payment's condition when the order is cancelled, and its final state.
#[tokio::test]
async fn a_cancellation_at_any_time_leaves_nothing_charged() {
    let cases: [(&str, &[Reply], State); 6] = [
        ("pending, its driver crashed before the call", &[], State::Cancelled),
        ("in doubt, not charged", &[Reply::NoResponse], State::Cancelled),
        ("in doubt, charged", &[Reply::ResponseLost], State::Refunded),
        ("charged", &[Reply::Fine], State::Refunded),
        (
            "charged, and the cancellation gets no response at first",
            &[Reply::Fine, Reply::NoResponse, Reply::ResponseLost],
            State::Refunded,
        ),
        ("in doubt, and the tombstone's response is lost", &[Reply::NoResponse, Reply::ResponseLost], State::Cancelled),
    ];
    for (case, replies, expected) in cases {
        let world = World::new().await;
        let stop = (replies.is_empty()).then_some((FaultPoint::BeforeEffect, State::Pending));
        let one = world.instance_with("one", Arc::new(StopAt(Mutex::new(stop))), 8);
        world.gateway.script(replies.iter().copied());
        world.process(&one).await;
        world.cancel(&one, 1).await;
        world.later(&one, 3).await;
        let payment = world.payment().await;
        assert_eq!(payment.state, expected, "{case}");
        assert!(payment.cancel_requested, "{case}");
        assert!(!world.gateway.holds_money(), "{case}");
        let name = if expected == State::Refunded { "refund" } else { "cancel" };
        assert_eq!(world.events().await.iter().filter(|event| **event == ok(name)).count(), 1, "{case}");
        assert_eq!(world.cancel(&one, 1).await.version, payment.version, "{case}: a repeated request changes nothing");
    }
}

#[tokio::test]
async fn a_cancellation_is_answered_with_its_result() {
    let world = World::new().await;
    let one = world.instance("one");
    world.process(&one).await;
    assert_eq!(world.cancel(&one, 1).await.state, State::Refunded);
    assert_eq!(world.events().await, [ok("charge"), ok("refund")]);
    assert!(!world.confirmed.was_confirmed(world.order_id));
}

#[tokio::test]
async fn a_cancellation_while_the_doubt_limit_cancels_refunds_what_turns_out_charged() {
    let world = World::new().await;
    let one = world.instance("one");
    world.gateway.script([Reply::ResponseLost, Reply::NoResponse, Reply::NoResponse, Reply::NoResponse]);
    world.process(&one).await;
    world.later(&one, 1).await;
    assert_eq!(world.state().await, State::Cancelling, "started by the doubt limit");
    world.cancel(&one, 1).await;
    world.later(&one, 3).await;
    assert_eq!(world.state().await, State::Refunded);
}

#[tokio::test]
async fn a_cancellation_before_the_payment_is_a_tombstone_and_the_gateway_is_never_called() {
    let world = World::new().await;
    let one = world.instance("one");
    let tombstone = world.cancel(&one, 1).await;
    assert_eq!((tombstone.state, tombstone.amount), (State::Cancelled, None));
    assert_eq!(world.process(&one).await.state, State::Cancelled);
    world.later(&one, 2).await;
    assert_eq!(world.gateway.calls(), [""; 0]);
    assert_eq!(world.events().await, [ok("cancel")]);
    assert_eq!(world.attempts().await, [("record".to_owned(), State::Cancelled)]);
}

/// The flaw of the first design: a stalled driver charges an order that was cancelled in the meantime.
#[tokio::test]
async fn a_driver_that_resumes_after_the_cancellation_charges_nothing() {
    let world = World::new().await;
    let one =
        world.instance_with("one", Arc::new(StopAt(Mutex::new(Some((FaultPoint::BeforeEffect, State::Pending))))), 8);
    let stalled = world.process(&one).await;
    assert_eq!(world.cancel(&world.instance("two"), 1).await.state, State::Cancelled);
    let step = one.driver.attempt(stalled).await.expect("an attempt");
    assert_eq!(step, AttemptOutcome::Lost);
    assert_eq!(world.gateway.money_taken(), 0);
    assert_eq!(world.state().await, State::Cancelled);
    assert_eq!(world.events().await, [ok("cancel")]);
}

#[tokio::test]
async fn a_refused_refund_is_retried_only_with_a_larger_number() {
    let world = World::new().await;
    let one = world.instance("one");
    world.gateway.refuses_refunds(1);
    world.process(&one).await;
    let refused = world.cancel(&one, 1).await;
    assert_eq!((refused.state, refused.refund_n), (State::RefundRefused, 1));
    assert!(refused.last_error.is_some_and(|error| error.contains("on purpose")));
    assert_eq!(world.cancel(&one, 1).await.state, State::RefundRefused, "the same number is answered, not retried");
    let refunded = world.cancel(&one, 2).await;
    assert_eq!((refunded.state, refunded.refund_n), (State::Refunded, 2));
    assert_eq!(world.events().await, [ok("charge"), failed("refund", "REFUND_REFUSED REFUND_REFUSED"), ok("refund")]);
    assert!(!world.gateway.holds_money());
}

#[tokio::test]
async fn two_concurrent_drivers_charge_once_and_write_one_event() {
    let world = World::new().await;
    let (one, two) = (
        world.instance_with("one", Arc::new(StopAt(Mutex::new(Some((FaultPoint::BeforeEffect, State::Pending))))), 8),
        world.instance("two"),
    );
    let pending = world.process(&one).await;
    let (first, second) = tokio::join!(one.driver.attempt(pending.clone()), two.driver.attempt(pending));
    let steps = [first.expect("an attempt"), second.expect("an attempt")];
    assert_eq!(steps.iter().filter(|step| **step == AttemptOutcome::Lost).count(), 1);
    assert_eq!(steps.iter().filter(|step| matches!(step, AttemptOutcome::Completed(_))).count(), 1);
    assert_eq!(world.gateway.money_taken(), 1);
    assert_eq!(world.events().await, [ok("charge")]);
    assert_eq!(world.attempts().await.len(), 1);
}

#[tokio::test]
async fn after_a_crash_at_any_fault_point_another_driver_completes_the_payment() {
    for point in [FaultPoint::BeforeEffect, FaultPoint::AfterEffect, FaultPoint::AfterRecord] {
        let world = World::new().await;
        let at = if point == FaultPoint::AfterRecord { State::Succeeded } else { State::Pending };
        let one = world.instance_with("one", Arc::new(StopAt(Mutex::new(Some((point, at))))), 8);
        let known = world.process(&one).await.state;
        assert_eq!(known, at, "{point:?}");
        let two = world.instance("two");
        assert_eq!(
            two.driver.attempt_due().await.expect("nothing due"),
            [],
            "{point:?}: the crashed driver holds the lease"
        );
        world.clock.advance(LEASE);
        two.driver.attempt_due().await.expect("an attempt");
        assert_eq!(world.state().await, State::Succeeded, "{point:?}");
        assert_eq!(world.gateway.money_taken(), 1, "{point:?}");
        assert_eq!(world.events().await, [ok("charge")], "{point:?}");
    }
}

#[tokio::test]
async fn a_restarted_instance_resumes_its_payments_immediately() {
    let world = World::new().await;
    let dead =
        world.instance_with("one", Arc::new(StopAt(Mutex::new(Some((FaultPoint::AfterEffect, State::Pending))))), 8);
    world.process(&dead).await;
    let again = world.instance("one");
    assert_eq!(again.driver.recover().await.expect("a database"), 1);
    let polling = tokio::spawn(again.driver.clone().poll());
    while world.state().await != State::Succeeded {
        tokio::task::yield_now().await;
    }
    again.shutdown.cancel();
    polling.await.expect("it drains");
    assert_eq!(world.gateway.money_taken(), 1);
}

#[tokio::test]
async fn a_draining_instance_drives_nothing_more_and_frees_its_leases() {
    let world = World::new().await;
    let one = world.instance("one");
    one.shutdown.cancel();
    let lease = Lease { owner: one.name.to_owned(), length: LEASE };
    world.gateway.script([Reply::NoResponse]);
    world.process(&one).await;
    world.clock.advance(LONG);
    assert!(world.store.claim(world.order_id, lease).await.expect("a database").is_some());
    one.driver.clone().poll().await;
    let payment = world.payment().await;
    assert_ne!(payment.state, State::Pending);
    assert_eq!(payment.lease_owner, None);
    assert!(one.driver.permit().is_none());
    let mut world = world;
    world.another_order();
    assert_eq!(world.process(&one).await.state, State::Pending, "recorded, and left to other instances");
    world.instance("two").driver.attempt_due().await.expect("an attempt");
    assert_eq!(world.state().await, State::Succeeded);
}

#[tokio::test]
async fn payments_beyond_the_drive_limit_stay_due() {
    let mut world = World::new().await;
    let one = world.instance_with("one", Arc::new(kernel::NoFaults), 1);
    world.gateway.script([Reply::Hangs]);
    assert_eq!(world.process(&one).await.state, State::Pending);
    assert_eq!(one.driver.in_flight(), 1);
    world.another_order();
    let waiting = world.process(&one).await;
    assert_eq!((waiting.state, waiting.lease_owner), (State::Pending, None));
    assert_eq!(one.driver.attempt_due().await.expect("an attempt").len(), 1);
    assert_eq!(world.state().await, State::Succeeded);
}

#[tokio::test]
async fn the_drive_continues_after_its_caller_disconnects() {
    let world = World::new().await;
    let one = world.instance("one");
    let call = Box::pin(world.process(&one));
    // One poll starts the work; then the caller disconnects.
    let polled = futures_util::future::select(call, std::future::ready(())).await;
    drop(polled);
    one.tasks.close();
    one.tasks.wait().await;
    assert_eq!(world.state().await, State::Succeeded);
    assert!(world.confirmed.was_confirmed(world.order_id), "no call was waiting, so the order is confirmed");
}

#[tokio::test]
async fn an_invalid_amount_or_invalid_details_are_declined_without_the_gateway() {
    let eur = |minor_units| Some(Money::new("EUR".parse().expect("a currency"), minor_units));
    let cases = [
        (eur(0), true, DeclineCode::InvalidAmount),
        (eur(-5), true, DeclineCode::InvalidAmount),
        (eur(10_001), true, DeclineCode::InvalidAmount),
        (None, true, DeclineCode::InvalidAmount),
        (eur(1_999), false, DeclineCode::InvalidPaymentDetails),
    ];
    for (amount, are_details_valid, code) in cases {
        let world = World::new().await;
        let one = world.instance("one");
        let command = ProcessCommand { amount, are_details_valid, ..world.command() };
        for _ in 0..2 {
            let payment = world.try_process(&one, command.clone()).await.expect("a response");
            assert_eq!((payment.state, payment.decline_code), (State::Declined, Some(code)));
        }
        assert_eq!(world.gateway.calls(), [""; 0]);
        assert_eq!(world.events().await, [failed("charge", &format!("PaymentDeclined {}", code.name()))]);
        assert_eq!(world.attempts().await, [("record".to_owned(), State::Declined)]);
    }
}

#[tokio::test]
async fn the_amount_limit_is_per_currency() {
    for (code, minor_units, state) in [
        ("VND", 12_000_000, State::Succeeded),
        ("IDR", 25_000_000, State::Succeeded),
        ("KWD", 10_000_000, State::Succeeded),
        ("KWD", 35_000_001, State::Declined),
    ] {
        let world = World::new().await;
        let amount = Some(Money::new(code.parse().expect("a currency"), minor_units));
        let command = ProcessCommand { amount, ..world.command() };
        let payment = world.try_process(&world.instance("one"), command).await.expect("a response");
        assert_eq!(payment.state, state, "{code} {minor_units}");
    }
}

#[tokio::test]
async fn a_second_command_for_an_order_is_rejected() {
    let world = World::new().await;
    let one = world.instance("one");
    world.process(&one).await;
    let other = ProcessCommand { fingerprint: "another".into(), ..world.command() };
    let rejected = world.try_process(&one, other).await.expect_err("another command");
    assert!(matches!(rejected, Error::RequestIdReused));
    assert_eq!(world.payment().await.version, 2, "nothing changed");
}

#[tokio::test]
async fn a_settled_payment_has_no_pending_effect_and_is_never_due() {
    let world = World::new().await;
    let one = world.instance("one");
    world.process(&one).await;
    assert_eq!(world.payment().await.next_attempt_time, None);
    assert_eq!(world.later(&one, 3).await, []);
}

#[tokio::test]
async fn payments_in_doubt_are_counted_with_their_age() {
    let world = World::new().await;
    let one = world.instance("one");
    assert_eq!(world.store.in_doubt().await.expect("a count").count, 0);
    world.gateway.script([Reply::NoResponse]);
    world.process(&one).await;
    let in_doubt = world.store.in_doubt().await.expect("a count");
    assert_eq!((in_doubt.count, in_doubt.oldest), (1, Some(world.clock.now().as_micros())));
}

#[tokio::test]
async fn a_healthy_ledger_has_no_differences_and_a_broken_one_has_each_reported() {
    let mut world = World::new().await;
    let one = world.instance("one");
    let mut orders = vec![];
    // Charged; refunded; failed; cancelled before it was requested; declined by the service's checks; pending.
    world.process(&one).await;
    orders.push(world.order_id);
    world.another_order();
    world.process(&one).await;
    world.cancel(&one, 1).await;
    orders.push(world.order_id);
    world.another_order();
    world.gateway.script([Reply::NoResponse, Reply::NoResponse]);
    world.process(&one).await;
    world.later(&one, 2).await;
    assert_eq!(world.state().await, State::Failed);
    orders.push(world.order_id);
    world.another_order();
    world.cancel(&one, 1).await;
    world.another_order();
    let invalid = ProcessCommand { amount: None, ..world.command() };
    world.try_process(&one, invalid).await.expect("a response");
    world.another_order();
    world.gateway.script([Reply::NoResponse]);
    world.process(&one).await;

    let healthy = world.reconciler().reconcile().await.expect("a comparison");
    assert_eq!(healthy.differences, []);
    assert_eq!((healthy.payment_count, healthy.charge_count, healthy.unfinished_count), (6, 3, 1));

    world.gateway.loses_row(&charge_key(orders[0]));
    world.gateway.loses_row(&charge_key(orders[2]));
    let stray = |key: &str| Charge {
        charge_id: "ch_x".into(),
        charge_key: key.into(),
        status: ChargeStatus::Succeeded,
        amount: world.command().amount,
    };
    world.gateway.invents_row(stray("nobody-knows"));
    world.gateway.invents_row(stray(&charge_key(orders[1])));
    let broken = world.reconciler().reconcile().await.expect("a comparison");
    let mut found: Vec<_> =
        broken.differences.iter().map(|d| (d.order_id.clone(), d.payment.as_str(), d.gateway.as_str())).collect();
    let mut expected = vec![
        (orders[0].to_string(), "SUCCEEDED", "no row"),
        (orders[1].to_string(), "REFUNDED", "SUCCEEDED"),
        (orders[2].to_string(), "FAILED", "no row"),
        ("nobody-knows".to_owned(), "no payment", "SUCCEEDED"),
    ];
    found.sort();
    expected.sort();
    assert_eq!(found, expected);

    world.gateway.set_unresponsive(true);
    let rejected = world.reconciler().reconcile().await.expect_err("no ledger");
    assert!(matches!(rejected, Error::GatewayUnreachable(_)));
}

#[tokio::test]
async fn an_account_has_the_attempts_and_the_gateways_entry() {
    let world = World::new().await;
    let one = world.instance("one");
    assert!(matches!(world.reconciler().details(world.order_id).await, Err(Error::PaymentNotFound)));
    world.gateway.script([Reply::NoResponse]);
    world.process(&one).await;
    assert_eq!(world.reconciler().details(world.order_id).await.expect("a payment").ledger, LedgerEntry::NoRow);
    world.later(&one, 1).await;
    let details = world.reconciler().details(world.order_id).await.expect("a payment");
    assert_eq!(details.ledger.to_string(), "SUCCEEDED");
    let outcomes: Vec<_> = details.attempts.iter().map(|attempt| attempt.outcome.as_str()).collect();
    assert_eq!(outcomes, ["no response: TIMEOUT: unresponsive on purpose", "SUCCEEDED"]);
    world.gateway.set_unresponsive(true);
    assert_eq!(world.reconciler().details(world.order_id).await.expect("a payment").ledger, LedgerEntry::NoResponse);
}

const HOUR: std::time::Duration = std::time::Duration::from_secs(3_600);

#[tokio::test]
async fn setting_the_clock_back_does_not_extend_the_doubt() {
    let world = World::new().await;
    let one = world.instance("one");
    world.gateway.set_unresponsive(true);
    world.process(&one).await;
    world.clock.set_back(HOUR);
    let began = world.clock.now();
    for _ in 0..20 {
        if world.state().await != State::InDoubt {
            break;
        }
        let steps = one.driver.attempt_due().await.expect("an attempt");
        if steps.is_empty() {
            world.when_due(&one).await;
        }
    }
    assert_eq!(world.state().await, State::Cancelling);
    let took = world.clock.now().since(began);
    assert!(took <= DOUBT_LIMIT * 2, "{took:?}");
}

#[tokio::test]
async fn a_crashed_instances_lease_of_a_clock_that_was_set_back_is_taken_over() {
    let world = World::new().await;
    let stop = Some((FaultPoint::BeforeEffect, State::Pending));
    let one = world.instance_with("one", Arc::new(StopAt(Mutex::new(stop))), 8);
    world.process(&one).await;
    world.clock.set_back(HOUR);
    assert_eq!(world.instance("two").driver.attempt_due().await.expect("an attempt").len(), 1);
    assert_eq!(world.state().await, State::Succeeded);
    assert_eq!(world.gateway.money_taken(), 1);
}

#[tokio::test]
async fn setting_the_clock_forward_charges_nothing_twice() {
    let world = World::new().await;
    let one = world.instance("one");
    world.gateway.script([Reply::ResponseLost]);
    world.process(&one).await;
    world.clock.advance(HOUR);
    world.later(&one, 3).await;
    assert!(world.gateway.money_taken() <= 1);
    assert_eq!(world.state().await, State::Succeeded);
}
