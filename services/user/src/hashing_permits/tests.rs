use std::future::Future;
use std::pin::Pin;

use futures_util::FutureExt;

use super::*;

/// A call that wants a permit: polled by hand, so that nothing depends on time.
struct Call(Pin<Box<dyn Future<Output = Result<HashingPermit, QueueFull>>>>);

impl Call {
    fn new(permits: &HashingPermits, share: Share) -> Self {
        let permits = permits.clone();
        let mut call = Self(Box::pin(async move { permits.take(share).await }));
        if let Some(done) = call.poll() {
            call.0 = Box::pin(std::future::ready(done));
        }
        call
    }

    /// `None`: it waits.
    fn poll(&mut self) -> Option<Result<HashingPermit, QueueFull>> {
        (&mut self.0).now_or_never()
    }

    fn permit(&mut self) -> HashingPermit {
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

fn calls(permits: &HashingPermits, address: &str, count: usize) -> Vec<Call> {
    (0..count).map(|number| Call::new(permits, at(address, &format!("x{number}@example.com")))).collect()
}

fn is_rejected(call: &mut Call) -> bool {
    !call.waits() && call.poll().is_some_and(|done| done.is_err())
}

fn nothing_is_kept(permits: &HashingPermits, free: usize) {
    let state = permits.0.state();
    assert_eq!((state.free, state.waiting.len()), (free, 0));
    assert!(state.addresses.is_empty() && state.accounts.is_empty(), "{state:?}");
}

#[test]
fn a_well_behaved_caller_is_next_however_many_of_another_address_wait() {
    for processors in [1, 2, 4] {
        let permits = HashingPermits::new(processors, 200);
        let mut other_client = calls(&permits, "192.0.2.1", 140 + processors);
        let at_work: Vec<HashingPermit> = other_client.drain(..processors).map(|mut call| call.permit()).collect();
        let mut regular = Call::new(&permits, at("198.51.100.7", "ada@example.com"));
        assert!(regular.waits());
        drop(at_work.into_iter().next());
        drop(regular.permit());
        drop((other_client, regular));
    }
}

#[test]
fn addresses_are_served_alternately_and_bursts_are_served_too() {
    let permits = HashingPermits::new(1, 100);
    let mut first = Call::new(&permits, at("192.0.2.9", "first"));
    let mut at_work = first.permit();
    let mut waiting: Vec<(&str, Call)> = Vec::new();
    for (address, count) in [("192.0.2.1", 4), ("192.0.2.2", 2), ("192.0.2.3", 1)] {
        waiting.extend(calls(&permits, address, count).into_iter().map(|call| (address, call)));
    }
    let mut served = vec![];
    while !waiting.is_empty() {
        drop(at_work);
        let index = waiting.iter_mut().position(|(_, call)| !call.waits()).expect("a served call");
        let (address, mut call) = waiting.remove(index);
        at_work = call.permit();
        served.push(address.rsplit('.').next().expect("a number"));
    }
    assert_eq!(served, ["1", "2", "3", "1", "2", "1", "1"]);
    drop(at_work);
    nothing_is_kept(&permits, 1);
}

#[test]
fn the_accounts_of_an_address_are_served_alternately() {
    let permits = HashingPermits::new(1, 100);
    let at_work = Call::new(&permits, at("192.0.2.1", "mallory")).permit();
    let mallory: Vec<Call> = (0..40).map(|_| Call::new(&permits, at("192.0.2.1", "mallory"))).collect();
    let mut ada = Call::new(&permits, at("192.0.2.1", "ada"));
    assert!(ada.waits());
    drop(at_work);
    drop(ada.permit());
    drop(mallory);
    nothing_is_kept(&permits, 1);
}

#[test]
fn a_full_queue_evicts_the_newest_call_of_the_address_with_the_most() {
    let permits = HashingPermits::new(1, 64);
    let _at_work = Call::new(&permits, at("192.0.2.1", "at work")).permit();
    let mut few = calls(&permits, "192.0.2.2", 14);
    let mut largest = calls(&permits, "192.0.2.1", 50);
    let mut regular = Call::new(&permits, at("198.51.100.7", "ada@example.com"));
    assert!(regular.waits() && few.iter_mut().all(Call::waits));
    assert!(is_rejected(largest.last_mut().expect("fifty")), "the newest is evicted");
    largest.pop();
    assert!(largest.iter_mut().all(Call::waits), "no other call is");
    let mut one_more = Call::new(&permits, at("192.0.2.1", "one more"));
    assert!(is_rejected(&mut one_more), "control: a new call of the address with the most is rejected");
    assert!(regular.waits() && few.iter_mut().all(Call::waits));
}

#[test]
fn a_full_queue_of_one_address_evicts_from_the_account_with_the_most() {
    let permits = HashingPermits::new(1, 64);
    let _at_work = Call::new(&permits, at("192.0.2.1", "mallory")).permit();
    let mut mallory: Vec<Call> = (0..64).map(|_| Call::new(&permits, at("192.0.2.1", "mallory"))).collect();
    let mut ada = Call::new(&permits, at("192.0.2.1", "ada"));
    assert!(ada.waits(), "a well-behaved caller behind the same proxy");
    assert!(is_rejected(mallory.last_mut().expect("some")));
}

#[test]
fn addresses_with_one_call_each_do_not_evict_each_other() {
    let permits = HashingPermits::new(1, 4);
    let _at_work = Call::new(&permits, at("192.0.2.1", "at work")).permit();
    let mut waiting: Vec<Call> = (2..6).map(|n| Call::new(&permits, at(&format!("192.0.2.{n}"), "x"))).collect();
    assert!(is_rejected(&mut Call::new(&permits, at("192.0.2.6", "x"))));
    assert!(waiting.iter_mut().all(Call::waits));
}

#[test]
fn an_ipv6_network_is_one_address() {
    assert_eq!(at("2001:db8::1", "x"), at("2001:db8::ffff", "x"));
    assert_ne!(at("2001:db8::1", "x"), at("2001:db8:0:1::1", "x"));
}

#[test]
fn a_cancelled_call_leaves_the_queue_and_returns_its_permit() {
    let permits = HashingPermits::new(1, 8);
    let at_work = Call::new(&permits, at("192.0.2.1", "x")).permit();
    let mut waiting = calls(&permits, "192.0.2.2", 3);
    drop(waiting.remove(1));
    assert_eq!(permits.0.state().waiting.len(), 2);
    drop(at_work);
    // The first has got the permit, and is dropped before it is polled.
    drop(waiting.remove(0));
    drop(waiting.remove(0).permit());
    nothing_is_kept(&permits, 1);
}

#[tokio::test]
async fn waiting_tasks_get_permits() {
    let permits = HashingPermits::new(2, 64);
    let served = (0..40).map(|number| {
        let permits = permits.clone();
        tokio::spawn(async move {
            let _permit = permits.take(at("192.0.2.1", &format!("{}", number % 3))).await?;
            tokio::task::yield_now().await;
            Ok::<_, QueueFull>(())
        })
    });
    for served in futures_util::future::join_all(served).await {
        served.expect("no panic").expect("served");
    }
    nothing_is_kept(&permits, 2);
}
