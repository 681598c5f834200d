use std::future::Future;
use std::pin::Pin;

use futures_util::FutureExt;

use super::*;

/// A call that wants a slot: polled by hand, so that nothing depends on time.
struct Call(Pin<Box<dyn Future<Output = Result<Slot, QueueFull>>>>);

impl Call {
    fn new(slots: &Slots, share: Share) -> Self {
        let slots = slots.clone();
        let mut call = Self(Box::pin(async move { slots.take(share).await }));
        if let Some(done) = call.poll() {
            call.0 = Box::pin(std::future::ready(done));
        }
        call
    }

    /// `None`: it waits.
    fn poll(&mut self) -> Option<Result<Slot, QueueFull>> {
        (&mut self.0).now_or_never()
    }

    fn slot(&mut self) -> Slot {
        self.poll().expect("not waiting").expect("not rejected")
    }

    fn waits(&mut self) -> bool {
        match self.poll() {
            None => true,
            Some(done) => {
                self.0 = Box::pin(std::future::ready(done));
                false
            }
        }
    }
}

fn at(address: &str, account: &str) -> Share {
    Share::of_account(address.parse().expect("an address"), account)
}

fn calls(slots: &Slots, address: &str, count: usize) -> Vec<Call> {
    (0..count).map(|number| Call::new(slots, at(address, &format!("x{number}@example.com")))).collect()
}

fn is_rejected(call: &mut Call) -> bool {
    !call.waits() && call.poll().is_some_and(|done| done.is_err())
}

fn nothing_is_kept(slots: &Slots, free: usize) {
    let state = slots.0.state();
    assert_eq!((state.free, state.waiting.len()), (free, 0));
    assert!(state.addresses.is_empty() && state.accounts.is_empty(), "{state:?}");
}

#[test]
fn a_well_behaved_caller_is_next_however_many_of_another_address_wait() {
    for processors in [1, 2, 4] {
        let slots = Slots::new(processors, 200);
        let mut other_client = calls(&slots, "192.0.2.1", 140 + processors);
        let at_work: Vec<Slot> = other_client.drain(..processors).map(|mut call| call.slot()).collect();
        let mut regular = Call::new(&slots, at("198.51.100.7", "ada@example.com"));
        assert!(regular.waits());
        drop(at_work.into_iter().next());
        drop(regular.slot());
        drop((other_client, regular));
    }
}

#[test]
fn addresses_are_served_alternately_and_bursts_are_served_too() {
    let slots = Slots::new(1, 100);
    let mut first = Call::new(&slots, at("192.0.2.9", "first"));
    let mut at_work = first.slot();
    let mut waiting: Vec<(&str, Call)> = Vec::new();
    for (address, count) in [("192.0.2.1", 4), ("192.0.2.2", 2), ("192.0.2.3", 1)] {
        waiting.extend(calls(&slots, address, count).into_iter().map(|call| (address, call)));
    }
    let mut served = vec![];
    while !waiting.is_empty() {
        drop(at_work);
        let index = waiting.iter_mut().position(|(_, call)| !call.waits()).expect("a served call");
        let (address, mut call) = waiting.remove(index);
        at_work = call.slot();
        served.push(address.rsplit('.').next().expect("a number"));
    }
    assert_eq!(served, ["1", "2", "3", "1", "2", "1", "1"]);
    drop(at_work);
    nothing_is_kept(&slots, 1);
}

#[test]
fn the_accounts_of_an_address_are_served_alternately() {
    let slots = Slots::new(1, 100);
    let at_work = Call::new(&slots, at("192.0.2.1", "mallory")).slot();
    let mallory: Vec<Call> = (0..40).map(|_| Call::new(&slots, at("192.0.2.1", "mallory"))).collect();
    let mut ada = Call::new(&slots, at("192.0.2.1", "ada"));
    assert!(ada.waits());
    drop(at_work);
    drop(ada.slot());
    drop(mallory);
    nothing_is_kept(&slots, 1);
}

#[test]
fn a_full_queue_evicts_the_newest_call_of_the_address_with_the_most() {
    let slots = Slots::new(1, 64);
    let _at_work = Call::new(&slots, at("192.0.2.1", "at work")).slot();
    let mut few = calls(&slots, "192.0.2.2", 14);
    let mut largest = calls(&slots, "192.0.2.1", 50);
    let mut regular = Call::new(&slots, at("198.51.100.7", "ada@example.com"));
    assert!(regular.waits() && few.iter_mut().all(Call::waits));
    assert!(is_rejected(largest.last_mut().expect("fifty")), "the newest is evicted");
    largest.pop();
    assert!(largest.iter_mut().all(Call::waits), "no other call is");
    let mut one_more = Call::new(&slots, at("192.0.2.1", "one more"));
    assert!(is_rejected(&mut one_more), "control: a new call of the address with the most is rejected");
    assert!(regular.waits() && few.iter_mut().all(Call::waits));
}

#[test]
fn a_full_queue_of_one_address_evicts_from_the_account_with_the_most() {
    let slots = Slots::new(1, 64);
    let _at_work = Call::new(&slots, at("192.0.2.1", "mallory")).slot();
    let mut mallory: Vec<Call> = (0..64).map(|_| Call::new(&slots, at("192.0.2.1", "mallory"))).collect();
    let mut ada = Call::new(&slots, at("192.0.2.1", "ada"));
    assert!(ada.waits(), "a well-behaved caller behind the same proxy");
    assert!(is_rejected(mallory.last_mut().expect("some")));
}

#[test]
fn addresses_with_one_call_each_do_not_evict_each_other() {
    let slots = Slots::new(1, 4);
    let _at_work = Call::new(&slots, at("192.0.2.1", "at work")).slot();
    let mut waiting: Vec<Call> = (2..6).map(|n| Call::new(&slots, at(&format!("192.0.2.{n}"), "x"))).collect();
    assert!(is_rejected(&mut Call::new(&slots, at("192.0.2.6", "x"))));
    assert!(waiting.iter_mut().all(Call::waits));
}

#[test]
fn an_ipv6_network_is_one_address() {
    assert_eq!(at("2001:db8::1", "x"), at("2001:db8::ffff", "x"));
    assert_ne!(at("2001:db8::1", "x"), at("2001:db8:0:1::1", "x"));
}

#[test]
fn a_cancelled_call_leaves_the_queue_and_returns_its_slot() {
    let slots = Slots::new(1, 8);
    let at_work = Call::new(&slots, at("192.0.2.1", "x")).slot();
    let mut waiting = calls(&slots, "192.0.2.2", 3);
    drop(waiting.remove(1));
    assert_eq!(slots.0.state().waiting.len(), 2);
    drop(at_work);
    // The first has got the slot, and is dropped before it is polled.
    drop(waiting.remove(0));
    drop(waiting.remove(0).slot());
    nothing_is_kept(&slots, 1);
}

#[tokio::test]
async fn waiting_tasks_get_slots() {
    let slots = Slots::new(2, 64);
    let served = (0..40).map(|number| {
        let slots = slots.clone();
        tokio::spawn(async move {
            let _slot = slots.take(at("192.0.2.1", &format!("{}", number % 3))).await?;
            tokio::task::yield_now().await;
            Ok::<_, QueueFull>(())
        })
    });
    for served in futures_util::future::join_all(served).await {
        served.expect("no panic").expect("served");
    }
    nothing_is_kept(&slots, 2);
}
