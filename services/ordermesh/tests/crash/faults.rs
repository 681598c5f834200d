//! What happens at the points that the drivers come to: a death, a cancellation, a stall, stock that is written off. And after
//! each of them, what must be so.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use kernel::{FaultPoint, Faults, Place};
use tokio::sync::{Notify, watch};

use crate::world::Api;

/// A point of the order's or the payment's driver: service, point, state.
pub(crate) type Spot = (&'static str, FaultPoint, &'static str);

/// What happens at a spot, once.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// The driver's process dies.
    Die,
    /// The customer cancels.
    Cancel,
    /// The stock is written off.
    WriteOff,
    /// The driver stands still until it is let go.
    Stall,
}

/// The plan of a run. Each act is played once, at the first time that its spot is come to.
#[derive(Default)]
pub(crate) struct Plan {
    acts: Mutex<VecDeque<(Spot, Act)>>,
    visited: Mutex<BTreeSet<Spot>>,
    died: watch::Sender<BTreeSet<String>>,
    stalled: watch::Sender<Option<String>>,
    gate: Notify,
    /// What checks and acts: set once there is a world.
    pub(crate) api: Mutex<Option<Api>>,
}

impl Plan {
    pub(crate) fn new(acts: impl IntoIterator<Item = (Spot, Act)>) -> Arc<Self> {
        Arc::new(Self { acts: Mutex::new(acts.into_iter().collect()), ..Self::default() })
    }

    /// One more.
    pub(crate) fn add(&self, spot: Spot, act: Act) {
        lock(&self.acts).push_back((spot, act));
    }

    /// The spots that were come to.
    pub(crate) fn visited(&self) -> BTreeSet<Spot> {
        lock(&self.visited).clone()
    }

    /// Has everything happened that was planned?
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.acts).is_empty()
    }

    /// Nothing that is still planned happens any more.
    pub(crate) fn forget(&self) {
        lock(&self.acts).clear();
    }

    pub(crate) fn has_died(&self, instance: &str) -> bool {
        self.died.borrow().contains(instance)
    }

    /// Its process was started again.
    pub(crate) fn lives_again(&self, instance: &str) {
        self.died.send_modify(|died| {
            died.remove(instance);
        });
    }

    pub(crate) fn is_stalled(&self, instance: &str) -> bool {
        self.stalled.borrow().as_deref() == Some(instance)
    }

    pub(crate) fn somebody_stands(&self) -> bool {
        self.stalled.borrow().is_some()
    }

    /// Returns when this instance has died or stands still.
    pub(crate) async fn is_gone(&self, instance: &str) {
        let (mut died, mut stalled) = (self.died.subscribe(), self.stalled.subscribe());
        tokio::select! {
            _ = died.wait_for(|died| died.contains(instance)) => {}
            _ = stalled.wait_for(|stalled| stalled.as_deref() == Some(instance)) => {}
        }
    }

    /// Returns when this instance stands still.
    pub(crate) async fn stands_still(&self, instance: &str) {
        let mut stalled = self.stalled.subscribe();
        let _ = stalled.wait_for(|stalled| stalled.as_deref() == Some(instance)).await;
    }

    /// The driver that stands still goes on, and to its end: it does not stand still once more.
    pub(crate) fn let_go(&self) {
        lock(&self.acts).retain(|(_, act)| !matches!(act, Act::Stall));
        self.stalled.send_replace(None);
        self.gate.notify_one();
    }

    fn take(&self, spot: Spot) -> Vec<Act> {
        lock(&self.visited).insert(spot);
        let mut acts = lock(&self.acts);
        let mut taken = Vec::new();
        while let Some(index) = acts.iter().position(|(at, _)| *at == spot) {
            let Some((_, act)) = acts.remove(index) else { break };
            let ends = matches!(act, Act::Die);
            taken.push(act);
            // A second death here is of the next who comes.
            if ends {
                break;
            }
        }
        taken
    }
}

impl Faults for Plan {
    fn at<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, ControlFlow<()>> {
        Box::pin(async move {
            let service = if place.instance.starts_with("order") { "order" } else { "payment" };
            let spot = (service, place.point, place.state);
            let api = lock(&self.api).clone().expect("there is a world");
            api.check(&format!("{} comes to {spot:?}", place.instance)).await;
            for act in self.take(spot) {
                match act {
                    Act::Die => {
                        self.died.send_modify(|died| {
                            died.insert(place.instance.to_owned());
                        });
                        return ControlFlow::Break(());
                    }
                    Act::Cancel => api.cancel().await,
                    Act::WriteOff => api.write_off().await,
                    // One stands at a time.
                    Act::Stall if self.somebody_stands() => {}
                    Act::Stall => {
                        self.stalled.send_replace(Some(place.instance.to_owned()));
                        self.gate.notified().await;
                    }
                }
            }
            ControlFlow::Continue(())
        })
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
