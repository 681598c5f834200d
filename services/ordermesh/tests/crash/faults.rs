//! Injects faults at the drivers' fault points: a crash, a cancellation, a stall, a write-off of stock. The promises
//! are verified at each of them.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use kernel::{FaultPoint, FaultSite, Faults};
use tokio::sync::{Notify, watch};

use crate::world::Api;

/// A fault point of the order's or the payment's driver: service, point, state.
pub(crate) type Spot = (&'static str, FaultPoint, &'static str);

/// A fault or an action at a fault point, once.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// The driver's process crashes.
    Die,
    /// The customer cancels.
    Cancel,
    /// The stock is written off.
    WriteOff,
    /// The driver stalls until it is resumed.
    Stall,
}

/// The plan of a run. Each act is performed once, when its fault point is first visited.
#[derive(Default)]
pub(crate) struct Plan {
    acts: Mutex<VecDeque<(Spot, Act)>>,
    visited: Mutex<BTreeSet<Spot>>,
    died: watch::Sender<BTreeSet<String>>,
    stalled: watch::Sender<Option<String>>,
    gate: Notify,
    /// Verifies the promises and performs actions: set once there is a world.
    pub(crate) api: Mutex<Option<Api>>,
}

impl Plan {
    pub(crate) fn new(acts: impl IntoIterator<Item = (Spot, Act)>) -> Arc<Self> {
        Arc::new(Self { acts: Mutex::new(acts.into_iter().collect()), ..Self::default() })
    }

    /// Adds an act.
    pub(crate) fn add(&self, spot: Spot, act: Act) {
        lock(&self.acts).push_back((spot, act));
    }

    /// The fault points visited.
    pub(crate) fn visited(&self) -> BTreeSet<Spot> {
        lock(&self.visited).clone()
    }

    /// Whether every planned act was performed.
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.acts).is_empty()
    }

    /// Drops the acts that were not performed.
    pub(crate) fn forget(&self) {
        lock(&self.acts).clear();
    }

    pub(crate) fn has_died(&self, instance: &str) -> bool {
        self.died.borrow().contains(instance)
    }

    /// Its process was restarted.
    pub(crate) fn lives_again(&self, instance: &str) {
        self.died.send_modify(|died| {
            died.remove(instance);
        });
    }

    pub(crate) fn is_stalled(&self, instance: &str) -> bool {
        self.stalled.borrow().as_deref() == Some(instance)
    }

    pub(crate) fn is_any_stalled(&self) -> bool {
        self.stalled.borrow().is_some()
    }

    /// Completes when this instance has crashed or stalled.
    pub(crate) async fn is_gone(&self, instance: &str) {
        let (mut died, mut stalled) = (self.died.subscribe(), self.stalled.subscribe());
        tokio::select! {
            _ = died.wait_for(|died| died.contains(instance)) => {}
            _ = stalled.wait_for(|stalled| stalled.as_deref() == Some(instance)) => {}
        }
    }

    /// Completes when this instance has stalled.
    pub(crate) async fn is_stalled_now(&self, instance: &str) {
        let mut stalled = self.stalled.subscribe();
        let _ = stalled.wait_for(|stalled| stalled.as_deref() == Some(instance)).await;
    }

    /// Resumes the stalled driver, which runs to its end without another stall.
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
            // A second crash here is for the next driver that visits this point.
            if ends {
                break;
            }
        }
        taken
    }
}

impl Faults for Plan {
    fn at<'a>(&'a self, site: FaultSite<'a>) -> BoxFuture<'a, ControlFlow<()>> {
        Box::pin(async move {
            let service = if site.instance.starts_with("order") { "order" } else { "payment" };
            let spot = (service, site.point, site.state);
            let api = lock(&self.api).clone().expect("a world");
            api.check(&format!("{} comes to {spot:?}", site.instance)).await;
            for act in self.take(spot) {
                match act {
                    Act::Die => {
                        self.died.send_modify(|died| {
                            died.insert(site.instance.to_owned());
                        });
                        return ControlFlow::Break(());
                    }
                    Act::Cancel => api.cancel().await,
                    Act::WriteOff => api.write_off().await,
                    // One driver is stalled at a time.
                    Act::Stall if self.is_any_stalled() => {}
                    Act::Stall => {
                        self.stalled.send_replace(Some(site.instance.to_owned()));
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
